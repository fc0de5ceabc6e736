"""A model that does what its inputs say: OK, raise, die, hang, run out of memory, return too few outputs.

It stands in for a real model where faults are tested, in a real device process; it never replaces a real model's own
test.
"""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from producers.wire.catalogue import Task
from producers.wire.errors import InvalidInput
from workers.models.interface.model import Array, Arrays, Model, Prepared


class ScriptedModel(Model):
    """Answers a text with its CRC-32. ``raise``, ``die``, ``hang``, ``oom`` and ``short`` in the text are obeyed.

    ``sleep 0.2`` makes its batch take that many seconds; ``hold PATH`` makes that file, and its batch takes until it is
    gone; so does ``wait while PATH``, which does not make it; ``kill while PATH`` kills the worker itself that prepares
    it, as long as there is such a file; ``thread`` starts a thread there that never ends. Options: `fail_to_load` ends `load` (``raise``, ``hang`` or ``die``; of a file it takes a
    letter and raises, until there is none left).
    """

    def prepare(self, content: str | bytes, params: Mapping[str, msgspec.Struct]) -> Prepared:
        assert isinstance(content, str)
        if content.startswith("refuse"):
            raise InvalidInput("input", "is refused by the script")
        if content.startswith("bug"):
            raise KeyError("a bug in preparation")
        if content.startswith("kill while ") and Path(content.removeprefix("kill while ")).exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if content.startswith("thread"):
            threading.Thread(target=threading.Event().wait, daemon=False).start()
        data = np.frombuffer(content.encode(), dtype=np.uint8)
        return Prepared({"text": data}, len(data), hashlib.blake2b(content.encode(), digest_size=16).digest())

    def finish(self, task: Task, output: Array, params: msgspec.Struct, prepared: Prepared) -> Any:
        if task.name == "say":  # an output that another step can read
            return [{"label": f"said {int(output[0])}", "score": 1.0}]
        if task.name == "place":
            return np.array([int(output[0]) % 1000, 1], dtype=np.float32)
        if task.name == "frozen":
            return {"objects": gc.get_freeze_count()}
        return {"crc": int(output[0]), "task": task.name}

    def load(self, device: str) -> None:
        how = self.spec.options.get("fail_to_load")
        if how == "raise":
            raise RuntimeError("scripted not to load")
        if how == "hang":
            threading.Event().wait()
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how and (left := Path(str(how)).read_text(encoding="utf-8")):
            Path(str(how)).write_text(left[1:], encoding="utf-8")
            raise RuntimeError(f"scripted not to load {len(left)} times")

    def forward(self, arrays: Arrays, wanted: Mapping[str, Array]) -> Arrays:
        texts = [bytes(row).rstrip(b"\0").decode() for row in arrays["text"]]
        for text in texts:
            _obey(text)
        crcs = np.array([[zlib.crc32(text.encode())] for text in texts], dtype=np.int64)
        if any(text.startswith("short") for text in texts):
            crcs = crcs[:-1]
            return dict.fromkeys(wanted, crcs)
        return {task: crcs[rows] for task, rows in wanted.items()}


def _obey(text: str) -> None:
    word, _, rest = text.partition(" ")
    match word:
        case "raise":
            raise ValueError("scripted to raise")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            threading.Event().wait()
        case "hold":
            Path(rest).touch()
            _wait_while(Path(rest))
        case "wait":
            _wait_while(Path(rest.removeprefix("while ")))
        case "oom":
            raise MemoryError("scripted to run out of memory")
        case "sleep":
            time.sleep(float(rest.split()[0]))


def _wait_while(path: Path) -> None:
    while path.exists():
        time.sleep(0.01)
