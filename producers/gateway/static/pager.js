// The pages of a list: the place of the one that is shown, and the buttons to its neighbours.

import { el, placeLost } from "./dom.js";

export class Pager {
  /** `look` shows the page at `place`, and tells `shown` the place of the page after it, or null. */
  constructor(look, { first = null, back = "Newer", on = "Older" } = {}) {
    this.look = look;
    this.places = [first];
    this.next = null; // also until a page is shown
    this.turning = false;
    this.back = el("button", { type: "button", click: () => this.number > 1 && this.turn(() => this.places.pop()) }, back);
    this.on = el("button", { type: "button", click: () => this.next !== null && this.turn(() => this.places.push(this.next)) }, on);
    this.node = el("div", { class: "pager" }, this.back, this.on);
  }

  get place() {
    return this.places.at(-1);
  }

  /** The number of the page, from 1. */
  get number() {
    return this.places.length;
  }

  /** Whether the list has a single page. */
  get isWhole() {
    return this.on.disabled && this.back.disabled;
  }

  shown(next) {
    this.next = next;
    this.on.disabled = next === null;
    this.back.disabled = this.number === 1;
  }

  /** Show the first page. */
  again() {
    this.places.length = 1;
    this.next = null;
    this.look().catch(() => {}); // the next look reports it
  }

  /** Go to another page, unless one is under way: the second click of two is about the page that they left. */
  async turn(move) {
    if (this.turning) return;
    this.turning = true;
    move();
    this.next = null;
    await this.look().catch(() => {}); // the next look reports it
    this.turning = false;
    if (placeLost()) (this.on.disabled ? this.back : this.on).focus();
  }
}
