"""The source files of a user's own class, and a digest of them: a reload must not serve new settings by old code.

A process keeps the code that it imported. So a worker notes the digest of a class's files when it imports the class,
and refuses a reload once they have changed.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

#: Argosy's packages, which lie beside the class of somebody who develops both. Reading all takes half a second.
_ARGOSYS = ("producers", "results_store", "workers")

#: The digest of each class's files when this process imported it.
_noted: dict[type, str] = {}


def note(class_: type) -> None:
    """Note the digest of a class's files, the first time that it is called for the class."""
    if class_ not in _noted:
        _noted[class_] = digest(class_)


def noted(class_: type) -> str:
    """Return the digest that `note` noted for a class, or an empty string."""
    return _noted.get(class_, "")


def changed(class_: type) -> bool:
    """Return whether the files of a class have changed since `note`."""
    return class_ in _noted and _noted[class_] != digest(class_)


def digest(class_: type) -> str:
    """Return a digest of the contents of a class's files."""
    found = hashlib.blake2b(digest_size=6)
    for file in sorted(files(class_)):
        found.update(f"{file.name}\n".encode())
        found.update(file.read_bytes())
    return found.hexdigest()


def files(class_: type) -> set[Path]:
    """Return the file of a class's module and of each module of the same project that it imports, also in functions.

    The project is the module's top package, or the folder of a module without a package; Argosy is no part of it.
    """
    module = sys.modules.get(class_.__module__)
    own = getattr(module, "__file__", None)
    if own is None:  # made by a program
        return set()
    top = class_.__module__.partition(".")[0]
    installed = {"site-packages", "dist-packages"} & set(Path(own).parts)
    within = Path(own).resolve().parents[class_.__module__.count(".")]
    found = {Path(own).resolve()}
    waiting = [class_.__module__]
    seen = set(waiting)
    while waiting:
        name = waiting.pop()
        if name.partition(".")[0] in _ARGOSYS:
            continue
        file = _file(name, within)
        if file is None or (installed and name.partition(".")[0] != top):
            continue
        found.add(file)
        new = set(_imported(file, name)) - seen
        seen |= new
        waiting += new
    return found


def _file(module: str, within: Path) -> Path | None:
    """Return a module's source file in a folder. Nothing is imported: a look-up of a module would run its package."""
    place = within.joinpath(*module.split("."))
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def _imported(file: Path, module: str) -> Iterator[str]:
    """Yield the names of the modules that a file may import; some may be names within a module."""
    if file.suffix != ".py":
        return
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            name = ".".join(part for part in (base, node.module) if part)
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)
