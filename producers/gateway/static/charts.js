// Small charts: bars of shares, histograms, and sparklines of the last minute. Sizes are set by attributes and
// properties, because the page's policy allows no styles in attributes.

import { call, el, svg } from "./dom.js";
import { count } from "./words.js";

/** A sparkline of values from old to new, each between 0 and `most`. */
export function spark(label) {
  const line = svg("polyline", { class: "spark-line" });
  const area = svg("polygon", { class: "spark-area" });
  const node = svg("svg", { class: "spark", viewBox: "0 0 100 24", preserveAspectRatio: "none", role: "img", "aria-label": label }, area, line);
  return {
    node,
    update(values, most = Math.max(...values, 1e-9)) {
      const step = 100 / Math.max(values.length - 1, 1);
      const points = values.map((value, place) => `${(place * step).toFixed(2)},${(23 - 22 * Math.min(value / most, 1)).toFixed(2)}`);
      line.setAttribute("points", points.join(" "));
      area.setAttribute("points", `0,24 ${points.join(" ")} 100,24`);
    },
  };
}

/** A bar with a single part. */
export function bar(className = "") {
  const part = el("span", { class: "bar-part" });
  const node = el("span", { class: `bar ${className}`.trim(), "aria-hidden": "true" }, part);
  return { node, update: (value) => (part.style.width = `${Math.min(100, Math.max(0, 100 * value))}%`) };
}

/** Upright bars side by side, each with its name below, and its count as a tooltip and for screen readers. */
export function histogram(label) {
  const node = el("ol", { class: "histogram", "aria-label": label });
  return {
    node,
    update(entries) {
      const most = Math.max(...entries.map(([, value]) => value), 1);
      node.replaceChildren(
        ...entries.map(([name, value]) => {
          const column = el("span", { class: "column", "aria-hidden": "true" });
          column.style.height = `${Math.max(value ? 3 : 0, (100 * value) / most)}%`;
          const text = `${name}: ${count(value)}`;
          return el("li", { title: text }, el("span", { class: "well" }, column), el("span", { class: "name" }, name), el("span", { class: "unseen" }, `: ${count(value)}`));
        }),
      );
    },
  };
}

const ENDS = ["succeeded", "failed", "cancelled", "expired"];

/** A job's progress: its results by state, as shares of all its results. */
export function progress() {
  const parts = Object.fromEntries(ENDS.map((end) => [end, el("span", { class: `part ${end}` })]));
  const node = el("div", { class: "progress", role: "progressbar", "aria-valuemin": 0 }, Object.values(parts));
  return {
    node,
    update(job) {
      for (const end of ENDS) parts[end].style.width = `${job.total ? (100 * job[end]) / job.total : 0}%`;
      call(node, `Progress of ${job.name ?? job.id}`);
      node.setAttribute("aria-valuemax", Math.max(job.total, 1));
      node.setAttribute("aria-valuenow", job.done);
      node.setAttribute("aria-valuetext", `${count(job.done)} of ${count(job.total)} results, ${count(job.failed)} failed`);
    },
  };
}

/** The counts under a progress bar, without zeros. */
export function legend() {
  const node = el("ul", { class: "legend" });
  return {
    node,
    update(job) {
      const left = job.total - job.done;
      const told = [...ENDS.map((end) => [end, job[end]]), ["to come", left]].filter(([, value]) => value > 0);
      node.replaceChildren(...told.map(([end, value]) => el("li", { class: end.replace(" ", "-") }, el("strong", {}, count(value)), ` ${end}`)));
    },
  };
}
