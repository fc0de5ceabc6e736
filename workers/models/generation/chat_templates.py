"""A checkpoint's chat template, rendered in jinja2's sandbox within a number of steps.

A template is a program of the folder's author. The sandbox lets it reach nothing, but it may loop, or make texts of any
size, in a thread that cannot be stopped. So loops, calls, filters, operators and outputs take steps: a step for each
value that they go through, and a step for each 64 characters that they read or make.

This module imports jinja2, which belongs to an extra.
"""

from __future__ import annotations

import datetime
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import wraps
from typing import Any, NoReturn

from jinja2 import Template, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

#: The steps of a rendering; further steps for each message, and one for each 16 characters of the messages.
STEPS = 200_000
STEPS_A_MESSAGE = 1000

#: The most characters of a value; four more for each character of the messages.
MOST_CHARACTERS = 300_000

#: The most characters of a template.
MOST_SOURCE = 200_000

_CHARACTERS_A_STEP = 64
_NODES_A_STEP = 16

#: The most characters that an operation may make of two values, each of which may be repeated for a part of the other.
_MOST_MADE = 64_000_000

#: A part of a format that may be of any width: by a number, or by a value.
_WIDE = re.compile(r"\d{6}|\{[^{}]*\{")

#: Filters that go through no value.
_AT_ONCE = ("count", "d", "default", "first", "last", "length")


class TemplateError(Exception):
    """A chat template refuses the messages, raises an error, or takes too many steps."""


