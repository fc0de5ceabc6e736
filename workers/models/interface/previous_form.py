"""Support for model classes in the previous form, for one release.

The previous form has `finish` without the row, `finish_item`, `trial` and `OPTIONS`. Remove this module together with
`option_table` and with `PreviousForm` among the bases of `Model`.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import msgspec

from workers.models.interface.option_table import Option, check
from workers.models.interface.options import described

_FINISH = "finish(self, task, output, params, prepared)"
_OPTIONS = "options_class, a msgspec.Struct of the options (workers.models.interface.options)"


class _OptionTable:
    """Derives `OPTIONS` from a class's struct of options, for a derived class that extends the table."""

    def __get__(self, _: object, class_: type[PreviousForm]) -> dict[str, Option] | None:
        if class_.options_class is None:
            return None
        return {field.encode_name: _option(field.type) for field in msgspec.structs.fields(class_.options_class)}


class PreviousForm:
    """A base of `Model` that converts a class in the previous form at its definition, with a FutureWarning."""

    options_class: ClassVar[type[msgspec.Struct] | None]
    OPTIONS: ClassVar[Any] = _OptionTable()

    #: The table `OPTIONS` of a class in the previous form.
    _option_table: ClassVar[Mapping[str, Option] | None] = None
    _finishes_without_row: ClassVar[bool] = False

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        own = dict(vars(cls))
        if isinstance(own.get("OPTIONS"), Mapping):
            _warn(cls, "OPTIONS", _OPTIONS)
            cls._option_table = own["OPTIONS"]
        if "trial" in own:
            _warn(cls, "trial(self, count)", "samples(self, count)")
            cls.samples = own["trial"]  # type: ignore[attr-defined]
        item, finish = own.get("finish_item"), own.get("finish")
        if item or (finish and _takes_no_row(finish)):
            _warn(cls, "finish_item" if item else "finish(self, task, output, params)", _FINISH)
            cls.finish = _finishing(cls, finish, item)  # type: ignore[attr-defined]
            cls._finishes_without_row = True

    def finish_item(self, task: Any, output: Any, params: Any, prepared: Any) -> Any:
        """Finish an item in the previous form, for outputs that depend on more than the head's output."""
        if self._finishes_without_row:  # a class in the previous form calls the method of its base
            return self.finish(task, output, params)  # type: ignore[attr-defined]
        _warn(type(self), "finish_item", "finish", calls=1)
        return self.finish(task, output, params, prepared)  # type: ignore[attr-defined]

    def _options_of_struct(self, given: Mapping[str, Any], where: str) -> Mapping[str, Any]:
        """Check the options against the class's `OPTIONS`, if any, and return the options for its struct."""
        if self._option_table is None:
            return given
        check(given, self._option_table, where=where)
        inherited = msgspec.structs.fields(self.options_class) if self.options_class else ()
        return {field.encode_name: given[field.encode_name] for field in inherited if field.encode_name in given}


def _warn(class_: type, old: str, new: str, *, calls: int = 2) -> None:
    """Warn at the line of the class or of the call: `calls` is the number of frames between it and this module."""
    text = f"{class_.__module__}.{class_.__qualname__}: {old} is now {new}; the next release drops the old form"
    warnings.warn(text, FutureWarning, stacklevel=2 + calls)


def _takes_no_row(finish: Callable[..., Any]) -> bool:
    """Whether a `finish` has only the previous form's parameters: self, task, output, params."""
    parameters = inspect.signature(finish).parameters.values()
    return len(parameters) == 4 and all(each.kind is not each.VAR_POSITIONAL for each in parameters)


def _finishing(class_: Any, finish: Callable[..., Any] | None, item: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return a `finish` in today's form for a class in the previous form, which may itself call it without the row."""

    def finishing(self: Any, task: Any, output: Any, params: Any, prepared: Any = None) -> Any:
        if item and prepared is not None:
            return item(self, task, output, params, prepared)
        if finish:
            return finish(self, task, output, params)
        return super(class_, self).finish(task, output, params, prepared)

    return finishing


def _option(type_: Any) -> Option:
    def fits(value: Any) -> bool:
        try:
            msgspec.convert(value, type_)
        except msgspec.ValidationError:
            return False
        return True

    return Option(described(type_), fits)
