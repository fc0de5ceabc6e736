// The jobs, newest first, with their progress; above them, for keys that see all tenants, the figures of the fleet.

import { cancelButton, replayButton } from "./actions.js";
import { get, now, poll, query } from "./api.js";
import { progress } from "./charts.js";
import { Rows, cell, columns, el, later, say, section } from "./dom.js";
import { activity, overview } from "./fleet.js";
import { Pace, stall } from "./pace.js";
import { Pager } from "./pager.js";
import { ago, brief, count, duration, moment, plural } from "./words.js";

const PAGE = 20;
const FILTERS = [["", "All jobs"], ["unfinished", "Unfinished"], ["failed", "With failures"], ["cancelled", "With cancelled items"], ["expired", "With expired items"]];
const NO_JOBS = ["No jobs yet. Submit some: ", el("code", {}, "argosy submit reviews.csv --task sentiment")];
const EVERY_S = 2;

export function jobs(root, { signal, caller }) {
  const fleet = caller.all_tenants ? overview() : null;
  const table = el("table", { class: "jobs" }, columns("Job", "Priority", "Progress", "State", "Submitted", ""));
  const body = table.appendChild(el("tbody"));
  const rows = new Rows(body, (job) => job.id, (job) => row(job, caller));
  const empty = el("p", { class: "empty", hidden: true });
  const total = el("span", { class: "muted" });
  const search = el("input", { type: "search", "aria-label": "Search jobs", placeholder: "Name, tenant or id", input: later(100, () => pager.again()) });
  const having = el("select", { "aria-label": "Show jobs", change: () => pager.again() }, FILTERS.map(([value, name]) => el("option", { value }, name)));
  const pager = new Pager(look);
  let asked = "";

  async function look() {
    const wanted = query({ limit: PAGE, before: pager.place, text: search.value.trim() || null, having: having.value || null });
    asked = wanted;
    const page = await get(`/api/jobs${wanted}`, { signal });
    if (wanted !== asked) return; // the user has turned the page or searched in the meantime
    pager.shown(page.next);
    rows.show(page.jobs);
    empty.hidden = page.jobs.length > 0;
    empty.replaceChildren(...(search.value.trim() || having.value ? ["No such jobs."] : NO_JOBS));
    table.hidden = page.jobs.length === 0;
    pager.node.hidden = pager.isWhole;
    say(total, pager.number > 1 ? `page ${pager.number}` : `newest ${plural(page.jobs.length, "job")}`);
  }

  root.append(el("h1", { tabindex: -1, class: "unseen" }, "Jobs"), ...(fleet ? [fleet.node] : []), section("Jobs", total, el("div", { class: "filters" }, search, having), empty, table, pager.node));
  poll(look, EVERY_S, signal);
  if (fleet) poll(async () => fleet.update(await activity(signal)), EVERY_S, signal);
}

/** The row of a job. */
function row(first, caller) {
  const name = el("a", { class: "job-name", href: `#/jobs/${encodeURIComponent(first.id)}` });
  const about = el("span", { class: "muted small-text" });
  const bar = progress();
  const counts = el("span", { class: "numbers" });
  const pace = new Pace();
  const badge = el("span", { class: "badge" });
  const state = el("span", { class: "muted small-text" });
  const when = el("time");
  const cancel = cancelButton((job) => update(job));
  const replay = replayButton("Replay");
  function update(job) {
    say(name, job.name || "unnamed job");
    const items = job.pipeline ? `${plural(job.items, "input")}, ${plural(job.pipeline.steps.length, "step")}` : plural(job.items, "item");
    say(about, [caller.all_tenants && job.tenant, items, job.id].filter(Boolean).join(" · "));
    bar.update(job);
    const others = ["failed", "cancelled", "expired"].filter((end) => job[end]).map((end) => `${count(job[end])} ${end}`);
    say(counts, [`${count(job.done)} of ${plural(job.total, "result")}`, ...others].join(", "));
    badge.className = `badge ${job.state}`;
    say(badge, job.state);
    const stalled = stall(job, now());
    state.classList.toggle("warn", Boolean(stalled));
    say(state, stalled || (job.finished ? took(job) : left(pace, job)));
    say(when, ago(job.created_at, now()));
    when.title = moment(job.created_at);
    cancel.update(job);
    replay.update(job);
  }
  const node = el(
    "tr",
    {},
    cell("Job", { class: "who" }, name, about),
    cell("Priority", {}, el("span", { class: `priority ${first.priority}` }, String(first.priority))),
    cell("Progress", { class: "how-far" }, bar.node, counts),
    cell("State", { class: "state" }, badge, state),
    cell("Submitted", { class: "when" }, when),
    cell("", { class: "acts" }, replay.node, cancel.node),
  );
  return { node, update };
}

const took = (job) => (job.finished_at === null || job.total === 0 ? "" : `in ${duration(Math.max(0, job.finished_at - job.created_at))}`);

/** A job's rate, and the remaining time at that rate. */
function left(pace, job) {
  const perS = pace.at(now(), job.done);
  if (!perS) return "";
  const rest = (job.total - job.done) / perS;
  return `${brief(perS)}/s, ${duration(rest)} left`;
}
