// The audit log: who changed what, when and from where, newest first.

import { get, now, poll, query } from "./api.js";
import { cell, el, later, tableOf } from "./dom.js";
import { Pager } from "./pager.js";
import { ago, moment } from "./words.js";

const PAGE = 50;
const EVERY_S = 5;

export function audit(root, { signal }) {
  const table = tableOf("Audit log", ["When", "Action", "Subject", "Who", "From", "Details"], (entry) => entry.id, row, "No such entries.");
  const search = el("input", { type: "search", "aria-label": "Search the audit log", placeholder: "Action, subject, tenant or name", input: later(100, () => pager.again()) });
  const pager = new Pager(look);
  let asked = "";

  async function look() {
    const wanted = query({ limit: PAGE, before: pager.place, text: search.value.trim() || null });
    asked = wanted;
    const page = await get(`/api/audit${wanted}`, { signal });
    if (wanted !== asked) return; // the user has turned the page or searched in the meantime
    pager.shown(page.next);
    table.show(page.entries, pager.number > 1 ? `page ${pager.number}` : "");
  }

  table.node.querySelector(".section-head").after(el("div", { class: "filters" }, search));
  root.append(el("h1", { tabindex: -1, class: "unseen" }, "Audit log"), table.node, pager.node);
  poll(look, EVERY_S, signal);
}

function row(entry) {
  const details = Object.entries(entry.detail).map(([name, value]) => `${name}: ${value}`).join(", ");
  const who = [entry.name, entry.tenant && `of ${entry.tenant}`].filter(Boolean).join(" ");
  return {
    node: el(
      "tr",
      {},
      cell("When", { class: "when", title: moment(entry.at) }, ago(entry.at, now())),
      cell("Action", { class: "wraps" }, entry.action),
      cell("Subject", { class: "wraps" }, entry.subject),
      cell("Who", { class: "wraps" }, who),
      cell("From", { class: "wraps" }, [entry.source, entry.address].filter(Boolean).join(" ")),
      cell("Details", { class: "wraps" }, details),
    ),
  };
}
