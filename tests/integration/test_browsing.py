"""What the page asks the gateway for, over a real socket: items with their inputs, images, and its own files."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from PIL import Image

from producers.gateway.routes import page
from producers.wire.blobs import Blobs, BlobSettings
from producers.wire.connection import Connection
from producers.wire.messages import PathInput, QuestionInput, UrlInput
from results_store.store import Store
from tests.end_to_end.gateway_server import Served, serving
from tests.end_to_end.page_jobs import answer, inline, picture, submit
from tests.integration.rows import batch
from tests.noise import noise


@pytest.fixture
def served(broker_url: str, sqlite_url: str) -> Iterator[Served]:
    Store(sqlite_url).migrate()
    with serving(broker_url, sqlite_url) as found:
        yield found


@pytest.fixture
def store(served: Served) -> Iterator[Store]:
    with Store(served.store_url) as found:
        yield found


@pytest.fixture
def operator(served: Served) -> Iterator[httpx.Client]:
    with served.client(served.key("operators", operator=True)) as found:
        yield found


def test_items_come_page_by_page_with_their_inputs(operator: httpx.Client, store: Store) -> None:
    """Whole items, whatever their tasks; inputs that are not fetched from anywhere; vectors cut short."""
    inputs = [
        "a text",
        inline(picture(size=(7, 5))),
        inline(b"no image"),
        PathInput("/etc/passwd"),
        UrlInput("https://example.com/a.png"),
        QuestionInput("who?", "me"),
        "x" * 2000,
    ]
    job, envelope = submit(store, inputs, tasks=("one", "two"))
    for task in ("one", "two"):
        answer(
            store, job, envelope, dict.fromkeys(range(len(inputs)), b"\0\0\x80?" * 100), task=task, done=task == "two"
        )
    pages, after = [], -1
    while after is not None:
        found = operator.get(f"/api/jobs/{job}/items", params={"limit": 3, "after_seq": after}).json()
        pages.append(found["items"])
        after = found["next"]
    assert [[item["seq"] for item in items] for items in pages] == [[0, 1, 2], [3, 4, 5], [6]]
    items = [item for items in pages for item in items]
    assert {tuple(row["task"] for row in item["results"]) for item in items} == {("one", "two")}
    assert items[0]["results"][0]["output"] == {"vector": [1.0] * 64, "length": 100}
    given = [item["input"] for item in items]
    assert given[0] == {"form": "text", "text": "a text", "characters": 6}
    assert (given[1]["form"], given[1]["media_type"], given[1]["width"], given[1]["height"]) == (
        "image",
        "image/png",
        7,
        5,
    )
    assert given[2] == {"form": "bytes", "bytes": 8}
    assert given[3] == {"form": "path", "text": "/etc/passwd"}
    assert given[4] == {"form": "url", "text": "https://example.com/a.png"}
    assert given[5] == {"form": "object", "fields": {"question": "who?", "context": "me"}}
    assert (len(given[6]["text"]), given[6]["characters"]) == (600, 2000)
    assert operator.get(f"/api/jobs/{job}/items/6").json()["input"]["text"] == "x" * 2000
    assert operator.get(f"/api/jobs/{job}/items/7").status_code == 404


def test_an_item_of_many_tasks_is_whole(operator: httpx.Client, store: Store) -> None:
    """More than a page reads rows for."""
    tasks = tuple(f"task{number:02}" for number in range(40))
    job, envelope = submit(store, ["a text", "another"], tasks=tasks)
    for task in tasks:
        answer(store, job, envelope, {0: [task], 1: [task]}, task=task, done=task == tasks[-1])
    for after in (-1, 0):
        found = operator.get(f"/api/jobs/{job}/items", params={"limit": 1, "after_seq": after}).json()
        assert tuple(row["task"] for row in found["items"][0]["results"]) == tasks


def test_an_image_is_an_image_or_nothing(operator: httpx.Client, served: Served, store: Store) -> None:
    """A stranger's bytes are never served as what a browser could run, and to nobody whose they are not."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>'
    page_ = b"\x89PNG\r\n\x1a\n<html><script>alert(1)</script></html>"
    bomb = picture(size=(1, 1))[:16] + (60_000).to_bytes(4, "big") * 2 + picture(size=(1, 1))[24:]
    job, envelope = submit(store, [inline(data) for data in (picture(), svg, page_, bomb)] + ["text"], tenant="ours")
    answer(store, job, envelope, dict.fromkeys(range(5), "seen"))
    found = operator.get(f"/api/jobs/{job}/items/0/image")
    assert (found.status_code, found.headers["content-type"], found.content) == (200, "image/png", picture())
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert found.headers["cache-control"].startswith("private")
    assert [operator.get(f"/api/jobs/{job}/items/{seq}/image").status_code for seq in range(1, 6)] == [404] * 5
    with (
        served.client(served.key("theirs")) as theirs,
        served.client(served.key("ours")) as ours,
        served.client() as nobody,
    ):
        for what in ("items", "items/0", "items/0/image"):
            codes = [caller.get(f"/api/jobs/{job}/{what}").status_code for caller in (ours, theirs, nobody)]
            assert codes == [200, 404, 401], what


