// The schedules with their next time and their last run. Operators pause, resume and remove them.

import { get, may, now, poll, post, remove } from "./api.js";
import { doing, report, sure } from "./dialogs.js";
import { call, cell, el, say, tableOf } from "./dom.js";
import { ago, duration, moment } from "./words.js";

const EVERY_S = 5;
const NAMES = ["Schedule", "Times", "Next", "Submits", "Last run"];
const NONE = ["Nothing is scheduled. Add a schedule: ", el("code", {}, "argosy schedule add NAME FILE --task sentiment --cron '30 2 * * *'")];

export function schedules(root, { signal }) {
  const show = (answer) => table.show(answer.schedules, "");
  const table = tableOf("Schedules", [...NAMES, ...(may.operate ? ["Action"] : [])], (one) => one.name, (one) => row(one.name, show), NONE);
  root.append(el("h1", { tabindex: -1, class: "unseen" }, "Schedules"), table.node);
  poll(async () => show(await get("/api/schedules", { signal })), EVERY_S, signal);
}

function row(name, show) {
  const [times, submits] = ["Times", "Submits"].map((column) => cell(column, { class: "wraps" }));
  const [next, wrong, state, error] = ["", "bad small-text", "", "bad small-text"].map((kind) => el("p", { class: kind }));
  const job = el("a", {}, "Its job");
  const buttons = may.operate ? actions(name, show) : null;
  return {
    node: el(
      "tr",
      {},
      cell("Schedule", { class: "wraps" }, name),
      times,
      cell("Next", { class: "wraps" }, next, wrong),
      submits,
      cell("Last run", { class: "wraps" }, state, job, error),
      buttons && cell("Action", { class: "acts" }, buttons.nodes),
    ),
    update(one) {
      const { timing, rows } = one.submission ?? {};
      say(times, timing ? [timing.cron || "once", timing.zone ?? "UTC"].join(" ") : "of another version");
      say(submits, rows ? [`${rows.tasks.join("+")} of ${rows.where.join(", ")}`, one.host && `on ${one.host}`].filter(Boolean).join(" ") : "–");
      say(next, nextTime(one));
      next.title = one.next_at === null ? "" : moment(one.next_at);
      say(wrong, one.unread ?? "");
      const last = one.last_run;
      say(state, last ? `${last.state}, planned ${ago(last.planned_at, now())}` : "–");
      state.title = last ? moment(last.planned_at) : "";
      job.hidden = !last?.job;
      job.setAttribute("href", `#/jobs/${encodeURIComponent(last?.job ?? "")}`);
      call(job, `Job of the last run of ${name}`);
      say(error, last?.error ?? "");
      buttons?.update(one);
    },
  };
}

function nextTime({ next_at: at, paused_at: paused }) {
  if (paused !== null) return "paused";
  if (at === null) return "none";
  return at > now() ? `in ${duration(at - now())}` : `due for ${duration(now() - at)}`;
}

/** The buttons of operators. A schedule without a next time has nothing to pause. */
function actions(name, show) {
  const button = (text, act) => {
    const node = el("button", { type: "button", class: "small", click: () => doing(node, act) }, text);
    call(node, `${text} schedule ${name}`);
    return node;
  };
  const pause = button("Pause", async () => {
    if (!(await sure(`Pause the schedule ${name}?`, "It has no more runs until it is resumed, and times that pass are left out. A run that has begun goes on.", "Pause"))) return;
    show(await post(`/api/schedules/${encodeURIComponent(name)}/pause`));
    report(`schedule ${name} is paused`);
  });
  const resume = button("Resume", async () => {
    show(await post(`/api/schedules/${encodeURIComponent(name)}/resume`));
    report(`schedule ${name} goes on`);
  });
  const gone = button("Remove", async () => {
    if (!(await sure(`Remove the schedule ${name}?`, "It has no more runs, and the list of its runs is deleted. Its jobs stay.", "Remove", true))) return;
    show(await remove(`/api/schedules/${encodeURIComponent(name)}`));
    report(`schedule ${name} is removed`);
  });
  const update = ({ next_at: at, paused_at: paused }) => {
    pause.hidden = paused !== null || at === null;
    resume.hidden = paused === null;
  };
  return { nodes: [pause, resume, gone], update };
}
