// The fleet, for keys that see all tenants: workers, queued work, device utilisation, and recent batches.

import { pauseButton, resumeButton } from "./actions.js";
import { get, now, poll } from "./api.js";
import { bar, histogram, spark } from "./charts.js";
import { dayTable } from "./days.js";
import { Rows, cell, el, say, tableOf } from "./dom.js";
import { PATIENCE_S } from "./pace.js";
import { siteTable } from "./sites.js";
import { ago, brief, count, duration, plural, sentence, share } from "./words.js";

const EVERY_S = 2;

/** The fleet's figures; the page's head shows whether workers are online and serve the waiting work. */
export async function activity(signal) {
  const found = await get("/api/activity", { signal });
  document.dispatchEvent(new CustomEvent("argosy:workers", { detail: found }));
  return found;
}

/** The four figures above the jobs. */
export function overview() {
  const cards = [queueCard(), deviceCard(), paceCard(), batchCard()];
  return {
    node: el("section", { class: "overview", "aria-label": "The fleet now" }, cards.map((card) => card.node)),
    update: (found) => cards.forEach((card) => card.update(found)),
  };
}

function cardOf(title, ...children) {
  return el("div", { class: "card figure" }, el("h2", {}, title), ...children);
}

const big = () => el("p", { class: "big" });

function queueCard() {
  const list = el("ul", { class: "queue" });
  const total = big();
  const rows = new Rows(list, (line) => line.priority, (line) => {
    const part = bar(`priority-bar ${line.priority}`);
    const waiting = el("span", { class: "numbers" });
    const oldest = el("span", { class: "muted oldest" });
    const node = el("li", {}, el("span", { class: "name" }, String(line.priority)), part.node, waiting, oldest);
    return {
      node,
      update({ items, oldest_s: oldestS, most, idle }) {
        part.update(items / most);
        say(waiting, brief(items));
        say(oldest, oldestS === null ? "" : `oldest ${duration(oldestS)}`);
        oldest.classList.toggle("warn", idle && oldestS > PATIENCE_S); // it waits, and nothing is computed
      },
    };
  });
  return {
    node: cardOf("Waiting", total, list),
    update({ queue, batches }) {
      const most = Math.max(1, ...queue.map((line) => line.items));
      say(total, plural(queue.reduce((sum, line) => sum + line.items, 0), "item"));
      rows.show(queue.map((line) => ({ ...line, most, idle: batches.count === 0 })));
    },
  };
}

function deviceRow({ name }) {
  const busy = el("span", { class: "numbers" });
  const course = spark(`How busy ${name} was in the last minute`);
  return {
    node: el("li", { title: name }, el("span", { class: "name" }, name.replace(/ .*/, "")), course.node, busy),
    update(device) {
      say(busy, share(device.busy));
      course.update(device.series, 1);
    },
  };
}

function deviceCard() {
  const total = big();
  const list = el("ul", { class: "devices" });
  const rows = new Rows(list, (device) => device.name, deviceRow);
  return {
    node: cardOf("Devices busy", total, list),
    update({ devices, workers }) {
      const none = workers?.length === 0;
      total.classList.toggle("bad", none);
      say(total, none ? "no worker" : devices.length ? share(devices.reduce((sum, one) => sum + one.busy, 0) / devices.length) : "idle");
      rows.show(devices.slice(0, 4));
    },
  };
}

function paceCard() {
  const total = big();
  const course = spark("Items a second in the last minute");
  const about = el("p", { class: "muted small-text" });
  return {
    node: cardOf("Items a second", total, course.node, about),
    update({ batches, window_s: windowS, covered_s: coveredS }) {
      say(total, brief(batches.items_per_s));
      course.update(batches.series);
      const span = coveredS < windowS ? `${duration(coveredS)} (more batches than a look reads)` : "minute";
      say(about, batches.count ? `${plural(batches.items, "item")} in the last ${span}; they waited ${duration(batches.wait_ms / 1000).replaceAll(" ", "\u00a0")} in the median` : "nothing in the last minute");
    },
  };
}

function batchCard() {
  const total = big();
  const sizes = histogram("Batches by rows");
  const about = el("p", { class: "muted small-text" });
  return {
    node: cardOf("Rows a batch", total, sizes.node, about),
    update({ batches }) {
      say(total, batches.count ? brief(batches.rows / batches.count) : "–");
      sizes.update(filled(batches.sizes));
      say(about, batches.count ? `${plural(batches.count, "batch", "batches")}, ${share(batches.padding)} padding` : "no batches in the last minute");
    },
  };
}

/** Every power of two up to the largest, so that each size keeps its place. */
function filled(sizes) {
  const counts = new Map(sizes);
  const most = Math.max(64, ...counts.keys());
  const found = [];
  for (let size = 1; size <= most; size *= 2) found.push([String(size), counts.get(size) ?? 0]);
  return found;
}

export function fleet(root, { signal }) {
  const pauses = pauseTable();
  const parts = [workerTable(), pauses, waitingTable(pauses.show), deviceTable(), shapes(), recentTable()];
  const slow = [siteTable(signal), dayTable(signal)];
  root.append(el("h1", { tabindex: -1, class: "unseen" }, "Fleet"), ...[...parts, ...slow].map((part) => part.node));
  poll(async () => {
    const found = await activity(signal);
    parts.forEach((part) => part.update(found));
    for (const part of slow) await part.look();
  }, EVERY_S, signal);
}

/** Cells by their names, and a function that sets their texts. */
function texts(names, numbers = 0) {
  const cells = names.map((name, place) => cell(name, { class: place >= numbers ? "numbers" : "wraps" }));
  return { cells, set: (values) => values.forEach((value, place) => say(cells[place], value)) };
}

