"""``python -m examples.screenshots``: the pictures of the page and of Flower in docs/images, from a real fleet at work.

It needs Chromium (Debian: ``apt-get install chromium``), the packages of `make install`, and the models of ``argosy
models pull``.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright

from benchmarks.workload import mixed_texts
from examples.demo import QUESTIONS, pull
from producers import Client, Job, NewItem, Pipeline
from workers import settings
from workers.fleet.local import LocalFleet

HOME = Path(".argosy/screenshots")
IMAGES = Path(__file__).parents[1] / "docs" / "images"
TEXTS = 10_000
WIDE = ViewportSize(width=1280, height=860)
PHONE = ViewportSize(width=390, height=844)


def main() -> int:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("screenshots: no Chromium here; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    chosen = settings.load()
    photographs = pull(chosen)
    fleet = LocalFleet(chosen, HOME)
    fleet.clear()
    fleet.start()
    try:
        with (
            serving(fleet) as url,
            Client(fleet.broker_url, fleet.store_url) as client,
            sync_playwright() as playwright,
        ):
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            take(Camera(browser, IMAGES), url, fleet.flower_url, client, photographs)
            browser.close()
    finally:
        fleet.stop()
    for path in sorted(IMAGES.glob("*.png")):
        print(f"{path}: {path.stat().st_size / 1024:.0f} KB")
    return 0


@contextmanager
def serving(fleet: LocalFleet) -> Iterator[str]:
    """Run `argosy gateway` beside the fleet."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {**os.environ, "ARGOSY_BROKER_URL": fleet.broker_url, "ARGOSY_STORE_URL": fleet.store_url}
    command = [str(Path(sys.executable).parent / "argosy"), "gateway", "--no-auth", "--port", str(port)]
    gateway = subprocess.Popen(command, env=environment)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url)
        yield url
    finally:
        gateway.terminate()
        gateway.wait(30)


def wait_for(url: str, timeout_s: float = 60.0) -> None:
    until = time.monotonic() + timeout_s
    while True:
        try:
            urllib.request.urlopen(f"{url}/readyz", timeout=5).close()  # noqa: S310 - our own gateway on loopback
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return


class Camera:
    """Takes pictures of pages, wide and as on a phone, into a folder. It refuses a page with wrong words."""

    def __init__(
        self, browser: Browser, folder: Path, look: Callable[[Page, str], None] = lambda page, name: None
    ) -> None:
        self._pages = {
            (scheme, width): browser.new_page(viewport=size, color_scheme=scheme)
            for scheme, width, size in (("light", "wide", WIDE), ("dark", "wide", WIDE), ("light", "phone", PHONE))
        }
        self._folder = folder
        self._look = look
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def wide(self) -> Page:
        return self._pages["light", "wide"]

    def shoot(self, address: str, name: str, *, scheme: str = "light", phone: bool = True, item: str = "") -> None:
        """Take a picture of a page, or of the dialog that the button `item` opens. On a phone too, as NAME-phone."""
        for width in ("wide", "phone") if phone else ("wide",):
            page = self._pages[scheme, width]
            page.goto("about:blank")
            page.goto(address)
            page.wait_for_function(DRAWN)
            if item:
                page.get_by_role("button", name=item, exact=True).click()
                page.locator("dialog[open] .result").first.wait_for()
            page.wait_for_timeout(2500)  # for the second look at the fleet, which tells how fast it goes
            file = f"{name}-phone" if width == "phone" else name
            if wrong := page.evaluate(WRONG_WORDS):
                raise SystemExit(f"screenshots: {file} says {wrong}")
            self._look(page, file)
            path = self._folder / f"{file}.png"
            page.screenshot(path=path)
            if not page.locator(".picture img").count():  # a palette makes it three times smaller, and photographs ugly
                with Image.open(path) as picture:
                    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


#: Words that no page should say.
WRONG_WORDS = r"""() => document.body.innerText.match(/\[object|undefined|\bNaN\b|Infinity|\bNone\b|Traceback/g)"""

