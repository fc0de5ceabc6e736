"""Rows come from any place and format alike: several files, patterns, URLs, standard input; Parquet and Arrow."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow.csv import write_csv

from producers.client.request import NewItem, Request
from producers.commands import submit as submit_module
from producers.joining import check_columns
from producers.sources import Source, arrow, places
from producers.sources.formats import FORMATS
from producers.sources.unique import Unique
from producers.wire.catalogue import Catalogue, Limits
from producers.wire.errors import InvalidInput


def items(where: Any, modality: str = "text", **options: Any) -> list[tuple[str | None, object]]:
    """Return what was read as (key, input), and of what could not be read the message."""
    rows = Source(where, modality, **options).rows()
    return [(row.key, row.input) if isinstance(row, NewItem) else (None, str(row)) for row in rows]


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder in fsspec's memory, where an object store's client would have a bucket."""
    yield "memory://bucket"
    fs = fsspec.filesystem("memory")
    fs.rm("/bucket", recursive=True)


def put(url: str, content: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(content)


TABLE = pa.table({"id": ["a", "b", "c"], "text": ["one", "two", None], "n": [1, 2, 3]})


def test_several_files_are_one_source_in_their_order(tmp_path: Path) -> None:
    """Without ids, a line's number alone would name two rows."""
    (tmp_path / "b.txt").write_text("three\n")
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    found = items([tmp_path / "b.txt", tmp_path / "a.txt"])
    assert [key.rpartition("/")[2] for key, _ in found if key] == ["b.txt:1", "a.txt:1", "a.txt:2"]
    assert [value for _, value in items(f"{tmp_path}/*.txt")] == ["one", "two", "three"]
    with pytest.raises(InvalidInput, match="matches no file; check the pattern, and quote it"):
        items(f"{tmp_path}/*.csv")


def test_a_file_whose_name_is_no_utf_8_is_read(tmp_path: Path) -> None:
    """What an old camera or archive has called it; its path cannot be sent."""
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"one")
    assert items(tmp_path, "image") == [("caf\ufffd.png", b"one")]
    assert items(f"{tmp_path}/*.png", "image") == [("caf\ufffd.png", b"one")]
    (row,) = Source(tmp_path, "image", send_paths=True).rows()
    with pytest.raises(InvalidInput, match="cannot be sent"):
        Request.check(Catalogue.builtin(), "image-classification", priority="bulk").item(0, row, field="input")


