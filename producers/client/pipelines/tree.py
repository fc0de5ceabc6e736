"""The results of an input as a tree: the result of each step, or the reason for its absence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from producers.wire.pipelines.plan import Node, Plan, numbered
from results_store.records import Result
from results_store.sql.item_numbering import root_of

#: The end of an item of a tree. `skipped` items will never be computed; `waiting` items are not computed yet.
State: TypeAlias = Literal["succeeded", "failed", "cancelled", "expired", "skipped", "waiting"]


@dataclass(frozen=True, slots=True)
class Branch:
    """The result of a step, for a part if the step has several (`part`, outermost first).

    `output` is set if the step succeeded (a vector as a list of numbers). `reason` is set if it never will: the step's
    own error, or, if it was ``skipped``, the error before it.
    """

    step: str
    part: tuple[int, ...]
    state: State
    output: Any = None
    reason: str = ""
    row: Result | None = None

    def __str__(self) -> str:
        name = f"{self.step}{numbered(self.part)}"
        return f"{name}: {self.output if self.state == 'succeeded' else f'{self.state}: {self.reason}'}"


@dataclass(frozen=True, slots=True)
class Tree:
    """The results of an input. `seq` is its place among the inputs, `key` the submitter's identifier.

    Branches are in the order of the steps.
    """

    seq: int
    key: str | None
    branches: tuple[Branch, ...]

    @property
    def ok(self) -> bool:
        """Whether every branch succeeded."""
        return all(branch.state == "succeeded" for branch in self.branches)

    def of(self, step: str) -> list[Branch]:
        """Return a step's branches. Raises KeyError if there is no such step."""
        found = [branch for branch in self.branches if branch.step == step]
        if not found:
            raise KeyError(f"no step {step!r}; there are {', '.join(dict.fromkeys(b.step for b in self.branches))}")
        return found

    def plain(self) -> dict[str, Any]:
        """Return the tree as JSON values."""
        shown = ("step", "part", "state", "output", "reason")
        branches = [{name: getattr(branch, name) for name in shown} for branch in self.branches]
        return {"seq": self.seq, "key": self.key, "branches": branches}

    def outputs(self, step: str) -> list[Any]:
        """Return the outputs of a step's branches that succeeded."""
        return [branch.output for branch in self.of(step) if branch.state == "succeeded"]


class Grown:
    """Make trees of a job's results, given in the order of their numbers. A tree is whole when the next one begins.

    Items that were not begun when the job was `cancelled` are skipped.
    """

    def __init__(self, plan: Plan, *, cancelled: bool) -> None:
        self._plan = plan
        self._cancelled = cancelled
        self._rows: dict[tuple[int, str], Result] = {}

    def add(self, row: Result) -> Tree | None:
        """Add the next result. If it begins another tree, return the tree before."""
        whole = None
        if self._rows and root_of(row.seq) != root_of(next(iter(self._rows))[0]):
            whole = self.last()
        self._rows[row.seq, row.task] = row
        return whole

    def last(self) -> Tree | None:
        """Return the tree of the last results, if any."""
        rows, self._rows = self._rows, {}
        if not rows:
            return None
        first = next(iter(rows.values()))
        root = root_of(first.seq)
        branches = (_branch(node, cancelled=self._cancelled) for node in self._plan.unfold(root, rows))
        return Tree(root, first.key, tuple(branches))


def trees(plan: Plan, rows: Iterable[Result], *, cancelled: bool) -> Iterator[Tree]:
    """Yield a tree for each input, from a job's results in the order of their numbers."""
    grown = Grown(plan, cancelled=cancelled)
    for row in rows:
        if tree := grown.add(row):
            yield tree
    if tree := grown.last():
        yield tree


def _branch(node: Node, *, cancelled: bool) -> Branch:
    name, row = node.step.name, node.row
    if row is None:
        if node.skipped:
            return Branch(name, node.parts, "skipped", reason=node.skipped)
        if cancelled:
            return Branch(name, node.parts, "skipped", reason="the job was cancelled before its turn")
        return Branch(name, node.parts, "waiting")
    if not node.succeeded:
        error = row.error or {}
        reason = f"{error.get('kind')}: {error.get('message')}" if error else ""
        return Branch(name, node.parts, row.state.value, reason=reason, row=row)
    return Branch(name, node.parts, "succeeded", output=_output(row), row=row)


def _output(row: Result) -> Any:
    if row.vector is None:
        return row.output
    from results_store.sql.columns import unpack_vector

    return list(unpack_vector(row.vector))
