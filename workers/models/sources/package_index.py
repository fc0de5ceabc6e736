"""Find a file in the package registries configured on this machine: those of pip, npm and apt.

No registry is named here: the installed pip, npm and apt report their own settings (files, environment, defaults).
They are asked for settings only; no package is installed, and no code of a package runs.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from html.parser import HTMLParser
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urljoin, urlsplit

import httpx2

from producers.wire.connection import without_secrets
from producers.wire.errors import ConfigurationError
from workers.models.sources.download import Offered, PullFailed

_SIMPLE_JSON = "application/vnd.pypi.simple.v1+json"
_ACCEPT = f"{_SIMPLE_JSON}, text/html;q=0.1"

# Run in its own process, to keep pip's modules out of this one. `parse_args` merges defaults, files and environment.
_ASK_PIP = """
import json
from pip._internal.commands import create_command
options, _ = create_command("download").parse_args([])
names = ("index_url", "extra_index_urls", "find_links", "cert", "proxy", "timeout", "no_index")
print(json.dumps({name: getattr(options, name) for name in names}))
"""


def find(registry: str, name: str, version: str, file: str) -> Offered:
    """Return the URL of a package's `file`. Raises PullFailed, which lists the registries searched."""
    if registry == "apt":
        return _find_apt(name, version, file)
    return _find_npm(name, version, file) if registry == "npm" else _find_pip(name, file)


def _find_pip(name: str, file: str) -> Offered:
    pip = pip_settings()
    how = {"cert": pip["cert"], "proxy": pip["proxy"] or None, "timeout_s": float(pip["timeout"])}
    for place in pip["find_links"]:
        if (Path(place) / file).is_file():
            return Offered(file, (Path(place) / file).resolve().as_uri())
    indexes = [] if pip["no_index"] else [pip["index_url"], *pip["extra_index_urls"]]
    tried = []
    for index in indexes:
        page = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', name).lower()}/"
        try:
            for found, url in _links(Offered(name, page, **how)):
                if found == file:
                    return Offered(file, url, **how)
            tried.append(f"{_without_password(index)} does not have it")
        except (httpx2.HTTPError, OSError) as error:
            tried.append(f"{_without_password(index)}: {_said(error)}")
    raise PullFailed(f"{file}: not found with pip's settings ({'; '.join(tried) or 'no index'}); see `pip config list`")


def _links(page: Offered) -> Iterator[tuple[str, str]]:
    """Yield (file name, URL) for each file on a page of the simple index, JSON (PEP 691) or HTML (PEP 503)."""
    if page.url.startswith("file:"):
        body = (Path(unquote(urlsplit(page.url).path)) / "index.html").read_text("utf-8")
        yield from _anchors(body, page.url)
        return
    with page.client() as client:
        answer = client.get(page.url, headers={"Accept": _ACCEPT})
    if answer.status_code == HTTPStatus.NOT_FOUND:
        return
    answer.raise_for_status()
    if answer.headers.get("Content-Type", "").startswith(_SIMPLE_JSON):
        for entry in answer.json()["files"]:
            yield entry["filename"], urljoin(str(answer.url), entry["url"])
    else:
        yield from _anchors(answer.text, str(answer.url))


def _anchors(body: str, base: str) -> Iterator[tuple[str, str]]:
    targets: list[str] = []

    class Anchors(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            targets.extend(value for key, value in attrs if tag == "a" and key == "href" and value)

    Anchors().feed(body)
    for target in targets:
        url = urljoin(base, target).partition("#")[0]
        yield unquote(urlsplit(url).path.rpartition("/")[2]), url


@lru_cache(maxsize=1)
def pip_settings() -> dict[str, Any]:
    """Return pip's own download settings. Asking pip takes 0.4 s, so the answer is cached."""
    answer = _output([sys.executable, "-c", _ASK_PIP], "pip is needed to find the package index: python -m ensurepip")
    settings: dict[str, Any] = json.loads(answer)
    return settings


def _find_npm(name: str, version: str, file: str) -> Offered:
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigurationError("npm is needed to find its registry (for training data only): install Node.js")
    registry = _output([npm, "config", "get", "registry"], "see `npm config list`").strip()
    page = Offered(name, f"{registry.rstrip('/')}/{quote(name, safe='@')}/{version}")
    try:
        with page.client() as client:
            answer = client.get(page.url)
            answer.raise_for_status()
    except httpx2.HTTPError as error:
        raise PullFailed(
            f"{name}@{version}: {_without_password(registry)}: {_said(error)}; see `npm config get registry`"
        ) from error
    return Offered(file, answer.json()["dist"]["tarball"])


def _find_apt(name: str, release: str, file: str) -> Offered:
    command = shutil.which("apt-get")
    if command is None:
        raise ConfigurationError("apt is needed to find a Debian repository (for training data only): use Debian")
    listed = _output([command, "indextargets", "--format", "$(CODENAME) $(REPO_URI)"], "see apt's sources").splitlines()
    repositories = [address for codename, _, address in (line.partition(" ") for line in listed) if codename == release]
    if not repositories:
        raise PullFailed(f"{name}: apt's sources have no repository of {release!r}; add one, then apt-get update")
    return Offered(name, f"{repositories[0].rstrip('/')}/{file}")


def _output(command: list[str], remedy: str) -> str:
    done = subprocess.run(command, env=without_secrets(), capture_output=True, text=True, check=False)  # noqa: S603 (fixed commands)
    if done.returncode:
        last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise ConfigurationError(f"{Path(command[0]).name}: {last}; {remedy}")
    return done.stdout


def _said(error: Exception) -> str:
    """Return the reason of a failed request. An error about a status quotes the URL, which may have a password."""
    if isinstance(error, httpx2.HTTPStatusError):
        return f"answers {error.response.status_code}"
    return str(error) or type(error).__name__


def _without_password(url: str) -> str:
    """Return a URL without its user name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
