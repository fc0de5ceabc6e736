"""Raises in a thread of this process, or holds it up, when a test asks for it by a file.

A test puts this folder on the PYTHONPATH of the processes that it starts, and names a folder in ARGOSY_THREAD_FAULTS.
The file ``raise NAME`` there raises MemoryError in the thread of that name; ``hold NAME`` lets the thread sleep for an
hour. The process that has such a thread takes the file; in a device process NAME begins with "device ". Nothing of this
is in the product.
"""

import ctypes
import os
import sys
import threading
import time
from pathlib import Path


class Hold(Exception):
    """Python makes the instance of an asynchronous exception in the thread where it is raised."""

    def __init__(self) -> None:
        time.sleep(3600)


def _watch(folder: Path) -> None:
    prefix = "device " if _FORKS else ""
    while True:
        time.sleep(0.02)
        for file in folder.glob("*"):
            how, _, name = file.name.partition(" ")
            thread = next((one for one in threading.enumerate() if prefix + one.name == name), None)
            if thread is None:
                continue
            try:
                file.unlink()
            except OSError:  # another process has such a thread too, and was faster
                continue
            kind = {"raise": MemoryError, "exit": SystemExit, "hold": Hold}[how]
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(kind))


def _start() -> None:
    if folder := os.environ.get("ARGOSY_THREAD_FAULTS"):
        threading.Thread(target=_watch, args=(Path(folder),), name="thread faults", daemon=True).start()


#: The fork server has no threads; a device process is a fork of it.
_FORKS = "workers.device.fork_server" in sys.orig_argv

if _FORKS:
    os.register_at_fork(after_in_child=_start)
else:
    _start()
