"""The worker's end of a decoding process: starts it, sends it a file, and ends it."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress

from workers.models.decoding import decoded_answers
from workers.models.decoding.decoded_answers import DecodedAnswer
from workers.models.decoding.decoding_limits import DecodingLimits

#: A file that takes more seconds of a processor than this, or ten times as many by the clock, is slow: it may have to
#: give way.
SLOW_S = 0.25

#: The lower rank of slow decoding at the processor (`nice`): below the device process, which has 10.
SLOW_RANK = 15

#: A slow file that takes more seconds of a processor than this runs only where a processor has nothing else to do.
IDLE_S = 2.0

#: The most seconds for the start of a process.
START_LIMIT_S = 60.0

_PROCESS_CLOCK = 2

#: Shared memory over this size is given back to the system after use.
_KEPT_BYTES = 4 * 2**20


class DecoderProcess:
    """A decoding process, which is used by one thread at a time; any thread may `kill` it.

    Raises OSError if the system gives no process, descriptor or memory.
    """

    def __init__(self, limits: DecodingLimits, environment: Mapping[str, str]) -> None:
        self.limits = limits
        self.slow = False
        self._started = False
        with ExitStack() as files, ExitStack() as given:
            self._memory = os.memfd_create("argosy-decoded", os.MFD_CLOEXEC)
            files.callback(os.close, self._memory)
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._socket = files.enter_context(mine)
            given.enter_context(theirs)
            ended, life = os.pipe()  # the kernel closes `life` when the worker dies
            files.callback(os.close, life)
            given.callback(os.close, ended)
            descriptors = (theirs.fileno(), self._memory, ended)
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [
                    *(sys.executable, "-m", "workers.models.decoding.decoder_process", *map(str, descriptors)),
                    *map(str, (limits.decode_s, limits.decode_memory_bytes)),
                ],
                env=environment,
                pass_fds=descriptors,
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal is for the worker
            )
            self._files = files.pop_all()
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_until_started(self) -> bool:
        """Wait for the imports; return whether the process is there."""
        self._started = self._started or bool(self._received(START_LIMIT_S))
        return self._started

    def decode(self, call: bytes, data: bytes, on_slow: Callable[[], object]) -> bytes:
        """Run the pickled call with a file; return the message about the answer, or nothing if the process has ended.

        `on_slow` is called once the file is slow. Raises TimeoutError after the limit by the clock.
        """
        if not self.wait_until_started():
            return b""
        decoded_answers.write_at(self._memory, memoryview(call), 0)
        decoded_answers.write_at(self._memory, memoryview(data), len(call))
        try:
            self._socket.send(decoded_answers.LENGTHS.pack(len(call), len(data)))
        except OSError:
            return b""
        began_s, until = self._used_s(), time.monotonic() + self.limits.wall_s
        message = self._received_within(began_s + SLOW_S, time.monotonic() + 10 * SLOW_S)
        if message is None:
            self.slow = True
            with suppress(OSError):  # it has just ended
                os.setpriority(os.PRIO_PROCESS, self.pid, SLOW_RANK)
            on_slow()
            message = self._received_within(began_s + IDLE_S, until)
        if message is None:
            with suppress(OSError, AttributeError):  # only Linux has it
                os.sched_setscheduler(self.pid, os.SCHED_IDLE, os.sched_param(0))
            message = self._received(until - time.monotonic())
        if message is None:
            raise TimeoutError
        return message

    def answer(self, message: bytes) -> DecodedAnswer:
        """Return the answer. Raises ValueError if it is none."""
        answer = decoded_answers.read(self._memory, message, self.limits.decode_memory_bytes)
        if os.fstat(self._memory).st_size > _KEPT_BYTES:
            os.ftruncate(self._memory, 0)
        return answer

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> int:
        """End the process, and return its exit code: after a signal, the negative number of the signal."""
        self._process.kill()  # changes nothing about a process that is about to end by itself
        code = self._process.wait()
        self._files.close()
        return code

    def _received_within(self, most_s: float, until: float) -> bytes | None:
        """Return a message, or None once the process has used `most_s` seconds of a processor, or at time `until`."""
        message, left_s = None, most_s - self._used_s()
        while message is None and left_s > 0 and time.monotonic() < until:
            message = self._received(left_s)
            left_s = most_s - self._used_s()
        return message

    def _used_s(self) -> float:
        """Return the seconds of a processor that the process has used."""
        try:
            return time.clock_gettime((~self.pid << 3) | _PROCESS_CLOCK)  # as clock_getcpuclockid(3) names it
        except OSError:  # it has ended
            return 0.0

    def _received(self, timeout_s: float) -> bytes | None:
        """Return a message, nothing from a process that has ended, or None after the timeout."""
        if not self._readable.poll(max(0.0, timeout_s) * 1000):
            return None
        try:
            return self._socket.recv(decoded_answers.LENGTHS.size)
        except OSError:
            return b""
