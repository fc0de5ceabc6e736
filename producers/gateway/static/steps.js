// The steps of a pipeline as a tree.

/** The steps without a source, each with the steps that follow it; a step with several sources is under the last. */
export function stepTree({ steps }) {
  const under = (name) => steps.filter((step) => (step.of?.at(-1) ?? null) === name).map((step) => ({ step, children: under(step.name) }));
  return under(null);
}
