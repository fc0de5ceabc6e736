// The gateway's API: requests with the key, polling, and a job's events.

const KEY = "argosy.key";
const LONGEST_WAIT_S = 30;

/** An error answer of the gateway; `status` 0 means that it could not be reached, or that something else answered. */
export class Refusal extends Error {
  constructor(status, detail, retryAfterS) {
    super(detail);
    this.status = status;
    this.retryAfterS = retryAfterS;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

/** What the key may change, so that the page offers nothing else: the gateway refuses it anyway. */
export const may = { change: false, operate: false, keys: false };

let skewS = 0;

/** The gateway's clock, by its answers: this machine's clock may be wrong, and ages with it. */
export const now = () => Date.now() / 1000 + skewS;

async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  const sent = key.get();
  if (sent) headers.set("Authorization", `Bearer ${sent}`);
  headers.set("X-Requested-With", "argosy-page"); // for the audit log
  let answer;
  try {
    answer = await fetch(path.slice(1), { ...options, headers }); // relative: a proxy may serve the page under a prefix
  } catch (error) {
    if (options.signal?.aborted) throw error;
    throw new Refusal(0, "the gateway cannot be reached");
  }
  keepTime(answer.headers.get("date"));
  if (!answer.ok) throw await refusal(answer, sent);
  return answer;
}

function keepTime(date) {
  const found = date ? Date.parse(date) / 1000 - Date.now() / 1000 : 0;
  skewS = Math.abs(found) > 2 ? found : 0; // the header has whole seconds only
}

const isOf = (answer, type) => (answer.headers.get("content-type") ?? "").startsWith(type);

async function refusal(answer, sent) {
  const retryAfterS = Number(answer.headers.get("retry-after")) || 0;
  const problem = isOf(answer, "application/problem+json") ? await answer.json().catch(() => null) : null;
  if (problem === null) return new Refusal(0, `the gateway cannot be reached: ${answer.status} ${answer.statusText}`.trim(), retryAfterS);
  const detail = [problem.detail ?? answer.statusText, problem.remedy].filter(Boolean).join("; ");
  // a late answer to an earlier key says nothing about the current key
  if (answer.status === 401 && key.get() === sent) document.dispatchEvent(new CustomEvent("argosy:key", { detail: sent ? detail : "" }));
  return new Refusal(answer.status, detail, retryAfterS);
}

/** An answer's body, by `how`. A body that ends early or is of another form is the network's or a proxy's. */
async function bodyOf(answer, how, signal) {
  try {
    return await answer[how]();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refusal(0, "the answer was cut off, or is not the gateway's");
  }
}

export const get = async (path, options) => bodyOf(await request(path, options), "json", options?.signal);

export const image = async (path, options) => bodyOf(await request(path, options), "blob", options?.signal);

export async function post(path, body) {
  const sent = body === undefined ? {} : { headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  return bodyOf(await request(path, { method: "POST", ...sent }), "json");
}

export const remove = async (path) => bodyOf(await request(path, { method: "DELETE" }), "json");

export function query(values) {
  const given = Object.entries(values).filter(([, value]) => value !== null && value !== undefined);
  return given.length ? `?${new URLSearchParams(given)}` : "";
}

/** The states of a link, from the best to the worst, and the present one of each poll and stream. */
const STATES = ["live", "failing", "stopped"];
const links = new Set();

/** A function that tells the state of a poll or stream until `signal` aborts. The page shows the worst of them all. */
function teller(signal) {
  const link = {};
  signal.addEventListener("abort", () => links.delete(link), { once: true });
  return (state, detail = "") => {
    if (signal.aborted) return;
    links.add(Object.assign(link, { state, detail }));
    const worst = [...links].reduce((one, other) => (STATES.indexOf(other.state) > STATES.indexOf(one.state) ? other : one));
    document.dispatchEvent(new CustomEvent("argosy:link", { detail: worst }));
  };
}

/** Whether waiting does not help: the gateway refuses the key, or has nothing there. */
const isFinal = ({ status }) => status === 403 || status === 404;

/** Wait, or return early when `signal` aborts. */
const pause = (seconds, signal) =>
  new Promise((done) => {
    const timer = setTimeout(done, seconds * 1000);
    signal.addEventListener("abort", () => (clearTimeout(timer), done()), { once: true });
  });

const seen = (signal) =>
  new Promise((done) => {
    if (!document.hidden) return done();
    document.addEventListener("visibilitychange", done, { once: true, signal });
    signal.addEventListener("abort", done, { once: true });
  });

/** Seconds to wait after so many failures in a row: exponential, with jitter between pages. */
export const backOffS = (failures, error) => Math.max(error.retryAfterS ?? 0, Math.min(LONGEST_WAIT_S, 2 ** failures) * (0.75 + Math.random() / 2));

/** Call `look` every `everyS` seconds until `signal` aborts: more rarely while it fails, never on a hidden page. */
export async function poll(look, everyS, signal) {
  const tell = teller(signal);
  for (let failures = 0; !signal.aborted; ) {
    await seen(signal);
    let waitS = everyS;
    try {
      if (!signal.aborted) await look();
      failures = 0;
      tell("live");
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof Refusal)) {
        tell("stopped", error.message);
        throw error;
      }
      if (error.status === 401) return; // the page starts over once there is a key
      if (isFinal(error)) return tell("stopped", error.message);
      waitS = backOffS(failures++, error);
      tell("failing", `${error.message}; again in ${Math.round(waitS)} s`);
    }
    await pause(waitS, signal);
  }
}

/** Abort with `signal`, or when the page is hidden: a browser has few connections for all its tabs. */
function whileSeen(signal) {
  const ended = new AbortController();
  const put = () => document.hidden && ended.abort();
  document.addEventListener("visibilitychange", put, { signal: ended.signal });
  signal.addEventListener("abort", () => ended.abort(), { once: true, signal: ended.signal });
  return ended;
}

/** Call `onProgress` with a job's progress until it is finished; reconnects. EventSource cannot send the key. */
export async function follow(job, onProgress, signal) {
  const tell = teller(signal);
  for (let failures = 0; !signal.aborted; ) {
    await seen(signal);
    const looking = whileSeen(signal);
    try {
      const answer = await request(`/api/jobs/${encodeURIComponent(job)}/events`, { signal: looking.signal });
      if (!isOf(answer, "text/event-stream")) throw new Refusal(0, "the answer is not the gateway's");
      for await (const { name, value } of events(answer.body)) {
        failures = 0;
        tell("live");
        if (name === "error") throw new Refusal(503, value.detail);
        onProgress(value);
        if (name === "finished") return;
      }
    } catch (error) {
      if (signal.aborted || error.status === 401) return;
      if (isFinal(error)) return tell("stopped", error.message);
      if (!looking.signal.aborted) tell("failing", `${error.message}; trying again`);
    } finally {
      looking.abort();
    }
    await pause(backOffS(failures++, {}), signal);
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read().catch(() => ({ done: true }));
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const fields = Object.fromEntries(part.split("\n").map((line) => [line.slice(0, line.indexOf(":")), line.slice(line.indexOf(":") + 1).trim()]));
      if (fields.data) yield { name: fields.event ?? "message", value: JSON.parse(fields.data) };
    }
  }
}
