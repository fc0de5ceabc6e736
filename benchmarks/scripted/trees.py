"""Trees of this project: this commit's, or another's, measured by the same code."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

#: The name of this package in the processes of a measured tree.
NAME = "argosy_scripted"


def environment(tree: Path, folder: Path) -> dict[str, str]:
    """Return an environment whose processes import the packages of `tree`, and this package as `NAME`.

    `folder` is empty. It gets the package's metadata, since entry points name the modules of their own commit, and a
    cache of its own for learned costs, beside links to all that was pulled.
    """
    site, cache = folder / "site", folder / "cache"
    _write_metadata(tree, site)
    (site / NAME).symlink_to(Path(__file__).parent.resolve())
    (site / "sitecustomize.py").symlink_to(Path(__file__).with_name("wakes.py").resolve())
    link_cache(cache)
    own = {
        "PYTHONPATH": f"{site}:{tree.resolve()}",
        "PYTHONSAFEPATH": "1",
        "ARGOSY_CACHE": str(cache),
    }
    unwanted = ("ARGOSY_FLEET", "ARGOSY_HOME", "ARGOSY_STORE_URL", "ARGOSY_BROKER_URL", "PYTHONWARNINGS")
    return {name: value for name, value in os.environ.items() if name not in unwanted} | own


def _write_metadata(tree: Path, site: Path) -> None:
    project = tomllib.loads((tree / "pyproject.toml").read_text("utf-8"))["project"]
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in own.items()) for group, own in groups.items()
    ]
    metadata = site / f"{project['name']}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    about = f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
    (metadata / "METADATA").write_text(about, encoding="utf-8")


def link_cache(cache: Path) -> None:
    """Make a cache of its own for learned costs, beside links to all that was pulled."""
    base = os.environ.get("ARGOSY_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "argosy"
    cache.mkdir()
    for pulled in Path(base).expanduser().iterdir():
        if pulled.name not in ("costs", "footprints"):
            (cache / pulled.name).symlink_to(pulled.resolve())


# --- in the processes of a tree: the modules whose names differ between commits ---


def text_model() -> Any:
    try:
        from workers.models.built_in.text.text_model import TextModel
    except ImportError:  # 1a7a1cf
        from workers.models.text import TextModel
    return TextModel


def vision_model() -> Any:
    try:
        from workers.models.built_in.vision.vision_model import VisionModel
    except ImportError:  # 1a7a1cf
        from workers.models.vision import VisionModel
    return VisionModel


def pulled(settings: Any, name: str) -> Path:
    """Return the folder of a model's weights."""
    try:
        from workers.models.sources import model_source as sources
    except ImportError:  # 1a7a1cf
        from workers.models import sources
    source = sources.parse(settings.models[name].source, where=f"models.{name}.source")
    found = sources.locate(source, sources.cache_folder())
    if found is None:
        raise SystemExit(f"models.{name}: not pulled yet; run `argosy models pull {name}`")
    return Path(found.folder)
