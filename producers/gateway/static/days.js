// The history of days: items, busy hours and tokens of each day, from the recorded batches.

import { get } from "./api.js";
import { histogram } from "./charts.js";
import { cell, el, tableOf } from "./dom.js";
import { brief, count, duration, share } from "./words.js";

const DAYS = 14;
const SHOWN_AGAIN_S = 60;

/** The section of the days; it asks again once a minute. */
export function dayTable(signal) {
  const table = tableOf("Days", ["Day (UTC)", "Items", "Batches", "Rows a batch", "Tokens", "Padding", "Device time"], (day) => `${day.day} ${day.items} ${day.batches}`, row, "No batch is recorded.");
  const chart = histogram("Items of the last days");
  const bars = el("div", { class: "card figure three" }, chart.node);
  table.node.querySelector(".section-head").after(bars);
  let askedAt = -Infinity;
  return {
    node: table.node,
    async look() {
      if (performance.now() / 1000 - askedAt < SHOWN_AGAIN_S) return;
      const { days } = await get(`/api/history?days=${DAYS}`, { signal });
      askedAt = performance.now() / 1000;
      bars.hidden = days.every((day) => day.batches === 0);
      chart.update(days.map((day) => [day.day.slice(5), day.items]));
      table.show(days.filter((day) => day.batches > 0).reverse(), "of the recorded batches, which a purge deletes");
    },
  };
}

function row(day) {
  const padding = day.padded_tokens ? share(1 - day.tokens / day.padded_tokens) : "–";
  const values = [count(day.items), count(day.batches), brief(day.rows / day.batches), brief(day.tokens), padding, duration(day.forward_s)];
  const names = ["Items", "Batches", "Rows a batch", "Tokens", "Padding", "Device time"];
  return { node: el("tr", {}, cell("Day (UTC)", {}, day.day), values.map((value, place) => cell(names[place], { class: "numbers" }, value))) };
}
