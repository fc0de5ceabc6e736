// Actions on jobs: cancel, replay. Each asks first, then reports its outcome.

import { may, post } from "./api.js";
import { doing, report, sure } from "./dialogs.js";
import { call, el } from "./dom.js";
import { plural } from "./words.js";

const named = (job) => job.name || job.id;

/** Kinds of errors whose reason is the item itself. */
const AGAIN = ["InvalidInput", "InputTooLarge"];

/** A button that cancels a job; hidden if nothing can be cancelled. `after` is called with the job's new state. */
export function cancelButton(after = () => {}) {
  let job = null;
  const node = el("button", { type: "button", class: "small", click: () => doing(node, cancel) }, "Cancel");
  async function cancel() {
    const left = plural(job.total - job.done, "result");
    if (!(await sure(`Cancel ${named(job)}?`, `Results not computed yet (${left}) end as cancelled. The job cannot be resumed.`, "Cancel the job", true))) return;
    after(await post(`/api/jobs/${encodeURIComponent(job.id)}/cancel`));
    report(`${named(job)} is being cancelled`);
  }
  return {
    node,
    update(found) {
      job = found;
      node.hidden = !may.change || job.finished || job.cancelled_at !== null;
      call(node, `Cancel ${named(job)}`);
    },
  };
}

/** A button that queues a job's failed items again: all of them, or only one kind of error. */
export function replayButton(text, kind = null, after = () => {}) {
  let job = null;
  const node = el("button", { type: "button", class: "small", click: () => doing(node, replay) }, text);
  async function replay() {
    const which = kind ? `the items of ${named(job)} that failed with ${kind}` : `the failed items of ${named(job)} (${plural(job.failed, "result")})`;
    const again = AGAIN.includes(kind) ? ` They will fail again, unless the model or its settings have changed.` : "";
    if (!(await sure("Replay?", `Computes ${which} again; their failed results are deleted.${again}`, "Replay"))) return;
    const done = await post("/api/replay", { job: job.id, ...(kind ? { error_kind: kind } : {}) });
    if (done.results) report(`${plural(done.results, "result")} of ${named(job)} queued again`);
    else report("Nothing was queued: the inputs are not kept, the deadline has passed, or the job was cancelled", true);
    after();
  }
  return {
    node,
    update(found) {
      job = found;
      node.hidden = !may.change || job.failed === 0 || job.cancelled_at !== null;
      call(node, `${text}: ${kind ?? "failed items"} of ${named(job)}`);
    },
  };
}

/** A button that pauses a model. `after` is called with all pauses. */
export function pauseButton(name, after = () => {}) {
  const node = el("button", { type: "button", class: "small", hidden: !may.operate, click: () => doing(node, pause) }, "Pause");
  call(node, `Pause model ${name}`);
  async function pause() {
    const text = "Nothing of it starts until it is resumed; batches that run end. Submissions are accepted and wait, deadlines go on.";
    if (!(await sure(`Pause model ${name}?`, text, "Pause"))) return;
    after((await post("/api/pause", { kind: "model", name })).pauses);
    report(`model ${name} is paused`);
  }
  return node;
}

/** A button that resumes what is paused. */
export function resumeButton({ kind, name }, after = () => {}) {
  const node = el("button", { type: "button", class: "small", hidden: !may.operate, click: () => doing(node, resume) }, "Resume");
  call(node, `Resume ${kind} ${name}`);
  async function resume() {
    after((await post("/api/resume", { kind, name })).pauses);
    report(`${kind} ${name} goes on`);
  }
  return node;
}
