"""Which requests step, and what the parent is told of them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from workers.device.stepping import Answer, SteppingRequests
from workers.models.interface import ragged
from workers.models.interface.model import Array, Model, ModelSpec, Prepared
from workers.models.interface.stepwise import StepResult, StepwiseModel


class Countdown(StepwiseModel):
    """A request is a number, and through after so many steps; 0 raises when it joins, one under it in a step."""

    def __init__(self) -> None:
        super().__init__(ModelSpec("countdown", Path(), "1", {}))
        self.left: dict[Hashable, int] = {}

    def prepare(self, content: Any, params: Mapping[str, msgspec.Struct]) -> Prepared:
        raise NotImplementedError("the parent's side is not in these tests")

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        raise NotImplementedError("the parent's side is not in these tests")

    def load(self, device: str) -> None:
        pass

    def join(self, key: Hashable, task: str, request: Array, *, urgency: int) -> None:
        steps = int(request[0])
        if not steps:
            raise ValueError("nothing to count")
        self.left[key] = steps

    def leave(self, key: Hashable) -> None:
        self.left.pop(key, None)

    def step(self) -> list[StepResult]:
        if min(self.left.values()) < 0:
            raise ArithmeticError("less than nothing")
        self.left = {key: left - 1 for key, left in self.left.items()}
        done = [key for key, left in self.left.items() if not left]
        for key in done:
            del self.left[key]
        return [StepResult(key, output=str(key[2]), forward_s=1.0) for key in done if isinstance(key, tuple)]

    def clear(self) -> None:
        self.left.clear()

    @property
    def busy(self) -> bool:
        return bool(self.left)


def told(error: BaseException) -> dict[str, Any]:
    return {"kind": type(error).__name__}


class Rig:
    def __init__(self) -> None:
        self.model, self.other = Countdown(), Countdown()
        self.loaded: dict[str, Model] = {"one": self.model, "other": self.other}
        self.stepping = SteppingRequests(self.loaded, told)

    def give(self, batch: str, *steps: int, model: str = "one", rows: tuple[int, ...] | None = None) -> list[Answer]:
        """Hand over a batch of one task; `rows` want it, or all."""
        header = {"batch": batch, "model": model, "tasks": ["count"], "urgency": 3}
        assert self.stepping.takes(header)
        wanted = np.array(range(len(steps)) if rows is None else rows)
        return list(self.stepping.take(header, {"count": np.array(steps)[:, None], "wanted/count": wanted}))

    def drop(self, *batches: str) -> None:
        assert not list(self.stepping.take({"drop": list(batches)}, {}))

    def run(self) -> list[Answer]:
        """Step until nothing is left; return what was told, but for signs of life."""
        found = []
        while self.stepping.busy:
            found += [answer for answer in self.stepping.step() if answer[0]["event"] != "stepping"]
        return found


def ids(answers: list[Answer]) -> list[str]:
    return [header["batch"] for header, _ in answers]


def test_a_batch_is_done_with_its_last_row_and_rows_keep_their_places() -> None:
    rig = Rig()
    assert not rig.give("long", 5, 9, 2, rows=(0, 2))
    rig.give("short", 3)
    short, long = rig.run()
    assert ids([short, long]) == ["short", "long"]
    assert [ragged.unpack(row) for row in long[1]["count"]] == ["0", "2"]
    assert long[0]["forward_s"] == 2.0


def test_what_is_dropped_is_heard_of_no_more() -> None:
    rig = Rig()
    rig.give("wanted", 3)
    rig.give("unwanted", 2, 3)
    rig.drop("unwanted", "of an earlier life")
    assert ids(rig.run()) == ["wanted"]


def test_a_batch_that_is_dropped_before_it_came_does_not_join() -> None:
    """The word of it is more urgent than the batch itself, where both wait for a long pass of another model."""
    rig = Rig()
    rig.drop("cancelled")
    rig.give("cancelled", 1000)
    assert not rig.model.left
    assert not rig.stepping.busy


def test_a_batch_that_is_dropped_before_it_came_needs_no_model() -> None:
    """Its model may have been unloaded behind the drop: the batch was the last that needed it."""
    rig = Rig()
    rig.drop("cancelled")
    del rig.loaded["one"]
    assert not rig.give("cancelled", 1000)
    assert not rig.stepping.takes({"batch": "of a model that does not step", "model": "scripted"})


def test_who_cannot_join_costs_its_batch_alone() -> None:
    rig = Rig()
    rig.give("good", 2)
    [(failed, _)] = rig.give("bad", 3, 0)
    assert (failed["event"], failed["batch"], failed["kind"]) == ("failed", "bad", "ValueError")
    assert ids(rig.run()) == ["good"]


def test_a_failed_step_costs_its_models_batches_alone() -> None:
    rig = Rig()
    rig.give("good", 4, model="other")
    rig.give("bad", -1)
    rig.give("beside it", 3)
    failed, good = rig.run()
    assert sorted(failed[0]["batches"]) == ["bad", "beside it"]
    assert ids([good]) == ["good"]
    assert not rig.model.left
