// One item's time as a waterfall: for each task the stages from its submission to its stored result.

import { el } from "./dom.js";
import { duration } from "./words.js";

/** The stages of a result with their begin and end. Clocks of several machines may differ: no stage ends before it begins. */
function stages(row, batch) {
  const forwardEnd = batch && batch.started_at + batch.forward_s;
  const ends = batch
    ? [["waiting", row.batched_at], ["before the device", batch.started_at], ["forward", forwardEnd], ["finishing", row.computed_at], ["storing", row.stored_at]]
    : [["waiting", row.batched_at], ["computing", row.computed_at], ["storing", row.stored_at]];
  let at = row.queued_at;
  return ends
    .filter(([, end]) => end !== null && end !== undefined)
    .map(([name, end]) => {
      const begin = at;
      at = Math.max(at, end);
      return { name, begin, end: at };
    });
}

/** The waterfall of an item; nothing if its times are not known. */
export function waterfall({ results, batches }) {
  const known = results.filter((row) => row.queued_at && row.stored_at).map((row) => ({ task: row.task, parts: stages(row, batches?.[row.batch]) }));
  if (!known.length) return null;
  const begin = Math.min(...known.map(({ parts }) => parts[0].begin));
  const whole = Math.max(...known.map(({ parts }) => parts.at(-1).end)) - begin || 1e-9;
  return el("section", { class: "result waterfall", "aria-label": "Where its time went" }, el("h3", {}, `time: ${duration(whole)} from submission to store`), el("ul", {}, known.map((one) => line(one, begin, whole))));
}

function line({ task, parts }, begin, whole) {
  const words = parts.map((part) => `${part.name} ${duration(part.end - part.begin)}`);
  const bars = parts.map((part) => {
    const node = el("span", { class: `stage ${part.name.replaceAll(" ", "-")}`, title: `${part.name} ${duration(part.end - part.begin)}` });
    node.style.left = `${(100 * (part.begin - begin)) / whole}%`;
    node.style.width = `${(100 * (part.end - part.begin)) / whole}%`;
    return node;
  });
  return el("li", {}, el("span", { class: "name" }, task), el("span", { class: "stages", "aria-hidden": "true" }, bars), el("span", { class: "muted small-text" }, words.join(", ")));
}
