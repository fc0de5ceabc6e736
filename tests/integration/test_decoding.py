"""Files that are decoded in processes: each of them costs no more than its own item."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as given_settings
from hypothesis import strategies as st
from PIL import Image

from producers.wire.errors import InputTooLarge, InvalidInput
from producers.wire.messages import Priority
from tests import decoding_functions, media_bombs, videos
from tests.end_to_end.processes import until
from workers.device.devices import cpu, pinned_environment
from workers.envelope.preparation_turns import PreparationTurn
from workers.models.decoding.decoder_pool import DecoderPool
from workers.models.decoding.decoding_limits import DecodingLimits
from workers.models.decoding.isolation import DecodingInterrupted, DecodingPlace, decode, decoding_at, each
from workers.models.pictures import pixels
from workers.models.speech import waveform
from workers.models.video import frames
from workers.models.video.frame_sampling import FrameSampling

LIMITS = DecodingLimits(decode_s=0.5, decode_memory_bytes=1 << 30)
BULK = (int(Priority.BULK), "")
WIDE = frames.VideoLimits()


def made(limits: DecodingLimits = LIMITS) -> DecoderPool:
    environment = pinned_environment(cpu(), os.environ, threads=1)
    return DecoderPool(limits, environment, cores=2)


@pytest.fixture(scope="module")
def shared() -> Iterator[DecoderPool]:
    """Processes for tests that leave them as they are, or replaced by others."""
    pool = made()
    pool.start()
    pool.wait_until_started()
    yield pool
    pool.close()


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    """Processes of the test's own, which are started when they are needed, and have time for slow files."""
    pool = made(DecodingLimits(decode_s=600))
    yield pool
    pids = pool.pids
    pool.close()
    assert not any(map(psutil.pid_exists, pids))


def at(pool: DecoderPool, owner: tuple[int, str] = BULK, turns: threading.Semaphore | None = None) -> Any:
    return decoding_at(DecodingPlace(pool, owner, PreparationTurn(turns)))


class Runs:
    """Calls in threads, which note their ends in order."""

    def __init__(self, pool: DecoderPool) -> None:
        self._pool = pool
        self._threads: list[threading.Thread] = []
        self.ended: list[tuple[str, Any]] = []

    def start(self, name: str, owner: tuple[int, str], call: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                with at(self._pool, owner):
                    found = call()
            except (Exception, DecodingInterrupted) as error:  # noqa: BLE001 - judged by the test
                found = error
            self.ended.append((name, found))

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()

    def wait(self) -> list[str]:
        for thread in self._threads:
            thread.join()
        return [name for name, _ in self.ended]


def picture(form: str = "PNG", side: int = 64) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((side, side // 2)).convert("RGB").save(file, form)
    return file.getvalue()


@cache  # x264 does not encode alike twice
def clip() -> bytes:
    return videos.file(videos.moving(12))


def sound() -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(8000) / 20), 8000, format="WAV")
    return file.getvalue()


def watched(data: bytes) -> Any:
    return frames.made(data, FrameSampling(16), WIDE, partial(frames.centre, side=160, short_side=176))


def heard(data: bytes) -> Any:
    return waveform.decode(data, rate=16_000, max_s=1e6)


READERS: dict[str, tuple[Callable[[], bytes], Callable[[bytes], Any]]] = {
    "picture": (picture, pixels.decode),
    "sound": (sound, heard),
    "clip": (clip, watched),
}

BOMBS: dict[str, tuple[Callable[[], bytes], Callable[[bytes], Any]]] = {
    "JPEG of 2,000 scans": (media_bombs.scans, pixels.decode),
    "GIF of 4,000 frames": (partial(media_bombs.frames, "GIF", 4000), watched),
    "film of one packet": (partial(media_bombs.film, 200), watched),
    "long silence": (media_bombs.silence, heard),
}


def same(first: Any, second: Any) -> bool:
    return bool(np.array_equal(np.asarray(first), np.asarray(second)))


# --- the same answers as in this process ---------------------------------------------------------


@pytest.mark.parametrize("kind", READERS)
def test_a_file_is_decoded_as_in_this_process(shared: DecoderPool, kind: str) -> None:
    """Where a file is decoded must not change an answer."""
    make, read = READERS[kind]
    data = make()
    with at(shared):
        apart = read(data)
    assert same(apart, read(data))


def test_functions_of_ones_own_get_the_whole_picture_and_whole_frames(shared: DecoderPool) -> None:
    """Classes outside the package call the readers with closures, which no other process can import."""
    seen: list[Any] = []
    with at(shared):
        pixels.rgb(picture(), seen.append)
        frames.read(clip(), FrameSampling(2), WIDE, lambda frame: seen.append(frames.image(frame)))
        size = pixels.upright_size(picture())
    here: list[Any] = []
    pixels.rgb(picture(), here.append)
    frames.read(clip(), FrameSampling(2), WIDE, lambda frame: here.append(frames.image(frame)))
    assert [np.asarray(one).tolist() for one in seen] == [np.asarray(one).tolist() for one in here]
    assert size == (64, 32)


def test_arrays_and_plain_values_come_back(shared: DecoderPool) -> None:
    with at(shared):
        bytes_, (nothing, *plain) = decode(decoding_functions.values, b"abc")
    assert bytes_.tolist() == [97, 98, 99]
    assert (nothing.shape, nothing.dtype) == ((0, 3), np.float32)
    assert plain == ["text", 1.5, None]


def test_errors_come_back(shared: DecoderPool) -> None:
    """A refusal is the input's; any other exception is the model's, as in this process."""
    with at(shared):
        with pytest.raises(InputTooLarge, match="input: is refused; do not send it"):
            decode(decoding_functions.refuses, b"")
        with pytest.raises(RuntimeError, match="KeyError: 'no such thing'"):
            decode(decoding_functions.fails, b"")
        with pytest.raises(InvalidInput, match="is not a readable image"):
            pixels.decode(b"no picture")


@pytest.mark.parametrize("kind", READERS)
@given_settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6), noise=st.binary()
)
def test_any_bytes_end_as_in_this_process_and_leave_neighbours_alone(
    shared: DecoderPool, kind: str, changes: list[tuple[float, int]], noise: bytes
) -> None:
    """Damaged files, and noise."""
    make, read = READERS[kind]
    good = make()
    broken = bytearray(good)
    for place, byte in changes:
        broken[int(place * len(broken))] = byte
    for data in (bytes(broken), noise):
        with at(shared):
            apart = _outcome(read, data)
            assert same(read(good), _neighbour(kind))
        assert same(apart, _outcome(read, data))


