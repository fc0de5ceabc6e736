"""Build the envelopes of a pipeline's next items from stored results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import msgspec

from producers.wire.messages import VERSION, DerivedInput, Envelope, Item, Priority, new_id
from producers.wire.packing import outbox_row, pack
from producers.wire.pipelines.plan import Node, Plan, Rows, Step
from results_store.records import NewEnvelope
from results_store.sql.item_numbering import Carrier, Progress, root_of


def follow(progress: Progress) -> list[NewEnvelope]:
    """Return the envelopes of the items that `progress` made due. Similar items share an envelope."""
    plan = plan_of(msgspec.json.encode(progress.pipeline))
    lots: dict[tuple[str, Carrier], list[Item]] = {}
    for node, item, carrier in _due(plan, progress):
        lots.setdefault((node.step.model, carrier), []).append(item)
    return [_envelope(progress, model, carrier, items) for (model, carrier), lot in lots.items() for items in pack(lot)]


@lru_cache(maxsize=64)
def plan_of(pipeline: bytes) -> Plan:
    """Return the plan of a job from its JSON."""
    return msgspec.json.decode(pipeline, type=Plan)


def _due(plan: Plan, progress: Progress) -> Iterator[tuple[Node, Item, Carrier]]:
    trees: dict[int, Rows] = {}
    for row in progress.rows:
        tree = trees.setdefault(root_of(row.seq), {})
        assert isinstance(tree, dict)
        tree[row.seq, row.task] = row
    for root, rows in sorted(trees.items()):
        for node in plan.due(root, rows, progress.fresh.keys()):
            met = [progress.carriers[progress.fresh[key]] for key in node.of if key in progress.fresh]
            yield node, _item(node, rows[node.of[0]].key), min(met, key=_urgency)


def _urgency(carrier: Carrier) -> float:
    return float("inf") if carrier.deadline_at is None else carrier.deadline_at


def _item(node: Node, key: str | None) -> Item:
    step: Step = node.step
    made = DerivedInput(step.take, node.of, node.part, step.options)
    params = {step.task: step.params} if step.params else {}
    return Item(node.seq, made, (step.task,), params, key)


def _envelope(progress: Progress, model: str, carrier: Carrier, items: Sequence[Item]) -> NewEnvelope:
    envelope = Envelope(
        version=VERSION,
        id=new_id(),
        job=progress.job,
        model=model,
        priority=Priority(carrier.priority),
        queued_at=progress.at,
        items=tuple(items),
        deadline_at=carrier.deadline_at,
        tenant=progress.tenant,
        pipeline=True,
    )
    # the deadline stays the same time of the store's clock
    return replace(
        outbox_row(envelope, carrier.lane), created_at=progress.at, deadline_at=carrier.deadline_at, deadline_s=None
    )