@pytest.mark.parametrize(
    ("where", "name", "expected"),
    [
        ("data/*.jsonl", "data/errors.jsonl", True),
        ("{here}/data/*.jsonl", "data/errors.jsonl", True),
        ("file://{here}/data/*.jsonl", "data/errors.jsonl", True),
        ("data/*.jsonl", "{here}/link/errors.jsonl", True),
        ("d*/a.jsonl", "data/a.jsonl", True),
        ("**/*.jsonl", "data/deep/errors.jsonl", True),
        ("**/*.jsonl", "errors.jsonl", True),
        ("data/**", "data/deep/errors.csv", True),
        ("data/[ab].jsonl", "data/c.jsonl", False),
        ("data/*.jsonl", "data/deep/errors.jsonl", False),
        ("data/*.jsonl", "data/.errors.jsonl", False),
        ("data/*.jsonl", "data/errors.csv", False),
        ("data/*.jsonl", "none/errors.jsonl", False),
        ("data/a.jsonl", "data/b.jsonl", False),
    ],
)
def test_a_file_that_a_pattern_would_match_belongs_to_the_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, name: str, expected: bool
) -> None:
    """A list of errors that became a source would list its own lines without end."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "a.jsonl").touch()
    assert Source(where.format(here=tmp_path), "text").reads(name.format(here=tmp_path)) is expected


@pytest.mark.parametrize("damage", ["cut off", "changed", "not packed"])
def test_a_packed_file_that_is_damaged_is_named(tmp_path: Path, damage: str) -> None:
    """Its last rows must not be missing without a word: click takes an EOFError for Ctrl-D, and ends."""
    whole = gzip.compress(b"".join(b"text number %d\n" % number for number in range(20_000)))
    damaged = {"cut off": whole[:-30], "changed": whole[:5000] + bytes(100) + whole[5100:], "not packed": b"plain"}
    (tmp_path / "a.txt.gz").write_bytes(damaged[damage])
    with pytest.raises(
        InvalidInput, match=r"a\.txt\.gz: cannot be unpacked: .*; check that it is a complete compressed file"
    ):
        items(tmp_path / "a.txt.gz")


def test_a_packed_file_is_unpacked(tmp_path: Path) -> None:
    """Most exports are."""
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"id": "x", "text": "one"}\n'))
    assert items(tmp_path / "a.jsonl.gz") == [("x", "one")]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.arrows"])
def test_tables_of_arrow_are_read_by_their_columns(tmp_path: Path, name: str) -> None:
    """Parquet, an Arrow file, an Arrow stream."""
    write(tmp_path / name)
    assert items(tmp_path / name) == [("a", "one"), ("b", "two"), ("c", None)]
    assert items(tmp_path / name, input_column="n", key_column="text")[0] == ("one", 1)
    with pytest.raises(InvalidInput, match=r"has no column 'said'; columns here: id, text, n"):
        items(tmp_path / name, input_column="said")


def write(path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(TABLE, path)
        return
    opened = pa.ipc.new_file if path.suffix == ".arrow" else pa.ipc.new_stream
    with opened(path, TABLE.schema) as writer:
        writer.write_table(TABLE)


def test_several_inputs_make_one_object(tmp_path: Path) -> None:
    """A question and its context stand in two columns."""
    (tmp_path / "a.csv").write_text("q,c,n\nwho?,me,1\n")
    assert items(tmp_path / "a.csv", input_column=("q", "c")) == [("2", {"q": "who?", "c": "me"})]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_table_that_breaks_off_says_so(tmp_path: Path, name: str) -> None:
    """A copy that was stopped: the rows behind it are not there to be skipped."""
    write(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match=r"cannot be read.*; check that the file is complete"):
        items(tmp_path / name)


def test_a_big_row_group_is_read_in_portions(tmp_path: Path) -> None:
    """Others write a million rows in one group; memory must not hold them."""
    rows = 200_000
    pq.write_table(
        pa.table({"text": [f"text number {n}, of some length" for n in range(rows)]}), tmp_path / "a.parquet"
    )
    before = pa.total_allocated_bytes()
    most = count = 0
    for count, _ in enumerate(Source(tmp_path / "a.parquet", "text").rows(), 1):
        if count % 10_000 == 0:
            most = max(most, pa.total_allocated_bytes() - before)
    assert count == rows
    assert most < 4 * arrow.BUFFER_BYTES


def test_nanoseconds_survive(tmp_path: Path) -> None:
    """Python has no word for them, and pandas writes them everywhere."""
    times = pa.array([1_700_000_000_123_456_789], pa.timestamp("ns"))
    pq.write_table(pa.table({"text": ["a"], "at": times, "day": [date(2026, 1, 2)]}), tmp_path / "a.parquet")
    (record,) = Source(tmp_path / "a.parquet", "text").records()
    assert record.columns["at"].column.equals(times)


def test_urls_are_read_through_fsspec(memory: str) -> None:
    """One file, and a pattern."""
    put(f"{memory}/a.csv", b"id,text\nx,one\n")
    put(f"{memory}/b.csv", b"id,text\ny,two\n")
    assert items(f"{memory}/a.csv") == [("x", "one")]
    assert items(f"{memory}/*.csv") == [("x", "one"), ("y", "two")]
    put(f"{memory}/p[1].csv", b"id,text\nz,three\n")
    assert items(f"{memory}/p[1].csv") == [("z", "three")]  # as it stands, before it is a pattern
    with pytest.raises(InvalidInput, match="does not exist; check the URL"):
        items(f"{memory}/none.csv")
    with pytest.raises(InvalidInput, match=r"cannot be opened: .*; check the scheme"):
        items("nowhere://a.csv")


class Expired(Exception):
    """As aiohttp's errors are of no common class."""