#: Every image in sight is drawn, and there is something to see. Flower's tables come later than its page.
DRAWN = """() => document.querySelector("main td, main .column, table tbody td")
    && [...document.querySelectorAll(".picture")].filter(frame => frame.getBoundingClientRect().top < innerHeight)
        .every(frame => frame.querySelector("img")?.complete)"""


def take(
    camera: Camera, url: str, flower_url: str, client: Client, photographs: list[Path], texts: int = TEXTS
) -> None:
    """Submit what the demo submits, and a pipeline, and take the pictures while all that runs and after."""
    vision = submit_photographs(client, photographs)
    pipeline = client.submit_pipeline(
        PIPELINE, [NewItem(text, key=f"letter-{n}") for n, text in enumerate(LETTERS)], name="letters to the editor"
    )
    vision.wait(300)
    mixed = mixed_texts(texts)
    client.submit_many("topic", mixed[:900], priority="bulk", name="backfill, not wanted any more").cancel()
    with asking(client):
        bulk = submit_texts(client, mixed)
        camera.shoot(f"{flower_url}/broker", "flower-broker", phone=False)
        camera.wide.goto(f"{url}/#/jobs")
        camera.wide.wait_for_function(FAR, arg=bulk.id, timeout=300_000)
        camera.shoot(f"{url}/#/jobs", "page-jobs")
        camera.shoot(f"{url}/#/fleet", "page-fleet", phone=False)
        camera.shoot(f"{url}/#/jobs", "page-jobs-dark", scheme="dark", phone=False)
        camera.shoot(f"{flower_url}/tasks", "flower-tasks", phone=False)
    bulk.wait(600)
    pipeline.wait(60)
    camera.shoot(f"{url}/#/jobs/{vision.id}", "page-job", phone=False)
    camera.shoot(f"{url}/#/jobs/{pipeline.id}", "page-pipeline")
    camera.shoot(f"{url}/#/jobs/{pipeline.id}", "page-item", item="Look at input 0", phone=False)
    camera.shoot(f"{url}/#/failures", "page-failures")
    camera.shoot(f"{flower_url}/workers", "flower-workers", phone=False)


#: A job's line shows that some of its results are there.
FAR = """id => [...document.querySelectorAll("tr")].some(row => {
    const bar = row.querySelector("[role=progressbar]");
    return row.textContent.includes(id) && bar && bar.ariaValueNow > 0.25 * bar.ariaValueMax;
})"""

PIPELINE = (
    Pipeline()
    .step("mood", task="sentiment")
    .step("names", task="entities")
    .step("complaint", task="topic", of="mood", take="input", options={"labels": ["negative"]})
)

LETTERS = (
    "The trains from York to Leeds were late again, and nobody at Northern answers my letters.",
    "A fine, moving concert by the Hallé; Sir Mark Elder has rarely been better.",
    "My new phone stopped working after two days. Samsung says that this is my fault.",
    "Congratulations to Leicester City, who played the match of their lives.",
)


def submit_photographs(client: Client, photographs: list[Path]) -> Job:
    whole = photographs[0].read_bytes()
    images = [NewItem(path.read_bytes(), key=path.stem) for path in photographs]
    images.insert(3, NewItem(whole[: len(whole) // 3], key="broken"))
    return client.submit_many(
        ["image-classification", "image-embedding"], images, priority="standard", name="photographs"
    )


def submit_texts(client: Client, texts: list[str]) -> Job:
    items: list[object] = [NewItem(text, key=f"text-{n}") for n, text in enumerate(texts)]
    whole = {"sentiment": {"truncation": False}, "topic": {"truncation": False}, "spam": {"truncation": False}}
    items.insert(7, NewItem("a word " * 2000, key="over-long", params=whole))
    return client.submit_many(["sentiment", "topic", "spam"], items, priority="bulk", name="texts of November")


@contextmanager
def asking(client: Client) -> Iterator[None]:
    """Ask interactive questions meanwhile, as a backend would."""
    finished = threading.Event()

    def ask() -> None:
        while not finished.wait(1.5):
            client.submit("sentiment", QUESTIONS[0], priority="interactive").result(timeout_s=60)

    asker = threading.Thread(target=ask)
    asker.start()
    try:
        yield
    finally:
        finished.set()
        asker.join()


if __name__ == "__main__":
    raise SystemExit(main())
