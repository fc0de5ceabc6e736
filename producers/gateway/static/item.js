// One item in a dialog: its input in full, all its results.

import { get } from "./api.js";
import { el, say } from "./dom.js";
import { full } from "./inputs.js";
import { outcome } from "./outputs.js";
import { doing } from "./dialogs.js";
import { waterfall } from "./waterfall.js";
import { count, duration } from "./words.js";

const by = (id) => document.getElementById(id);

/** A button that opens an item; `name` is the dialog's title. */
export function itemButton(job, seq, text, label = `Look at item ${seq}`, name = `Item ${count(seq)}`) {
  const node = el("button", { type: "button", class: "as-link", "aria-label": label, click: () => doing(node, () => open(job, seq, name)) }, text);
  return node;
}

async function open(job, seq, name) {
  const item = await get(`/api/jobs/${encodeURIComponent(job)}/items/${seq}`);
  const ended = new AbortController();
  const dialog = by("item");
  say(by("item-title"), `${name}${item.key ? ` · ${item.key}` : ""}`);
  by("item-body").replaceChildren(full(job, item, ended.signal), ...item.results.map((row) => result(row, item.input.text)), waterfall(item) ?? "");
  by("item-close").onclick = () => dialog.close();
  dialog.addEventListener("close", () => ended.abort(), { once: true });
  dialog.showModal();
}

function result(row, text) {
  return el("section", { class: "result" }, el("h3", {}, row.task), outcome(row, false, text), el("p", { class: "muted small-text" }, facts(row)));
}

function facts(row) {
  const times = row.queued_at && row.stored_at ? [`${duration(row.stored_at - row.queued_at)} from submission to store`] : [];
  return [row.model && `model ${row.model}`, row.tokens > 1 && `${row.tokens} tokens`, ...times].filter(Boolean).join(" · ");
}