function workerTable() {
  const names = ["Worker", "Device", "Models"];
  const none = "No worker is online: nothing is computed. Start one with `argosy up` or `argosy worker`.";
  const table = tableOf("Workers", names, (worker) => worker.name, () => {
    const { cells, set } = texts(names, 3);
    return { node: el("tr", {}, cells), update: (worker) => set([worker.name, worker.device, served(worker.models)]) };
  }, none);
  table.empty.classList.add("bad");
  return {
    node: table.node,
    update({ workers }) {
      say(table.empty, workers === null ? "The broker cannot be reached, so the workers are unknown." : none);
      table.show(workers ?? [], workers?.length ? "online now" : "");
    },
  };
}

function served(models) {
  const said = ({ revision, state, error }) => [revision, state !== "serving" && state, error].filter(Boolean).join(", ");
  return Object.entries(models).map(([name, model]) => `${name}: ${said(model)}`).join("; ");
}

/** What is paused; hidden if nothing is. */
function pauseTable() {
  const names = ["Paused", "Reason", "Since", "Envelopes"];
  const table = tableOf("Paused", [...names, "Action"], (one) => `${one.kind} ${one.name}`, (first) => {
    const { cells, set } = texts(names, 2);
    const node = el("tr", {}, cells, cell("Action", {}, resumeButton(first, show)));
    return { node, update: (one) => set([`${one.kind} ${one.name || "''"}`, one.reason, ago(one.paused_at, now()), count(one.waiting)]) };
  }, "");
  function show(pauses) {
    table.node.hidden = pauses.length === 0;
    table.show(pauses, "nothing of it starts");
  }
  return { node: table.node, show, update: ({ pauses }) => show(pauses ?? []) };
}

function waitingTable(paused) {
  const names = ["Model", "Priority", "Items", "Envelopes", "Oldest", "Work"];
  const table = tableOf("Waiting", [...names, "Action"], (line) => `${line.model} ${line.priority}`, (first) => {
    const { cells, set } = texts(names, 2);
    const update = (line) => {
      set([line.model, String(line.priority), count(line.items), count(line.envelopes), duration(line.oldest_s), line.served === false ? "no worker serves it" : line.seconds === null ? "–" : `about ${duration(line.seconds)}`]);
      cells.at(-1).classList.toggle("bad", line.served === false);
    };
    return { node: el("tr", {}, cells, cell("Action", {}, pauseButton(first.model, paused))), update };
  }, "Nothing waits.");
  const remedy = el("p", { class: "bad remedy", role: "status", hidden: true });
  table.node.append(remedy);
  return {
    node: table.node,
    update({ models, workers, unserved }) {
      table.show(models, "durable items, including those in progress");
      remedy.hidden = !unserved || workers.length === 0; // the list of workers says that there is none
      say(remedy, sentence(unserved ?? ""));
    },
  };
}

function deviceTable() {
  const names = ["Busy", "Batches", "Items a second"];
  const table = tableOf("Devices", ["Device", "The last minute", ...names], (device) => device.name, (first) => {
    const course = spark(`How busy ${first.name} was in the last minute`);
    const { cells, set } = texts(names);
    const node = el("tr", {}, cell("Device", { class: "wraps" }, first.name), cell("The last minute", { class: "course" }, course.node), cells);
    return {
      node,
      update(device) {
        course.update(device.series, 1);
        set([share(device.busy), count(device.batches), brief(device.items_per_s)]);
      },
    };
  }, "No batch ran in the last minute.");
  return { node: table.node, update: ({ devices }) => table.show(devices, "time in forward passes / wall time") };
}

function shapes() {
  const sizes = histogram("Batches by rows");
  const paddings = histogram("Batches by share of padding");
  const shares = el("ul", { class: "queue" });
  const rows = new Rows(shares, (one) => one.name, ({ name }) => {
    const part = bar(`priority-bar ${name}`);
    const text = el("span", { class: "numbers" });
    return {
      node: el("li", {}, el("span", { class: "name" }, name), part.node, text),
      update({ value }) {
        part.update(value);
        say(text, share(value));
      },
    };
  });
  const cards = [cardOf("Batches by rows", sizes.node), cardOf("Batches by padding", paddings.node), cardOf("Device time by priority", shares)];
  const node = el("section", { class: "overview three", "aria-label": "Batches of the last minute" }, cards);
  return {
    node,
    update({ batches }) {
      node.hidden = batches.count === 0;
      sizes.update(filled(batches.sizes));
      const counts = new Map(batches.paddings);
      paddings.update([0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1].map((end) => [`≤${share(end).replace(".0", "")}`, counts.get(end) ?? 0]));
      rows.show(Object.entries(batches.priorities).map(([name, value]) => ({ name, value })));
    },
  };
}

function recentTable() {
  const names = ["Model", "Tasks", "Priority", "Device", "Began", "Rows", "Items", "Padding", "Waited", "Forward"];
  const table = tableOf("Newest batches", names, (batch) => batch.id, (batch) => {
    const { cells, set } = texts(names, 4);
    const tasks = Object.entries(batch.heads).map(([name, items]) => (items === batch.items ? name : `${name} ${count(items)}`)).join(", ");
    const priorities = Object.keys(batch.priorities).join(", ");
    const update = () => set([batch.model, tasks, priorities, `${batch.device} (${batch.worker})`, ago(batch.started_at, now()), count(batch.rows), count(batch.items), share(batch.padding), duration(batch.queue_wait_s), duration(batch.forward_s)]);
    return { node: el("tr", {}, cells), update };
  }, "None in the last minute.");
  return { node: table.node, update: ({ recent }) => table.show(recent, "") };
}
