// What people do to jobs: cancel, replay. Each asks first, and says what came of it.

import { post } from "./api.js";
import { doing, report, sure } from "./dialogs.js";
import { el } from "./dom.js";
import { plural } from "./words.js";

const named = (job) => job.name || job.id;

/** A button that cancels a job; shown while there is something to cancel. `after` is called with the job as it is then. */
export function cancelButton(after = () => {}) {
  let job = null;
  const node = el("button", { type: "button", class: "small", click: () => doing(node, cancel) }, "Cancel");
  async function cancel() {
    const left = plural(job.total - job.done, "result");
    if (!(await sure(`Cancel ${named(job)}?`, `What is not computed yet (${left}) ends as cancelled. It cannot be resumed.`, "Cancel the job", true))) return;
    after(await post(`/api/jobs/${encodeURIComponent(job.id)}/cancel`));
    report(`${named(job)} is being cancelled`);
  }
  return {
    node,
    update(found) {
      job = found;
      node.hidden = job.finished || job.cancelled_at !== null;
      node.setAttribute("aria-label", `Cancel ${named(job)}`);
    },
  };
}

/** A button that puts a job's failed items back: all of them, or those of one kind of error. */
export function replayButton(text, kind = null, after = () => {}) {
  let job = null;
  const node = el("button", { type: "button", class: "small", click: () => doing(node, replay) }, text);
  async function replay() {
    const which = kind ? `the items of ${named(job)} that failed with ${kind}` : `the failed items of ${named(job)}`;
    if (!(await sure("Replay?", `Computes ${which} again; their failed results are removed.`, "Replay"))) return;
    const done = await post("/api/replay", { job: job.id, ...(kind ? { error_kind: kind } : {}) });
    if (done.results) report(`${plural(done.results, "result")} of ${named(job)} put back into the queue`);
    else report("Nothing was put back: the inputs are not kept, the deadline has passed, or the job was cancelled", true);
    after();
  }
  return {
    node,
    update(found) {
      job = found;
      node.hidden = job.failed === 0 || job.cancelled_at !== null;
      node.setAttribute("aria-label", `${text}: ${kind ?? "failed items"} of ${named(job)}`);
    },
  };
}
