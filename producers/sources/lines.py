"""Read a file's lines in constant memory."""

from __future__ import annotations

from collections.abc import Iterator

from producers.sources.file_reading import Reading
from producers.wire.errors import InputTooLarge, InvalidInput

#: The first bytes of a file in an encoding other than UTF-8.
BYTE_ORDER_MARKS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def lines(reading: Reading) -> Iterator[tuple[int, str | InvalidInput]]:
    """Yield each line's number, and its text without the line end or its error.

    Raises InvalidInput for a file in another encoding by its byte order mark, and for CR-only files.
    """
    for number, raw in physical_lines(reading):
        text = raw if isinstance(raw, InvalidInput) else decoded(raw, number, reading)
        if number == 1 and isinstance(raw, bytes) and _wide(raw) and isinstance(text, InvalidInput):
            raise text
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
    """Return a line's text, or its error if it is not UTF-8. The first line may begin with byte order marks."""
    wide = _wide(raw) if number == 1 else None
    if wide is not None:
        return reading.wrong(number, f"is {wide}", f"convert the file: iconv -f {wide} -t UTF-8")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8 (byte {raw[error.start]:#04x} at place {error.start + 1})"
        remedy = "convert the file, e.g. iconv -f WINDOWS-1252 -t UTF-8, with the encoding that it has"
        return reading.wrong(number, problem, remedy)
    return text.lstrip("\ufeff") if number == 1 else text


def _wide(raw: bytes) -> str | None:
    return next((encoding for mark, encoding in BYTE_ORDER_MARKS.items() if raw.startswith(mark)), None)


def _check_line_ends(first: bytes, reading: Reading) -> None:
    """Raise InvalidInput if the file's lines end in CR alone, as old spreadsheets write them."""
    if not first.endswith(b"\n") or first.count(b"\r") > 2:
        raise reading.wrong(1, "has line ends of CR alone", "convert the file: tr '\\r' '\\n'")
