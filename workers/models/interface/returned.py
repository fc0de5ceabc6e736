"""Checks of the values that a model's class returns: each error names the class, the method and the field.

The checks run where a value is returned, so that a wrong one fails its own item and reaches no thread of others.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import ArgosyError, InvalidInput
from producers.wire.kinds.custom import CUSTOM
from producers.wire.validation import json_schema
from workers.models.interface import output_files
from workers.models.interface.model import Array, Arrays, Model, Prepared

logger = logging.getLogger(__name__)

#: Kinds of arrays that hold references of this process: Python objects, structures, and NumPy's texts of any length.
_UNSENT = "OVT"

#: More than any batch can hold, and exact in JSON.
_MOST_SIZE = 2**53

#: The most characters of an exception's text that are kept.
MOST_TEXT = 2000

_FLOAT32 = np.dtype("<f4")

_encoded = msgspec.json.Encoder().encode

#: The places (class, task) whose wrong form of answers was logged.
_logged: set[tuple[type, str]] = set()


class WrongReturn(ArgosyError, TypeError):
    """A method of a model's class returned something that its item cannot be computed with."""


def is_own(model: object) -> bool:
    """Return whether a model's class is the user's own, not one of Argosy's."""
    return not type(model).__module__.startswith("workers.")


def wrong(model: object, method: str, problem: str, tasks: Collection[str] = ()) -> WrongReturn:
    """Return the error for a value that `method` returned for `tasks`."""
    where = f" for {', '.join(sorted(tasks))}" if tasks else ""
    return WrongReturn(f"{type(model).__name__}.{method} returned{where} {problem}")


def said(error: BaseException, about: str) -> str:
    """Return an error's sentence; an exception of a class's own begins with the step that it ended."""
    return text(error) if isinstance(error, WrongReturn) else f"{about}: {type(error).__name__}: {text(error)}"


def text(error: BaseException) -> str:
    """Return an exception's text, also if the exception is a class's own and has none, a huge or an odd one."""
    try:
        return str(error)[:MOST_TEXT].encode(errors="backslashreplace").decode()
    except Exception:  # noqa: BLE001 - its `__str__` is the model's own code
        return "(an exception without a text)"


# --- prepare --------------------------------------------------------------------------------------


def row(model: Model, prepared: object, tasks: Collection[str]) -> Prepared:
    """Return a row of `prepare` with its size as an int. Raises WrongReturn."""
    if type(prepared) is Prepared and _is_usual(prepared):
        return prepared
    if not isinstance(prepared, Prepared):
        remedy = "return Prepared({'x': array}, size, digest), where x is the array's name in `forward`"
        raise wrong(model, "prepare", f"{_kind(prepared)}, not a Prepared; {remedy}", tasks)
    if not isinstance(prepared.content, bytes):
        problem = f"`content` as {_kind(prepared.content)}; give it bytes: digest(arrays)"
        raise wrong(model, "prepare", problem, tasks)
    if problem := _problem(prepared.arrays, "arrays"):
        raise wrong(model, "prepare", problem, tasks)
    if not isinstance(prepared.refused, Mapping):
        problem = f"`refused` as {_kind(prepared.refused)}; give it a dict of errors by task"
        raise wrong(model, "prepare", problem, tasks)
    for task, error in prepared.refused.items():
        if task not in tasks:  # its failure would count as a result of the job
            raise wrong(model, "prepare", f"`refused` with {task!r:.80}, for which it was not asked", tasks)
        if not isinstance(error, InvalidInput):
            raise wrong(model, "prepare", f"`refused[{task!r}]` as {_kind(error)}; give it an InvalidInput", tasks)
    size = _whole(model, prepared.size, "prepare", "`size` as ", "1 if all rows have the same shape", tasks)
    return prepared if size is prepared.size else replace(prepared, size=size)


def _is_usual(row: Prepared) -> bool:
    """Return whether a row is right at a glance: most rows are, and there are many."""
    if type(row.content) is not bytes or type(row.size) is not int or not 0 <= row.size < _MOST_SIZE or row.refused:
        return False
    if type(row.arrays) is not dict:
        return False
    for name, array in row.arrays.items():
        if type(name) is not str or type(array) is not np.ndarray or array.dtype.kind in _UNSENT:
            return False
    return True


def cost(model: Model, prepared: Prepared) -> int:
    """Return a row's cost. Raises WrongReturn."""
    found = model.cost(prepared)
    if type(found) is int and 0 <= found < _MOST_SIZE:
        return found
    return _whole(model, found, "cost", "", "in the unit of `batch_cost`")


def _whole(model: Model, value: object, method: str, name: str, remedy: str, tasks: Collection[str] = ()) -> int:
    if isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value < _MOST_SIZE:
        return int(value)
    raise wrong(model, method, f"{name}{value!r:.80}; give it a whole number, {remedy}", tasks)


# --- collate and forward --------------------------------------------------------------------------


def batch(model: Model, arrays: object) -> Arrays:
    """Return the arrays of `collate` if they can be sent to the device. Raises WrongReturn."""
    if problem := _problem(arrays, "the dictionary of arrays"):
        raise wrong(model, "collate", problem)
    return arrays  # type: ignore[return-value]


