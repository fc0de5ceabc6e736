// Try a task: a text, a file or JSON in, its results out, in one request.

import { get, post } from "./api.js";
import { doing } from "./dialogs.js";
import { el, say, section } from "./dom.js";
import { outcome } from "./outputs.js";
import { duration } from "./words.js";

const WAIT_S = 60;
const FILES = { image: "image/*", audio: "audio/*", video: "video/*" };
const SHOWN_NUMBERS = 64;

export async function attempt(root, { id, signal }) {
  const { tasks } = await get("/api/tasks", { signal });
  const task = el("select", { id: "try-task", change: choose }, tasks.map(({ name }) => el("option", { value: name }, name)));
  const about = el("p", { class: "muted small-text" });
  const input = el("div", {});
  const params = el("textarea", { id: "try-params", rows: 2, spellcheck: false });
  const button = el("button", { class: "primary", type: "submit" }, "Compute");
  const answer = el("div", { role: "status" });
  const submit = (event) => {
    event.preventDefault();
    doing(button, compute);
  };
  let read = null;
  let chosen = null;

  function choose() {
    chosen = tasks.find(({ name }) => name === task.value);
    say(about, `${chosen.summary} (kind ${chosen.kind}, model ${chosen.model})`);
    params.placeholder = JSON.stringify(Object.fromEntries(Object.entries(chosen.params).map(([name, { default: value }]) => [name, value])));
    const field = inputOf(chosen.input);
    read = field.read;
    input.replaceChildren(el("label", { for: "try-input" }, field.name), field.node);
    answer.replaceChildren();
  }

  async function compute() {
    let body;
    try {
      body = { task: chosen.name, input: await read(), params: params.value.trim() ? JSON.parse(params.value) : null, wait_s: WAIT_S };
    } catch (error) {
      return answer.replaceChildren(el("p", { class: "wrong" }, error.message));
    }
    const began = performance.now();
    answer.replaceChildren(el("p", { class: "muted" }, "Computing …"));
    try {
      const item = await post("/api/items", body);
      answer.replaceChildren(...shown(item, (performance.now() - began) / 1000, body.input));
    } catch (error) {
      answer.replaceChildren(el("p", { class: "wrong" }, error.message));
    }
  }

  const form = el("form", { class: "card try", submit }, el("label", { for: "try-task" }, "Task"), task, about, input, el("label", { for: "try-params" }, "Parameters, as JSON; may be empty"), params, el("div", { class: "buttons" }, button));
  root.append(el("h1", { tabindex: -1, class: "unseen" }, "Try"), section("Try a task", "", tasks.length ? form : el("p", { class: "empty" }, "The fleet has no tasks."), answer));
  if (id && tasks.some(({ name }) => name === decodeURIComponent(id))) task.value = decodeURIComponent(id);
  if (tasks.length) choose();
}

/** The field for an input of a form, and a function that reads it; it throws if nothing useful is there. */
function inputOf(form) {
  if (form in FILES) {
    const node = el("input", { id: "try-input", type: "file", accept: FILES[form], required: true });
    return { name: `A file: ${form}`, node, read: async () => ({ bytes: await base64(node.files[0]) }) };
  }
  const node = el("textarea", { id: "try-input", rows: 4, required: true, spellcheck: false });
  if (form === "text") return { name: "Text", node, read: async () => node.value };
  return { name: `Input (${form}), as JSON`, node, read: async () => JSON.parse(node.value) };
}

/** A file in base64; the gateway refuses a body that is too long. */
const base64 = (file) =>
  new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => failed(reader.error);
    reader.readAsDataURL(file);
  });

function shown({ results, done, paused }, tookS, input) {
  const state = done ? `answered in ${duration(tookS)}` : (paused ?? `no answer within ${duration(tookS)}; the item is still computed, and is found under Jobs`);
  const text = typeof input === "string" ? input : "";
  return [el("p", { class: done ? "muted" : "warn" }, state), ...results.map((row) => el("div", { class: "card" }, el("h3", {}, row.task), outcome({ ...row, output: shortened(row.output) }, false, text)))];
}

/** A vector has its first numbers and its length, as in lists of items. */
function shortened(output) {
  const isVector = Array.isArray(output) && output.length > SHOWN_NUMBERS && output.every((number) => typeof number === "number");
  return isVector ? { vector: output.slice(0, SHOWN_NUMBERS), length: output.length } : output;
}
