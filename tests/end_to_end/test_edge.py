"""A site and its centre: who answers, without the link, and what never leaves."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from producers import InvalidInput, NewItem
from tests.end_to_end.processes import until
from tests.end_to_end.sites import Sites, sites_in

pytestmark = pytest.mark.edge


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    with sites_in(tmp_path_factory.mktemp("sites")) as found:
        yield found


@pytest.fixture
def sites(running: Sites) -> Iterator[Sites]:
    """A site and a centre, whose link works before each test."""
    yield running
    running.link.speak()
    until(lambda: not running.spool)


def test_the_centre_answers_what_the_site_is_unsure_of(sites: Sites) -> None:
    """A program at the site submits as to any fleet; each row says who answered, with both answers if there are two."""
    job = sites.client.submit_many("animal", ["cat 0.9", "dog 0.4"], priority="standard")
    job.wait(60)
    sure, unsure = sites.rows(job.id)

    assert sure.output == [{"label": "cat", "score": 0.9, "cascade": {"by": "site", "why": "confident"}}]
    (answer,) = unsure.output
    assert (answer["label"], answer["score"]) == ("the dog", 0.4)
    assert answer["cascade"] == {"by": "centre", "why": "unsure", "site": [{"label": "dog", "score": 0.4}]}


def test_a_task_without_a_model_at_the_site_is_answered_by_the_centre(sites: Sites) -> None:
    """One item, awaited like any other."""
    answer = sites.client.submit("plant", "oak 0.7", priority="interactive").result(60)

    assert (answer[0]["label"], answer[0]["cascade"]) == ("the oak", {"by": "centre", "why": "only-at-centre"})


def test_when_the_centre_says_nothing_until_the_deadline_the_sites_answer_stands(sites: Sites) -> None:
    """And says so."""
    sites.link.hush(new=True)
    answer = sites.client.submit("animal", "cow 0.3", deadline_s=5).result(60)

    assert answer == [{"label": "cow", "score": 0.3, "cascade": {"by": "site", "why": "deadline"}}]


def test_without_the_link_the_site_works_on_and_each_item_is_synced_once(sites: Sites) -> None:
    """The link goes silent, the forwarder is killed meanwhile; then the centre has computed each item once."""
    sites.link.hush(new=True)
    job = sites.client.submit_many("animal", ["owl 0.95", *(f"yak{n} 0.2" for n in range(100))])
    until(lambda: sum(sites.spool.values()) == 100 and "asked" not in sites.spool)
    assert [row.output[0]["label"] for row in sites.rows(job.id)] == ["owl"]
    seen = [json.loads(line) for line in sites.argosy("edge", "answers", job.id).splitlines()]
    assert [line["answer"]["output"][0]["label"] for line in seen] == [f"yak{n}" for n in range(100)]

    sites.forwarder.kill()
    sites.link.speak()
    job.wait(120)

    rows = sites.rows(job.id)
    assert [row.output[0]["label"] for row in rows] == ["owl", *(f"the yak{n}" for n in range(100))]
    assert job.progress().succeeded == 101
    assert len(sites.at_centre("yak")) == 100
    until(lambda: sites.status()["link"] == "up")


def test_a_power_cut_at_the_site_loses_and_doubles_nothing(sites: Sites) -> None:
    """All processes of the site die while some items are being asked and others wait for the centre."""
    sites.link.hush(new=True)
    job = sites.client.submit_many("animal", [f"emu{n} 0.{n % 2 * 8 + 1}" for n in range(200)])
    until(lambda: sites.rows(job.id) and sites.spool)

    sites.edge.kill()
    sites.link.speak()
    sites.edge.start()
    until(lambda: len(sites.rows(job.id)) == 200, 150)

    said = [row.output[0] for row in sites.rows(job.id)]
    assert [one["label"] for one in said] == [f"{'' if n % 2 else 'the '}emu{n}" for n in range(200)]
    assert len(sites.at_centre("emu")) == 100


def test_marked_inputs_are_nowhere_at_the_centre(sites: Sites, caplog: pytest.LogCaptureFixture) -> None:
    """Everything that the centre holds is searched: databases, broker, logs, blobs. A text that was sent is found."""
    caplog.set_level(logging.INFO)  # the gateway's log: it runs in this process
    secret, open_ = "heron", "stork"
    items = [
        NewItem(f"{secret} 0.2 kestrel", key="merlin", params={"stay_on_site": True}),
        NewItem(f"{open_} 0.2 swift", key="osprey"),
    ]
    job = sites.client.submit_many("animal", items, name="condor")
    job.wait(60)
    kept, sent = (row.output[0]["cascade"] for row in sites.rows(job.id))
    assert (kept["by"], kept["why"], sent["by"]) == ("site", "stays-on-site", "centre")

    held = everything(sites) + caplog.text.encode()
    text = f"{secret} 0.2 kestrel".encode()
    digests = [hashlib.new(name, text).hexdigest() for name in ("sha256", "sha1", "md5")]
    digests += [hashlib.blake2b(text, digest_size=size).hexdigest() for size in (16, 32, 64)]
    told = [text.decode(), secret, "kestrel", "merlin", "osprey", "condor", base64.b64encode(text).decode(), *digests]
    assert [word for word in told if word.encode() in held or bytes(word, "utf-16-le") in held] == []
    raw = [bytes.fromhex(digest) for digest in digests]
    assert [digest for digest in raw if digest in held] == []
    assert open_.encode() in held
    assert b"swift" in held


def test_a_marked_input_that_needs_the_centre_is_refused(sites: Sites) -> None:
    """Not answered worse, and not stored."""
    with pytest.raises(InvalidInput, match="only the centre has a model"):
        sites.client.submit("plant", "oak 0.7", params={"stay_on_site": True})


def test_a_threshold_is_found_with_and_without_labels(sites: Sites, tmp_path: Path) -> None:
    """The site is right from 0.5 on; the centre, which says "the", is always right by its own word."""
    rows = tmp_path / "rows.csv"
    lines = [f"bee{n} 0.{n},{'bee' if n >= 50 else 'the bee'}{n}" for n in range(10, 100)]
    rows.write_text("\n".join(["text,label", *lines]), encoding="utf-8")

    found = sites.argosy(
        "edge", "calibrate", str(rows), "--task", "animal", "--label-column", "label", "--accuracy", "1"
    )
    threshold = float(found.rpartition("=")[2])
    assert 0.48 < threshold <= 0.51
    found = sites.argosy("edge", "calibrate", str(rows), "--task", "animal", "--share", "0.4")
    assert found.startswith('[edge.tasks."animal"]')


def test_operators_see_the_forwarder_as_a_worker(sites: Sites) -> None:
    """Nothing is said to be unserved while items wait for the centre, and the doctor finds no queue that nobody reads."""
    sites.link.hush(new=True)
    sites.client.submit_many("animal", ["gnu 0.1"])
    until(lambda: sum(sites.spool.values()) == 1 and "asked" not in sites.spool)
    nodes = {node.name: set(node.models) for node in sites.client.live_nodes()}
    assert nodes["edge-harbour"] == {"edge"}
    words = [sys.executable, "-m", "producers.commands.main", "status"]
    told = subprocess.run(words, env=sites.environment, check=True, capture_output=True, text=True)
    assert "no worker serves" not in told.stderr
    doctor = subprocess.run([*words[:-1], "doctor"], env=sites.environment, check=False, capture_output=True, text=True)
    assert [line for line in doctor.stdout.splitlines() if line.startswith("missing")] == []


def everything(sites: Sites) -> bytes:
    """What the centre holds: all files of its home (database with its log, Valkey's, logs), and Valkey's memory."""
    files = [path for path in Path(sites.folder / "centre").rglob("*") if path.is_file()]
    found = [path.read_bytes() for path in files]
    with Redis.from_url(sites.centre.broker_url) as redis:
        for key in redis.scan_iter():
            found += [key, redis.dump(key) or b""]
    assert any(path.name == "store.db" for path in files)
    return b"\0".join(found)