def outputs_problem(model: object, outputs: object, wanted: Arrays) -> str:
    """Return the fault in the outputs of `forward`, or nothing: results must never move between items."""
    problem = _problem(outputs, "the dictionary of outputs by task")
    if problem:
        return str(wrong(model, "forward", problem, wanted))
    assert isinstance(outputs, Mapping)
    if set(outputs) != set(wanted):
        found = ", ".join(sorted(outputs)) or "nothing"
        return str(wrong(model, "forward", f"outputs for {found}; give one for each task in `wanted`", wanted))
    for task, rows in wanted.items():
        output = outputs[task]
        if output.ndim < 1 or len(output) != len(rows):
            problem = f"an output of shape {output.shape} for {len(rows)} rows; give a row for each of wanted[{task!r}]"
            return str(wrong(model, "forward", problem, [task]))
    return ""


def _problem(arrays: object, what: str) -> str:
    """Return the fault in a dictionary of arrays by name, or nothing."""
    if not isinstance(arrays, Mapping):
        return f"{_kind(arrays)} in place of {what}; return a dict of NumPy arrays by name"
    for name, array in arrays.items():
        if not isinstance(name, str) or not name.isprintable():
            return f"an array with the name {name!r:.80}; name it by a text"
        if not isinstance(array, np.ndarray):
            remedy = "call .cpu().numpy()" if type(array).__module__.startswith("torch") else "np.asarray(…) makes one"
            return f"{name!r} as {_kind(array)}, not a NumPy array; {remedy}"
        if isinstance(array, np.ma.MaskedArray):
            return f"{name!r} as a masked array, whose mask would be lost; give .filled(…), and the mask under another"
        if array.dtype.kind in _UNSENT:
            found = "an array of Python objects" if array.dtype.kind == "O" else f"an array of the type {array.dtype}"
            return f"{name!r} as {found}, which no other process can read; give it numbers, such as dtype=np.float32"
    return ""


# --- finish ---------------------------------------------------------------------------------------


def answer(model: Model, task: Task, found: object) -> Any:
    """Return an answer of `finish` as the store keeps it: a float32 vector, or plain JSON. Raises WrongReturn.

    The answers of kinds with files keep their `MadeFile`s.
    """
    if type(found) is np.ndarray and found.ndim:
        kept: Any = _vector(model, task, found)
    elif task.kind.makes_files:
        return _with_files(model, task, found)
    else:
        kept = _plain_json(model, task, found)
    if is_own(model):
        _check_form(model, task, kept)
    return kept


def _with_files(model: Model, task: Task, found: object) -> Any:
    def looked_at(data: object, media_type: object) -> dict[str, Any]:
        if not isinstance(data, bytes) or not data or not isinstance(media_type, str):
            problem = f"a MadeFile of {_kind(data)} and {_kind(media_type)}; give it bytes and a media type"
            raise wrong(model, "finish", problem, [task.name])
        return {}

    _plain_json(model, task, output_files.put_away(found, looked_at))
    return found


def _vector(model: Model, task: Task, found: Array) -> Array:
    if found.dtype == _FLOAT32 and found.ndim == 1 and len(found) and np.isfinite(found).all():
        return np.ascontiguousarray(found)
    if found.dtype.kind not in "fiub" or found.ndim != 1 or not len(found):
        problem = f"an array of the type {found.dtype} and the shape {found.shape}; a vector is float32, (numbers,)"
        raise wrong(model, "finish", problem, [task.name])
    with np.errstate(over="ignore"):
        vector: Array = np.ascontiguousarray(found, dtype="<f4")
    if not np.isfinite(vector).all():
        place = int(np.flatnonzero(~np.isfinite(vector))[0])
        problem = f"a vector whose number {place} is {found[place]}, not finite in float32"
        raise wrong(model, "finish", problem, [task.name])
    return vector


def _plain_json(model: Model, task: Task, found: object) -> Any:
    try:
        plain = msgspec.to_builtins(found, enc_hook=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        problem = f"{_kind(found)}, which is not JSON: {error}; give texts, numbers, lists and dicts"
        raise wrong(model, "finish", problem, [task.name]) from error
    try:
        # numbers that are not finite become null, so that most answers need no walk
        if b"null" not in _encoded(plain):
            return plain
    except (TypeError, ValueError):  # a key, or a lone surrogate, which the store replaces
        pass
    if plain is None and is_own(model):
        raise wrong(model, "finish", "None; return the answer", [task.name])
    for place, problem in json_schema.not_json(plain):
        raise wrong(model, "finish", f"an answer in which {place or 'the number'} {problem}", [task.name])
    return plain


def _plain(value: object) -> Any:
    """Return NumPy's numbers, texts and arrays, and subclasses of texts and numbers, as Python's own."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, np.longdouble):  # Python has no number of this size
        return float(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{_kind(value)} in it")


def _check_form(model: Model, task: Task, kept: object) -> None:
    """Check an answer of an own class against its kind's form.

    Kinds that existed before this check accept other forms for one release; the first is logged.
    """
    form = model.output_type if task.kind is CUSTOM else task.kind.output
    try:
        msgspec.convert(kept.tolist() if isinstance(kept, np.ndarray) else kept, form)
    except msgspec.ValidationError as error:
        problem = f"an answer that is not of the kind {task.kind.name}: {error}"
        if task.kind.strict:
            raise wrong(model, "finish", problem, [task.name]) from error
        if (type(model), task.name) not in _logged:
            _logged.add((type(model), task.name))
            about = wrong(model, "finish", problem, [task.name])
            logger.warning("%s; the next release refuses it; give the task the kind custom (docs/own-model.md)", about)


def _kind(value: object) -> str:
    """Return an article and the name of a value's type: ``a list``, ``None``."""
    if value is None or isinstance(value, np.ndarray):
        return "None" if value is None else "a NumPy array"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
