// The models with their tasks; for keys that see all tenants also the workers that serve them, and their waiting work.

import { pauseButton } from "./actions.js";
import { get, may, poll } from "./api.js";
import { cell, el, say, tableOf } from "./dom.js";
import { activity } from "./fleet.js";
import { count } from "./words.js";

const EVERY_S = 5;

export function models(root, { signal, caller }) {
  const names = ["Model", "Tasks", ...(caller.all_tenants ? ["Served by", "Waiting", "Action"] : [])];
  const table = tableOf("Models", names, (model) => model.name, (model) => row(model, caller), "The fleet has no models.");

  async function look() {
    const { tasks } = await get("/api/tasks", { signal });
    const fleet = caller.all_tenants ? await activity(signal) : { workers: [], models: [], pauses: [] };
    const known = new Set([...tasks.map(({ model }) => model), ...fleet.models.map(({ model }) => model), ...(fleet.workers ?? []).flatMap((worker) => Object.keys(worker.models))]);
    table.show([...known].sort().map((name) => of(name, tasks, fleet)), "");
  }

  root.append(el("h1", { tabindex: -1, class: "unseen" }, "Models"), table.node);
  poll(look, EVERY_S, signal);
}

/** What is known of a model. */
function of(name, tasks, { workers, models, pauses }) {
  return {
    name,
    tasks: tasks.filter(({ model }) => model === name),
    served: workers === null ? null : workers.filter((worker) => name in worker.models).map((worker) => ({ worker: worker.name, ...worker.models[name] })),
    waiting: models.filter(({ model }) => model === name).reduce((sum, line) => sum + line.items, 0),
    paused: pauses.some((pause) => pause.kind === "model" && pause.name === name),
  };
}

function row(first, caller) {
  const tasks = el("ul", {});
  const served = cell("Served by", { class: "wraps" });
  const waiting = cell("Waiting", { class: "numbers" });
  const fleet = caller.all_tenants ? [served, waiting, cell("Action", {}, pauseButton(first.name))] : [];
  return {
    node: el("tr", {}, cell("Model", { class: "wraps" }, first.name), cell("Tasks", { class: "wraps" }, tasks), fleet),
    update(model) {
      const text = model.tasks.map(({ name }) => name).join();
      if (tasks.dataset.shown !== text) {
        tasks.dataset.shown = text;
        tasks.replaceChildren(...model.tasks.map(line));
      }
      say(served, servedBy(model));
      served.classList.toggle("bad", model.served?.length === 0);
      say(waiting, model.paused ? `${count(model.waiting)}, paused` : count(model.waiting));
    },
  };
}

function line({ name, kind, summary }) {
  const shown = may.change ? el("a", { href: `#/try/${encodeURIComponent(name)}` }, name) : name;
  return el("li", { title: summary }, shown, el("span", { class: "muted small-text" }, ` ${kind}`));
}

function servedBy({ served }) {
  if (served === null) return "the broker does not answer";
  if (!served.length) return "no worker serves it";
  return served.map(({ worker, revision, state, error }) => `${worker}: ${[revision, state !== "serving" && state, error].filter(Boolean).join(", ")}`).join("; ");
}
