"""Local copies of Hugging Face hub repositories, made by the hub's own client. A note marks a complete copy."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import httpx2

from producers.wire.atomic_files import atomically
from workers.models.sources.download import PullFailed

#: The files that are downloaded: weights as safetensors, and text. Never pickles or code.
FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.spm", "*.jinja")

#: The endings of the further files of an ONNX file: weights over 2 GB are outside of it.
_EXTERNAL = ("", "_data*", ".data*")

#: A user name and a password in a URL; HF_ENDPOINT may have them, and errors quote it.
_LOGIN = re.compile(r"//[^/\s]*@")


def locate(note: Path) -> Path | None:
    """Return the folder of a pulled repository by its note, or None. Makes no network request."""
    if not note.is_file():
        return None
    folder = note.parent / note.read_text(encoding="utf-8")
    return folder if folder.is_dir() else None


def pull(repository: str, revision: str, note: Path, *, onnx: str = "") -> Path:
    """Download a repository beside its `note`; return its folder, named by the commit. `onnx` is a file of it to pull
    too. Raises PullFailed.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    files, place = [*FILES, *(onnx + ending for ending in _EXTERNAL if onnx)], note.parent / "hub"
    try:
        offered = HfApi().model_info(repository, revision=revision)
        # resumes, verifies and locks by itself
        folder = Path(snapshot_download(repository, revision=offered.sha, cache_dir=place, allow_patterns=files))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError, httpx2.HTTPError) as error:
        reason = _LOGIN.sub("//", str(error.__cause__ or error)).strip().partition("\n")[0]
        remedy = "check the id, the network, HF_TOKEN, HF_HUB_OFFLINE and HF_ENDPOINT"
        raise PullFailed(f"{repository} at {revision}: {reason}; {remedy}") from error
    # if the hub breaks off, its client may return an incomplete folder
    names = [sibling.rfilename for sibling in offered.siblings or ()]
    if onnx and onnx not in names:
        there = ", ".join(name for name in names if name.endswith(".onnx")) or "no ONNX file"
        raise PullFailed(f"{repository} at {revision}: has no {onnx}; it has {there}")
    for name in names:
        if any(fnmatch(name, pattern) for pattern in files) and not (folder / name).is_file():
            raise PullFailed(f"{repository}: {name} was not downloaded; run the command again to resume")
    _write(note, folder)
    return folder


def _write(note: Path, folder: Path) -> None:
    """Write the note after the last file: the hub's folder exists from the first file on."""
    with atomically(note) as part:
        part.write_text(str(folder.relative_to(note.parent)), encoding="utf-8")
