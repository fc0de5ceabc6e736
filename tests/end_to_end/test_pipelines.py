"""Pipelines on a whole fleet: steps feed each other whatever dies in between, one branch fails alone, and all of it
is cancelled at once.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import zlib
from collections.abc import Iterator

import pytest
from click.testing import CliRunner
from redis import Redis

from producers import AsyncClient, Client, InvalidInput, NewItem, Pipeline, PipelineJob, Tree
from producers.commands.main import main
from results_store.store import Store
from tests.end_to_end.conftest import SCRIPTED
from tests.end_to_end.processes import fleet_in, until
from workers import settings
from workers.commands.rerun import rerun
from workers.device.devices import cpu
from workers.fleet.local import LocalFleet

TIMEOUT_S = 90
SAYING = SCRIPTED + '[models.scripted.tasks.say]\nkind = "text-classification"\n'

#: say -> say again -> echo, and shout beside it, of the first.
TALK = (
    Pipeline()
    .step("first", task="say")
    .step("again", task="say", of="first", options={"template": "again: {}"})
    .step("echo", task="echo", of="again")
    .step("both", task="shout", of=["first", "again"], options={"separator": " + "})
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """A fleet whose scripted model can also say something that another step reads."""
    with fleet_in(tmp_path_factory.mktemp("pipelines"), SAYING) as fleet:
        yield fleet


def said(text: str) -> str:
    return f"said {zlib.crc32(text.encode())}"


def assert_right(tree: Tree, text: str) -> None:
    """Every step's output is what the model makes of the step before."""
    first, again = said(text), said(f"again: {said(text)}")
    assert tree.ok, tree
    assert [branch.output for branch in tree.branches] == [
        [{"label": first, "score": 1.0}],
        [{"label": again, "score": 1.0}],
        {"crc": zlib.crc32(again.encode()), "task": "echo"},
        {"crc": zlib.crc32(f"{first} + {again}".encode()), "task": "shout"},
    ]


def assert_each_once(client: Client, job: PipelineJob, texts: list[str]) -> None:
    """One whole tree for every input, and nothing beside them: no result lost, none owed, none doubled."""
    status = job.wait(timeout_s=TIMEOUT_S)
    assert (status.items, status.total, status.succeeded) == (len(texts), 4 * len(texts), 4 * len(texts))
    trees = list(job.results())
    assert [tree.seq for tree in trees] == list(range(len(texts)))
    for tree, text in zip(trees, texts, strict=True):
        assert_right(tree, text)
    assert len(list(client.results(job.id))) == 4 * len(texts)


def test_steps_feed_each_other(client: Client) -> None:
    texts = [f"text {number}" for number in range(100)]
    assert_each_once(client, client.submit_pipeline(TALK, texts), texts)


@pytest.mark.long
def test_a_worker_dies_and_redis_forgets_in_the_middle(fleet: LocalFleet, client: Client) -> None:
    """SIGKILL of the worker with steps of every kind under way, and all lists of Redis emptied besides."""
    texts = [f"sleep 0.02 text {n:04}" if n % 40 == 0 else f"text {n:04} of many" for n in range(800)]
    job = client.submit_pipeline(TALK, texts)
    until(lambda: len(texts) < job.progress().done < 4 * len(texts))
    service = fleet.workers[0]
    assert service.process is not None
    service.process.kill()
    service.process.wait()
    with Redis.from_url(fleet.broker_url) as redis:
        redis.flushall()
    assert not job.progress().finished, "the job was over before it could be disturbed"
    service.start()
    assert_each_once(client, job, texts)
    with sqlite3.connect(fleet.store_url.removeprefix("sqlite:///")) as database:
        [[owed]] = database.execute("SELECT sum(results) FROM envelopes WHERE job = ?", (job.id,))
    database.close()
    assert owed == 4 * len(texts), "an item was sent in two envelopes"


def test_a_branch_fails_alone_and_names_who_is_at_fault(client: Client) -> None:
    """The input that the model refuses ends its own tree; what would have followed says why it does not."""
    job = client.submit_pipeline(TALK, ["fine", "refuse this", "also fine"])
    status = job.wait(timeout_s=TIMEOUT_S)
    assert (status.total, status.succeeded, status.failed) == (9, 8, 1)
    good, bad, other = job.results()
    assert_right(good, "fine")
    assert_right(other, "also fine")
    assert [(branch.step, branch.state) for branch in bad.branches] == [
        ("first", "failed"),
        ("again", "skipped"),
        ("echo", "skipped"),
        ("both", "skipped"),
    ]
    assert bad.of("echo")[0].reason == "'first' failed: InvalidInput: input: is refused by the script"


