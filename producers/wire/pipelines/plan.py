"""A pipeline for a single input: its items, the items due now, and the reasons why others will never be computed.

Pure, and the only place of these rules: workers ask which items a new result makes due, readers ask for the tree.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import msgspec

from producers.wire.messages import Params
from producers.wire.pipelines.selectors import SELECTORS, Selector, chosen
from results_store.records import Result, ResultState
from results_store.sql.item_numbering import MAX_PARTS, numbers_of, tree_number

#: A result of a tree, by its number in the job and its task.
Key: TypeAlias = tuple[int, str]
Rows: TypeAlias = Mapping[Key, Result]


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A step of a stored pipeline. `of` names the steps that it follows; a step without any reads the inputs."""

    name: str
    task: str
    model: str
    of: tuple[str, ...] = ()
    take: str = ""
    options: dict[str, Any] = {}
    params: Params = {}

    @property
    def selector(self) -> Selector:
        return SELECTORS[self.take]


@dataclass(frozen=True, slots=True)
class Node:
    """A step's item in a tree, or its place. `parts` are the indexes of the list parts that it is made from.

    A node with a `row` is done. A node with a `skipped` reason will never be computed. Any other node waits for the
    steps before it or, if it is `ready`, for a worker. `of` are the results that it is made from.
    """

    step: Step
    parts: tuple[int, ...]
    seq: int
    row: Result | None = None
    skipped: str = ""
    ready: bool = False
    of: tuple[Key, ...] = ()

    @property
    def part(self) -> int | None:
        """The index of the part that the item is made from, if its source is a part of a list."""
        return self.parts[-1] if self.step.of and self.step.selector.shape == "each" else None

    @property
    def succeeded(self) -> bool:
        return self.row is not None and self.row.state is ResultState.SUCCEEDED

    @property
    def trouble(self) -> str:
        """The reason why nothing can follow this node; empty if something can."""
        if self.skipped:
            return self.skipped
        if self.row is None or self.succeeded:
            return ""
        error = self.row.error or {}
        why = f": {error.get('kind')}: {error.get('message')}" if error else ""
        return f"{self.step.name!r}{numbered(self.parts)} {self.row.state.value}{why}"


