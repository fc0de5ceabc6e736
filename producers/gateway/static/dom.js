// Make and update nodes. Data from the API is only ever inserted as text: no code of the page parses HTML.

import { visible } from "./words.js";

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. An attribute that is a function is an event listener; null and false leave an attribute out. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value !== null && value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : visible(String(value)));
  }
  const shown = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  node.append(...shown.map((child) => (child instanceof Node ? child : visible(String(child)))));
  return node;
}

/** Set a node's text only if it differs: an unchanged node keeps its selection. */
export function say(node, text) {
  const shown = visible(String(text));
  if (node.textContent !== shown) node.textContent = shown;
}

/** Set a node's name for screen readers. */
export const call = (node, name) => node.setAttribute("aria-label", visible(name));

/** Whether the keyboard focus is lost: browsers take it off a disabled button, or leave it there without use. */
export const placeLost = () => document.activeElement === document.body || document.activeElement?.disabled === true;

/**
 * Keep `parent`'s children equal to `rows`. `make(row)` makes a row once, as `{ node, update, gone }`; later looks only
 * update it, so that focus, open details and half-loaded images stay. A row that throws costs no other row.
 */
export class Rows {
  #known = new Map();

  constructor(parent, keyOf, make) {
    this.parent = parent;
    this.keyOf = keyOf;
    this.make = make;
  }

  show(rows) {
    const wanted = new Set(rows.map((row) => String(this.keyOf(row))));
    for (const [key, { node, gone }] of this.#known) {
      if (!wanted.has(key)) {
        node.remove();
        gone?.();
        this.#known.delete(key);
      }
    }
    let before = this.parent.firstElementChild;
    for (const row of rows) {
      const key = String(this.keyOf(row));
      try {
        if (!this.#known.has(key)) this.#known.set(key, this.make(row));
        this.#known.get(key).update?.(row);
      } catch (error) {
        reportError(error);
      }
      const node = this.#known.get(key)?.node;
      if (!node) continue;
      if (node === before) before = before.nextElementSibling;
      else this.parent.insertBefore(node, before);
    }
  }
}

/** A section: a heading, an aside to its right, and its content. */
export function section(title, aside, ...children) {
  const id = `h-${title.toLowerCase().replaceAll(/\W+/g, "-")}`;
  const head = el("div", { class: "section-head" }, el("h2", { id }, title), el("div", { class: "aside" }, aside));
  return el("section", { "aria-labelledby": id }, head, ...children);
}

/** A table's head; a column without a name is for buttons. */
export function columns(...names) {
  const cell = (name) => (name ? el("th", { scope: "col" }, name) : el("td", {}));
  return el("thead", {}, el("tr", {}, names.map(cell)));
}

/** A cell with its column's name, for screens too narrow for columns. */
export function cell(label, attributes, ...children) {
  return el("td", { "data-label": label, ...attributes }, ...children);
}

/** A section with a table, and a sentence instead while it has no rows. `show(rows, about)` updates both. */
export function tableOf(title, names, keyOf, make, nothing) {
  const aside = el("span", { class: "muted" });
  const table = el("table", {}, columns(...names));
  const rows = new Rows(table.appendChild(el("tbody")), keyOf, make);
  const empty = el("p", { class: "empty" }, nothing);
  const node = section(title, aside, empty, table);
  const show = (found, about) => {
    rows.show(found);
    table.hidden = found.length === 0;
    empty.hidden = found.length > 0;
    say(aside, about);
  };
  return { node, show, empty };
}

/** Call `act` once no call has come for a while. */
export function later(ms, act) {
  let timer = 0;
  return () => {
    clearTimeout(timer);
    timer = setTimeout(act, ms);
  };
}
