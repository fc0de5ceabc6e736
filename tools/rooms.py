"""Check the rooms of the packages: their size, their imports of each other, and names used twice. Part of ``make
check``.

A room is a folder or a module that lies directly in a package; an arrow is a pair of rooms, one of which imports the
other. CONTRIBUTING says the rule; docs/decisions/0029-rooms.md says why.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TypeAlias

import grimp

Graph: TypeAlias = Mapping[str, set[str]]

ROOT = Path(__file__).parents[1]
PACKAGES = ("producers", "workers", "results_store")

#: The most arrows between the rooms of a package, and the most floors that they make.
ARROWS = {"producers": 23, "workers": 41, "results_store": 26, "workers.models": 38}
FLOORS = 7

#: The most modules in a folder, `__init__` aside: in one that holds rooms, and in any other.
BESIDE_ROOMS, IN_A_ROOM = 5, 15

#: A log of steps that only grows; nobody reads it as a room.
MIGRATIONS = "results_store.migrations.versions"

#: What belongs to no room: the programs that made the shipped heads are not in the wheel.
OUTSIDE = ("workers.shipped_heads",)


def main() -> int:
    """Print what is out of order; return 1 if anything is."""
    imports = imports_of(grimp.build_graph(*PACKAGES, cache_dir=None))
    problems = [*crowded_folders(), *module_cycles(imports), *names_used_twice()]
    for package in ARROWS:
        problems += arrows_and_floors(package, rooms_of(package, imports))
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def imports_of(graph: grimp.ImportGraph) -> Graph:
    """Return which modules each module imports, wherever in it the statement stands."""
    return {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}


def crowded_folders() -> Iterator[str]:
    """Yield each folder that holds too many modules, or is no package, so that the graph would lack it."""
    for package in PACKAGES:
        for folder in (ROOT / package, *(ROOT / package).rglob("*/")):
            modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
            name = folder.relative_to(ROOT).as_posix().replace("/", ".")
            if any(folder.rglob("*.py")) and not (folder / "__init__.py").exists():
                yield f"{name} has no __init__.py"
            most = BESIDE_ROOMS if name in ARROWS else IN_A_ROOM
            if len(modules) > most and name != MIGRATIONS:
                yield f"{name} holds {len(modules)} modules; the most is {most}"


def names_used_twice() -> Iterator[str]:
    """Yield each module name and each class name that a package has for two things."""
    for package in PACKAGES:
        places: defaultdict[str, list[str]] = defaultdict(list)
        for path in (ROOT / package).rglob("*.py"):
            place = path.relative_to(ROOT).as_posix()
            if not path.name.startswith("__"):
                places[f"module {path.stem}"].append(place)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    places[f"class {node.name}"].append(place)
        for name, found in places.items():
            if len(found) > 1:
                yield f"{package} has the {name} in {' and in '.join(sorted(found))}"


def module_cycles(imports: Graph) -> Iterator[str]:
    """Yield a cycle of modules, if there is one."""
    if cycle := first_cycle(imports):
        yield "modules import each other: " + " -> ".join(cycle)


def rooms_of(package: str, imports: Graph) -> Graph:
    """Return which rooms of the package each of its rooms imports."""
    depth = package.count(".") + 2
    rooms: dict[str, set[str]] = {}
    for module, imported in imports.items():
        if _inside(module, package):
            room = ".".join(module.split(".")[:depth])
            others = {".".join(other.split(".")[:depth]) for other in imported if _inside(other, package)}
            rooms.setdefault(room, set()).update(others - {room})
    return rooms


def _inside(module: str, package: str) -> bool:
    return module.startswith(f"{package}.") and not module.startswith(OUTSIDE)


def arrows_and_floors(package: str, rooms: Graph) -> Iterator[str]:
    """Yield what is wrong with a package's rooms: a cycle, too many arrows, or too many floors."""
    if cycle := first_cycle(rooms):
        yield f"rooms of {package} import each other: " + " -> ".join(cycle)
        return
    arrows, floors = sum(map(len, rooms.values())), height(rooms)
    print(
        f"{package}: {len(rooms)} rooms, "
        f"{arrows} arrows (at most {ARROWS[package]}), {floors} floors (at most {FLOORS})"
    )
    if arrows > ARROWS[package]:
        yield f"rooms of {package}: {arrows} arrows; the most is {ARROWS[package]}"
    if floors > FLOORS:
        yield f"rooms of {package}: {floors} floors; the most is {FLOORS}"


def first_cycle(graph: Graph) -> list[str]:
    """Return the nodes of one cycle, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(reversed(error.args[1]))
    return []


def height(graph: Graph) -> int:
    """Return the number of floors: how many nodes the longest way down passes."""
    floor: dict[str, int] = {}
    for node in TopologicalSorter(graph).static_order():
        floor[node] = 1 + max(_floors(graph.get(node, ()), floor), default=0)
    return max(floor.values(), default=0)


def _floors(nodes: Iterable[str], floor: Mapping[str, int]) -> Iterator[int]:
    return (floor[node] for node in nodes)


if __name__ == "__main__":
    sys.exit(main())
