"""Is each of some 580 small checkpoints answered as by transformers and sentence-transformers, or refused when it is
loaded?

The checkpoints have random weights and are written here (`checkpoint_folders`): as many architectures of the served kinds
as transformers has, and folders as sentence-transformers saves them. Each is served in this process, on torch and on the
backend that a worker would choose by measuring, and gets its inputs alone and with random neighbours. `equal` is within
1e-4 on torch, relative to the size of the numbers, and within the margin of its precision on other backends; a label or
a span may differ only where the reference's own scores are as near. `wrong` differs. `failed_late` loads, and then fails. `refused_at_load` gives its reason, which `--keep`
writes into docs/models.md.

Each result is a line of the file `results.jsonl` in the folder `--work`, so that a run that was stopped goes on, and repeats those that were
neither equal nor refused; `--again` repeats all.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import json
import logging
import os
import random
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks import convention
from benchmarks.checkpoint_folders import (
    comparison,
    inputs,
    pictures,
    references,
    sentences,
    settings,
    sounds,
    texts,
    writing,
)
from benchmarks.checkpoint_folders.folders import Case
from producers.wire.errors import ConfigurationError

if TYPE_CHECKING:
    from tests.serving import Served

#: The verdicts, worst first.
VERDICTS = ("wrong", "failed_late", "unbuilt", "refused_at_load", "equal")

BACKENDS = ("torch", "default")

TABLE = Path(__file__).parents[1] / "docs" / "models.md"

_QUICK = ("bert-cls", "clip-whole-vectors", "st-bert-dense", "llama-writes", "vit-images")
_ROUNDS, _INPUTS = 2, 8


def cases() -> dict[str, Case]:
    """Return all cases by their names."""
    found: dict[str, Case] = {}
    for module in (texts, sentences, pictures, sounds, writing, settings):
        for case in module.cases():
            assert case.name not in found, f"two checkpoints are named {case.name}"
            found[case.name] = case
    return found


def main() -> None:
    parser = convention.parser(__doc__)
    parser.add_argument("--work", type=Path, default=Path(".argosy/checkpoints"), help="folder of the results so far")
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help="checkpoints by name, such as 'bert-*'")
    parser.add_argument("--again", action="store_true", help="repeat those that have a result, too")
    parser.add_argument("--backends", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="argosy-checkpoints-") as scratch:
        work = Path(scratch) if given.quick else given.work
        os.environ["ARGOSY_CACHE"] = str(Path(scratch) / "cache")
        every = cases()
        patterns = given.only or (_QUICK if given.quick else ["*"])
        chosen = [name for name in every if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]
        _set_up()
        _run([every[name] for name in chosen], given.backends, work, Path(scratch), again=given.again)
        results = _kept(work)
    merged = {name: _merged(results[name]) for name in every if name in results}
    if given.keep:
        convention.write_between(TABLE, "checkpoints", _table(every, merged))
    defaults = [results[name]["default"] for name in merged if "default" in results[name]]
    convention.report("checkpoints", _figures(merged, defaults), keep=given.keep)


def _set_up() -> None:
    import torch
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(1)  # such small passes only wait for further threads
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _run(chosen: Sequence[Case], backends: Sequence[str], work: Path, scratch: Path, *, again: bool) -> None:
    """Try the cases that have no result yet, and append their results. The order is random, so that a part of a run has
    some of each kind.
    """
    work.mkdir(parents=True, exist_ok=True)
    known = {} if again else _kept(work)
    left = [(case, [backend for backend in backends if not _is_done(known, case, backend)]) for case in chosen]
    left = [(case, missing) for case, missing in left if missing]
    random.Random(0).shuffle(left)
    for number, (case, missing) in enumerate(left, 1):
        began = time.monotonic()
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            results = tried(case, Path(folder) / case.name, missing, known.get(case.name, {}))
        for backend, result in results.items():
            line = {"name": case.name, "backend": backend, **result, "seconds": round(time.monotonic() - began, 1)}
            with (work / "results.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            said = f"{case.name} ({backend}: {result['on']}): {result['verdict']} {result['reason']}"
            convention.progress(f"{number}/{len(left)} {said}"[:300])


def _is_done(known: Mapping[str, Mapping[str, Mapping[str, Any]]], case: Case, backend: str) -> bool:
    return known.get(case.name, {}).get(backend, {}).get("verdict") in ("equal", "refused_at_load")


def _kept(work: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the latest result of each checkpoint on each backend."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    file = work / "results.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        result = json.loads(line)
        found.setdefault(result["name"], {})[result["backend"]] = result
    return found


# --- one checkpoint -------------------------------------------------------------------------------


def tried(
    case: Case, folder: Path, backends: Sequence[str], known: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Write a checkpoint, serve it on each backend, and compare its answers.

    Return for each backend the verdict, its reason and the backend's name. A default backend that is torch has torch's
    result. `known` has the results of an earlier run.
    """
    try:
        case.make(folder)
        values = inputs.of(case.kind, folder, _INPUTS)
    except Exception as error:  # noqa: BLE001 - one checkpoint that cannot be written ends no run
        return {backend: {"verdict": "unbuilt", "reason": _said(error), "on": ""} for backend in backends}
    found: dict[str, dict[str, Any]] = {}
    for backend in backends:
        verdict, reason, on = _tried(case, folder, values, backend, {**known, **found})
        found[backend] = {"verdict": verdict, "reason": reason.replace(str(folder), "the folder"), "on": str(on)}
    return found


