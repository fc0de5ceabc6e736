"""Inputs that are away for a moment are tried again by themselves, beside neighbours that are not held up."""

from __future__ import annotations

import io
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from producers.wire.messages import Envelope, InlineBytes, Input, Item, Priority, UrlInput
from results_store.records import Result, ResultState
from results_store.store import Store
from tests.end_to_end.processes import until
from tests.integration.test_execution import Rig, made, reference
from workers.envelope.input_limits import InputLimits
from workers.retries import RetrySettings

Answer = Callable[[BaseHTTPRequestHandler], None]

QUICK = RetrySettings(first_wait_s=0.05, longest_wait_s=0.2, within_s=30)


def picture(value: int) -> bytes:
    """Return a picture whose sum is `value`."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1), (value, 0, 0)).save(file, "PNG")
    return file.getvalue()


class Host:
    """A real web server that can be away: its port is its own all the time, and refuses connections meanwhile."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.answer: Answer = sends(picture(7))
        host = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                host.asked.append(self.path)
                self.close_connection = True
                host.answer(self)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self._server.server_bind()
        self.name = f"localhost:{self._server.server_address[1]}"
        self._thread: threading.Thread | None = None

    def url(self, path: str = "a.png") -> UrlInput:
        return UrlInput(f"http://{self.name}/{path}")

    def come(self) -> None:
        """Begin to answer."""
        self._server.server_activate()
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        if self._thread:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def sends(body: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return answer


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    host.close()


@pytest.fixture
def sqlite_only(sqlite_url: str, migrated_sqlite: Path) -> Iterator[Store]:
    """For what does not depend on the database."""
    shutil.copy(migrated_sqlite, sqlite_url.removeprefix("sqlite:///"))
    with Store(sqlite_url) as store:
        yield store


@contextmanager
def rig_for(store: Store, *hosts: Host, retries: RetrySettings = QUICK, fetch_timeout_s: float = 5.0) -> Iterator[Rig]:
    allowed = tuple(f"http://{host.name}" for host in hosts)
    limits = InputLimits(allowed_hosts=allowed, allow_private_addresses=True, fetch_timeout_s=fetch_timeout_s)
    with Rig(store, limits=limits, retries=retries) as rig:
        yield rig


def pictures(rig: Rig, *inputs: Input, **changes: Any) -> Envelope:
    items = tuple(Item(seq, value, ("sum",)) for seq, value in enumerate(inputs))
    return rig.accept(model="file", items=items, priority=Priority.BULK, **changes)


def results(rig: Rig, envelope: Envelope) -> dict[int, Result]:
    return {row.seq: row for row in rig.store.results(envelope.job)}


def again(rig: Rig, envelope: Envelope) -> dict[str, Any]:
    """Wait until the envelope's time has come, as a reconciler does, and run it."""
    [due] = until(lambda: rig.store.take_overdue(overdue_s=1000))
    assert due.id == envelope.id
    return rig.run(reference(envelope))


def test_a_host_that_is_away_fails_nobody(store: Store, host: Host) -> None:
    """Its neighbours have their results at once, each of them once, and its own items when it is back."""
    with rig_for(store, host) as rig:
        inline = [InlineBytes(picture(value)) for value in (1, 2)]
        envelope = pictures(rig, inline[0], host.url(), inline[1], host.url("b.png"))

        assert rig.run(reference(envelope)) == {"items": 4, "succeeded": 2, "postponed": 2}
        assert [*results(rig, envelope)] == [0, 2]
        row = rig.row(envelope)
        assert (row["error"]["kind"], row["attempts"], row["leased_until"]) == ("InputUnavailable", 0, None)
        assert again(rig, envelope) == {"items": 2, "postponed": 2}, "only what is missing is computed again"
        host.come()
        while not rig.store.job(envelope.job).finished:
            again(rig, envelope)

        sums = [int(row.output[0]["label"]) for row in results(rig, envelope).values()]
        assert [found // sums[0] for found in sums] == [1, 7, 2, 7]
        assert sorted(host.asked) == ["/a.png", "/b.png"]
        row = rig.row(envelope)
        assert (row["state"], row["stored"], row["waits"], row["due_at"]) == ("done", 4, None, None)
        assert sum(batch.items for batch in rig.batches) == 4


def hangs_up(request: BaseHTTPRequestHandler) -> None:
    request.connection.shutdown(socket.SHUT_RDWR)


def breaks_off(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Content-Length", "1000")
    request.end_headers()
    request.wfile.write(b"half")


@pytest.mark.parametrize("fault", [hangs_up, breaks_off])
def test_a_connection_that_breaks_is_made_again(sqlite_only: Store, host: Host, fault: Answer) -> None:
    """Half a file is no file."""
    host.come()
    host.answer = fault
    with rig_for(sqlite_only, host) as rig:
        envelope = pictures(rig, host.url())
        assert rig.run(reference(envelope)) == {"items": 1, "postponed": 1}
        host.answer = sends(picture(3))
        assert again(rig, envelope) == {"items": 1, "succeeded": 1}


def test_a_host_says_when_to_come_back(sqlite_only: Store, host: Host) -> None:
    """`Retry-After` is obeyed, also by the other items of the host, which were not asked for."""
    host.come()
    host.answer = sends(b"", 429, Retry_After="30")
    with rig_for(sqlite_only, host, retries=RetrySettings(within_s=100)) as rig:
        envelope = pictures(rig, *[host.url(f"{number}.png") for number in range(5)])
        began = sqlite_only.now()
        assert rig.run(reference(envelope)) == {"items": 5, "postponed": 5}
        assert len(host.asked) == 1, "a busy host is not asked for the next item at once"
        assert began + 30 <= rig.row(envelope)["due_at"] <= sqlite_only.now() + 30 * 1.25


def test_a_host_that_asks_for_more_time_than_there_is_fails_at_once(sqlite_only: Store, host: Host) -> None:
    """Nobody waits for what cannot succeed in time."""
    host.come()
    host.answer = sends(b"", 503, Retry_After="86400")
    with rig_for(sqlite_only, host) as rig:
        envelope = pictures(rig, host.url())
        assert rig.run(reference(envelope)) == {"items": 1, "failed": 1}


def test_a_host_that_hangs_costs_an_envelope_one_wait(sqlite_only: Store, host: Host) -> None:
    """Not one for each of its items."""
    gone = threading.Event()
    host.answer = lambda _: gone.wait() and None
    host.come()
    try:
        with rig_for(sqlite_only, host, fetch_timeout_s=0.2) as rig:
            envelope = pictures(rig, *[host.url(f"{number}.png") for number in range(10)], InlineBytes(picture(1)))
            assert rig.run(reference(envelope)) == {"items": 11, "succeeded": 1, "postponed": 10}
            assert host.asked == ["/0.png"]
    finally:
        gone.set()


def test_another_host_of_the_same_envelope_is_not_held_up(sqlite_only: Store, host: Host) -> None:
    """Each item has its own time, whatever its neighbours wait for."""
    other = Host()
    try:
        with rig_for(sqlite_only, host, other) as rig:
            host.come()
            host.answer = sends(b"", 503, Retry_After="20")
            envelope = pictures(rig, host.url(), other.url())
            assert rig.run(reference(envelope)) == {"items": 2, "postponed": 2}
            other.come()
            while not results(rig, envelope):
                again(rig, envelope)
            assert [*results(rig, envelope)] == [1]
            assert host.asked == ["/a.png"], "it is asked again when it said, not before"
    finally:
        other.close()


def test_the_time_for_it_ends(sqlite_only: Store, host: Host) -> None:
    """Then the result is failed with the last error, which says how often it was tried."""
    with rig_for(sqlite_only, host, retries=RetrySettings(first_wait_s=0.05, longest_wait_s=0.1, within_s=0.5)) as rig:
        envelope = pictures(rig, host.url(), InlineBytes(picture(1)))
        rig.run(reference(envelope))
        while not rig.store.job(envelope.job).finished:
            again(rig, envelope)
        error = results(rig, envelope)[0].error or {}
        assert (error["kind"], error["momentary"]) == ("InputUnavailable", True)
        assert error["attempts"] > 1
        assert f"(tried {error['attempts']} times in " in error["message"]
        assert rig.row(envelope)["state"] == "done"


def test_a_deadline_ends_it_too(sqlite_only: Store, host: Host) -> None:
    """An item is never tried after its deadline."""
    with rig_for(sqlite_only, host) as rig:
        envelope = pictures(rig, host.url(), queued_at=1.0, deadline_at=1.7)
        rig.run(reference(envelope))
        row = rig.row(envelope)
        assert row["due_at"] < row["deadline_at"]
        while not rig.store.job(envelope.job).finished:
            again(rig, envelope)
        assert results(rig, envelope)[0].state in (ResultState.FAILED, ResultState.EXPIRED)


def test_without_a_row_nothing_waits(sqlite_only: Store, host: Host) -> None:
    """An envelope that is not durable has no place to wait in: it is told at once, and that it may come right."""
    with rig_for(sqlite_only, host) as rig:
        items = (Item(0, host.url(), ("sum",)),)
        envelope = made(model="file", items=items, durable=False)
        assert rig.run({**_plain(envelope)}) == {"items": 1, "failed": 1}
        assert (results(rig, envelope)[0].error or {})["momentary"]


def test_a_cancelled_job_is_not_tried_again(store: Store, host: Host) -> None:
    """Its waiting items are cancelled as soon as a reconciler looks, not when their time would come."""
    with rig_for(store, host, retries=RetrySettings(first_wait_s=60)) as rig:
        envelope = pictures(rig, host.url(), InlineBytes(picture(1)))
        rig.run(reference(envelope))
        store.cancel_job(envelope.job)
        assert again(rig, envelope) == {"items": 1, "cancelled": 1}
        status = store.job(envelope.job)
        assert (status.succeeded, status.cancelled, status.finished) == (1, 1, True)


def test_a_policy_tries_a_tasks_errors_again(store: Store) -> None:
    """Only the named errors, only of that task, and only so often."""
    policy = RetrySettings(
        first_wait_s=0.02, longest_wait_s=0.02, tasks={"echo": {"errors": ["ModelError"], "max_attempts": 3}}
    )
    with Rig(store, retries=policy) as rig:
        texts = ("raise", "fine")
        envelope = rig.accept(items=tuple(Item(seq, text, ("echo", "say")) for seq, text in enumerate(texts)))
        assert rig.run(reference(envelope)) == {"items": 2, "succeeded": 2, "failed": 1, "postponed": 1}
        assert again(rig, envelope) == {"items": 1, "postponed": 1}
        assert again(rig, envelope) == {"items": 1, "failed": 1}

        by_key = {(row.seq, row.task): row for row in store.results(envelope.job)}
        assert (by_key[0, "echo"].error or {})["attempts"] == 3
        assert "attempts" not in (by_key[0, "say"].error or {})
        assert store.dead_letters.replay(job=envelope.job).results == 2
        assert again(rig, envelope)["postponed"] == 1, "a replay begins anew"


def _plain(envelope: Envelope) -> dict[str, Any]:
    import msgspec

    return dict(msgspec.to_builtins(envelope))
