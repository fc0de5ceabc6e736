// How fast something grows, over the last looks at it.

const KEPT_S = 20;

export class Pace {
  #looks = [];

  /** Note a count at a time; return how much it grows a second, 0 while that cannot be told. */
  at(time, value) {
    if (value < (this.#looks.at(-1)?.value ?? 0)) this.#looks = []; // replayed: it shrank
    this.#looks.push({ time, value });
    while (this.#looks.length > 2 && this.#looks[0].time < time - KEPT_S) this.#looks.shift();
    const first = this.#looks[0];
    return time - first.time >= 1 ? (value - first.value) / (time - first.time) : 0;
  }
}
