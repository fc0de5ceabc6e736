// Inputs as they were submitted: texts, objects, dialogues, images. An image is fetched, with the key, when it comes into
// view. A large image also shows the boxes and masks of its results.

import { image } from "./api.js";
import { el, svg } from "./dom.js";
import { bytes, count, share } from "./words.js";

const MOST_MASK_PIXELS = 16_000_000;

/** An input in a list. `signal` aborts open requests and frees the images. */
export function excerpt(job, item, signal) {
  const input = item.input;
  if (input.form === "image" && input.drawable) return picture(job, item, signal, "thumb");
  if (input.form === "text") return el("p", { class: "excerpt" }, input.text ?? "a text stored by reference");
  return el("p", { class: "excerpt muted" }, words(input));
}

/** An input in full, with the boxes and masks of its results. */
export function full(job, item, signal) {
  const input = item.input;
  if (input.form === "image" && input.drawable) {
    return el("figure", {}, picture(job, item, signal, "large"), el("figcaption", { class: "muted" }, words(input)));
  }
  if (input.form === "text") return el("p", { class: "text whole" }, input.text);
  if (input.form === "object") return whole(input.fields);
  return el("p", { class: "muted" }, words(input));
}

function words(input) {
  switch (input.form) {
    case "image":
      return input.width ? `${count(input.width)} × ${count(input.height)} ${input.media_type.replace("image/", "")}, ${bytes(input.bytes)}` : "stored by reference";
    case "bytes":
      return `${bytes(input.bytes)}, not an image`;
    case "object":
      return pairs(input.fields).map(([name, value]) => `${name}: ${line(value)}`).join(" · ");
    case "derived":
      return derived(input.fields);
    case "gone":
      return input.reason ?? "not kept";
    default:
      return input.text ?? "";
  }
}

/** The named parts of an object; a turn of a dialogue has a single one, named by its role. */
function pairs(value) {
  const { role, content, ...others } = value;
  const turn = typeof role === "string" && content !== undefined && Object.keys(others).length === 0;
  return turn ? [[role, content]] : Object.entries(value);
}

/** A value of JSON in a line. */
function line(value) {
  if (Array.isArray(value)) return value.map(line).join(", ");
  if (value === null || typeof value !== "object") return String(value);
  return pairs(value).map(([name, inner]) => `${name}: ${line(inner)}`).join(", ");
}

/** A value of JSON with all its parts. */
function whole(value) {
  if (Array.isArray(value) && value.every((part) => part === null || typeof part !== "object")) {
    return el("span", { class: "text" }, value.join(value.some((part) => typeof part === "string") ? "\n" : ", "));
  }
  if (Array.isArray(value)) return el("ol", { class: "parts" }, value.map((part) => el("li", {}, whole(part))));
  if (value === null || typeof value !== "object") return el("span", { class: "text" }, String(value));
  return el("dl", { class: "fields" }, pairs(value).map(([name, inner]) => [el("dt", {}, name), el("dd", {}, whole(inner))]));
}

/** The input of a later step of a pipeline. */
function derived({ take, of, part }) {
  const tasks = [...new Set(of.map(([, task]) => task))].join(", ");
  return `${take} of ${tasks}${part === undefined || part === null ? "" : `, part ${count(part)}`}`;
}

function picture(job, item, signal, size) {
  const alt = `Input of item ${item.seq}${item.key ? `, ${item.key}` : ""}`;
  const frame = el("span", { class: `picture ${size}` });
  const show = async () => {
    try {
      const address = URL.createObjectURL(await image(`/api/jobs/${encodeURIComponent(job)}/items/${item.seq}/image`, { signal }));
      signal.addEventListener("abort", () => URL.revokeObjectURL(address), { once: true });
      const node = el("img", { src: address, alt });
      await node.decode();
      frame.replaceChildren(node, ...(size === "large" ? found(item, node.naturalWidth, node.naturalHeight) : []));
    } catch (error) {
      if (!signal.aborted) frame.replaceChildren(el("span", { class: "muted" }, error.status === 404 ? "no image" : "cannot be drawn"));
    }
  };
  whenSeen(frame, show, signal);
  return frame;
}

function whenSeen(node, act, signal) {
  const watch = new IntersectionObserver(
    (entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      watch.disconnect();
      act();
    },
    { rootMargin: "200px" },
  );
  watch.observe(node);
  signal.addEventListener("abort", () => watch.disconnect(), { once: true });
}

/** The masks, and above them the boxes, of the item's results. */
function found(item, width, height) {
  const parts = item.results.flatMap((result) => (Array.isArray(result.output) ? result.output : []));
  const masks = parts.filter((part) => part?.mask?.size).map((part, place) => unlessOdd(() => mask(part.mask, place)));
  const boxes = parts.filter((part) => part?.box && typeof part.box.xmin === "number");
  const drawn = boxes.length ? [svg("svg", { class: "boxes", viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" }, boxes.map((part) => unlessOdd(() => box(part, width))))] : [];
  return [...masks.filter(Boolean), ...drawn];
}

/** What `draw` makes, or nothing if it throws: an answer of a user's own task may only resemble a box or a mask. */
function unlessOdd(draw) {
  try {
    return draw();
  } catch {
    return null;
  }
}

function box({ box: { xmin, ymin, xmax, ymax }, label, score }, width) {
  const size = Math.max(10, width / 36);
  return svg(
    "g",
    {},
    svg("rect", { x: xmin, y: ymin, width: Math.max(0, xmax - xmin), height: Math.max(0, ymax - ymin), "stroke-width": Math.max(1.5, width / 260) }),
    svg("text", { x: xmin + size / 4, y: Math.max(size, ymin - size / 4), "font-size": size }, `${label} ${share(score)}`),
  );
}

/** Draw run lengths, column by column, alternately outside and inside. */
function mask({ size: [height, width], counts }, place) {
  if (width * height > MOST_MASK_PIXELS) return null;
  const canvas = el("canvas", { class: "mask", width, height, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  const [red, green, blue] = [[20, 150, 170], [230, 120, 40], [150, 90, 200], [60, 160, 80], [210, 70, 110]][place % 5];
  let at = 0;
  counts.forEach((run, turn) => {
    for (let end = at + run; turn % 2 && at < end; at++) {
      pixels.data.set([red, green, blue, 130], 4 * ((at % height) * width + Math.floor(at / height)));
    }
    if (turn % 2 === 0) at += run;
  });
  context.putImageData(pixels, 0, 0);
  return canvas;
}
