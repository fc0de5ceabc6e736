"""The main program of a decoding process: it decodes a file after another until its worker ends.

It imports neither torch nor Celery, has no address or password of broker, store and blob storage, and ignores the
signals that are meant for its worker. The kernel ends it: over its processor time by SIGPROF, with its worker by SIGIO.
Native code can delay neither.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import os
import pickle
import resource
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from producers.wire.errors import ConfigurationError, InvalidInput
from workers.models.decoding import decoded_answers, isolation
from workers.models.decoding.decoded_answers import DecodedAnswer

#: The readers, with the libraries that they import when they are first used.
_READERS = {
    "numpy": ("workers.models.pictures.pixels", "workers.models.huggingface.vision.image_processing"),
    "soxr": ("soxr",),
    "av": ("av", "workers.models.speech.waveform", "workers.models.video.frames"),
}

#: An error's message is cut to this length.
_MESSAGE_CHARS = 2000


def main(socket_fd: int, memory: int, worker_fd: int, *, seconds: float, memory_bytes: int) -> None:
    """Announce that the readers are imported, then answer requests."""
    _end_with(worker_fd)
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)  # a service manager sends SIGTERM to the worker's children too
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError):  # the kernel that is out of memory ends this process before its worker
        Path("/proc/self/oom_score_adj").write_text("500", "ascii")
    for library, modules in _READERS.items():
        if importlib.util.find_spec(library):
            for module in modules:
                importlib.import_module(module)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    requests = socket.socket(fileno=socket_fd)
    requests.send(decoded_answers.LENGTHS.pack(0, 0))
    while message := requests.recv(decoded_answers.LENGTHS.size):
        signal.setitimer(signal.ITIMER_PROF, seconds)
        answer = _answered(memory, message)
        signal.setitimer(signal.ITIMER_PROF, 0)
        requests.send(answer)


def _end_with(worker_fd: int) -> None:
    """Let the kernel send SIGIO, which ends this process, when the worker's end of the pipe is closed."""
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    fcntl.fcntl(worker_fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(worker_fd, fcntl.F_SETFL, os.O_ASYNC)


def _answered(memory: int, message: bytes) -> bytes:
    try:
        return decoded_answers.write(memory, DecodedAnswer("made", _called(memory, message)))
    except isolation.LargeFile:
        answer = DecodedAnswer("large", None)
    except InvalidInput as error:
        refused = (type(error).__name__, error.field, error.problem[:_MESSAGE_CHARS], error.remedy)
        answer = DecodedAnswer("refused", refused)
    except MemoryError:
        answer = DecodedAnswer("memory", None)
    except ConfigurationError as error:
        answer = DecodedAnswer("misconfigured", str(error)[:_MESSAGE_CHARS])
    except Exception as error:  # noqa: BLE001 - the item's, like any exception of a model
        answer = DecodedAnswer("failed", f"{type(error).__name__}: {error}"[:_MESSAGE_CHARS])
    return decoded_answers.write(memory, answer)


def _called(memory: int, message: bytes) -> Any:
    call_bytes, file_bytes = decoded_answers.LENGTHS.unpack(message)
    function, args, large = pickle.loads(os.pread(memory, call_bytes, 0))  # noqa: S301 - from the worker
    with isolation.large_files(large):
        return function(os.pread(memory, file_bytes, call_bytes), *args)


if __name__ == "__main__":
    main(*(int(number) for number in sys.argv[1:4]), seconds=float(sys.argv[4]), memory_bytes=int(sys.argv[5]))
