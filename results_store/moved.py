"""Old names of modules: accepted for one release, with a warning that names the new one."""

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
    """Let each module be imported, or run by ``python -m``, under its old name too: `names` has the new name of each."""
    sys.meta_path.append(_Finder(names))


class _Finder:
    """Stands last on `sys.meta_path`: it is asked for what nobody else has found."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load the module of an old name, or None for any other name."""
        if name not in self._names:
            return None
        new = self._names[name]
        warnings.warn(f"{name} is now {new}; the old name goes with the next release", FutureWarning, stacklevel=2)
        found = importlib.util.find_spec(new)
        assert found is not None
        return ModuleSpec(name, _Loader(found), origin=found.origin)


class _Loader(Loader):
    """Gives the very module that the new name stands for, so that its classes are the same under both names."""

    def __init__(self, found: ModuleSpec) -> None:
        self._found = found

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module under its new name."""
        return importlib.import_module(self._found.name)

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it is, for it has been executed; but undo what the import system wrote on it."""
        module.__spec__ = self._found

    def get_code(self, name: str) -> CodeType | None:
        """Return the module's code, for ``python -m``."""
        assert isinstance(self._found.loader, InspectLoader)
        return self._found.loader.get_code(self._found.name)