def _tried(
    case: Case, folder: Path, values: Sequence[Any], backend: str, found: Mapping[str, Mapping[str, Any]]
) -> tuple[str, str, Any]:
    from workers.models.backends.choice import REFERENCE

    on = REFERENCE
    try:
        if backend == "default":
            on = _chosen(case, folder)
        same = next((result for result in found.values() if result["on"] == str(on)), None)
        if same:
            return same["verdict"], same["reason"], on
        served = _served(case, folder, on).load()
    except ConfigurationError as error:
        return "refused_at_load", str(error), on
    except Exception as error:  # noqa: BLE001
        return "failed_late", f"loading: {_said(error)}", on
    if case.kind == "token-classification" and on.precision != "fp32":
        # the labels of tokens, which are the network's; joined to entities, a single near tie changes several
        case = replace(case, params={"aggregation_strategy": "none", "ignore_labels": []})
    return *_compared(case, folder, served, values, on), on


def _served(case: Case, folder: Path, on: Any) -> Served:
    from tests.serving import Served

    options: dict[str, Any] = dict(case.options)
    if case.name.startswith("whisper-") and case.kind.startswith("automatic"):
        options["max_new_tokens"] = references.WHISPER_TOKENS
    return Served(folder, {"task": case.kind}, on, **options)


def _chosen(case: Case, folder: Path) -> Any:
    """Return the backend that a worker would choose: judged as it does, but timed in a single turn."""
    from workers.device.device_process import ModelToLoad
    from workers.models.backends.choice import REFERENCE
    from workers.models.interface.model import ModelSpec
    from workers.training import candidates, tuning

    served = _served(case, folder, REFERENCE)
    if not getattr(served.model, "tunable", False):
        return REFERENCE
    served.load()  # a model that is refused is measured nowhere
    tuning.TURNS, candidates.LEAST_TURNS = 1, 1  # any backend that agrees may be the choice
    spec = ModelSpec("own", folder, "1", served.catalogue.tasks, served.model.spec.options)
    wanted = ModelToLoad.from_spec("workers.models.huggingface:model_for", spec)
    with contextlib.redirect_stderr(io.StringIO()):
        return tuning.tune(wanted, "cpu", labelled=False).backend


def _compared(case: Case, folder: Path, served: Served, values: Sequence[Any], on: Any) -> tuple[str, str]:
    try:
        answer = references.of(case, folder)
        expected = [answer(value) for value in values]
    except Exception as error:  # noqa: BLE001
        return "unbuilt", f"no reference: {_said(error)}"
    margin = comparison.MARGINS.get(str(on), comparison.MARGINS.get(on.precision, 5e-2))
    for places in _groups(len(values)):
        try:
            found = served.ask("task", [inputs.sent(values[place]) for place in places], **case.params)
        except Exception as error:  # noqa: BLE001
            return "failed_late", _said(error)
        for place, one in zip(places, found, strict=True):
            if problem := comparison.difference(case.kind, one, expected[place], margin):
                return "wrong", f"input {place} {'alone' if len(places) == 1 else 'with neighbours'}: {problem}"
    return "equal", ""


def _groups(count: int) -> Iterator[list[int]]:
    """Yield each input alone, then random groups in random order."""
    yield from ([place] for place in range(count))
    drawn = np.random.default_rng(0)
    for _ in range(_ROUNDS):
        order = [int(place) for place in drawn.permutation(count)]
        cut = int(drawn.integers(1, count))
        yield from (order[:cut], order[cut:])
    yield list(range(count))


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"


# --- the result -----------------------------------------------------------------------------------


def _merged(by_backend: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the worst result of a checkpoint."""
    return min(by_backend.values(), key=lambda result: VERDICTS.index(result["verdict"]))


def _figures(merged: Mapping[str, Mapping[str, Any]], defaults: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many ended how, and on which backend the answers of those with a default backend are equal."""
    built = [result for result in merged.values() if result["verdict"] != "unbuilt"]
    figures: dict[str, Any] = {"checkpoints": len(built)}
    for verdict in ("equal", "refused_at_load", "wrong", "failed_late"):
        figures[verdict] = sum(result["verdict"] == verdict for result in built)
    chosen = [result["on"] for result in defaults if result["verdict"] == "equal"]
    figures["tried_on_default_backend"] = sum(result["verdict"] != "unbuilt" for result in defaults)
    return figures | {"equal_on_default_backend": {name: chosen.count(name) for name in sorted(set(chosen))}}


def _table(every: Mapping[str, Case], merged: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of refusals for docs/models.md."""
    lines = ["| checkpoint | kind | refused when it is loaded, because |", "| --- | --- | --- |"]
    for name, result in sorted(merged.items()):
        if result["verdict"] == "refused_at_load":
            reason = result["reason"].removeprefix("models.own").lstrip(".: ").replace("|", "\\|")
            lines.append(f"| {name} | {every[name].kind} | {reason[:300]} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
