"""A folder's tokenizer as a single file that `tokenizers` reads without transformers.

Usually the file is the folder's own ``tokenizer.json``. If it is missing, or if transformers applies further settings
of the folder (``do_lower_case`` overrides the file), the file is made once and cached. The parent of a worker never
imports transformers, so a subprocess makes the file; the device process makes it if it finds a difference.

``python -m workers.models.huggingface.tokenizer_file FOLDER TARGET`` makes the file.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from filelock import FileLock

from producers.wire.atomic_files import atomically
from producers.wire.connection import without_secrets
from producers.wire.errors import ConfigurationError
from workers.models.huggingface import sentencepiece_tokenizers
from workers.models.huggingface.checkpoint import Checkpoint
from workers.models.sources import model_source

NAME = "tokenizer.json"

_MAKING_LIMIT_S = 240


def locate(checkpoint: Checkpoint) -> Path:
    """Return the cached file, the folder's own, or a new file. Raises ConfigurationError if none can be made."""
    made, there = _cached(checkpoint), checkpoint.folder / NAME
    if made.is_file():
        return made
    if there.is_file():
        return there
    made.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(made.with_suffix(".lock")):
        if not made.is_file():
            _make(checkpoint, made)
    return made


def keep(checkpoint: Checkpoint, tokenizer: Any) -> None:
    """Cache transformers' own tokenizer for a folder; `locate` returns it from now on."""
    made = _cached(checkpoint)
    made.parent.mkdir(parents=True, exist_ok=True)
    with atomically(made) as part:
        save(tokenizer, part)


def save(tokenizer: Any, target: Path) -> None:
    """Write a transformers tokenizer. Raises TypeError if it has no fast version, ValueError if no vocabulary."""
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers' tokenizer of a folder without a vocabulary
        raise ValueError("there is no vocabulary")
    fast = tokenizer.backend_tokenizer if tokenizer.is_fast else sentencepiece_tokenizers.converted(tokenizer)
    fast.save(str(target))


def _cached(checkpoint: Checkpoint) -> Path:
    revision = f"{checkpoint.folder}\n{model_source.folder_revision(checkpoint.folder)}\n{version('transformers')}"
    digest = hashlib.blake2b(revision.encode(), digest_size=8).hexdigest()
    return model_source.cache_folder() / "tokenizers" / f"{digest}.json"


def _make(checkpoint: Checkpoint, target: Path) -> None:
    pieces = next((file for form in ("*.spm", "*.model") for file in checkpoint.folder.glob(form)), None)
    if pieces and find_spec("sentencepiece") is None:
        problem = f"there is no {checkpoint.folder / NAME}, and {pieces.name} is a file of SentencePiece"
        raise ConfigurationError(f"{checkpoint.where}: {problem}; install it: pip install 'argosy[sentencepiece]'")
    with atomically(target) as part:
        command = [sys.executable, "-m", __spec__.name, str(checkpoint.folder), str(part)]
        try:
            ran = subprocess.run(  # noqa: S603 (our own module)
                command, env=without_secrets(), capture_output=True, text=True, check=False, timeout=_MAKING_LIMIT_S
            )
        except subprocess.TimeoutExpired as error:
            raise ConfigurationError(
                f"{checkpoint.where}: no {NAME} within {_MAKING_LIMIT_S} s; save a fast tokenizer in the folder"
            ) from error
        if ran.returncode:
            last = (ran.stderr.strip() or f"exit status {ran.returncode}").splitlines()[-1]
            problem = (
                f"there is no {checkpoint.folder / NAME}, and it cannot be made from the folder's other files: {last}"
            )
            raise ConfigurationError(f"{checkpoint.where}: {problem}; save a fast tokenizer in the folder")


def _main(folder: str, target: str) -> None:
    from transformers import AutoTokenizer

    save(AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), Path(target))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
