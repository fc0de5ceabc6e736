"""``python -m examples.screenshots``: the pictures of the gateway's page in docs/images, from a real fleet at work.

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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, FloatRect, Page, ViewportSize, sync_playwright

from benchmarks.workload import mixed_texts
from examples.demo import QUESTIONS, pull
from producers import Client, Job, NewItem
from workers import settings
from workers.fleet.local import LocalFleet

HOME = Path(".argosy/screenshots")
IMAGES = Path(__file__).parents[1] / "docs" / "images"
TEXTS = 10_000
WIDE = ViewportSize(width=1280, height=860)
SHORT = 560  # lists that end above that
PHONE = ViewportSize(width=390, height=844)


def main() -> int:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        print("screenshots: no Chromium here; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    chosen = settings.load()
    photographs = pull(chosen)
    fleet = LocalFleet(chosen, HOME, flower=False)
    fleet.clear()
    fleet.start()
    try:
        with (
            serving(fleet) as url,
            Client(fleet.broker_url, fleet.store_url) as client,
            sync_playwright() as playwright,
        ):
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            take(browser, url, client, photographs)
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


def take(browser: Browser, url: str, client: Client, photographs: list[Path]) -> None:
    """Submit what the demo submits, and take the pictures while it runs and after."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    light, dark = (browser.new_page(viewport=WIDE, color_scheme=scheme) for scheme in ("light", "dark"))
    vision = submit_photographs(client, photographs)
    vision.wait(300)
    texts = mixed_texts(TEXTS)
    client.submit_many("topic", texts[:900], priority="bulk", name="backfill, not wanted any more").cancel()
    with asking(client):
        bulk = submit_texts(client, texts)
        light.goto(f"{url}/#/jobs")
        light.wait_for_function(FAR, arg=bulk.id, timeout=300_000)
        shoot(light, f"{url}/#/jobs", "page-jobs", SHORT)
        shoot(dark, f"{url}/#/fleet", "page-fleet-dark")
    bulk.wait(600)
    shoot(light, f"{url}/#/jobs/{vision.id}", "page-job")
    shoot(light, f"{url}/#/failures", "page-failures", SHORT)
    shoot(dark, f"{url}/#/jobs/{bulk.id}", "page-job-dark")
    shoot(browser.new_page(viewport=PHONE, color_scheme="light"), f"{url}/#/jobs", "page-phone")


#: A job's line shows that most of its results are there.
FAR = """id => [...document.querySelectorAll("tr")].some(row => {
    const bar = row.querySelector("[role=progressbar]");
    return row.textContent.includes(id) && bar && bar.ariaValueNow > 0.6 * bar.ariaValueMax;
})"""

#: Every image in sight is drawn, and there is something to see.
DRAWN = """() => document.querySelector("main td, main .column")
    && [...document.querySelectorAll(".picture")].slice(0, 4).every(frame => frame.querySelector("img")?.complete)"""


def shoot(page: Page, address: str, name: str, height: int = 0) -> None:
    page.goto(address)
    page.wait_for_function(DRAWN)
    page.wait_for_timeout(2500)  # for the second look at the fleet, which tells how fast it goes
    size = page.viewport_size or WIDE
    clip = FloatRect(x=0, y=0, width=size["width"], height=height or size["height"])
    page.screenshot(path=IMAGES / f"{name}.png", clip=clip)


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
