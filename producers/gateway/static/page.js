// The page: the view for the address, the key, the colours. A view is a function that fills the content and stops when
// its signal aborts.

import { Refusal, backOffS, get, key, may, poll } from "./api.js";
import { audit } from "./audit.js";
import { report } from "./dialogs.js";
import { el, say } from "./dom.js";
import { failures } from "./failures.js";
import { activity, fleet } from "./fleet.js";
import { job } from "./job.js";
import { jobs } from "./jobs.js";
import { models } from "./models.js";
import { schedules } from "./schedules.js";
import { tenants } from "./tenants.js";
import { attempt } from "./try.js";
import { visible } from "./words.js";

const by = (id) => document.getElementById(id);
const WORKERS_EVERY_S = 5;
const THEMES = ["system", "light", "dark"];
/** The views: their address, their name, the link that leads to them, and the right that they need. */
const VIEWS = [
  [/^#\/jobs\/([0-9A-Za-z]+)$/, job, "Job", "jobs"],
  [/^#\/fleet$/, fleet, "Fleet", "fleet", "all-tenants"],
  [/^#\/failures$/, failures, "Failures", "failures"],
  [/^#\/models$/, models, "Models", "models"],
  [/^#\/try(?:\/([^/]+))?$/, attempt, "Try", "try", "change"],
  [/^#\/schedules$/, schedules, "Schedules", "schedules", "all-tenants"],
  [/^#\/tenants$/, tenants, "Tenants", "tenants", "all-tenants"],
  [/^#\/audit$/, audit, "Audit", "audit", "all-tenants"],
  [/^/, jobs, "Jobs", "jobs"],
];

/** Whether the key has a right that a view or a link needs. */
const has = (right) => right === undefined || (right === "change" ? may.change : caller.all_tenants);

let shown = new AbortController();
let caller = null;
let failed = 0; // failed requests for the caller, in a row

async function show(focus) {
  const hash = location.hash;
  if (hash && !hash.startsWith("#/")) return; // an anchor in this page: the skip link
  shown.abort();
  const own = (shown = new AbortController());
  try {
    caller ??= await get("/api/caller");
    Object.assign(may, { change: caller.role !== "viewer", operate: caller.operator, keys: caller.operator && caller.keys });
    failed = 0;
  } catch (error) {
    if (error.status !== 401) tellLater(own.signal, error);
    return;
  }
  if (own.signal.aborted) return;
  header();
  const [pattern, view, name, section, right] = VIEWS.find(([pattern]) => pattern.test(hash));
  document.title = `${name} · Argosy`;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.hash === `#/${section}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!has(right)) return location.replace("#/jobs");
  if (caller.all_tenants) poll(() => activity(own.signal), WORKERS_EVERY_S, own.signal);
  const root = el("div", { class: "view" });
  by("main").replaceChildren(root);
  try {
    const done = view(root, { id: pattern.exec(hash)?.[1], signal: own.signal, caller });
    if (focus) root.querySelector("h1")?.focus();
    await done;
  } catch (error) {
    if (own.signal.aborted || error.status === 401) return;
    root.replaceChildren(el("h1", { tabindex: -1 }, "This page cannot be shown"), el("p", { class: "empty" }, error.message), el("p", {}, el("a", { href: "#/jobs" }, "All jobs")));
    if (!(error instanceof Refusal)) throw error;
  }
}

function tellLater(signal, error) {
  link({ state: "failing", detail: error.message });
  setTimeout(() => signal.aborted || show(false), 1000 * backOffS(failed++, error));
}

function header() {
  for (const link of document.querySelectorAll("nav a[data-for]")) link.hidden = !has(link.dataset.for);
  by("forget").hidden = !(caller.keys && key.get());
  const role = caller.role === "member" ? "" : caller.role;
  say(by("whose"), [caller.tenant, role].filter(Boolean).join(" · "));
}

function link({ state, detail }) {
  const node = by("link");
  node.dataset.state = state;
  say(node, state === "live" ? "live" : state === "stopped" ? "stopped" : "reconnecting");
  node.title = visible(detail);
}

/** Say it if no worker is online, or none for waiting work: it is not computed, however well everything else looks. */
function workers({ workers: online, models, unserved }) {
  const node = by("workers");
  const without = [...new Set(models.filter((line) => line.served === false).map((line) => line.model))];
  const wrong = online === null ? "broker unreachable" : online.length === 0 ? "no worker online" : without.length ? `no worker serves ${without.join(", ")}` : "";
  node.hidden = wrong === "";
  say(node, wrong);
  node.title = visible(unserved ?? "");
}

function askForKey(wrong) {
  const dialog = by("key");
  key.forget();
  caller = null;
  shown.abort();
  by("main").replaceChildren();
  by("forget").hidden = true;
  by("workers").hidden = true;
  say(by("whose"), "");
  say(by("key-wrong"), wrong);
  link({ state: "waiting", detail: "waiting for a key" });
  say(by("link"), "no key");
  if (!dialog.open) dialog.showModal();
  by("key-text").focus();
}

function useKey(event) {
  event.preventDefault();
  const text = by("key-text").value.trim();
  if (!/^[\x21-\x7e]+$/.test(text)) return say(by("key-wrong"), "A key has letters, digits and hyphens only.");
  key.set(text);
  by("key-text").value = "";
  say(by("key-wrong"), "");
  by("key").close();
  show(true);
}

function theme(step) {
  const stored = localStorage.getItem("argosy.theme") ?? "system";
  const chosen = THEMES[(THEMES.indexOf(stored) + step) % THEMES.length];
  localStorage.setItem("argosy.theme", chosen);
  if (chosen === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  say(by("theme"), `Theme: ${chosen}`);
}

document.addEventListener("argosy:link", ({ detail }) => link(detail));
document.addEventListener("argosy:workers", ({ detail }) => workers(detail));
document.addEventListener("argosy:key", ({ detail }) => askForKey(detail));
by("key").querySelector("form").addEventListener("submit", useKey);
by("key").addEventListener("close", () => key.get() || askForKey("")); // without a key there is no page to return to
by("theme").addEventListener("click", () => theme(1));
by("forget").addEventListener("click", () => {
  askForKey("");
  report("The key is forgotten");
});
addEventListener("hashchange", () => show(true));
addEventListener("unhandledrejection", (event) => event.reason?.name === "AbortError" && event.preventDefault());
theme(0);
show(false);
