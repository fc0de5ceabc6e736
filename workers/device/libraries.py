"""The libraries that the models of a device process import, noted for the next start.

torch and transformers take seconds of a processor to import. A process that has loaded its models tells the modules;
its worker notes them in the cache, and the fork server imports them before it forks the next device process.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import logging
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from producers.wire.atomic_files import atomically
from workers.models.backends.choice import Backend
from workers.models.sources import model_source

logger = logging.getLogger(__name__)

#: The packages that are imported before a fork. They start neither a thread nor a GPU when they are imported, and the
#: threads of the OpenBLAS of NumPy and SciPy end before a fork (`pthread_atfork`). ONNX Runtime and OpenVINO do start
#: threads.
PACKAGES: Final = ("torch", "transformers")

#: These start processes when they are imported.
_NEVER: Final = ("torch._inductor",)


#: Longer notes are cut: they go to the server in one message.
_MOST_BYTES = 128 * 1024


def note_of(models: Iterable[tuple[str, Backend]]) -> Path:
    """Return the file with the modules of these models, each a class and a backend."""
    digest = hashlib.blake2b(repr(sorted((class_, str(backend)) for class_, backend in models)).encode(), digest_size=8)
    return model_source.cache_folder() / "libraries" / f"{digest.hexdigest()}.json"


def imported() -> list[str]:
    """Return the modules of `PACKAGES` that this process has imported."""
    return [name for name in list(sys.modules) if _is_of_them(name)]


def keep(file: Path, names: Sequence[str]) -> None:
    """Note modules, unless the file has them."""
    with suppress(OSError):  # the cache belongs to another user, or is mounted read-only
        if not set(names) <= set(noted(file)):
            file.parent.mkdir(parents=True, exist_ok=True)
            with atomically(file) as made:
                made.write_bytes(msgspec.json.encode(names))


def noted(file: Path) -> list[str]:
    """Return the noted modules; nothing if there is no note that can be read."""
    with suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(file.read_bytes(), type=list[str])
    return []


def load(names: Iterable[str]) -> None:
    """Import modules of `PACKAGES`. A module that cannot be imported now is left to the device process."""
    for name in names:
        if name not in sys.modules and _is_of_them(name):
            try:
                importlib.import_module(name)
            except Exception as error:  # noqa: BLE001 - of a library, which may be another version now
                logger.info("%s is not imported before its time: %s: %s", name, type(error).__name__, error)


def cut(names: Sequence[str]) -> list[str]:
    """Return the names that fit into a message."""
    sizes = itertools.accumulate(len(name) + 3 for name in names)
    return [name for name, size in zip(names, sizes, strict=True) if size <= _MOST_BYTES]


def _is_of_them(name: str) -> bool:
    return name.partition(".")[0] in PACKAGES and not name.startswith(_NEVER)
