"""A folder's ``tokenizer.json``: the one that is there, or one made of its vocabulary by transformers, once, in the cache.

Run as ``python -m workers.models.huggingface.tokenizer_file FOLDER TARGET`` it makes it: in a process of its own, since a
worker's parent process never imports transformers.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from producers.errors import ConfigurationError
from workers.models import sources
from workers.models.huggingface.checkpoint import Checkpoint

NAME = "tokenizer.json"


def locate(checkpoint: Checkpoint) -> Path:
    """Return the file, made if need be. Raises ConfigurationError if transformers cannot make it."""
    there = checkpoint.folder / NAME
    if there.is_file():
        return there
    revision = sources.folder_revision(checkpoint.folder)
    digest = hashlib.blake2b(f"{checkpoint.folder}\n{revision}".encode(), digest_size=8).hexdigest()
    made = sources.cache_folder() / "tokenizers" / f"{digest}.json"
    made.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(made.with_suffix(".lock")):
        if not made.is_file():
            _make(checkpoint, made)
    return made


def _make(checkpoint: Checkpoint, target: Path) -> None:
    unfinished = target.with_suffix(".unfinished")
    command = [sys.executable, "-m", __spec__.name, str(checkpoint.folder), str(unfinished)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own module)
    if ran.returncode:
        last = (ran.stderr.strip() or f"exit status {ran.returncode}").splitlines()[-1]
        problem = f"there is no {checkpoint.folder / NAME}, and none can be made of what is there: {last}"
        raise ConfigurationError(f"{checkpoint.where}: {problem}; save a fast tokenizer in the folder")
    unfinished.replace(target)


def _convert(folder: str, target: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if not tokenizer.is_fast:
        raise TypeError(f"{type(tokenizer).__name__} has no fast version")
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # what transformers makes of a folder without a vocabulary
        raise ValueError("there is no vocabulary")
    tokenizer.backend_tokenizer.save(target)


if __name__ == "__main__":
    _convert(sys.argv[1], sys.argv[2])
