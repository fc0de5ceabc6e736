// The growth rate of a count, over the recent looks; and the time without growth.

import { duration } from "./words.js";

const KEPT_S = 20;
export const PATIENCE_S = 60;

/** How long an unfinished job has had no new result; empty if it is not long. */
export function stall(job, now) {
  const sinceS = now - (job.progressed_at ?? job.created_at);
  return job.finished || sinceS < PATIENCE_S ? "" : `no ${job.done ? "new " : ""}result for ${duration(sinceS)}`;
}

export class Pace {
  #looks = [];

  /** Record a count at a time; return its growth per second, or 0 if that is not known yet. */
  at(time, value) {
    if (value < (this.#looks.at(-1)?.value ?? 0)) this.#looks = []; // it shrank, after a replay
    this.#looks.push({ time, value });
    while (this.#looks.length > 2 && this.#looks[0].time < time - KEPT_S) this.#looks.shift();
    const first = this.#looks[0];
    return time - first.time >= 1 ? (value - first.value) / (time - first.time) : 0;
  }
}