_known: dict[str, Any] = {}


def _neighbour(kind: str) -> Any:
    if kind not in _known:
        make, read = READERS[kind]
        with decoding_at(None):
            _known[kind] = read(make())
    return _known[kind]


def _outcome(read: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return read(data)
    except InvalidInput as error:
        return str(error)


# --- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_costs_its_own_item(shared: DecoderPool, kind: str) -> None:
    """It ends at its limit, which the error names; items of all priorities and of the same job are answered."""
    make, read = BOMBS[kind]
    data, neighbours, good = make(), Runs(shared), picture()
    neighbours.start("bomb", BULK, partial(read, data))
    until(lambda: _processes(shared) or neighbours.ended)
    for owner in (BULK, (int(Priority.INTERACTIVE), ""), (int(Priority.BULK), "another")):
        neighbours.start("neighbour", owner, lambda: same(pixels.decode(good), _neighbour("picture")))
    assert sorted(neighbours.wait()) == ["bomb", *["neighbour"] * 3]
    assert all(found is True for name, found in neighbours.ended if name == "neighbour")
    [bomb] = [found for name, found in neighbours.ended if name == "bomb"]
    assert isinstance(bomb, InputTooLarge)
    assert "takes longer than 0.5 s of a processor to decode; send a smaller file, or raise `limits.decode_s`" in str(
        bomb
    )


@pytest.mark.long
def test_large_pictures_take_their_memory_one_after_another(pool: DecoderPool) -> None:
    """Four of 90 MiB each, on two cores; a small picture does not wait for them."""
    pool.start()
    pool.wait_until_started()
    runs, data, good = Runs(pool), media_bombs.scans(50), picture()
    quiet, peak = _memory_mib(pool), 0.0
    for owner in (BULK, BULK, (int(Priority.STANDARD), ""), (9, "another")):
        runs.start("large", owner, partial(pixels.decode, data))
    runs.start("small", BULK, partial(pixels.decode, good))
    while len(runs.ended) < 5:
        peak = max(peak, _memory_mib(pool))
    assert runs.wait()[-1] == "large"
    assert all(found.shape == (224, 224, 3) for _, found in runs.ended)
    assert 60 < peak - quiet < 150


def test_many_bombs_at_once_leave_a_way_for_everybody(pool: DecoderPool) -> None:
    """More bombs than processes, of several owners: no file waits for the end of one, not even of the same owner."""
    bombs, neighbours, data, good = Runs(pool), Runs(pool), media_bombs.scans(10_000), picture()
    for owner in (BULK, BULK, BULK, (int(Priority.STANDARD), ""), (int(Priority.INTERACTIVE), ""), (9, "another")):
        bombs.start("bomb", owner, partial(pixels.decode, data))
    until(lambda: any(process.slow for process in _processes(pool)))
    for owner in (BULK, (int(Priority.INTERACTIVE), ""), (9, "a third")):
        neighbours.start("neighbour", owner, partial(pixels.decode, good))
    assert neighbours.wait() == ["neighbour"] * 3
    assert all(same(found, _neighbour("picture")) for _, found in neighbours.ended)
    assert not bombs.ended
    until(lambda: any(os.sched_getscheduler(process.pid) == os.SCHED_IDLE for process in _processes(pool)))
    pool.close()
    bombs.wait()
    assert {type(found) for _, found in bombs.ended} == {DecodingInterrupted}


def test_the_last_free_process_is_for_an_owner_without_one(pool: DecoderPool) -> None:
    """So an interactive picture, or another tenant's, does not even wait until a file is found to be slow."""
    runs = Runs(pool)
    for _ in range(3):
        runs.start("bulk", BULK, partial(decode, decoding_functions.sleeps, b""))
    until(lambda: len(pool._running) + len(pool._waiting) == 3)
    with pool._lock:
        pool._grant()
        assert (len(pool._running), len(pool._waiting)) == (2, 1)
    for owner in ((int(Priority.INTERACTIVE), ""), (int(Priority.BULK), "another")):
        with at(pool, owner):
            assert decode(decoding_functions.length, b"abc") == 3
    assert not runs.ended
    pool.close()
    runs.wait()


@pytest.mark.long
def test_slow_files_are_decoded_to_their_end(pool: DecoderPool) -> None:
    """A file that gave way is decoded again, although others come all the time."""
    data = media_bombs.scans(100)
    runs = Runs(pool)
    for _ in range(4):
        runs.start("slow", BULK, partial(pixels.decode, data))
    with at(pool, (int(Priority.INTERACTIVE), "")):
        while len(runs.ended) < 4:
            pixels.decode(picture())
    runs.wait()
    assert all(same(found, runs.ended[0][1]) for _, found in runs.ended)
    assert runs.ended[0][1].shape == (224, 224, 3)


@pytest.mark.long
def test_a_picture_over_the_limit_of_memory_is_refused(pool: DecoderPool) -> None:
    """A 16-bit picture takes twice the memory of its pixels; the process goes on."""
    small = made(DecodingLimits(decode_memory_bytes=1 << 29))
    with at(small):
        with pytest.raises(InputTooLarge, match=r"needs more memory than 512 MiB.*`limits.decode_memory_bytes`"):
            pixels.decode(media_bombs.deep())
        [pid] = small.pids
        assert pixels.decode(picture()).shape == (224, 224, 3)
        assert small.pids == [pid]
    small.close()
    with at(pool):
        assert pixels.decode(media_bombs.deep()).shape == (224, 224, 3)


def test_a_file_without_use_of_a_processor_ends_by_the_clock() -> None:
    pool = made(DecodingLimits(decode_s=0.1))
    with at(pool), pytest.raises(InputTooLarge, match="takes longer than 2 s to decode"):
        decode(decoding_functions.sleeps, b"")
    pool.close()


# --- processes that end --------------------------------------------------------------------------


@pytest.mark.parametrize("code", [signal.SIGSEGV, signal.SIGKILL])
def test_a_file_that_ends_its_process_twice_is_refused(shared: DecoderPool, code: int) -> None:
    """A native library that crashes takes only its own process with it."""
    with at(shared):
        with pytest.raises(InvalidInput, match=rf"ended the process that decodes it, twice \(signal {int(code)}\)"):
            decode(decoding_functions.dies, b"", int(code))
        assert decode(decoding_functions.length, b"abc") == 3


def test_a_process_that_is_killed_from_outside_costs_no_item(shared: DecoderPool, tmp_path: Path) -> None:
    """By an operator or by the kernel, which is out of memory: the file is decoded again in another process."""
    with at(shared):
        assert decode(decoding_functions.dies_at_first, b"", str(tmp_path)) in shared.pids
        for pid in shared.pids:  # idle ones
            os.kill(pid, signal.SIGKILL)
        assert decode(decoding_functions.length, b"abc") == 3


def test_a_stop_interrupts_the_files_that_wait_and_the_one_that_runs(pool: DecoderPool) -> None:
    """They are no failures: the envelopes go back to their queues."""
    runs = Runs(pool)
    for _ in range(4):
        runs.start("bomb", BULK, partial(decode, decoding_functions.sleeps, b""))
    until(lambda: len(_processes(pool)) > 1)
    pool.close()
    runs.wait()
    assert [type(found) for _, found in runs.ended] == [DecodingInterrupted] * 4
    with at(pool), pytest.raises(DecodingInterrupted):
        decode(decoding_functions.length, b"")


_WORKER = """
import os, sys, threading
from tests import decoding_functions
from tests.integration import test_decoding as tests
from workers.models.decoding.isolation import decode
pool = tests.made(tests.DecodingLimits(decode_s=600))
pool.start()
pool.wait_until_started()
def bomb():
    with tests.at(pool):
        decode(decoding_functions.spins, b"")
threading.Thread(target=bomb).start()
tests.until(lambda: any(process.slow for process in tests._processes(pool)))
print(*pool.pids, flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("code", [signal.SIGKILL, signal.SIGSEGV])
def test_the_processes_end_with_their_worker(code: int) -> None:
    """Also the one that is in the middle of native code, and however the worker dies."""
    command = [sys.executable, "-c", _WORKER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as worker:
        assert worker.stdout is not None
        pids = [int(pid) for pid in worker.stdout.readline().split()]
        assert len(pids) == 4
        worker.send_signal(code)
        worker.wait()
    until(lambda: not any(map(_runs, pids)))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("code", [signal.SIGINT, signal.SIGTERM])
def test_signals_for_the_worker_are_ignored(pool: DecoderPool, code: int) -> None:
    """A service manager sends SIGTERM to all processes of a service; the worker then finishes its envelopes."""
    pool.start()
    pool.wait_until_started()
    pids = set(pool.pids)
    for pid in pids:
        os.kill(pid, code)
    with at(pool):
        assert decode(decoding_functions.length, b"abc") == 3
    assert set(pool.pids) == pids


# --- the processes themselves --------------------------------------------------------------------


def test_a_process_is_lean_and_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither torch nor Celery, and no address with a password, for whoever takes it over."""
    monkeypatch.setenv("ARGOSY_STORE_URL", "postgresql://user:password@host/store")
    monkeypatch.setenv("ARGOSY_BROKER_URL", "redis://:password@host")
    pool = made()
    with at(pool):
        environment, modules, _ = decode(decoding_functions.surroundings, b"")
    pool.close()
    assert "password" not in str(environment)
    assert environment["OMP_NUM_THREADS"] == "1"
    assert not {"torch", "celery", "kombu", "redis", "sqlalchemy", "transformers"} & set(modules)


def test_files_of_an_envelope_are_decoded_at_the_same_time(shared: DecoderPool, tmp_path: Path) -> None:
    """So one envelope keeps several processes busy."""
    with at(shared):
        found = each(partial(decode, decoding_functions.meets), [(b"", str(tmp_path), 2)] * 2)
    assert len(set(found)) == 2


def test_a_turn_is_given_back_while_a_file_is_decoded(shared: DecoderPool) -> None:
    """Texts are prepared meanwhile. Afterwards the turn is held again, and one for each thread of an envelope."""
    turns = threading.Semaphore(1)
    runs = Runs(shared)

    def prepare() -> None:
        turn = PreparationTurn(turns)
        with turn, decoding_at(DecodingPlace(shared, BULK, turn)):
            decode(decoding_functions.spins, b"")

    runs.start("bomb", BULK, prepare)
    with turns:  # waits for a turn that is given back
        assert not runs.ended

    def row(number: int) -> bool:
        decode(decoding_functions.length, b"")
        free = turns.acquire(blocking=False)
        return not free

    turn = PreparationTurn(turns)
    with turn, decoding_at(DecodingPlace(shared, BULK, turn)):
        assert each(row, [(number,) for number in range(4)]) == [True] * 4
    runs.wait()
    assert turns.acquire(blocking=False)


def _memory_mib(pool: DecoderPool) -> float:
    total = 0
    for pid in pool.pids:
        with suppress(psutil.NoSuchProcess):
            total += psutil.Process(pid).memory_full_info().pss
    return total / 2**20


def _processes(pool: DecoderPool) -> list[Any]:
    return [own.process for own in list(pool._running) if own.process]
