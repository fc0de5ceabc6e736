// Recent failures by job and kind of error. A group can be replayed, its job cancelled, its items opened.

import { cancelButton, replayButton } from "./actions.js";
import { get, now, poll } from "./api.js";
import { Rows, cell, el, say, section, tableOf } from "./dom.js";
import { itemButton } from "./item.js";
import { ago, bytes, moment, plural } from "./words.js";

const NEWEST = 200;
const LISTED = 20;
const EVERY_S = 4;

/** Number of jobs whose state is requested with each look. */
const JOBS = 12;

export function failures(root, { signal, caller }) {
  const list = el("div", { class: "groups" });
  const groups = new Rows(list, (group) => `${group.job} ${group.kind}`, (group) => card(group, look, caller));
  const total = el("span", { class: "muted" });
  const empty = el("p", { class: "empty", hidden: true }, "Nothing has failed.");
  const refused = caller.all_tenants ? refusedMessages(signal) : null;

  async function look() {
    const found = grouped((await get(`/api/failures?limit=${NEWEST}`, { signal })).failures);
    const ids = [...new Set(found.map((group) => group.job))].slice(0, JOBS);
    const jobs = new Map(await Promise.all(ids.map(async (id) => [id, await known(id, signal)])));
    groups.show(found.map((group) => ({ ...group, status: jobs.get(group.job) ?? null })));
    empty.hidden = found.length > 0;
    const results = found.reduce((sum, group) => sum + group.rows.length, 0);
    say(total, results ? `the newest ${plural(results, "failed result")}` : "");
    await refused?.look();
  }

  root.append(el("h1", { tabindex: -1, class: "unseen" }, "Failures"), section("Recent failures", total, empty, list), refused?.node ?? "");
  poll(look, EVERY_S, signal);
}

/** Messages that workers refused: of each the cause, the size and the digest, because nothing else is kept. */
function refusedMessages(signal) {
  const names = ["When", "Queue", "Cause", "Size", "SHA-256"];
  const table = tableOf("Refused messages", names, (row) => `${row.at} ${row.sha256}`, refusedLine, "No message was refused.");
  return {
    node: table.node,
    async look() {
      const { refused } = await get(`/api/dead?limit=${LISTED}`, { signal });
      table.show(refused ?? [], refused === null ? "the broker does not answer" : refused.length ? `the newest ${LISTED}, without their content` : "");
    },
  };
}

function refusedLine({ at, queue, cause, bytes: size, sha256 }) {
  const node = el(
    "tr",
    {},
    cell("When", {}, moment(at)),
    cell("Queue", { class: "wraps" }, queue),
    cell("Cause", { class: "wraps" }, cause),
    cell("Size", { class: "numbers" }, bytes(size)),
    cell("SHA-256", { title: sha256 }, sha256.slice(0, 16)),
  );
  return { node };
}

async function known(id, signal) {
  try {
    return await get(`/api/jobs/${encodeURIComponent(id)}`, { signal });
  } catch (error) {
    if (error.status === 404) return null; // purged meanwhile
    throw error;
  }
}

function grouped(rows) {
  const found = new Map();
  for (const row of rows) {
    const kind = row.error?.kind ?? "unknown";
    const id = `${row.job} ${kind}`;
    if (!found.has(id)) found.set(id, { job: row.job, kind, rows: [] });
    found.get(id).rows.push(row);
  }
  return [...found.values()];
}

/** The failures of a group by items: the tasks of an item mostly fail alike. */
function byItem(rows) {
  const found = new Map();
  for (const row of rows) {
    const id = `${row.seq} ${row.error?.message}`;
    if (!found.has(id)) found.set(id, { ...row, tasks: [] });
    found.get(id).tasks.push(row.task);
  }
  return [...found.values()];
}

function card(group, again, caller) {
  const name = el("a", { class: "job-name", href: `#/jobs/${encodeURIComponent(group.job)}` });
  const about = el("span", { class: "muted small-text" });
  const cancel = cancelButton();
  const replay = replayButton("Replay", group.kind, again);
  const body = el("tbody");
  const lines = new Rows(body, (item) => `${item.seq} ${item.tasks}`, line);
  const more = el("p", { class: "muted small-text" });
  const node = el(
    "article",
    { class: "card" },
    el("div", { class: "group-head" }, el("div", {}, el("span", { class: "badge failed" }, group.kind), " ", name, about), el("div", { class: "acts" }, replay.node, cancel.node)),
    el("table", { class: "failures", "aria-label": `Items that failed with ${group.kind}` }, body),
    more,
  );
  return {
    node,
    update({ rows, status }) {
      say(name, status ? status.name || "unnamed job" : group.job);
      const items = byItem(rows);
      say(about, [caller.all_tenants && status?.tenant, `${plural(rows.length, "result")}, the last ${ago(rows[0].stored_at, now())}`].filter(Boolean).join(" · "));
      lines.show(items.slice(0, LISTED));
      say(more, items.length > LISTED ? `and ${plural(items.length - LISTED, "item")} more` : "");
      for (const button of [cancel, replay]) {
        if (status) button.update(status);
        else button.node.hidden = true;
      }
    },
  };
}

function line(row) {
  const when = el("time", { class: "muted", title: moment(row.stored_at) });
  const message = el("td", { class: "why" }, row.error?.message ?? "no error was recorded");
  const node = el("tr", {}, el("td", { class: "which" }, itemButton(row.job, row.seq, `item ${row.seq}`), row.key !== null && el("span", { class: "muted small-text" }, row.key)), el("td", { class: "task" }, [...row.tasks].sort().join(", ")), message, el("td", { class: "when" }, when));
  return { node, update: (found) => say(when, ago(found.stored_at, now())) };
}
