"""The changes that can be made to a module: each is a span of its source and another text for it."""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], str] = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.FloorDiv: "*",
}
_EXTREMES = {"min": "max", "max": "min"}

#: Calls whose arguments no test should compare: logs, messages, and text for people.
_FOR_PEOPLE = {"logger", "logging", "warnings"}


@dataclass(frozen=True)
class Mutant:
    """A change of a file: the source between two offsets becomes `text`. Its `id` survives edits elsewhere.

    `statement` is the first and last line of the changed statement, or of the header of an `if` or a loop. A change
    outside functions runs `at_import`.
    """

    id: str
    path: str
    line: int
    statement: tuple[int, int]
    begin: int
    end: int
    kind: str
    old: str
    text: str
    at_import: bool

    def apply(self, source: str) -> str:
        return source[: self.begin] + self.text + source[self.end :]

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.kind}: {' '.join(self.old.split())!r} -> {self.text!r}"


def mutants(root: Path, path: Path) -> list[Mutant]:
    """Return every change of a module."""
    source = path.read_text()
    name = str(path.relative_to(root))
    seen: Counter[tuple[str, ...]] = Counter()
    found = []
    changes = _Changes(source)
    for kind, node, begin, end, text in changes.all():
        old = source[begin:end]
        key = (name, kind, node, old, text)
        seen[key] += 1
        identity = hashlib.sha256("\x1f".join((*key, str(seen[key]))).encode()).hexdigest()[:16]
        line = source.count("\n", 0, begin) + 1
        statement, at_import = changes.statement(line, source.count("\n", 0, end) + 1)
        found.append(Mutant(identity, name, line, statement, begin, end, kind, old, text, at_import))
    return found


class _Changes:
    """The changes of one source."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._tree = ast.parse(source)
        starts = [0]
        for line in source.splitlines(keepends=True):
            starts.append(starts[-1] + len(line.encode()))
        self._starts = starts
        self._bytes = source.encode()

    def statement(self, first: int, last: int) -> tuple[tuple[int, int], bool]:
        """Return the lines of the innermost statement around these lines, and whether it runs at the import.

        A line of its own inside a statement may have no event of its own.
        """
        inside = False
        for node in ast.walk(self._tree):  # outer nodes come first
            if not isinstance(node, ast.stmt) or node.end_lineno is None:
                continue
            body = [case.pattern for case in node.cases] if isinstance(node, ast.Match) else getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and end < first <= node.end_lineno:
                inside = True
            if node.lineno <= first and last <= max(end, node.lineno):
                return (node.lineno, max(last, end)), not inside
        return (first, last), not inside

    def all(self) -> Iterator[tuple[str, str, int, int, str]]:
        """Yield (kind, name of the function, first offset, end offset, new text)."""
        yield from self._within(self._tree, "")

    def _within(self, node: ast.AST, where: str) -> Iterator[tuple[str, str, int, int, str]]:
        if _ignored(node):
            return
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            where = f"{where}.{node.name}"
        for kind, of, text in self._of(node):
            yield (kind, where, *self._span(of), text)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_params", "bases"):
                continue
            children = value if isinstance(value, list) else [value]
            for child in children:
                if isinstance(child, ast.AST) and not _is_docstring(child, node):
                    yield from self._within(child, where)
        if isinstance(node, ast.Compare):
            yield from ((kind, where, begin, end, text) for kind, begin, end, text in self._comparisons(node))

    def _of(self, node: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
        if isinstance(node, ast.stmt):
            yield from self._of_statement(node)
        match node:
            case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
                if not isinstance(test, ast.Compare | ast.Constant):
                    yield "condition", test, f"(not ({self._text(test)}))"
            case ast.BoolOp(op=op, values=values):
                other = " or " if isinstance(op, ast.And) else " and "
                yield "and/or", node, f"({other.join(f'({self._text(value)})' for value in values)})"
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                yield "condition", node, f"({self._text(operand)})"
            case ast.Constant(value=bool(value)):
                yield "constant", node, str(not value)
            case ast.Constant(value=int(value)) | ast.Constant(value=float(value)) if value != value + 1:
                yield "boundary", node, str(value + 1)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
                yield "arithmetic", node, f"({self._text(left)} {_ARITHMETIC[type(op)]} {self._text(right)})"
            case ast.Call():
                yield from self._of_call(node)

    def _of_statement(self, node: ast.stmt) -> Iterator[tuple[str, ast.AST, str]]:
        match node:
            case ast.Expr(value=ast.Call() | ast.Await() | ast.Yield()):
                yield "removed statement", node, "pass"
            case ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break() | ast.Delete():
                yield "removed statement", node, "pass"
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield "removed statement", node, "pass"
            case ast.Return(value=None):
                yield "early return", node, "pass"

    def _of_call(self, call: ast.Call) -> Iterator[tuple[str, ast.AST, str]]:
        if isinstance(call.func, ast.Name) and call.func.id in _EXTREMES:
            yield "min/max", call.func, _EXTREMES[call.func.id]
        for keyword in call.keywords:
            if keyword.arg is not None:
                kept = [self._text(part) for part in (*call.args, *call.keywords) if part is not keyword]
                yield "dropped argument", call, f"{self._text(call.func)}({', '.join(kept)})"

    def _comparisons(self, node: ast.Compare) -> Iterator[tuple[str, int, int, str]]:
        left = node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            begin, end = self._span(left)[1], self._span(right)[0]
            between = self._source[begin:end]
            # brackets of an operand stand between the two spans too
            closing, opening = (
                between[: len(between) - len(between.lstrip(" )\n"))],
                between[len(between.rstrip(" (\n")) :],
            )
            yield "comparison", begin, end, f"{closing or ' '}{_COMPARISONS[type(operator)]}{opening or ' '}"
            left = right

    def _text(self, node: ast.AST) -> str:
        begin, end = self._span(node)
        return self._source[begin:end]

    def _span(self, node: ast.AST) -> tuple[int, int]:
        begin = self._starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]
        end = self._starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
        return len(self._bytes[:begin].decode()), len(self._bytes[:end].decode())


def _ignored(node: ast.AST) -> bool:
    """Return whether changes in a node change only texts for people, types, or nothing."""
    match node:
        case ast.FunctionDef(name="__repr__" | "__str__") | ast.Assert() | ast.JoinedStr():
            return True
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))):
            return name in _FOR_PEOPLE
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name in ("logger", "__all__")
    return False


def _is_docstring(child: ast.AST, parent: ast.AST) -> bool:
    return isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)


def all_mutants(root: Path, patterns: list[str]) -> list[Mutant]:
    """Return every change of the modules that the patterns name, in the order of their paths."""
    paths = sorted(set(chain.from_iterable(root.glob(pattern) for pattern in patterns)))
    return [mutant for path in paths if path.name != "__init__.py" for mutant in mutants(root, path)]
