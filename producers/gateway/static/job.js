// A job: its progress, from its events, and its items page by page, each with its input and its results.

import { cancelButton, replayButton } from "./actions.js";
import { follow, get, now, poll, query } from "./api.js";
import { legend, progress } from "./charts.js";
import { announce } from "./dialogs.js";
import { Rows, cell, columns, el, say, section } from "./dom.js";
import { excerpt } from "./inputs.js";
import { itemButton } from "./item.js";
import { outcome } from "./outputs.js";
import { Pace, stall } from "./pace.js";
import { Pager } from "./pager.js";
import { stepTree } from "./steps.js";
import { ago, brief, count, duration, moment, sentence, visible } from "./words.js";

const PAGE = 25;
const EVERY_S = 2;
const WAITING_EVERY_S = 5;

export function job(root, { id, signal, caller }) {
  const title = el("h1", { tabindex: -1 }, "Job");
  const badge = el("span", { class: "badge" });
  const stalled = el("span", { class: "warn", role: "status" });
  const unserved = el("p", { class: "bad", role: "status" });
  const paused = el("p", { class: "warn", role: "status" });
  const postponed = el("p", { class: "muted", role: "status" });
  const facts = el("dl", { class: "facts" });
  const bar = progress();
  const counts = legend();
  const pace = new Pace();
  let told = -1;
  let known = null;
  let watching = new AbortController();
  const cancel = cancelButton(update);
  const replay = replayButton("Replay failed", null, watch); // after a replay there is new progress
  let ready;
  const opened = new Promise((done) => (ready = done));
  const items = itemTable(id, signal, () => known, opened);

  function update(found) {
    const before = known;
    known = found;
    document.title = `${visible(found.name || found.id)} · Argosy`;
    say(title, found.name || "unnamed job");
    badge.className = `badge ${found.state}`;
    say(badge, found.state);
    say(stalled, stall(found, now()));
    bar.update(found);
    counts.update(found);
    facts.replaceChildren(...details(found, pace, caller).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
    cancel.update(found);
    replay.update(found);
    const quarter = found.total ? Math.floor((4 * found.done) / found.total) : 0;
    if (quarter !== told) announce(`${found.state}: ${count(found.done)} of ${count(found.total)} results, ${count(found.failed)} failed`);
    told = quarter;
    if (before === null || before.done !== found.done) items.stale();
  }

  async function waiting() {
    const found = known?.finished ? null : await get(`/api/jobs/${encodeURIComponent(id)}/waiting`, { signal });
    say(unserved, sentence(found?.unserved ?? ""));
    say(paused, sentence(found?.paused ?? ""));
    say(postponed, sentence(found?.postponed ?? ""));
  }

  async function start() {
    update(await get(`/api/jobs/${encodeURIComponent(id)}`, { signal }));
    ready();
    if (!known.finished) await watch();
  }

  /** Follow the job's progress instead of an earlier stream: a browser has few connections. */
  async function watch() {
    watching.abort();
    if (signal.aborted) return;
    const own = (watching = new AbortController());
    signal.addEventListener("abort", () => own.abort(), { once: true, signal: own.signal });
    await follow(id, update, own.signal);
  }

  root.append(
    el("p", { class: "crumbs" }, el("a", { href: "#/jobs" }, "Jobs"), " / ", el("code", {}, id)),
    el("div", { class: "title" }, title, badge, stalled, el("div", { class: "aside" }, replay.node, cancel.node)),
    unserved,
    paused,
    postponed,
    el("div", { class: "card" }, bar.node, counts.node, facts),
    items.node,
  );
  opened.then(() => poll(waiting, WAITING_EVERY_S, signal));
  return start();
}

function details(found, pace, caller) {
  const perS = found.finished ? found.done / Math.max(found.finished_at - found.created_at, 1e-3) : pace.at(now(), found.done);
  return [
    ["Submitted", `${ago(found.created_at, now())} (${moment(found.created_at)})`],
    [found.finished ? "Took" : found.state === "waiting" ? "Waits for" : "Runs for", duration((found.finished_at ?? now()) - found.created_at)],
    ["Results a second", perS ? brief(perS) : "–"],
    ...(found.pipeline ? [["Steps", found.pipeline.steps.map((step) => step.name).join(", ")], ["Inputs", count(found.items)]] : [["Items", count(found.items)]]),
    ["Priority", String(found.priority)],
    ...(caller.all_tenants && found.tenant ? [["Tenant", found.tenant]] : []),
    ...(found.ttl_s === null ? [] : [["Kept for", duration(found.ttl_s)]]),
  ];
}

/** The items with results. Call `stale` when there are more of them. */
function itemTable(id, signal, job, opened) {
  const table = el("table", { class: "items" }, columns("Item", "Input", "Results"));
  const body = table.appendChild(el("tbody"));
  const rows = new Rows(body, (item) => item.seq, (item) => row(id, item, signal));
  const trees = new Rows(body, (tree) => tree.root, (tree) => treeRow(id, job, tree, signal));
  const empty = el("p", { class: "empty" }, "No results yet.");
  const where = el("span", { class: "muted" });
  let fresh = false;
  let span = "";
  const pager = new Pager(turned, { first: -1, back: "Previous", on: "Next" });

  async function look() {
    await opened;
    if (fresh) return;
    fresh = true;
    const place = pager.place;
    const page = await get(`/api/jobs/${encodeURIComponent(id)}/items${query({ after_seq: place, limit: PAGE })}`, { signal }).catch((error) => {
      fresh = false;
      throw error;
    });
    if (place !== pager.place) return;
    pager.shown(page.next);
    if (job().pipeline) {
      table.tHead.replaceWith(columns("Input", "Content", "Results"));
      trees.show(grouped(page.items));
    } else rows.show(page.items);
    table.hidden = page.items.length === 0;
    empty.hidden = page.items.length > 0;
    pager.node.hidden = pager.isWhole;
    const number = (item) => count(item.root ?? item.seq);
    span = page.items.length ? `${job().pipeline ? "inputs" : "items"} ${number(page.items[0])} to ${number(page.items.at(-1))}` : "";
    tell();
  }

  const tell = () => say(where, span && `${span} of ${count(job().items)}`);

  async function turned() {
    fresh = false;
    await look().catch(() => (fresh = false));
    table.scrollIntoView({ block: "nearest" });
  }

  function stale() {
    fresh = false;
    tell();
  }

  poll(look, EVERY_S, signal);
  return { node: section("Results", where, empty, table, pager.node), stale };
}

/** The items of a pipeline by their inputs. */
function grouped(items) {
  const found = new Map();
  for (const item of items) {
    if (!found.has(item.root)) found.set(item.root, { root: item.root, items: [] });
    found.get(item.root).items.push(item);
  }
  return [...found.values()];
}

/** The row of an input of a pipeline: the results of all its steps, each under the step that it follows. */
function treeRow(job, status, { root, items: [first] }, signal) {
  const ended = new AbortController();
  signal.addEventListener("abort", () => ended.abort(), { once: true, signal: ended.signal });
  const tree = el("div");
  let shown = "";
  const node = el(
    "tr",
    {},
    cell("Input", { class: "which" }, itemButton(job, first.seq, count(root), `Look at input ${root}`, `Input ${count(root)}`), first.key !== null && el("span", { class: "muted small-text" }, first.key)),
    cell("Content", { class: "input" }, excerpt(job, first, ended.signal)),
    el("td", { "data-label": "Results" }, tree),
  );
  return {
    node,
    gone: () => ended.abort(),
    update({ items }) {
      const found = items.flatMap((item) => item.results.map((one) => ({ seq: item.seq, result: one })));
      const state = `${status().finished} ${found.map((one) => `${one.seq} ${one.result.task} ${one.result.stored_at}`).join()}`;
      if (state === shown) return;
      shown = state;
      tree.replaceChildren(branch(job, stepTree(status().pipeline), found, first, status().finished));
    },
  };
}

function branch(job, nodes, found, first, finished) {
  const results = (step) => found.filter((one) => one.result.step === step.name);
  const said = ({ seq, result }) => {
    const name = [result.step, ...result.parts.map((part) => `part ${count(part)}`)].join(", ");
    return el("div", { class: "step" }, itemButton(job, seq, name, `Look at ${name}`, `${name} of input ${count(first.root)}`), outcome(result, true, seq === first.seq ? first.input.text : ""));
  };
  const line = ({ step, children }) => {
    const own = results(step);
    return el("li", {}, own.length ? own.map(said) : el("span", { class: "muted" }, `${step.name}: ${finished ? "skipped" : "no result yet"}`), children.length > 0 && branch(job, children, found, first, finished));
  };
  return el("ul", { class: "tree" }, nodes.map(line));
}

function row(job, first, signal) {
  const ended = new AbortController();
  signal.addEventListener("abort", () => ended.abort(), { once: true, signal: ended.signal });
  const results = el("td", { "data-label": "Results" });
  const table = el("dl", { class: "outcomes" });
  results.append(table);
  let shown = "";
  const node = el(
    "tr",
    {},
    cell("Item", { class: "which" }, itemButton(job, first.seq, count(first.seq)), first.key !== null && el("span", { class: "muted small-text" }, first.key)),
    cell("Input", { class: "input" }, excerpt(job, first, ended.signal)),
    results,
  );
  return {
    node,
    gone: () => ended.abort(),
    update(item) {
      const state = item.results.map((one) => `${one.task} ${one.stored_at}`).join();
      if (state === shown) return;
      shown = state;
      table.replaceChildren(...item.results.flatMap((one) => [el("dt", {}, one.task), el("dd", {}, outcome(one, true, item.input.text))]));
    },
  };
}
