"""How late a waiting thread of a worker wakes: a `sitecustomize` for the processes of a measured fleet.

If `ARGOSY_SCRIPTED_WAKES` names a folder, a thread of each worker's parent process sleeps 5 ms again and again, and
writes when it woke and how late, two float64 each.
"""

import os
import sys
import threading
import time
from struct import pack

_TICK_S = 0.005
_FOLDER = os.environ.get("ARGOSY_SCRIPTED_WAKES")


def _watch() -> None:
    with open(f"{_FOLDER}/{os.getpid()}", "ab", buffering=0) as file:  # noqa: PTH123 - no imports beyond what Python has loaded
        while True:
            started = time.monotonic()
            time.sleep(_TICK_S)
            woken = time.monotonic()
            file.write(pack("dd", woken, woken - started - _TICK_S))


if _FOLDER and "worker" in sys.orig_argv:
    threading.Thread(target=_watch, daemon=True).start()
