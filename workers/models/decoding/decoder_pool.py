"""The decoding processes of a worker, and the files that wait for them.

The thread that prepares an item decodes its file too: it waits for a process, sends the file and reads the answer. The
next file is the most urgent one; among equals, that of the tenant that has the fewest processes now. The last free
process is for an owner (a priority of a tenant) that has none.

At most half of the processes decode heavy files at once: large ones, whose memory is bounded so, and slow ones. A slow
file never keeps others waiting for long. While it is decoded for the first time and a file needs its process, it gives
way: its process is ended, and it is decoded again as a heavy file.
"""

from __future__ import annotations

import itertools
import logging
import math
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import msgspec

from producers.wire.errors import ConfigurationError, InputTooLarge, InvalidInput
from workers.models.decoding.decoded_answers import DecodedAnswer
from workers.models.decoding.decoder_client import START_LIMIT_S, DecoderProcess
from workers.models.decoding.decoding_limits import LEAST_PROCESSES, DecodingLimits
from workers.models.decoding.isolation import DecodingInterrupted, DecodingPlace

logger = logging.getLogger(__name__)

_Made = TypeVar("_Made")

#: A file that waits looks at the processes at least this often: it may be possible to start one again.
_LOOK_EVERY_S = 1.0

_FIELD = "input"
_REMEDY = "send a smaller file, or raise `limits.{}` in fleet.toml"


@dataclass(eq=False, slots=True)
class _Waiting:
    """A file that waits for a process, or is in `process`.

    `heavy`: it is large, or gave way before; `gives_way`: it does so now. After a death its process must be new:
    somebody may have killed all of them.
    """

    owner: tuple[int, str]
    number: int
    heavy: bool
    deaths: int
    granted: threading.Event = field(default_factory=threading.Event)
    process: DecoderProcess | None = None
    gives_way: bool = False

    @property
    def slow(self) -> bool:
        return self.heavy or (self.process is not None and self.process.slow)


