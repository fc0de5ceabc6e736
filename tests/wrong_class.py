"""A class that its author got wrong in every way that an input can name; an input without a fault is answered right."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import InvalidInput
from workers.models.interface.model import Array, Arrays, Model, Params, Prepared, digest

#: The faults, and what the error of their item says; None: the answer is right nevertheless.
EXPECTED: Mapping[str, str | None] = {
    "": None,
    "prepare: object array": r"ModelError: Wrong.prepare returned for double 't' as an array of Python objects, .*float32",
    "prepare: bare array": r"ModelError: Wrong.prepare returned for double a NumPy array, not a Prepared; return Prepared\(",
    "prepare: nothing": r"ModelError: Wrong.prepare returned for double None, not a Prepared",
    "prepare: list": r"ModelError: Wrong.prepare returned for double 'number' as a list, not a NumPy array; np.asarray",
    "prepare: no dict": r"ModelError: Wrong.prepare returned for double a NumPy array in place of arrays; return a dict",
    "prepare: size": r"ModelError: Wrong.prepare returned for double `size` as 'long'; give it a whole number",
    "prepare: content": r"ModelError: Wrong.prepare returned for double `content` as a list; give it bytes: digest\(",
    "prepare: other names": r"ModelError: KeyError: 'number'",
    "prepare: raise": r"ModelError: preparation failed: KeyError: 'missing'",
    "prepare: refuse": r"InvalidInput: input: is too odd",
    "prepare: exit": r"ModelError: preparation failed: RuntimeError: SystemExit: bye",
    "prepare: hang": r"ModelError: Wrong.prepare_many returned nothing within 2 s; it hangs",
    "prepare: loop": r"ModelError: Wrong.prepare_many returned nothing within 2 s; it hangs",
    "prepare: no text": r"ModelError: preparation failed: NoText: \(an exception without a text\)",
    "prepare: texts of any length": r"ModelError: Wrong.prepare returned for double 't' as an array of the type StringDType",
    "prepare: masked array": r"ModelError: Wrong.prepare returned for double 'number' as a masked array, whose mask",
    "prepare: half a character": r"ModelError: Wrong.collate returned an array with the name '.ud800'; name it",
    "prepare: generator": r"ModelError: Wrong.prepare returned for double a generator, not a Prepared",
    "prepare: refuses another task": r"ModelError: Wrong.prepare returned for double `refused` with 'other', for which it",
    "prepare: refuses its task": r"InvalidInput: input: is odd",
    "prepare: a row of 3 axes": None,
    "prepare: size 0": None,
    "prepare: big-endian": None,
    "prepare: equal digest": None,
    "prepare: NumPy's size": None,
    "cost: text": r"ModelError: Wrong.cost returned 'many'; give it a whole number, in the unit of `batch_cost`",
    "cost: raise": r"ModelError: preparation failed: ZeroDivisionError",
    "collate: nothing": r"ModelError: Wrong.collate returned None in place of the dictionary of arrays",
    "collate: raise": r"ModelError: ZeroDivisionError: division by zero",
    "collate: exit": r"ModelError: RuntimeError: SystemExit: 6",
    "collate: hang": r"ModelError: Wrong.collate returned nothing within 2 s; it hangs",
    "finish: nothing": r"ModelError: Wrong.finish returned for double None; return the answer",
    "finish: infinite": r"ModelError: Wrong.finish returned for double an answer in which twice is inf, not a finite",
    "finish: NaN": r"ModelError: Wrong.finish returned for double an answer in which twice is nan, not a finite",
    "finish: NaN in a vector": r"ModelError: Wrong.finish returned for double a vector whose number 1 is nan, not finite",
    "finish: object": r"ModelError: Wrong.finish returned for double a dict, which is not JSON: a SimpleNamespace in it",
    "finish: text": r"ModelError: Wrong.finish returned for double an answer that is not of the kind custom: .*`\$.twice`",
    "finish: keys": r"ModelError: Wrong.finish returned for double an answer in which .* has the key \(1, 2\)",
    "finish: raise": r"ModelError: finishing failed: ZeroDivisionError: division by zero",
    "finish: exit": r"ModelError: finishing failed: RuntimeError: SystemExit: 3",
    "finish: NaN as a key": r"ModelError: Wrong.finish returned for double an answer that is not of the kind custom: .*`key`",
    "finish: too many digits": r"ModelError: Wrong.finish returned for double an answer that is not of the kind custom: Number",
    "finish: half a character": r"ModelError: finishing failed: ValueError: .ud800",
    "finish: NumPy's number": None,
    "finish: long double": None,
    "finish: a number of its own class": None,
    "forward: bare array": r"WrongOutput: Wrong.forward returned for double a NumPy array in place of the dictionary of outputs",
    "forward: nothing": r"WrongOutput: Wrong.forward returned for double None in place of the dictionary of outputs",
    "forward: too few": r"WrongOutput: Wrong.forward returned for double an output of shape \(0, 2\) for 1 rows",
    "forward: object array": r"WrongOutput: Wrong.forward returned for double 'double' as an array of Python objects",
    "forward: list": r"WrongOutput: Wrong.forward returned for double 'double' as a list, not a NumPy array",
    "forward: other task": r"WrongOutput: Wrong.forward returned for double outputs for other; give one for each task",
    "forward: raise": r"ModelError: ZeroDivisionError: division by zero",
    "forward: half a character": r"ModelError: ValueError: .ud800",
    "forward: a number": r"WrongOutput: Wrong.forward returned for double an output of shape \(\) for 1 rows",
    "forward: tensor": r"WrongOutput: Wrong.forward returned for double 'double' as a Tensor, not a NumPy array; call .cpu",
    "forward: masked array": r"WrongOutput: Wrong.forward returned for double 'double' as a masked array",
    "forward: takes what is wanted": None,
    "forward: exit": r"ModelError: SystemExit: 4",
    "forward: shared state": None,
    "forward: death": r"DeviceLost: with this item alone, the device process ended with exit code 5",
    "forward: hang": r"DeviceHung: with this item alone, the device process was silent for 2 s and was killed",
}
FAULTS = [*EXPECTED]


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """A number to double, and the fault in answering it."""

    number: int
    fault: str = ""


class Doubled(msgspec.Struct):
    twice: float


class Wrong(Model):
    """Answers ``{"number": n}`` with ``{"twice": 2n}``. A fault is known by a number in the row."""

    input_type = Asked
    output_type = Doubled

    def prepare(self, content: Any, params: Params) -> Any:
        row = {"number": np.array([content.number, FAULTS.index(content.fault)], dtype=np.float64)}
        return {
            "prepare: object array": lambda: Prepared({"t": np.array([content], dtype=object)}, 1, b"1"),
            "prepare: bare array": lambda: row["number"],
            "prepare: nothing": lambda: None,
            "prepare: list": lambda: Prepared({"number": [1, 2]}, 1, b"2"),  # type: ignore[dict-item]
            "prepare: no dict": lambda: Prepared(row["number"], 1, b"3"),  # type: ignore[arg-type]
            "prepare: size": lambda: Prepared(row, "long", b"4"),  # type: ignore[arg-type]
            "prepare: content": lambda: Prepared(row, 1, [5]),  # type: ignore[arg-type]
            "prepare: other names": lambda: Prepared({"other": row["number"]}, 1, b"6"),
            "prepare: raise": lambda: {}["missing"],
            "prepare: refuse": lambda: _raise(InvalidInput("is too odd")),
            "prepare: exit": lambda: sys.exit("bye"),
            "prepare: hang": lambda: time.sleep(3600),
            "prepare: loop": _loop,
            "prepare: no text": lambda: _raise(NoText()),
            "prepare: texts of any length": lambda: Prepared(
                {"t": np.array(["t"], dtype=np.dtypes.StringDType())}, 1, b"7"
            ),
            "prepare: masked array": lambda: Prepared({"number": np.ma.masked_array(row["number"], [0, 1])}, 1, b"8"),
            "prepare: half a character": lambda: Prepared({**row, "\ud800": row["number"]}, 1, b"10"),
            "prepare: generator": lambda: (one for one in (Prepared(row, 1, b"11"),)),
            "prepare: refuses another task": lambda: Prepared(row, 1, b"14", {"other": InvalidInput("is odd")}),
            "prepare: refuses its task": lambda: Prepared(row, 1, b"15", {"double": InvalidInput("is odd")}),
            "prepare: a row of 3 axes": lambda: Prepared({"number": row["number"].reshape(2, 1, 1)}, 1, b"12"),
            "prepare: size 0": lambda: Prepared(row, 0, digest(row)),
            "prepare: big-endian": lambda: Prepared({"number": row["number"].astype(">f8")}, 1, b"13"),
            "prepare: equal digest": lambda: Prepared(row, 1, b"same"),
            "prepare: NumPy's size": lambda: Prepared(row, np.int64(1), digest(row)),  # type: ignore[arg-type]
        }.get(content.fault, lambda: Prepared(row, 1, digest(row)))()

    def cost(self, prepared: Prepared) -> Any:
        fault = _faults([prepared])
        return "many" if "cost: text" in fault else 1 / 0 if "cost: raise" in fault else super().cost(prepared)

    def collate(self, rows: Sequence[Prepared]) -> Any:
        wrong = {
            "collate: nothing": lambda: None,
            "collate: raise": lambda: 1 / 0,
            "collate: exit": lambda: sys.exit(6),
            "collate: hang": lambda: time.sleep(3600),
        }
        found = _faults(rows).intersection(wrong)
        return wrong[found.pop()]() if found else super().collate(rows)

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        right = {"twice": float(output[0])}
        odd: Any = SimpleNamespace(a=1)
        fault = FAULTS[int(output[1])]
        return {
            "finish: nothing": lambda: None,
            "finish: infinite": lambda: {"twice": float("inf")},
            "finish: NaN": lambda: {"twice": float("nan")},
            "finish: NaN in a vector": lambda: np.array([1, np.nan], dtype=np.float32),
            "finish: object": lambda: {"twice": odd},
            "finish: text": lambda: {"twice": "two"},
            "finish: keys": lambda: {(1, 2): 3.0},
            "finish: raise": lambda: 1 / 0,
            "finish: exit": lambda: sys.exit(3),
            "finish: NaN as a key": lambda: {"twice": 1, float("nan"): 2},
            "finish: too many digits": lambda: {"twice": 10**5000},
            "finish: half a character": lambda: _raise(ValueError("\ud800")),
            "finish: long double": lambda: {"twice": np.longdouble(output[0])},
            "finish: a number of its own class": lambda: {"twice": Euros(output[0])},
            "finish: NumPy's number": lambda: {"twice": np.float32(output[0])},
        }.get(fault, lambda: right)()

    def load(self, device: str) -> None:
        """There is nothing to load."""

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Any:
        table = arrays["number"].reshape(len(arrays["number"]), 2)
        faults = {FAULTS[int(fault)] for fault in table[:, 1]}
        right = {task: np.column_stack([2 * table[rows, 0], table[rows, 1]]) for task, rows in wanted.items()}
        if "forward: takes what is wanted" in faults:
            wanted.clear()  # type: ignore[attr-defined]
        for fault, wrong in self._wrong_outputs(right).items():
            if fault in faults:
                return wrong()
        return right

    def _wrong_outputs(self, right: Arrays) -> dict[str, Any]:
        first = next(iter(right))
        return {
            "forward: bare array": lambda: right[first],
            "forward: nothing": lambda: None,
            "forward: too few": lambda: {task: own[:-1] for task, own in right.items()},
            "forward: object array": lambda: {task: own.astype(object) for task, own in right.items()},
            "forward: list": lambda: {task: own.tolist() for task, own in right.items()},
            "forward: other task": lambda: {"other": right[first]},
            "forward: raise": lambda: 1 / 0,
            "forward: half a character": lambda: _raise(ValueError("\ud800")),
            "forward: a number": lambda: {task: np.array(1.0) for task in right},
            "forward: tensor": lambda: {task: _tensor(own) for task, own in right.items()},
            "forward: masked array": lambda: {task: np.ma.masked_array(own) for task, own in right.items()},
            "forward: exit": lambda: sys.exit(4),
            "forward: shared state": lambda: _spoil(right),
            "forward: death": lambda: os._exit(5),
            "forward: hang": lambda: time.sleep(3600),
        }

    def samples(self, count: int) -> Sequence[Any]:
        params = {name: task.kind.params() for name, task in self.spec.tasks.items()}
        return [(Asked(number), params) for number in range(count)]


def _faults(rows: Sequence[Prepared]) -> set[str]:
    """Return the faults that rows carry."""
    marks = [row.arrays["number"].reshape(-1) for row in rows if "number" in row.arrays]
    return {FAULTS[int(mark[1])] for mark in marks}


class Euros(float):
    """A number with more to it."""


class NoText(Exception):
    def __str__(self) -> str:
        raise ValueError("has no text")


def _raise(error: Exception) -> None:
    raise error


def _tensor(array: Array) -> Any:
    import torch

    return torch.from_numpy(array)


def _loop() -> None:
    while True:
        pass


def _spoil(right: Arrays) -> Arrays:
    """Change the state that the models of a process share."""
    import torch

    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    np.seterr(all="raise")
    warnings.simplefilter("error")
    os.chdir(Path("/"))
    return right
