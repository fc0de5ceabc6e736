"""Old names of modules: accepted for one release, with a warning that names the new module."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Mapping, Sequence
from importlib.abc import InspectLoader, Loader
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType


def accept(names: Mapping[str, str]) -> None:
    """Accept old names of modules, in imports and for ``python -m``. `names` maps each old name to the new name."""
    sys.meta_path.append(_Finder(names))


class _Finder:
    """The last finder on `sys.meta_path`: it is asked only for modules that no other finder has found."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of the module of an old name, or None for any other name."""
        if name not in self._names:
            return None
        new = self._names[name]
        warnings.warn(f"{name} is now {new}; the next release removes the old name", FutureWarning, stacklevel=2)
        found = importlib.util.find_spec(new)
        assert found is not None
        return ModuleSpec(name, _Loader(found), origin=found.origin)


class _Loader(Loader):
    """A loader that returns the module of the new name itself, so that its classes are the same under both names."""

    def __init__(self, found: ModuleSpec) -> None:
        self._found = found

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module under its new name."""
        return importlib.import_module(self._found.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do not execute the module again, but undo the change that the import system made to it."""
        module.__spec__ = self._found

    def get_code(self, name: str) -> CodeType | None:
        """Return the module's code, for ``python -m``."""
        assert isinstance(self._found.loader, InspectLoader)
        return self._found.loader.get_code(self._found.name)