class DecoderPool:
    """Decoding processes. Thread-safe. `environment` is the processes'; it needs no secrets."""

    def __init__(self, limits: DecodingLimits, environment: Mapping[str, str], *, cores: int) -> None:
        self.size = limits.decode_processes or max(LEAST_PROCESSES, cores + 1)
        self._limits = limits
        self._environment = environment
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._free: list[DecoderProcess] = []
        self._waiting: list[_Waiting] = []
        self._running: list[_Waiting] = []
        self._most_slow = self.size // 2
        self._gave_way_at: dict[tuple[int, str], float] = {}
        self._closed = False

    def start(self) -> None:
        """Start all processes, which import their readers meanwhile. Later the pool starts them when it needs them.

        Raises OSError if the system gives no process.
        """
        with self._lock:
            # one more than run at once: a process that is ended has its replacement at once
            while len(self._free) + len(self._running) < self.size + 1 and not self._closed:
                self._free.append(DecoderProcess(self._limits, self._environment))

    def wait_until_started(self) -> None:
        """Wait until the processes can decode. Raises ConfigurationError if one cannot."""
        with self._lock:
            for process in self._free:
                if not process.wait_until_started():
                    problem = f"a decoding process does not start within {START_LIMIT_S:g} s, or ended at its start"
                    raise ConfigurationError(f"limits.decode_memory_bytes: {problem}; is the limit too low?")

    def close(self) -> None:
        """End all processes. Files that wait or are being decoded raise DecodingInterrupted, and so do later ones."""
        with self._lock:
            self._closed = True
            for waiting in self._running:
                if waiting.process:
                    waiting.process.kill()
            for waiting in self._waiting:
                waiting.granted.set()
            while self._free:
                self._free.pop().close()

    @property
    def crowded(self) -> bool:
        """Whether as many files wait as there are processes."""
        return len(self._waiting) >= self.size

    @property
    def pids(self) -> list[int]:
        """The ids of the processes."""
        with self._lock:
            return [process.pid for process in (*self._free, *(own.process for own in self._running)) if process]

    def decode(self, place: DecodingPlace, function: Callable[..., _Made], data: bytes, args: tuple[Any, ...]) -> _Made:
        """Return the result of `function(data, *args)`. Raises like `isolation.decode`, and DecodingInterrupted."""
        deaths, heavy = 0, False
        while True:
            call = pickle.dumps((function, args, heavy))
            waiting = _Waiting(place.owner, next(self._numbers), heavy, deaths)
            answer, timed_out = None, False
            try:
                with place.turn.decoding():  # the turn is there again before the result takes memory
                    process = self._wait(waiting)
                    try:
                        message = process.decode(call, data, self._give_way)
                    except TimeoutError:
                        message, timed_out = b"", True
                answer = process.answer(message) if message else None
            except (ValueError, msgspec.DecodeError) as error:
                logger.warning("the answer of a decoding process cannot be read: %s", error)
            finally:
                code = self._release(waiting, keep=answer is not None)
            if answer and answer.outcome != "large":
                return cast(_Made, self._result(answer))
            if self._closed:
                raise DecodingInterrupted
            if answer or waiting.gives_way:
                heavy = True
                continue
            if timed_out or code == -signal.SIGPROF:
                raise self._too_slow(timed_out=timed_out)
            deaths += 1
            logger.warning("a decoding process ended with %s during a file of %d bytes", _named(code), len(data))
            if deaths == 2:
                problem = f"ended the process that decodes it, twice ({_named(code)})"
                raise InvalidInput(_FIELD, problem, "save the complete file again, in another format")

    # --- processes and the files that wait ---

    def _wait(self, waiting: _Waiting) -> DecoderProcess:
        """Return the process of a file. Raises DecodingInterrupted."""
        with self._lock:
            self._waiting.append(waiting)
        while True:
            with self._lock:
                self._grant()
            granted = waiting.granted.wait(_LOOK_EVERY_S)
            if self._closed and waiting.process is None:
                raise DecodingInterrupted
            if granted and waiting.process:
                return waiting.process

    def _release(self, waiting: _Waiting, *, keep: bool) -> int | None:
        """Take a file's process back; return its exit code if it ended, or could not be kept."""
        with self._lock:
            process, code = waiting.process, None
            if process is None:
                self._waiting.remove(waiting)
                return None
            self._running.remove(waiting)
            # the rank of a slow file's process cannot be raised again, and much of its memory is in pieces
            if keep and not process.slow and not self._closed:
                self._free.append(process)
            else:
                code = process.close()
                if replacement := self._new_process():
                    self._free.insert(0, replacement)  # the others have their imports already
            self._grant()
            return code

    def _grant(self) -> None:
        """Give the free processes to waiting files. Call it with the lock."""
        while self._waiting and not self._closed:
            chosen = self._next()
            if chosen is None or (process := self._process(new=chosen.deaths > 0)) is None:
                break
            self._waiting.remove(chosen)
            self._running.append(chosen)
            chosen.process = process
            chosen.granted.set()
        self._make_way()

    def _next(self) -> _Waiting | None:
        """Return the next file, if it may have a process now."""
        if not (free := self.size - len(self._running)):
            return None
        has = Counter(own.owner for own in self._running)
        ranks = {
            owner: (owner[0], has[owner])
            for owner in {own.owner for own in self._waiting}
            if free >= self._needs(owner, has)
        }
        full = sum(own.slow for own in self._running) >= self._most_slow
        may = [own for own in self._waiting if own.owner in ranks and not (own.heavy and full)]
        return min(may, key=lambda own: ranks[own.owner], default=None)  # among equals, the one that waits longest

    def _needs(self, owner: tuple[int, str], has: Mapping[tuple[int, str], int]) -> int:
        """Return the number of free processes at which an owner may have one more."""
        barred = time.monotonic() - self._gave_way_at.get(owner, -math.inf) < self._limits.decode_s
        return 2 if barred or has[owner] else 1

    def _process(self, *, new: bool) -> DecoderProcess | None:
        """Return a free process, or a new one in its place."""
        while self._free:
            process = self._free.pop()
            if process.alive and not new:
                return process
            process.close()
            if new:
                break
        return self._new_process()

    def _new_process(self) -> DecoderProcess | None:
        """Return a new process; None if the system gives none now, or the pool is closed."""
        if self._closed:
            return None
        try:
            return DecoderProcess(self._limits, self._environment)
        except OSError as error:
            logger.warning("no decoding process can be started: %s; it is tried again", error)
            return None

    def _give_way(self) -> None:
        with self._lock:
            self._make_way()

    def _make_way(self) -> None:
        """End the process of the youngest slow file that is not heavy yet, if another file needs it."""
        has = Counter(own.owner for own in self._running)
        free = self.size - len(self._running) + sum(own.gives_way for own in self._running)
        slow = sorted((own for own in self._running if own.slow), key=lambda own: (not own.heavy, own.number))
        for victim in reversed([own for own in slow[self._most_slow :] if not own.gives_way]):
            for own in self._waiting:
                needy = free < self._needs(own.owner, has) and not own.heavy
                if needy and _goes_before(own.owner, victim.owner, has):
                    victim.gives_way = True
                    self._gave_way_at[victim.owner] = time.monotonic()
                    if victim.process:
                        victim.process.kill()
                    return

    # --- answers ---

    def _result(self, answer: DecodedAnswer) -> Any:
        match answer.outcome:
            case "made":
                return answer.value
            case "refused":
                kind, *parts = map(str, answer.value)
                raise (InputTooLarge if kind == InputTooLarge.__name__ else InvalidInput)(*parts)
            case "memory":
                limit = f"{self._limits.decode_memory_bytes / 2**20:,.0f} MiB"
                remedy = _REMEDY.format("decode_memory_bytes")
                raise InputTooLarge(_FIELD, f"needs more memory than {limit} to be decoded", remedy)
            case "misconfigured":
                raise ConfigurationError(answer.value)
            case "failed":
                raise RuntimeError(answer.value)

    def _too_slow(self, *, timed_out: bool) -> InputTooLarge:
        limits = self._limits
        took = f"{limits.wall_s:g} s" if timed_out else f"{limits.decode_s:g} s of a processor"
        return InputTooLarge(_FIELD, f"takes longer than {took} to decode", _REMEDY.format("decode_s"))


def _goes_before(owner: tuple[int, str], victim: tuple[int, str], has: Mapping[tuple[int, str], int]) -> bool:
    """Return whether a slow file of `victim` gives way: to its own, to more urgent ones, and to those with less."""
    return owner == victim or owner[0] < victim[0] or has[owner] < has[victim]


def _named(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
