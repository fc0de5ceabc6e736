"""Repositories of the Hugging Face hub on this machine, by the hub's own client, with a note that says when one is all there."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import httpx2

from producers.wire.atomic_files import atomically
from workers.models.sources.download import PullFailed

#: What is taken of a repository: weights as safetensors, and text. Never pickles or code.
FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")


def locate(note: Path) -> Path | None:
    """Return the folder of a repository that was pulled, by its note. Touches no network."""
    if not note.is_file():
        return None
    folder = note.parent / note.read_text(encoding="utf-8")
    return folder if folder.is_dir() else None


def pull(repository: str, revision: str, note: Path) -> Path:
    """Bring a repository at a revision beside its `note`; return its folder, which is named by its commit. Raises PullFailed."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    files, place = list(FILES), note.parent / "hub"
    try:
        offered = HfApi().model_info(repository, revision=revision)
        # resumes, verifies and locks by itself
        folder = Path(snapshot_download(repository, revision=offered.sha, cache_dir=place, allow_patterns=files))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError, httpx2.HTTPError) as error:
        what = str(error.__cause__ or error).strip().partition("\n")[0]
        remedy = "check the id, the network, HF_TOKEN, HF_HUB_OFFLINE and HF_ENDPOINT"
        raise PullFailed(f"{repository} at {revision}: {what}; {remedy}") from error
    # where the hub breaks off, its client may return what there is so far
    names = [sibling.rfilename for sibling in offered.siblings or ()]
    for name in names:
        if any(fnmatch(name, pattern) for pattern in files) and not (folder / name).is_file():
            raise PullFailed(f"{repository}: {name} did not come; run it again to resume")
    _write(note, folder)
    return folder


def _write(note: Path, folder: Path) -> None:
    """Write down that the last file is there: the hub's folder exists from the first one on."""
    with atomically(note) as part:
        part.write_text(str(folder.relative_to(note.parent)), encoding="utf-8")
