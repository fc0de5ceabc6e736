"""Read an item's input: a text as it is, bytes, a file under an allowed root, or a URL of an allowed host.

Inputs come from strangers. A path must lie under a root after all links are followed.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TypeAlias

from producers.wire.errors import InputTooLarge, InputUnavailable, InvalidInput
from producers.wire.messages import (
    BlobInput,
    DerivedInput,
    InlineBytes,
    Input,
    JsonInput,
    MessagesInput,
    PathInput,
    QuestionInput,
    RowInput,
    SeedInput,
    SentencesInput,
    SeriesInput,
    TextAndImageInput,
    UrlInput,
)
from workers.envelope.input_limits import FIELD, InputLimits

#: The content of an item, after its references are read.
Content: TypeAlias = (
    str
    | bytes
    | MessagesInput
    | QuestionInput
    | RowInput
    | SentencesInput
    | SeriesInput
    | JsonInput
    | SeedInput
    | TextAndImageInput
)

#: Errors of a file system that is away for a moment, such as a network's, or of a process with too many open files.
_MOMENTARY = (
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EIO,
    errno.EMFILE,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ENFILE,
    errno.ENOTCONN,
    errno.ESTALE,
    errno.ETIMEDOUT,
)


def may_wait(value: Input) -> bool:
    """Return whether reading an input may wait for a file or a network. Derive a derived input before this question."""
    if isinstance(value, TextAndImageInput):
        return may_wait(value.image)
    return isinstance(value, PathInput | UrlInput | BlobInput)


def carried(value: Input, limits: InputLimits) -> Input:
    """Return an input that was sent by reference as if it were inline, or any other as it is. Raises like `read`."""
    if not isinstance(value, BlobInput):
        return value
    most_bytes = 4 * limits.max_text_chars if value.text else limits.max_input_bytes
    return limits.blobs.get(value, most_bytes)


def read(value: Input, limits: InputLimits) -> Content:
    """Return an input's content; an object of texts is its own content.

    Raises InvalidInput, InputTooLarge, or InputUnavailable if it cannot be fetched.
    """
    value = carried(value, limits)
    assert not isinstance(value, BlobInput), "a blob holds no reference"
    if isinstance(value, str):
        if len(value) > limits.max_text_chars:
            problem = f"has {len(value):,} characters, over {limits.max_text_chars:,}"
            raise InputTooLarge(FIELD, problem, "split the text")
        return value
    if isinstance(value, InlineBytes):
        limits.check_size(len(value.data))
        return value.data
    if isinstance(value, PathInput):
        return _read_path(value.path, limits)
    if isinstance(value, UrlInput):
        from workers.envelope.fetching import fetch

        return fetch(value.url, limits)
    if isinstance(value, TextAndImageInput):
        try:
            content = read(value.image, limits)
        except InvalidInput as error:
            raise error.of_part("image") from error
        assert isinstance(content, bytes), "files hold bytes"
        return TextAndImageInput(value.text, InlineBytes(content))
    if isinstance(value, DerivedInput):
        raise InvalidInput(FIELD, "is a derived input that was not derived yet")
    return value


# --- paths ----------------------------------------------------------------------------------------


def _read_path(path: str, limits: InputLimits) -> bytes:
    file = _resolved(path, limits)
    try:
        # non-blocking, because of named pipes; without following a link that was put there after the check
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(error) from error
    try:
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            raise InvalidInput(FIELD, "is not a regular file", "name a file")
        limits.check_size(state.st_size)
        with open(descriptor, "rb", closefd=False) as opened:
            content = opened.read(limits.max_input_bytes + 1)
    except OSError as error:
        raise _unreadable(error) from error
    finally:
        os.close(descriptor)
    limits.check_size(len(content))  # the file may have grown
    return content


def _unreadable(error: OSError) -> InputUnavailable:
    momentary = error.errno in _MOMENTARY
    return InputUnavailable(
        FIELD, f"cannot be read: {error.strerror}", "check the file at the worker", momentary=momentary
    )


def _resolved(path: str, limits: InputLimits) -> Path:
    """Return the file of a path, with links followed, if it lies under an allowed root.

    A relative path is searched under each root: producer and worker may mount a folder at different places. A file
    outside the roots and a missing file give the same error, so that nobody can probe for files.
    """
    for root in limits.allowed_roots:
        try:
            base = Path(root).resolve(strict=True)
            file = (base / path).resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:  # missing, a cycle of links, or a NUL in the name
            if isinstance(error, OSError) and error.errno in _MOMENTARY:
                raise _unreadable(error) from error
            continue
        if file.is_relative_to(base):
            return file
    roots = ", ".join(limits.allowed_roots) or "none"
    remedy = f"the worker reads these folders: {roots} (limits.allowed_roots in fleet.toml); or send the bytes"
    raise InvalidInput(FIELD, "is not a file that the worker may read", remedy)
