// Results for people: labels with scores, vectors as strips, texts as texts, anything else as JSON.

import { el, svg } from "./dom.js";
import { isMade, made } from "./made.js";
import { count, share } from "./words.js";

const LISTED = 3;

/** A result in a list (`brief`), or in full. `text` is the text that it is about, if it is known. */
export function outcome(result, briefly = true, text = "") {
  if (result.state === "succeeded") return output(result.output, briefly, text ?? "");
  const error = result.error ?? {};
  return el("div", { class: "outcome" }, el("span", { class: `badge ${result.state}` }, result.state), el("span", { class: "why" }, [error.kind, error.message].filter(Boolean).join(": ")));
}

/** An output in its form; as JSON if it only resembles one: a task of users' own may answer anything. */
function output(value, briefly, text) {
  try {
    return formed(value, briefly, text) ?? json(value, briefly);
  } catch {
    return json(value, briefly);
  }
}

function formed(value, briefly, text) {
  if (isVector(value)) return vector(value);
  if (isMade(value)) return made(value, briefly);
  const parts = Array.isArray(value) ? value : [value];
  if (parts.length && parts.every((part) => labelOf(part) !== null && shareOf(part) !== null)) return labels(parts, briefly, text);
  if (parts.length && parts.every((part) => textOf(part) !== null)) return el("p", { class: "text" }, parts.map(textOf).join("\n").trim());
  if (Array.isArray(value) && !value.length) return el("span", { class: "muted" }, "nothing found");
  return null;
}

function json(value, briefly) {
  const text = JSON.stringify(value, null, briefly ? 0 : 2) ?? "null";
  return el(briefly ? "code" : "pre", { class: "json" }, briefly && text.length > 160 ? `${text.slice(0, 160)}…` : text);
}

/** Whether a value is a vector as the gateway shortens it: its first numbers (null for NaN) and its length. */
function isVector(value) {
  const numbers = value?.vector;
  return Array.isArray(numbers) && Number.isInteger(value.length) && Object.keys(value).length === 2 && numbers.every((one) => one === null || typeof one === "number");
}

const NAMES = ["label", "entity_group", "entity", "answer", "token_str"];

function labelOf(part, text = "") {
  const name = NAMES.find((one) => typeof part?.[one] === "string");
  if (name === undefined) return null;
  return part.word ? `${written(part, text)} · ${part[name]}` : part[name];
}

/** A word as it is written in the text: a model may know lower case only. */
function written({ word, start, end }, text) {
  const found = [...text].slice(start, end).join("");
  return Number.isInteger(start) && found.length > 0 && [...found].length === end - start ? found : word;
}

/** A part's score; for a mask without a score, its share of the image. */
function shareOf(part) {
  if (typeof part.score === "number") return part.score;
  const runs = part.mask?.counts;
  if (!Array.isArray(runs)) return null;
  const pixels = runs.reduce((sum, run) => sum + run, 0);
  return runs.reduce((sum, run, turn) => sum + (turn % 2 ? run : 0), 0) / Math.max(pixels, 1);
}

function textOf(part) {
  if (typeof part === "string") return part;
  const texts = Object.entries(part ?? {}).filter(([name, value]) => name.endsWith("text") && typeof value === "string");
  return texts.length === 1 ? texts[0][1] : null;
}

function labels(parts, briefly, text) {
  const some = briefly ? parts.slice(0, LISTED) : parts;
  const rest = parts.length - some.length;
  return el("ul", { class: "labels" }, some.map((part) => label(part, text)), rest > 0 && el("li", { class: "muted" }, `and ${count(rest)} more`));
}

function label(part, text) {
  const meter = el("span", { class: "meter", "aria-hidden": "true" });
  const known = Math.min(1, Math.max(0, shareOf(part)));
  meter.style.setProperty("--share", `${Math.round(100 * known)}%`);
  const score = typeof part.score === "number" ? share(known) : el("span", { title: "of the image" }, `${share(known)} area`);
  return el("li", {}, el("span", { class: "name" }, labelOf(part, text)), el("span", { class: "score" }, score), meter);
}

/** A vector's first numbers as a strip: blue below zero, orange above, stronger for larger numbers. */
function vector({ vector: numbers, length }) {
  const most = Math.max(...numbers.map(Math.abs), 1e-9);
  const cells = numbers.map((number, place) =>
    svg("rect", { x: place, y: 0, width: 1.05, height: 1, class: number < 0 ? "below" : "above", "fill-opacity": (Math.abs(number) / most).toFixed(2) }),
  );
  const strip = svg("svg", { class: "strip", viewBox: `0 0 ${numbers.length} 1`, preserveAspectRatio: "none", "aria-hidden": "true" }, cells);
  return el("div", { class: "vector" }, strip, el("span", { class: "muted" }, `${count(length)} numbers`));
}
