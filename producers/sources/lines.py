"""Read a file's lines in constant memory."""

from __future__ import annotations

from collections.abc import Iterator

from producers.sources.file_reading import Reading
from producers.wire.errors import InputTooLarge, InvalidInput


def lines(reading: Reading) -> Iterator[tuple[int, str | InvalidInput]]:
    """Yield each line's number, and its text without the line end or its error."""
    for number, raw in physical_lines(reading):
        text = raw if isinstance(raw, InvalidInput) else decoded(raw, number, reading)
        yield number, text.rstrip("\r\n") if isinstance(text, str) else text


def physical_lines(reading: Reading) -> Iterator[tuple[int, bytes | InvalidInput]]:
    """Yield each line's number, and its bytes with the line end or its error. Raises InvalidInput for CR-only files."""
    number = 0
    most = reading.line_bytes
    while raw := reading.file.readline(most):
        number += 1
        if number == 1 and b"\r" in raw.rstrip(b"\r\n"):
            _check_line_ends(raw, reading)
        reading.meter.done += len(raw)
        if len(raw) == most and not raw.endswith(b"\n"):
            while (rest := reading.file.readline(most)) and not rest.endswith(b"\n"):
                pass
            where = f"{reading.name}:{number}"
            yield number, InputTooLarge(where, f"is longer than {most:,} bytes", "split the line")
            continue
        yield number, raw


def decoded(raw: bytes, number: int, reading: Reading) -> str | InvalidInput:
    """Return a line's text, or its error if it is not UTF-8. The first line may begin with a byte order mark."""
    if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return reading.wrong(number, "is UTF-16", "convert the file: iconv -f UTF-16 -t UTF-8")
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {raw[error.start]:#04x} at place {error.start + 1})"
        return reading.wrong(number, problem, "convert the file, e.g. iconv -f LATIN1 -t UTF-8")


def _check_line_ends(first: bytes, reading: Reading) -> None:
    """Raise InvalidInput if the file's lines end in CR alone, as old spreadsheets write them."""
    if not first.endswith(b"\n") or first.count(b"\r") > 2:
        raise reading.wrong(1, "has line ends of CR alone", "convert the file: tr '\\r' '\\n'")