class _Room(threading.local):
    """The steps and the size that are left to the rendering in this thread."""

    def __init__(self) -> None:
        self.allow(0, 0)

    def allow(self, characters: int, messages: int) -> None:
        self.steps = STEPS + characters // 16 + STEPS_A_MESSAGE * messages
        self.characters = MOST_CHARACTERS + 4 * characters
        self.sizes: dict[int, tuple[object, int]] = {}  # of containers, which stay so that no id comes twice

    def take(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TemplateError("it takes too many steps")

    def passed(self, values: Any) -> Any:
        """Take a step for each value of a loop, and return the values."""
        if not hasattr(values, "__len__"):
            return self._each(values)
        self.take(len(values))
        return values

    def _each(self, values: Any) -> Iterator[Any]:
        for value in values:
            self.take(1)
            yield value

    def read(self, *values: Any) -> None:
        """Take the steps of an operation's values before it. Refuse values that may make too large a text."""
        lengths = [0, 0]
        for value in values:
            if isinstance(value, int):
                self.check(abs(value))
                lengths.append(abs(value))
            elif hasattr(value, "__len__"):
                self.take(len(value) // (_CHARACTERS_A_STEP if isinstance(value, str) else 1))
                lengths.append(max(len(value), self.size(value)))
        lengths.sort()
        if lengths[-1] * lengths[-2] > _MOST_MADE:
            raise TemplateError("it makes too large a value")

    def made(self, value: Any) -> Any:
        """Take the steps of a value that was made, and return it."""
        size = self.size(value)
        self.take(1 + size // _CHARACTERS_A_STEP)
        self.check(size)
        return value

    def check(self, size: float) -> None:
        if size > self.characters:
            raise TemplateError("it makes too large a value")

    def size(self, value: object) -> int:
        """Return the length of a value's text, about. A part that a container holds twice counts twice."""
        if isinstance(value, str | bytes):
            return len(value)
        if isinstance(value, int):
            return value.bit_length() // 3
        if not isinstance(value, list | tuple | dict):
            return 1
        if id(value) not in self.sizes:
            self.take(len(value))
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            self.sizes[id(value)] = value, len(value) + sum(map(self.size, inner))
        return self.sizes[id(value)][1]

    def format(self, form: str, *values: Any) -> None:
        """Take the steps of a format. Refuse widths that are too large, in the format or by a value."""
        if _WIDE.search(form):
            raise TemplateError("it has too wide a format")
        fields = form.count("%") + form.count("{")
        for value in values:
            if isinstance(value, tuple | list | dict):
                self.format("", *(value.values() if isinstance(value, dict) else value))
            self.read(value, fields)


class _Counting(NodeTransformer):
    """Has compiled templates take the steps of loops, macros and containers, which they handle by themselves."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - jinja2's name
        self.visit_Macro(node)
        node.iter = _call("passed", node.iter)  # type: ignore[arg-type]
        return node

    def visit_Macro(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:  # noqa: N802
        body = list(node.find_all(nodes.Node))
        texts = sum(len(text.data) for text in body if isinstance(text, nodes.TemplateData))
        steps = 1 + len(body) // _NODES_A_STEP + texts // _CHARACTERS_A_STEP
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("take", nodes.Const(steps))))
        return node

    visit_CallBlock = visit_Macro  # noqa: N815

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        """Have `~` be the filter `join`, which takes steps."""
        self.generic_visit(node)
        return nodes.Filter(nodes.List(node.nodes), "join", [], [], None, None)

    def visit_List(self, node: Any) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") == "store" else _call("made", node)

    visit_Tuple = visit_Dict = visit_List  # noqa: N815


def _call(name: str, argument: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), [argument], [], None, None)


class _GenerationBlock(Extension):
    """The block ``{% generation %}``, which marks the assistant's words for training. It writes its content."""

    tags = {"generation"}  # noqa: RUF012 - as in the base class

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with the extensions that transformers provides."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        self.room = _Room()
        self.passed, self.made, self.take = self.room.passed, self.room.made, self.room.take
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
            finalize=self.room.made,
        )
        self.filters["tojson"] = _to_json
        self.filters = {name: self._counted(name, made) for name, made in self.filters.items()}
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = lambda form: datetime.datetime.now().astimezone().strftime(form)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        parsed: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        parsed.set_environment(self)
        return parsed

    def _counted(self, name: str, made: Callable[..., Any]) -> Callable[..., Any]:
        passed = hasattr(made, "jinja_pass_arg")  # its first argument is jinja2's own

        @wraps(made)
        def counted(*arguments: Any, **named: Any) -> Any:
            values = [*arguments[passed:], *named.values()]
            if name == "format":
                self.room.format(str(values[0]), *values[1:])
            elif name not in _AT_ONCE:
                self.room.read(*values)
            return self.room.made(made(*arguments, **named))

        return counted

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            self.room.format(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.room.check(left.bit_length() * right)
        elif operator == "*":
            count, other = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(count, int) and not isinstance(other, int | float):
                self.room.check(count * self.room.size(other))
        return self.room.made(super().call_binop(context, operator, left, right))

    def call(self, context: Any, called: Any, /, *arguments: Any, **named: Any) -> Any:
        own = getattr(getattr(called, "__wrapped__", called), "__self__", None)  # the sandbox wraps `str.format`
        if own is self.room:
            return called(*arguments)
        values = [*arguments, *named.values()]
        if isinstance(own, str) and called.__name__ in ("format", "format_map"):
            self.room.format(own, *values)
        elif isinstance(own, str):
            self.room.read(own, *values)
        else:
            self.room.read(*(value for value in values if isinstance(value, int)))
        return self.room.made(super().call(context, called, *arguments, **named))


def compiled(source: str) -> Template:
    """Return a template. Raises TemplateError if it is invalid or too long."""
    if len(source) > MOST_SOURCE:
        raise TemplateError(f"it has over {MOST_SOURCE:,} characters")
    try:
        return _Environment().from_string(source)
    except Exception as error:  # jinja2 computes constants here, so a template may raise anything
        raise TemplateError(_said(error)) from error


def rendered(
    template: Template, messages: Sequence[Mapping[str, str]], special: Mapping[str, str], *, ask: bool = True
) -> str:
    """Return the text of these messages, with `ask` up to the start of an answer. Raises TemplateError."""
    room: _Room = template.environment.room  # type: ignore[attr-defined]
    room.allow(sum(len(text) for message in messages for text in message.values()), len(messages))
    try:
        return template.render(messages=messages, tools=None, documents=None, add_generation_prompt=ask, **special)
    except Exception as error:  # a template may raise anything
        raise TemplateError(_said(error)) from error
    finally:
        room.allow(0, 0)


def _said(error: Exception) -> str:
    return (str(error) or type(error).__name__)[:500]


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