def test_inputs_by_reference_are_fetched_one_by_one(
    operator: httpx.Client, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list fetches none of them; a blob that is gone is told, and costs nothing else."""
    monkeypatch.setenv("ARGOSY_BLOB_URL", str(tmp_path / "blobs"))
    assert Connection().blobs == BlobSettings(url=str(tmp_path / "blobs"))
    blobs = Blobs(Connection().blobs)
    job = "0" * 26
    image, text, gone = (blobs.put(value, job) for value in (inline(picture()), "a long text", "lost"))
    (tmp_path / "blobs" / job / gone.blob).unlink()
    id_, envelope = submit(store, [image, text, gone])
    answer(store, id_, envelope, dict.fromkeys(range(3), "seen"))
    assert [item["input"]["stored"] for item in operator.get(f"/api/jobs/{id_}/items").json()["items"]] == [
        "by reference"
    ] * 3
    assert operator.get(f"/api/jobs/{id_}/items/0").json()["input"]["width"] == 60
    assert operator.get(f"/api/jobs/{id_}/items/0/image").content == picture()
    assert operator.get(f"/api/jobs/{id_}/items/1").json()["input"]["text"] == "a long text"
    lost = operator.get(f"/api/jobs/{id_}/items/2").json()["input"]
    assert lost["form"] == "gone"
    assert "no longer in blob storage" in lost["reason"]


def test_what_the_fleet_does_is_for_operators(operator: httpx.Client, served: Served, store: Store) -> None:
    """What waits, by priority, also where nothing does; and nothing of it for tenants."""
    job, _ = submit(store, ["x", "y"], age_s=60)
    store.commit([], batches=[batch("old", started_at=100.0)])
    found = operator.get("/api/activity").json()
    assert [line["priority"] for line in found["queue"]] == ["interactive", "standard", "bulk"]
    assert [line["items"] for line in found["queue"]] == [0, 0, 2]
    assert found["queue"][2]["oldest_s"] == pytest.approx(60, abs=30)
    assert found["queue"][0]["oldest_s"] is None
    assert (found["devices"], found["recent"], found["batches"]["count"]) == ([], [], 0)
    assert ([line["served"] for line in found["models"]], found["unserved"][:20]) == ([False], "no worker is running")
    waiting = {"models": ["nobody"], "unserved": found["unserved"], "paused": None, "postponed": None}
    assert operator.get(f"/api/jobs/{job}/waiting").json() == waiting
    assert operator.get("/api/caller").json() == {
        "tenant": "operators",
        "role": "operator",
        "operator": True,
        "all_tenants": True,
        "keys": True,
    }
    with served.client(served.key("ours")) as ours:
        assert ours.get("/api/activity").status_code == 403
        assert ours.get(f"/api/jobs/{job}/waiting").status_code == 404
        assert ours.get("/api/caller").json()["role"] == "member"


def test_the_page_needs_no_key_and_loads_nothing_from_elsewhere(served: Served) -> None:
    """Its files are those of its folder, under a policy that lets nothing else run; a path leads out of it nowhere."""
    with served.client() as nobody:
        index = nobody.get("/")
        assert index.headers["content-type"].startswith("text/html")
        policy = index.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|https?:", index.text)
        for name in page.names():
            file = nobody.get(f"/static/{name}")
            assert (file.status_code, file.headers["content-security-policy"]) == (200, policy), name
            assert nobody.get(f"/static/{name}", headers={"If-None-Match": file.headers["etag"]}).status_code == 304
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", file.text), name
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", file.text), name
        used = {
            name
            for file in page.names()
            for name in re.findall(r"(?:\./|static/)([\w.]+)", nobody.get(f"/static/{file}").text)
        }
        assert used | {"index.html"} == page.names()
        for path in ("%2e%2e%2fpage.py", "..%2f..%2f__init__.py", "page.py", "nothing.js"):
            assert nobody.get(f"/static/{path}").status_code == 404, path


def test_sizes_of_images_are_those_that_a_decoder_finds() -> None:
    """Each format as Pillow writes it; cut anywhere, it is an image or none, never an error."""
    from producers.gateway.routes.image_sizes import image_size

    for form, options in (
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("GIF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ):
        out = io.BytesIO()
        noise(321, 123, 50).save(out, form, **options)
        data = out.getvalue()
        found = image_size(data)
        assert found is not None
        assert (found.media_type, found.width, found.height) == (f"image/{form.lower()}", 321, 123)
        assert {image_size(data[:end]) for end in range(0, min(len(data), 700), 3)} <= {None, found}
    out = io.BytesIO()
    frames = [Image.new("RGBA", (33, 44), colour) for colour in ("red", "blue")]
    frames[0].save(out, "WEBP", save_all=True, append_images=frames[1:])
    assert (image_size(out.getvalue()) or frames[0]).width == 33
    assert image_size(b"\x89PNG\r\n\x1a\n" + b"\0" * 40) is None
    assert image_size(b"<svg/>") is None
