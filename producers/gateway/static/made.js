// Result pictures: files, fetched with the key when they come into view.

import { image } from "./api.js";
import { el } from "./dom.js";
import { bytes, count } from "./words.js";

/** Whether an output is a picture file. */
export const isMade = (value) => ["uri", "sha256", "media_type"].every((name) => typeof value?.image?.[name] === "string");

/** The picture of an output, small in a list. */
export function made(value, briefly) {
  const file = value.image;
  const frame = el("span", { class: `picture ${briefly ? "thumb" : "large"}` });
  const show = () => fetched(file, frame);
  const watch = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    watch.disconnect();
    show();
  });
  watch.observe(frame);
  if (briefly) return frame;
  const seed = value.seed === undefined ? "" : `, seed ${value.seed}`;
  const words = `${count(file.width)} × ${count(file.height)} ${file.media_type.replace("image/", "")}, ${bytes(file.bytes)}${seed}`;
  return el("figure", {}, frame, el("figcaption", { class: "muted" }, words));
}

async function fetched(file, frame) {
  const [job, name] = file.uri.split("/").slice(-2);
  try {
    const address = URL.createObjectURL(await image(`/api/jobs/${encodeURIComponent(job)}/files/${encodeURIComponent(name)}`));
    const node = el("img", { src: address, alt: "The picture that was made" });
    await node.decode();
    URL.revokeObjectURL(address); // the decoded picture stays
    frame.replaceChildren(node);
  } catch (error) {
    frame.replaceChildren(el("span", { class: "muted" }, error.status === 404 ? "no longer kept" : "cannot be drawn"));
  }
}