class Plan(msgspec.Struct, frozen=True, dict=True):
    """The steps of a checked pipeline, each after the steps that it follows."""

    steps: tuple[Step, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the plan as it is stored with the job."""
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))  # the types that the store returns
        return plain

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each step's items in their tree. All tasks that read the inputs form an item, number 0."""
        return {step.name: place + 1 if step.of else 0 for place, step in enumerate(self.steps)}

    @cached_property
    def spreads(self) -> dict[str, tuple[str, ...]]:
        """For each step, the steps up to and including it that made several items from an item."""
        found: dict[str, tuple[str, ...]] = {}
        for step in self.steps:
            before = max((found[name] for name in step.of), key=len, default=())
            if step.of and step.selector.shape == "gather":
                before = before[:-1]
            found[step.name] = (*before, step.name) if step.of and step.selector.shape == "each" else before
        return found

    def place(self, seq: int, task: str) -> tuple[str, tuple[int, ...]]:
        """Return the step of a result, and the parts from which its item is made."""
        parts, number = numbers_of(seq)
        step = next(step for step in self.steps if self.numbers[step.name] == number and step.task == task)
        return step.name, parts[: len(self.spreads[step.name])]

    def unfold(self, root: int, rows: Rows) -> list[Node]:
        """Return all known nodes of an input's tree, in the order of the steps, from its results."""
        return _Unfolding(self, root, rows).nodes()

    def due(self, root: int, rows: Rows, fresh: Collection[Key]) -> list[Node]:
        """Return the items that the `fresh` results of a tree have made ready. Each item is returned once, ever.

        A succeeded result stays. So an item becomes ready in the one transaction that stores the last result it needs.
        """
        return [node for node in self.unfold(root, rows) if node.ready and any(key in fresh for key in node.of)]


def numbered(parts: Sequence[int]) -> str:
    """Return parts as people write them: ``[3][0]``."""
    return "".join(f"[{part}]" for part in parts)


class _Unfolding:
    def __init__(self, plan: Plan, root: int, rows: Rows) -> None:
        self._plan = plan
        self._root = root
        self._rows = rows
        self._nodes: dict[str, list[Node]] = {}

    def nodes(self) -> list[Node]:
        for step in self._plan.steps:
            self._nodes[step.name] = list(self._of(step))
        return [node for nodes in self._nodes.values() for node in nodes]

    def _of(self, step: Step) -> Iterator[Node]:
        if not step.of:
            yield self._node(step, (), ())
            return
        match step.selector.shape:
            case "one" | "each":
                for before in self._nodes[step.of[0]]:
                    yield from self._after(step, before)
            case "join":
                yield from self._joined(step)
            case "gather":
                yield from self._gathered(step)

    def _after(self, step: Step, before: Node) -> Iterator[Node]:
        """Yield the items that follow an item: a single item, or an item for each part of its output."""
        if not before.succeeded:
            yield self._held_up(step, before.parts, [before])
            return
        output = before.row.output if before.row else None
        numbers = chosen(step.selector, output, step.options)
        each = step.selector.shape == "each"
        for number in numbers:
            yield self._node(step, (*before.parts, number) if each else before.parts, [before])
        if not numbers:
            yield self._skipped(step, before.parts, f"{before.step.name!r}{numbered(before.parts)} gave nothing for it")
        if each and isinstance(output, list) and len(output) > MAX_PARTS:
            what = f"{before.step.name!r} gave {len(output):,} parts; those over {MAX_PARTS:,} are left out"
            yield self._skipped(step, before.parts, what)

    def _joined(self, step: Step) -> Iterator[Node]:
        """Yield an item per item of the most widely spread step before, joined with the other steps' matching items."""
        furthest = max(step.of, key=lambda name: len(self._plan.spreads[name]))
        places = {name: {node.parts: node for node in self._nodes[name]} for name in step.of}
        for node in self._nodes[furthest]:
            if len(node.parts) < len(self._plan.spreads[furthest]):  # not an item but the place of several
                yield self._held_up(step, node.parts, [node])
                continue
            # from each step the item with the same parts, or else its nearest ancestor
            company = [
                next(
                    found[node.parts[:depth]] for depth in range(len(node.parts), -1, -1) if node.parts[:depth] in found
                )
                for found in places.values()
            ]
            yield self._combined(step, node.parts, company)

    def _gathered(self, step: Step) -> Iterator[Node]:
        """Yield an item for each list, made from all the parts of that list."""
        depth = len(self._plan.spreads[step.name])
        groups: dict[tuple[int, ...], list[Node]] = {}
        for node in self._nodes[step.of[0]]:
            groups.setdefault(node.parts[:depth], []).append(node)
        for parts, group in groups.items():
            yield self._combined(step, parts, group)

    def _combined(self, step: Step, parts: tuple[int, ...], before: Sequence[Node]) -> Node:
        if not all(node.succeeded for node in before):
            return self._held_up(step, parts, before)
        texts = any(chosen(step.selector, node.row.output, step.options) for node in before if node.row)
        if not texts:
            names = " and ".join(dict.fromkeys(repr(node.step.name) for node in before))
            return self._skipped(step, parts, f"{names} gave nothing for it")
        return self._node(step, parts, before)

    def _node(self, step: Step, parts: tuple[int, ...], before: Sequence[Node]) -> Node:
        seq = tree_number(self._root, parts, self._plan.numbers[step.name])
        row = self._rows.get((seq, step.task))
        of = tuple((node.seq, node.step.task) for node in before)
        return Node(step, parts, seq, row, ready=bool(of) and row is None, of=of)

    def _held_up(self, step: Step, parts: tuple[int, ...], before: Sequence[Node]) -> Node:
        """Return the place of an item that waits for earlier steps, or never comes because of the first trouble."""
        trouble = next((node.trouble for node in before if node.trouble), "")
        return self._skipped(step, parts, trouble)

    def _skipped(self, step: Step, parts: tuple[int, ...], why: str) -> Node:
        return Node(step, parts, tree_number(self._root, parts, self._plan.numbers[step.name]), skipped=why)
