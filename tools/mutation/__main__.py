"""Sample changes, judge each by the tests that reach its line, and print `power`.

    python -m tools.mutation --seed 1 --count 300 [--jobs 2] [--only PATTERN] [--tests PATTERN] [--show] [--keep]

The results stay in `.mutation/`, by the text of the changed module, so a run is resumable; a change that survived is
judged again when its tests have changed. With `--keep` they are in tools/mutation/judged.jsonl, which belongs to the
repository, so that another machine goes on. A change that cannot matter is listed in tools/mutation/equivalent.json
with its reason.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tools.mutation.covering import TestFile, covering, text_of
from tools.mutation.judging import Judge, judge, tests_of
from tools.mutation.mutants import Mutant, all_mutants

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".mutation"
REPOSITORY_KEPT = Path(__file__).with_name("judged.jsonl")
EQUIVALENT = Path(__file__).with_name("equivalent.json")

#: The modules that decide what is lost, doubled, wrong or stuck.
MODULES = [
    "workers/envelope/*.py",
    "workers/node/*.py",
    "workers/consumer/*.py",
    "workers/batching/*.py",
    "workers/batching/*/*.py",
    "workers/device/device_client.py",
    "workers/device/stepping.py",
    "results_store/*.py",
    "results_store/sql/*.py",
    "producers/client/*.py",
    "producers/client/sending/*.py",
    "producers/wire/messages.py",
    "producers/wire/packing.py",
    "producers/wire/publisher.py",
    "producers/wire/blobs.py",
    "producers/wire/pipelines/*.py",
    "producers/joining/*.py",
]
#: Modules among them that only tell people.
NOT = ("what_if.py", "simulation.py", "presence.py", "__init__.py")
TESTS = ["tests/unit/test_*.py", "tests/integration/test_*.py", "tests/end_to_end/test_*.py"]


def main() -> int:
    options = _options()
    everything = [mutant for mutant in all_mutants(ROOT, MODULES) if Path(mutant.path).name not in NOT]
    chosen = random.Random(options.seed).sample(everything, min(options.count, len(everything)))
    chosen = [mutant for mutant in chosen if _named(mutant.path, options.only)]
    if options.show:
        print("\n".join(f"{mutant.id} {mutant}" for mutant in chosen))
        return 0
    KEPT.mkdir(exist_ok=True)
    tests = [str(path.relative_to(ROOT)) for pattern in TESTS for path in sorted(ROOT.glob(pattern))]
    tests = [test for test in tests if _named(test, options.tests)]
    files = covering(ROOT, KEPT / "covering", tests, {mutant.path for mutant in everything}, jobs=options.jobs)
    judged = REPOSITORY_KEPT if options.keep else KEPT / "judged.jsonl"
    _judge_all(chosen, files, options.jobs, judged)
    return _report(options.seed, len(everything), chosen, _kept(judged))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.mutation", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=2, help="changes judged at a time, each in a copy of the tree")
    parser.add_argument("--only", action="append", help="judge only changes of paths that contain this; repeatable")
    parser.add_argument("--tests", action="append", help="run only files of tests whose path contains this; repeatable")
    parser.add_argument("--keep", action="store_true", help="keep the results in the repository")
    parser.add_argument("--show", action="store_true", help="print the sample and end")
    return parser.parse_args()


def _named(path: str, parts: list[str] | None) -> bool:
    return not parts or any(part in path for part in parts)


def _judge_all(chosen: list[Mutant], files: dict[str, TestFile], jobs: int, file: Path) -> None:
    kept = _kept(file)
    lock = threading.Lock()
    tests = {mutant.id: tests_of(mutant, text_of(ROOT / mutant.path), files) for mutant in chosen}
    judges = {id_: _judges(own, files) for id_, own in tests.items()}
    waiting = [mutant for mutant in chosen if not _is_judged(kept.get(_key(mutant)), judges[mutant.id])]
    print(f"{len(waiting)} of {len(chosen)} changes are to be judged", flush=True)
    with tempfile.TemporaryDirectory(prefix="argosy-mutation-") as folder:
        trees = [_copied(Path(folder, str(number))) for number in range(jobs)]

        def work(mutant: Mutant) -> None:
            with lock:
                tree = trees.pop()
            try:
                verdict = judge(tree, mutant, tests[mutant.id])
            finally:
                with lock:
                    trees.append(tree)
            with lock, file.open("a") as out:
                told = {"key": _key(mutant), "id": mutant.id, "mutant": str(mutant), "judges": judges[mutant.id]}
                out.write(json.dumps({**told, **verdict}) + "\n")
                print(f"{verdict['verdict']:9} {verdict['seconds']:4} s {mutant}", flush=True)

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(work, waiting))


def _judges(tests: list[Judge], files: dict[str, TestFile]) -> str:
    """Return a digest of the texts of these tests."""
    targets = [(target, files[target.partition("::")[0]]["text"]) for own in tests for target in own.targets]
    return hashlib.sha256(repr(targets).encode()).hexdigest()[:12]


def _is_judged(verdict: dict[str, Any] | None, judges: str) -> bool:
    """Return whether a verdict holds: a change that survived is judged again by other tests."""
    return verdict is not None and (verdict["verdict"] == "killed" or verdict["judges"] == judges)


def _copied(tree: Path) -> Path:
    """Return a copy of the tracked and new files, with a link to the environment."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    for name in filter(None, subprocess.check_output(command, cwd=ROOT, text=True).split("\0")):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    (tree / ".venv").symlink_to((ROOT / ".venv").resolve())
    return tree


def _key(mutant: Mutant) -> str:
    """Return the identity of a judgement: the change and the text of its module."""
    return f"{mutant.id}-{text_of(ROOT / mutant.path)}"


def _kept(file: Path) -> dict[str, dict[str, Any]]:
    if not file.exists():
        return {}
    return {found["key"]: found for found in map(json.loads, file.read_text().splitlines())}


def _report(seed: int, of: int, chosen: list[Mutant], judged: dict[str, dict[str, Any]]) -> int:
    reasons: dict[str, str] = json.loads(EQUIVALENT.read_text()) if EQUIVALENT.exists() else {}
    killed = [mutant for mutant in chosen if judged.get(_key(mutant), {}).get("verdict") == "killed"]
    rest = [mutant for mutant in chosen if mutant not in killed]
    listed = [mutant for mutant in rest if mutant.id in reasons]
    for mutant in rest:
        print(f"{'listed' if mutant in listed else 'SURVIVED'} {mutant.id} {mutant}: {reasons.get(mutant.id, '')}")
    counts = {"of": of, "sampled": len(chosen), "killed": len(killed), "listed": len(listed)}
    power = len(killed) / max(1, len(chosen) - len(listed))
    print(json.dumps({"benchmark": "mutation", "seed": seed, **counts, "power": round(power, 3)}))
    return 0 if power >= 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
