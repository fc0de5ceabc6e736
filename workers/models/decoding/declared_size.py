"""Compare the size that a media file declares with its bytes; FFmpeg reads on to the end of the bytes without an error.

A file that lacks declared bytes is cut off, and refused. A size that its writer did not mean is mended: 0 or a huge
one, as programs write them into pipes, or a few bytes too many.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from producers.wire.errors import InvalidInput

#: Sizes of samples from here on are placeholders: 2^30, 2,000,000,000, 0x7FFFF000, 0xFFFFFFFF and the like.
_PLACEHOLDER = 1_000_000_000

#: Writers that count the header, or round up, declare at most this many bytes too many.
_SLACK = 128

_MATROSKA, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


class _Chunks(NamedTuple):
    """The layout of a file's chunks: each has a name, a size, and a content that is padded to a multiple of `align`."""

    order: Literal["little", "big"]
    first: int
    name_bytes: int
    size_bytes: int
    align: int


#: WAV, AVI, RF64, AIFF, Wave64 and CAF by their first bytes.
_LAYOUTS = {
    **dict.fromkeys((b"RIFF", b"RF64", b"BW64"), _Chunks("little", 12, 4, 4, 2)),
    **dict.fromkeys((b"RIFX", b"FORM"), _Chunks("big", 12, 4, 4, 2)),
    b"riff": _Chunks("little", 40, 16, 8, 8),
    b"caff": _Chunks("big", 8, 4, 8, 1),
}


class _Size(NamedTuple):
    """The place of a declared size, the place where the bytes begin that it counts, and its value without a content."""

    at: int
    length: int
    order: Literal["little", "big"]
    begins: int
    empty: int = 0

    def declared(self, data: bytes) -> int:
        return int.from_bytes(data[self.at : self.at + self.length], self.order)

    def mended(self, data: bytes) -> bytes:
        """Return the file with the number of its bytes, if it declares none or more."""
        found = max(0, len(data) - self.begins)
        if self.empty < self.declared(data) <= found:
            return data
        return data[: self.at] + found.to_bytes(self.length, self.order) + data[self.at + self.length :]


#: The sizes of whole files without which FFmpeg reads no AIFF and no Wave64.
_FILE_SIZES = {b"FORM": _Size(4, 4, "big", 8), b"riff": _Size(16, 8, "little", 0)}


def mended(data: bytes) -> bytes:
    """Return a file with the true size of its samples or frames, and without ID3 tags in front of a WAV.

    Raises InvalidInput if it is cut off by its own account: WAV, AVI, AIFF, AU, CAF, Matroska, Ogg and ASF tell.
    """
    behind = untagged(data)
    if data[behind : behind + 4] in _LAYOUTS:  # FFmpeg reads no WAV behind tags
        data = data[behind:]
    if len(data) < (end := _end(data)):
        raise _cut_off(len(data), end)
    size = _samples_size(data)
    if size is None:
        return data
    declared = size.declared(data)
    if len(data) - size.begins + _SLACK < declared < _PLACEHOLDER:
        raise _cut_off(len(data), size.begins + declared)
    data = size.mended(data)
    return _FILE_SIZES.get(data[:4], size).mended(data)


def check_index(container: Any, stream: Any) -> None:
    """Raise InvalidInput if the index of an open MP4 or MOV reaches behind the file's end."""
    if container.format.name.startswith("mov,"):  # others' indices are hints
        end = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
        if container.size < end:
            raise _cut_off(container.size, end)


def ogg_page_end(data: bytes, at: int) -> int:
    """Return the end of the Ogg page at a place: it has a header, a table of sizes, and as many bytes."""
    table = at + 27
    count = data[table - 1] if table <= len(data) else 255
    return table + count + sum(data[table : table + count])


def _cut_off(size: int, declared: int) -> InvalidInput:
    return InvalidInput("input", f"breaks off after {size:,} of {declared:,} bytes", "send the whole file")


def untagged(data: bytes) -> int:
    """Return the place behind the ID3 tags at a file's beginning."""
    at = 0
    while data[at : at + 3] == b"ID3":  # each byte of the size has seven bits
        at += 10 + sum(byte << 7 * place for place, byte in enumerate(data[at + 9 : at + 5 : -1]))
    return at


def _samples_size(data: bytes) -> _Size | None:
    """Return the size field of a chunked file's samples or frames."""
    if data[:4] == b".snd":
        return _Size(8, 4, "big", int.from_bytes(data[4:8], "big"))
    if not (layout := _LAYOUTS.get(data[:4])):
        return None
    at = layout.first
    while (content := (field := at + layout.name_bytes) + layout.size_bytes) <= len(data):
        name, begins = data[at : at + 4], at if data[:4] == b"riff" else content  # Wave64 counts name and size, too
        size = _Size(field, layout.size_bytes, layout.order, begins, content - begins)
        if name in (b"data", b"SSND") or (name == b"LIST" and data[content : content + 4] == b"movi"):
            in_ds64 = data[:4] in (b"RF64", b"BW64")  # the first chunk
            return _Size(28, 8, "little", content) if in_ds64 else size
        at = max(content, begins + size.declared(data))
        at += -at % layout.align
    return None


def _end(data: bytes) -> int:
    """Return the declared end of a Matroska, Ogg or ASF file; 0 if it declares none."""
    if data.startswith(_MATROSKA):
        header, size = _ebml_size(data, len(_MATROSKA))
        at = header + size
        if data[at : at + 4] != _SEGMENT:
            return 0
        at, size = _ebml_size(data, at + 4)
        return at + size
    if data.startswith(b"OggS"):
        return ogg_page_end(data, data.rfind(b"OggS"))
    if data.startswith(_ASF) and (at := data.find(_ASF_PROPERTIES)) >= 0:
        return int.from_bytes(data[at + 40 : at + 48], "little")
    return 0


def _ebml_size(data: bytes, at: int) -> tuple[int, int]:
    """Return the end of Matroska's variable-length integer, and its value; 0 if the size is not known."""
    length = 9 - data[at].bit_length() if at < len(data) else 1
    most = (1 << 7 * length) - 1
    value = int.from_bytes(data[at : at + length], "big") & most
    return at + length, 0 if value == most else value