@pytest.mark.parametrize("good", [0, 8, 600])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.parquet", "a.arrow"])
def test_an_error_of_any_class_while_a_url_is_read_names_the_file_and_no_secret(
    memory: str, monkeypatch: pytest.MonkeyPatch, name: str, good: int
) -> None:
    """A signed URL may expire at any byte."""
    made, rows = io.BytesIO(), pa.table({"id": range(1000), "text": [str(n**9) for n in range(1000)]})
    if name == "a.arrow":
        with pa.ipc.new_stream(made, rows.schema) as writer:
            writer.write_table(rows)
    elif name == "a.parquet":
        pq.write_table(rows, made)
    else:
        write_csv(rows, made)
    content = gzip.compress(made.getvalue()) if name.endswith(".gz") else made.getvalue()

    class Expiring(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            if self.tell() >= good:
                raise Expired("403, message='Forbidden', url='https://h/a?sig=SECRET'")
            return super().readinto(memoryview(buffer)[:good])

    url = f"{memory}/{name}"
    put(url, content)
    monkeypatch.setattr(type(fsspec.filesystem("memory")), "open", lambda *_: Expiring(content))
    with pytest.raises(InvalidInput, match=rf"{url}: cannot be .*: 403, message='Forbidden', url='https://h/a'"):
        items(url)


def test_images_and_clips_come_from_folders_and_tables_elsewhere(memory: str, tmp_path: Path) -> None:
    """A path in a table is meant from where the table lies."""
    put(f"{memory}/cat.jpg", b"cat")
    put(f"{memory}/deep/dog.wav", b"dog")
    put(f"{memory}/a.csv", b"path\ncat.jpg\nnone.jpg\n")
    assert items(memory, "image") == [("cat.jpg", b"cat")]
    assert items(memory, "audio") == [("deep/dog.wav", b"dog")]
    cat, none = items(f"{memory}/a.csv", "image")
    assert cat == ("2", b"cat")
    assert "a.csv:3: none.jpg cannot be read" in str(none[1])
    (tmp_path / "b.csv").write_text(f"image\n{memory}/cat.jpg\n")
    assert items(tmp_path / "b.csv", "image") == [("2", b"cat")]


def test_a_table_elsewhere_may_name_urls(memory: str) -> None:
    """A URL in a table is meant as it stands, wherever the table lies."""
    put(f"{memory}/other/cat.jpg", b"cat")
    put(f"{memory}/tables/a.csv", f"path\n{memory}/other/cat.jpg\n".encode())
    assert items(f"{memory}/tables/a.csv", "image") == [("2", b"cat")]


def test_media_within_a_table_are_sent_as_they_are(tmp_path: Path) -> None:
    """As Hugging Face's data sets hold them."""
    pq.write_table(pa.table({"image": [{"bytes": b"cat", "path": "cat.jpg"}]}), tmp_path / "a.parquet")
    assert items(tmp_path / "a.parquet", "image") == [("1", b"cat")]


def piped(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_standard_input_is_read_in_the_format_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of text unless something else is said."""
    piped(monkeypatch, b"one\ntwo\n")
    assert items("-") == [("1", "one"), ("2", "two")]
    piped(monkeypatch, b'{"text": "one"}\n')
    assert items("-", format="jsonl") == [("1", "one")]
    written = io.BytesIO()
    pq.write_table(TABLE, written)
    piped(monkeypatch, written.getvalue())
    assert items("-", format="parquet")[0] == ("a", "one")


def test_standard_input_is_read_again_from_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """To join results to rows that nobody has any more."""
    piped(monkeypatch, b"one\ntwo\n")
    source = Source("-", "text", reread=True)
    first = [record.value for record in source.records()]
    assert first == [record.value for record in source.records()] == ["one", "two"]


def test_an_id_that_comes_twice_is_found_and_named(tmp_path: Path) -> None:
    """Only if the ids were asked for: a column that happens to be called so may well repeat."""
    (tmp_path / "a.csv").write_text("id,text\nx,one\ny,two\nx,three\n")
    assert [key for key, _ in items(tmp_path / "a.csv")] == ["x", "y", "x"]
    *_, (_, message) = items(tmp_path / "a.csv", key_column="id")
    assert str(message).removeprefix(f"{tmp_path}/").startswith("a.csv:4: has the id 'x', which ")
    assert "a.csv:2 already has; give each row an id of its own" in str(message)


def test_any_key_can_be_remembered() -> None:
    """Also half a character, which JSON can spell."""
    unique = Unique()
    assert unique.first("\ud800", "a:1") is None
    assert unique.first("\ud800", "a:2") == "a:1"
    unique.close()


def test_a_fingerprint_changes_with_the_files_and_with_how_they_are_read(tmp_path: Path, memory: str) -> None:
    """It says whether a submission is the same one, run again."""
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    first = Source(path, "text").fingerprint()
    assert first == Source(path, "text").fingerprint()
    assert first != Source(path, "text", input_column="b").fingerprint()
    path.write_text("three\n")
    assert first != Source(path, "text").fingerprint()
    put(f"{memory}/a.txt", b"one\n")
    elsewhere = Source(f"{memory}/a.txt", "text").fingerprint()
    put(f"{memory}/a.txt", b"three\n")
    assert elsewhere != Source(f"{memory}/a.txt", "text").fingerprint()
    assert Source("-", "text").fingerprint() is None
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"a")
    photos = Source(tmp_path / "photos", "image").fingerprint()
    (tmp_path / "photos" / "b.png").write_bytes(b"b")
    assert photos != Source(tmp_path / "photos", "image").fingerprint()


def test_how_much_was_read_is_known(tmp_path: Path) -> None:
    """For the estimate of when it will be over."""
    (tmp_path / "a.txt").write_text("one\ntwo\n")
    pq.write_table(TABLE, tmp_path / "b.parquet")
    source = Source([tmp_path / "a.txt", tmp_path / "b.parquet"], "text")
    assert source.share_read is None
    assert [source.share_read for _ in source.rows()] == [0.25, 0.5, *(pytest.approx(0.5 + n / 6) for n in (1, 2, 3))]


PACKERS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda b: pa.compress(b, "zstd", asbytes=True),
}


@pytest.mark.parametrize("packed", PACKERS)
def test_a_packed_file_is_known_by_its_first_bytes(tmp_path: Path, packed: str) -> None:
    """Also where its name does not say so: a server unpacks some names, and a browser others."""
    content = PACKERS[packed](b"id,text\nx,one\n")
    for name in (f"a.csv.{packed}", "a.csv"):
        (tmp_path / name).write_bytes(content)
        assert items(tmp_path / name) == [("x", "one")]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('[{"id": "x", "text": "one"}, "two"]', [("x", "one"), ("2", "two")]),
        ('{"id": "x", "text": "one"}\n"two"\n', [("x", "one"), ("2", "two")]),
    ],
)
def test_json_is_a_list_or_lines(tmp_path: Path, content: str, expected: list[tuple[str, str]]) -> None:
    """Databases write both with this suffix."""
    (tmp_path / "a.json").write_text(content)
    assert items(tmp_path / "a.json") == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'{\n"text": "one"\n}', "a.json:1: is neither a JSON list nor JSON Lines"),
        ("a.xlsx", b"PK\x03\x04...", "is a zip archive or a spreadsheet; unpack it, or save the sheet as CSV"),
        ("a.csv", b"PK\x03\x04...", "is a zip archive or a spreadsheet"),
        ("a.tar.gz", gzip.compress(bytes(257) + b"ustar" + bytes(250), mtime=0), "is a tar archive; unpack it"),
        ("a.pdf", b"%PDF-1.7 ...", "is a PDF document; extract its text"),
        ("a.txt", b"one\0two", "is not text"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the file itself"),
        ("a.dat", b"one\n", "has the unknown suffix .dat; name its format with --format: text, json,"),
    ],
)
def test_a_file_without_rows_is_refused_by_name(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """Its bytes would be computed as texts."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        items(tmp_path / name)
    assert message in str(caught.value)


def test_tables_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "download")
    assert items(tmp_path / "download")[0] == ("a", "one")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a", "score": NaN}', "has NaN, which is not JSON; write null"),
        ('{"text": "a", "score": -Infinity}', "has -Infinity, which is not JSON"),
        ('{"text": "a", "note": "\\ud83d"}', "has half of a surrogate pair"),
        ('{"text": "a", "tree": ' + "[" * 5000 + "]" * 5000 + "}", "is JSON nested too deeply"),
    ],
)
def test_json_that_is_none_costs_its_row(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(f'{line}\n{{"text": "b"}}\n')
    bad, good = items(tmp_path / "a.jsonl")
    assert message in str(bad[1])
    assert good == ("2", "b")


def test_a_first_line_that_may_be_a_row_is_told(tmp_path: Path) -> None:
    """A table without a header loses its first row; only its owner knows. Usual names are beyond doubt."""
    (tmp_path / "a.csv").write_text("a fine film\na dull film\n")
    (tmp_path / "b.csv").write_text("review\na dull film\n")
    (tmp_path / "c.csv").write_text("tweet\na dull film\n")
    found = {}
    for name, column in (("a.csv", None), ("b.csv", None), ("c.csv", "tweet")):
        source = Source(tmp_path / name, "text", input_column=column)
        assert [row.input for row in source.rows() if isinstance(row, NewItem)] == ["a dull film"]
        found[name] = list(source.headers.values())
    assert found == {"a.csv": ["a fine film"], "b.csv": [], "c.csv": []}


def test_a_signature_in_a_url_is_in_no_name() -> None:
    """Names stand in the page, in keys and in errors."""
    url = "https://user:password@example.org/a/r.csv.gz?X-Amz-Signature=SECRET#x"
    assert places.without_query(url) == "https://example.org/a/r.csv.gz"
    file = places.RemoteFile(None, url, places.without_query(url))  # type: ignore[arg-type]
    assert file.suffix == ".csv"
    assert Source(url, "text").name == "https://example.org/a/r.csv.gz"


def test_hidden_files_are_passed_over_and_others_are_told(tmp_path: Path) -> None:
    """A phone and a Mac fill a folder with more than pictures."""
    for name in ("a.jfif", "._a.jpg", ".thumbnails/a.jpg", "__MACOSX/a.jpg", "b.heic", "c.heic", "notes"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    source = Source(tmp_path, "image")
    assert [row.key for row in source.rows() if isinstance(row, NewItem)] == ["a.jfif"]
    assert source.left_out == {".heic": 2, "no suffix": 1}


def test_a_row_that_names_no_file_costs_itself(tmp_path: Path) -> None:
    """A device is endless, and a server may be away."""
    (tmp_path / "good.jpg").write_bytes(b"cat")
    (tmp_path / "a.csv").write_text("image\n/dev/zero\nftp://127.0.0.1:1/x.jpg\ngood.jpg\n")
    device, server, good = items(tmp_path / "a.csv", "image")
    assert "/dev/zero is not a file" in str(device[1])
    assert "ftp://127.0.0.1:1/x.jpg cannot be opened" in str(server[1])
    assert good == ("4", b"cat")


def test_a_packed_picture_is_measured_unpacked(tmp_path: Path) -> None:
    (tmp_path / "a.png.gz").write_bytes(gzip.compress(bytes(1_000_000)))
    ((_, error),) = items(tmp_path / "a.png.gz", "image", limits=Limits(max_input_bytes=10_000))
    assert "over 10,000" in str(error)


def test_a_pipe_is_read_again_from_a_copy(tmp_path: Path) -> None:
    """`<(zcat a.gz)` is a pipe, and a join reads the source twice."""
    reading, writing = os.pipe()
    os.write(writing, b"id,text\nx,one\n")
    os.close(writing)
    source = Source(f"/dev/fd/{reading}", "text", format="csv", reread=True)
    assert [[record.key for record in source.records()] for _ in range(2)] == [["x"], ["x"]]
    os.close(reading)


def test_a_text_that_is_not_utf_8_costs_its_row(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(b"\0\0\0\0\x02\0\0\0\x04\0\0\0"), pa.py_buffer(b"ok\xc3\x28"))
    pq.write_table(pa.table({"text": ["one", "two"], "note": broken}), tmp_path / "a.parquet")
    first, second = items(tmp_path / "a.parquet")
    assert first == ("1", "one")
    assert "a.parquet:2: is not UTF-8 in the column 'note'" in str(second[1])


def test_files_of_different_types_are_refused_before_the_job(tmp_path: Path) -> None:
    """A join would find it after all was computed."""
    pq.write_table(pa.table({"text": ["a"], "n": ["x"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a"], "n": pa.array(["x"]).dictionary_encode()}), tmp_path / "b.parquet")
    check_columns(Source(f"{tmp_path}/*.parquet", "text"), tmp_path / "out.parquet")
    pq.write_table(pa.table({"text": ["a"], "n": pa.array([1], pa.timestamp("us"))}), tmp_path / "c.parquet")
    with pytest.raises(
        InvalidInput, match=r"c\.parquet: does not fit the files before it: .* give each column one type"
    ):
        check_columns(Source(f"{tmp_path}/*.parquet", "text"), tmp_path / "out.parquet")


def test_the_command_knows_all_formats() -> None:
    """It lists them without importing their readers."""
    assert sorted(submit_module.FORMATS) == sorted(FORMATS)
