"""How much faster is the best backend on this machine's CPU, or GPU, than torch uncompiled in fp32, at the same
accuracy?

`argosy tune` decides with labelled texts which backends answer as well as torch in fp32 (at most half a point lost on
any task). These then run the same offline loop over the same real texts, two tasks each, in turns; medians of three
passes.
"""

from __future__ import annotations

import os
import statistics

from benchmarks import convention, offline
from benchmarks.workload import mixed_texts
from workers import settings
from workers.batching.serving import served_models, tuned_backend
from workers.models.backends.choice import REFERENCE

TASKS = ("sentiment", "topic")


def main() -> None:
    options = convention.options(__doc__)
    config = settings.load()
    device = offline.device(config)
    count, passes = (20, 1) if options.quick else (10_600 if device.is_cuda else 600, 3)
    wanted = served_models.model_to_load(config, "text")
    convention.progress("measuring the candidates")
    if options.quick:
        decision = tuned_backend.resolve(wanted, device, measure=True)
    else:
        decision = tuned_backend.decide(wanted, device, labelled=True)
    assert decision is not None, "torch runs everywhere"
    admitted = [one.backend for one in decision.candidates if not one.refused]
    models = {str(backend): offline.loaded(wanted, backend, device) for backend in admitted}
    texts = mixed_texts(count)
    _, budget = offline.as_served(config)
    rates: dict[str, list[float]] = {name: [] for name in models}
    for number in range(passes + 1):  # the first is a warm-up
        for name, model in models.items():
            rate = offline.run(model, texts, budget, TASKS)
            if number or options.quick:
                rates[name].append(rate)
                convention.progress(f"{name}: {rate:.0f} texts/s")
    median = {name: statistics.median(found) for name, found in rates.items()}
    best = max(median, key=lambda name: median[name])
    figures = {
        "best_over_eager": round(median[best] / median[str(REFERENCE)], 2),
        "best": best,
        "chosen_by_tune": str(decision.backend),
        "items_per_s": {name: round(rate, 1) for name, rate in median.items()},
        "accuracy": {str(one.backend): one.accuracy for one in decision.candidates},
        "refused": {str(one.backend): one.refused for one in decision.candidates if one.refused},
    }
    convention.report("backends", figures, keep=options.keep, variant="gpu" if device.is_cuda else "")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