def test_a_label_decides_which_way_an_input_goes(client: Client) -> None:
    """A step that hands the input on, to those only that were labelled so."""
    routed = Pipeline().step("first", task="say")
    routed.step("chosen", task="echo", of="first", take="input", options={"labels": [said("this one")]})
    job = client.submit_pipeline(routed, ["this one", "not this one"])
    job.wait(timeout_s=TIMEOUT_S)
    one, other = job.results()
    assert one.outputs("chosen") == [{"crc": zlib.crc32(b"this one"), "task": "echo"}]
    assert other.of("chosen")[0].reason == "'first' gave nothing for it"


@pytest.mark.long
def test_all_of_it_is_cancelled_at_once(client: Client) -> None:
    """What is under way ends, what would follow is never begun, and the tree says so."""
    job = client.submit_pipeline(TALK, [f"sleep 0.5 text {number}" for number in range(40)])
    job.cancel()
    status = job.wait(timeout_s=TIMEOUT_S)
    assert status.cancelled_at is not None
    assert status.total < 4 * 40
    last = list(job.results())[-1]
    assert {branch.state for branch in last.branches} <= {"succeeded", "cancelled", "skipped"}
    assert "cancelled" in last.of("echo")[0].reason


def test_the_same_submission_again_adds_nothing(client: Client) -> None:
    """Told apart by its key; one of other steps is refused, since its results would be of both."""
    texts = ["one", "two", "three"]
    first = client.submit_pipeline(TALK, texts[:2], idempotency_key="night 7")
    first.wait(timeout_s=TIMEOUT_S)
    again = client.submit_pipeline(TALK, texts, idempotency_key="night 7")
    assert (again.id, again.found) == (first.id, 2)
    assert_each_once(client, client.pipeline(again.id), texts)
    with pytest.raises(InvalidInput, match="other steps"):
        client.submit_pipeline(Pipeline().step("first", task="say"), texts, idempotency_key="night 7")
    with pytest.raises(InvalidInput, match="is not a pipeline"):
        client.pipeline(client.submit_many("say", ["x"]).id)


def test_asyncio_has_the_same(fleet: LocalFleet) -> None:
    async def run() -> None:
        async with AsyncClient(fleet.broker_url, fleet.store_url) as client:
            job = await client.submit_pipeline(TALK, ["one", "two"], priority="interactive")
            status = await job.wait(timeout_s=TIMEOUT_S)
            assert status.succeeded == 8
            trees = [tree async for tree in (await client.pipeline(job.id)).results()]
            for tree, text in zip(trees, ["one", "two"], strict=True):
                assert_right(tree, text)

    asyncio.run(run())


def test_inputs_keep_their_keys(client: Client) -> None:
    """Also in what the command writes, a line for each input; of what is no pipeline it says so."""
    job = client.submit_pipeline(TALK, [NewItem("one", key="row-1"), NewItem("two", key="row-2")])
    job.wait(timeout_s=TIMEOUT_S)
    assert [tree.key for tree in job.results()] == ["row-1", "row-2"]
    assert {row.key for row in client.results(job.id)} == {"row-1", "row-2"}
    shown = CliRunner().invoke(main, ["results", job.id, "--format", "trees"])
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [(line["key"], [branch["step"] for branch in line["branches"]]) for line in lines] == [
        (key, ["first", "again", "echo", "both"]) for key in ("row-1", "row-2")
    ]
    other = client.submit_many("say", ["x"]).id
    refused = CliRunner().invoke(main, ["results", other, "--format", "trees"])
    assert refused.exit_code != 0
    assert "is not a pipeline" in refused.output + str(refused.exception)


def test_a_batch_of_a_later_step_runs_again(fleet: LocalFleet, client: Client) -> None:
    """Its inputs are made again of the stored results, and come to the same."""
    job = client.submit_pipeline(TALK, ["one"])
    job.wait(timeout_s=TIMEOUT_S)
    [batch] = [row.batch for row in client.results(job.id) if row.task == "echo"]
    assert batch is not None
    with Store(fleet.store_url) as store:
        again = rerun(store, settings.load(), cpu(), batch)
    assert again.compared["echo"] == 1
    assert set(again.differences.values()) == {0.0}
