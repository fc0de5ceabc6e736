"""A real browser for the page's tests: the machine's own Chromium, driven by Playwright, without a window."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find() -> str:
    """Return where Chromium is. Without one the test is skipped, or fails where ARGOSY_REQUIRE_CHROMIUM says it must
    run.
    """
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        reason = "no Chromium here (Debian: apt-get install chromium)"
        if os.environ.get("ARGOSY_REQUIRE_CHROMIUM") == "1":
            pytest.fail(f"{reason}, and ARGOSY_REQUIRE_CHROMIUM=1")
        pytest.skip(reason)
    return found


#: A machine that runs other tests beside this one may take its time.
WAIT_MS = 20_000


@contextmanager
def chromium() -> Iterator[Browser]:
    path = find()
    expect.set_options(timeout=WAIT_MS)
    with sync_playwright() as playwright:
        # the sandbox needs user namespaces, which containers seldom have; the pages are our own
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def tab(browser: Browser, url: str, key: str | None = None, **options: object) -> Iterator[Page]:
    """Open a tab at the gateway, with its own storage. At the end nothing may have gone wrong in it: no error, no
    breach of the policy.
    """
    context = browser.new_context(base_url=url, **options)  # type: ignore[arg-type]
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    # a refused request is told here too; whether it was to be refused, the test knows
    page.on(
        "console", lambda said: wrong.append(said.text) if said.type == "error" and REFUSED not in said.text else None
    )
    if key is not None:
        page.add_init_script(f"sessionStorage.setItem('argosy.key', '{key}')")
    try:
        yield page
    finally:
        context.close()
    assert wrong == [], wrong


REFUSED = "Failed to load resource"

#: The elements that are wider than the page, the dialog or the box that cuts them off.
OUTSIDE = """() => {
    const cuts = node => getComputedStyle(node).overflowX !== "visible";
    const cut = node => node && (cuts(node) ? node : cut(node.parentElement));
    return [...document.querySelectorAll("body, body *")].filter(node => {
        if (!node.checkVisibility() || node.closest(".unseen, .skip, svg, thead, option")) return false;
        const { left, right } = node.getBoundingClientRect();
        const box = cut(node.parentElement);
        if (!box && (left < -1 || right > innerWidth + 1)) return true;
        return cuts(node) && getComputedStyle(node).overflowX !== "clip" && getComputedStyle(node).textOverflow !== "ellipsis" && node.scrollWidth > node.clientWidth + 1;
    }).map(node => `${node.tagName}.${node.className} ${node.textContent.slice(0, 60)}`);
}"""
