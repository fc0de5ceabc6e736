"""Files that people brought: each gives its rows, an error for each row that cannot be read, or is refused by name.

The inputs of `tests/data/files` once gave wrong rows, or lost some, in silence.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from base64 import b64encode
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.sources import Source, places
from producers.wire.errors import InvalidInput
from tests.unit.test_source_places import PACKERS, items
from tests.unit.test_sources import pairs, read

BROUGHT = Path(__file__).parents[1] / "data" / "files"


def lz4(content: bytes) -> bytes:
    made = pa.BufferOutputStream()
    with pa.CompressedOutputStream(made, "lz4") as packing:
        packing.write(content)
    return bytes(made.getvalue())


PACKED = {**PACKERS, "lz4": lz4}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("not-utf8.csv", ["not-utf8.csv:3: is not UTF-8 (byte 0xe9 at place 4)", ("2", "ok")]),
        ("quote.csv", ["quote.csv:2: is not CSV: ',' expected after '\"'; lines up to 3 may", ("2", "ok")]),
        ("merged.tsv", [("1", '"one'), ("2", "fine film"), ("3", 'two"'), ("4", "last")]),
        ("plan.tsv", [("1", '"Stop, she said'), ("2", "fine film"), ("3", 'the "best" of all"'), ("4", "last")]),
        ("pipe.csv", [("1", "a fine film")]),
        ("semicolon.csv", [("1", "a fine film"), ("2", "a film, dull")]),
        ("sep.csv", [("1", "a fine film")]),
        ("good.csv blank.csv", [("1", "a"), ("2", "b"), ("3", "c")]),
        ("blank.csv", [("2", "b"), ("3", "c")]),
        ("nan.jsonl", ["nan.jsonl:1: has NaN, which is not JSON; write null", ("2", "b")]),
        ("crlf.csv", [("1", "one\r\ntwo")]),
        ("surrogate.jsonl", ["surrogate.jsonl:1: has half of a surrogate pair", ("2", "ok")]),
        ("nohead.csv", [("2", "a dull film")]),
    ],
)
def test_files_as_they_were_brought(names: str, expected: list[Any]) -> None:
    rows = items([BROUGHT / name for name in names.split()])
    assert len(rows) == len(expected)
    for row, wanted in zip(rows, expected, strict=True):
        if isinstance(wanted, str):
            assert str(row[1]).removeprefix(f"{BROUGHT}/").startswith(wanted)
        else:
            assert row == wanted


@pytest.mark.parametrize(
    ("name", "modality", "message"),
    [
        ("cr.csv", "text", "cr.csv:1: has line ends of CR alone; convert the file: tr"),
        ("cr.txt", "text", "cr.txt:1: has line ends of CR alone; convert the file: tr"),
    ],
)
def test_files_that_are_refused(name: str, modality: str, message: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        items(BROUGHT / name, modality)
    assert str(caught.value).removeprefix(f"{BROUGHT}/").startswith(message)


def test_a_device_is_not_read() -> None:
    ((_, error),) = items(BROUGHT / "dev.jsonl", "image")
    assert "dev.jsonl:1: /dev/zero is not a file; check the path" in str(error)


# --- tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *(("a.csv", f"id{sign}text\n1{sign}one\n", f"'id{sign}text', which looks like several") for sign in ":~^"),
        ("a.tsv", "id,text\n1,one\n", "has a single column, 'id,text', which looks like several; put the line 'sep=,'"),
        ("a.csv", "# made today\nid,text\n1,one\n", "has a single column, '# made today', which looks like a comment"),
        ("a.csv", "id\n1\n", "does not say which column is the input; name it with --input-column: id"),
        ("a.csv", "<!DOCTYPE html>\n<html>\n", "is an HTML page; check the address"),
        ("a.txt", "\n <HTML><body>Sign in</body></HTML>\n", "is an HTML page"),
        ("a.csv", "<?xml version='1.0'?>\n<Error/>\n", "is an XML document; convert it"),
        ("a.csv", "{\\rtf1\\ansi}\n", "is a document in RTF; save it as plain text"),
        ("a.csv", "id,text\n1,one\n".encode("utf-16-le"), "is UTF-16LE; convert the file: iconv -f UTF-16LE -t UTF-8"),
        ("a.txt", "one\n".encode("utf-16-be"), "is UTF-16BE; convert the file"),
        ("a.parquet", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer, not the file itself"),
        ("a.arrow", "<html></html>", "is an HTML page"),
        ("a.feather", b"FEA1" + bytes(40), "is a Feather file of version 1; write it again"),
        (
            "a.csv.gz",
            gzip.compress(gzip.compress(b"text\none\n", mtime=0), mtime=0),
            "is compressed twice; unpack it once",
        ),
        ("a.jsonl", '\n{\n "text": "one"\n}\n', "a.jsonl:2: is neither a JSON list nor JSON Lines; write each item"),
        *((name, '{"text": "one"}\n', "looks like JSON, not like plain text; add") for name in ("a", "a.txt", "a.log")),
        ("a.txt", '\ufeff[\n {"text": "one"}\n]\n', "looks like JSON, not like plain text"),
        ("part-0", "id,text\n1,one\n", "looks like a table with the columns id, text, not like plain text; add"),
        (
            "a.txt",
            '"id"\t"text"\n1\tone\n',
            "columns id, text, not like plain text; add --format tsv, or --format text",
        ),
        ("a.json", '[{"text": "one"},', "is not JSON: Input data was truncated; check that the list is complete"),
        ("a.json", '[{"text": "one", "text": "two"}]', "has an object with the field 'text' twice"),
        (
            "a.json",
            b'[{"text": "caf\xe9"}]',
            "a.json:1: is not UTF-8 (byte 0xe9 at place 15); convert the file, e.g. iconv",
        ),
        ("a.jsonl", b'["caf\xe9",\n"two"]', "a.jsonl:1: is not UTF-8 (byte 0xe9 at place 6); convert the file"),
    ],
)
def test_neighbours_that_are_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    """Not a line of them is a text."""
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path / name, content)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", '"sep=;"\nid;text\n1;one\n', [("1", "one")]),
        ("a.csv", "sep=:\nid:text\n1:one\n", [("1", "one")]),
        ("a.csv", "\ufeff\ufeffid,text\n1,one\n", [("1", "one")]),
        ("a.csv", "id,text\n1,NA\n2,null\n3,nan\n4,007\n", [("1", "NA"), ("2", "null"), ("3", "nan"), ("4", "007")]),
        ("a.csv", "id,text\n9007199254740993,one\n", [("9007199254740993", "one")]),
        ("a.tsv", 'id\ttext\n1\t""\n2\ttwo\n', [("1", ""), ("2", "two")]),
        ("a.jsonl", '[\n{"text": "one"},\n{"text": "two"}\n]\n', [("1", "one"), ("2", "two")]),
        ("a.jsonl", '[{"text": "one"}]\n', [("1", "one")]),
        ("a.json", " " * 100 + '["one"]', [("1", "one")]),
        ("a.jsonl", '{"id": {"$oid": "5f"}, "text": "one"}\n', [("1", "one")]),
        ("a.jsonl", '{"text": "\\"x\\": 1, \\"x\\": 2", "x": ": x"}\n', [("1", '"x": 1, "x": 2')]),
        (
            "a.txt",
            "{braces}\n[Music]\ntext, or content\n",
            [("1", "{braces}"), ("2", "[Music]"), ("3", "text, or content")],
        ),
    ],
)
def test_neighbours_that_are_read(tmp_path: Path, name: str, content: str, expected: list[Any]) -> None:
    assert pairs(read(tmp_path / name, content)) == expected


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.csv", "id,text\n1,a\nid,text\n2,b\n", "a.csv:3: is the header again, as in joined files"),
        ("a.csv", "id,text\n1,a\n\ufeffid,text\n2,b\n", "a.csv:3: is the header again, as in joined files"),
        ("a.csv", "id,text\n1,a\n5,x\r6,y\n2,b\n", "a.csv:3: has a line end of CR alone, and may be several rows"),
        ("a.tsv", 'text\na\n"one\ntwo"\nb\n', "a.tsv:3: may be one quoted cell up to line 4, or a row per line"),
        ("a.jsonl", '{"text": "a"}\n{"text": "x", "text": "y"}\n"b"', "a.jsonl:2: has an object with the field 'text'"),
        *(
            ("a.jsonl", f'{{"text": "a"}}\n{line}\n"b"', "a.jsonl:2: has an object with the field 'x' twice")
            for line in (
                '{"text": "t", "m": {"x": 1, "x": 2}}',
                '{"text": "t", "m": [{"x": 1, "x": 2}]}',
                '{"text"  : "t", "m": {"x": 1, "x": 2}}',
                '{"text": "t", "x": 1, "\\u0078": 2}',
            )
        ),
        ("a.jsonl", '{"text": "a"}\n{"error": "timeout"}\n"b"', "a.jsonl:2: does not say which column is the input"),
        ("a.jsonl", '{"text": "a"}\n{"id": "x"}\n"b"', "a.jsonl:2: does not say which column is the input"),
        ("a.jsonl", '{"text": "a"}\n["x"]\n"b"', "a.jsonl:2: is list; each line must be an object or a string"),
    ],
)
def test_neighbours_that_cost_a_row(tmp_path: Path, name: str, content: str, error: str) -> None:
    (_, first), (_, bad), (_, last) = pairs(read(tmp_path / name, content))
    assert (first, last) == ("a", "b")
    assert str(bad).removeprefix(f"{tmp_path}/").startswith(error)


def test_a_line_that_is_a_list_and_no_utf_8_costs_itself(tmp_path: Path) -> None:
    (_, bad), last = pairs(read(tmp_path / "a.jsonl", b'["caf\xe9"]\n{"text": "b"}\n'))
    assert "a.jsonl:1: is not UTF-8 (byte 0xe9 at place 6)" in str(bad)
    assert last == ("2", "b")


def test_a_row_without_the_id_that_was_asked_for_costs_itself(tmp_path: Path) -> None:
    """The number of its line could be the id of another row."""
    found = pairs(read(tmp_path / "a.csv", "sku,text\n,one\n2,two\n", key_column="sku"))
    assert "a.csv:2: has no id in the column 'sku'; give each row an id" in str(found[0][1])
    assert found[1] == ("2", "two")


def test_an_object_is_no_id(tmp_path: Path) -> None:
    ((_, error),) = pairs(read(tmp_path / "a.jsonl", '{"_id": {"$oid": "5f"}, "text": "one"}\n', key_column="_id"))
    assert "a.jsonl:1: has an object or a list in the column '_id'; give each row an id" in str(error)


@pytest.mark.parametrize("type_", [pa.binary(), pa.binary(3), pa.large_binary()])
def test_bytes_are_an_id_if_they_are_a_text(tmp_path: Path, type_: Any) -> None:
    ids = pa.array([b"A17", b"\xff17"], type_)
    pq.write_table(pa.table({"id": ids, "text": ["one", "two"]}), tmp_path / "a.parquet")
    assert items(tmp_path / "a.parquet") == [("A17", "one"), ("2", "two")]
    first, (_, error) = items(tmp_path / "a.parquet", key_column="id")
    assert first == ("A17", "one")
    assert "a.parquet:2: has bytes that are not UTF-8 in the column 'id'; give each row an id" in str(error)


@pytest.mark.parametrize("content", ['{"text": "one"}\n', "id,text\n1,one\n"])
def test_what_looks_like_no_text_is_read_as_told(tmp_path: Path, content: str) -> None:
    assert [text for _, text in pairs(read(tmp_path / "a.txt", content, format="text"))] == content.splitlines()


def test_a_column_that_comes_twice_is_refused(tmp_path: Path) -> None:
    """The last one would be read, and the other lost."""
    pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=r"a\.parquet: names the column 'text' twice; give each column"):
        items(tmp_path / "a.parquet")


def test_a_damaged_page_of_parquet_is_named(tmp_path: Path) -> None:
    """As far as its writer has added checksums."""
    path = tmp_path / "a.parquet"
    table, options = pa.table({"text": ["seven"]}), {"use_dictionary": False, "write_statistics": False}
    pq.write_table(table, path, compression="none", write_page_checksum=True, **options)
    path.write_bytes(path.read_bytes().replace(b"seven", b"eight"))
    with pytest.raises(InvalidInput, match="CRC checksum"):
        items(path)


def test_an_id_in_an_unknown_time_zone_is_an_id(tmp_path: Path) -> None:
    times = pa.array([1], pa.timestamp("us", "Mars/Phobos"))
    pq.write_table(pa.table({"id": times, "text": ["a"]}), tmp_path / "a.parquet")
    assert items(tmp_path / "a.parquet") == [("1970-01-01 00:00:00.000001Z", "a")]


# --- compressed files ---------------------------------------------------------------------------------

LINES = b"".join(b"text number %d\n" % number for number in range(300))


@settings(max_examples=40)
@given(st.sampled_from(sorted(PACKED)), st.integers(0, len(LINES)), st.integers(1, 60), st.booleans())
def test_no_row_of_a_compressed_file_is_lost(packed: str, split: int, away: int, damaged: bool) -> None:
    """Of one stream or several; if the end is missing, the file is refused, and if it is damaged, as far as it shows."""
    pack = PACKED[packed]
    last = pack(LINES[split:])
    content = pack(LINES[:split]) + last
    away = min(away, len(last) - 1)  # without all of it, the file is a whole one
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"a.txt.{packed}")
        path.write_bytes(content)
        whole = items(path)
        assert len(whole) == 300
        path.write_bytes(content[:-away])
        with pytest.raises(InvalidInput, match="cannot be unpacked"):
            items(path)
        if damaged and packed in ("bz2", "gz", "xz"):  # checksums of the others are rare
            path.write_bytes(content[:-away] + b"\xaa" * away)
            with suppress(InvalidInput):  # the last bits of bzip2 mean nothing
                assert items(path) == whole


# --- places and media ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("ftp://u:SECRET@h/x.csv", "ftp://h/x.csv"),
        ("s3://key:SECRET@bucket/x.csv?y", "s3://bucket/x.csv?y"),
        ("abfs://container@account/x.csv", "abfs://container@account/x.csv"),
        ("HTTPS://u:SECRET@h/x.csv?sig=SECRET", "https://h/x.csv"),
        ("webhdfs://h/x.csv?delegation=SECRET", "webhdfs://h/x.csv"),
        ("zip://a.csv::https://h/x.zip?sig=SECRET", "zip://a.csv::https://h/x.zip"),
        ("simplecache::ftp://u:SECRET@h/x.csv", "simplecache::ftp://h/x.csv"),
        ("http://[::1]:8000/x.csv?sig=SECRET", "http://[::1]:8000/x.csv"),
        ("s3://key:SEC/RET@bucket/x.csv", "s3://bucket/x.csv"),
        ("https://u:SEC#R@ET@h/x.csv?sig=SECRET", "https://h/x.csv"),
        ("http://h:80/a@b.csv?mail=SECRET@x", "http://h:80/a@b.csv"),
        ("s3://bucket/a:b@c.csv", "s3://bucket/a:b@c.csv"),
        ("c::d/a.csv", "c::d/a.csv"),
    ],
)
def test_no_secret_of_a_url_is_told(url: str, name: str) -> None:
    assert places.without_query(url) == name
    assert places.told(ValueError(f"403, url='{url}'")) == f"403, url='{name}'"


def test_a_pointer_to_a_picture_is_told(tmp_path: Path) -> None:
    """A folder that was cloned without Git LFS is full of them."""
    (tmp_path / "a.png").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    ((_, error),) = items(tmp_path, "image")
    assert str(error) == "a.png: a.png is a Git LFS pointer, not the file itself; fetch it: git lfs pull"


def test_an_error_of_a_row_holds_no_secret(tmp_path: Path) -> None:
    ((_, error),) = pairs(read(tmp_path / "a.csv", "image\nftp://u:SECRET@127.0.0.1:1/x.jpg\n", "image"))
    assert "ftp://127.0.0.1:1/x.jpg cannot be opened" in str(error)
    assert "SECRET" not in str(error)


def test_everything_in_a_folder_is_an_item_or_told(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.jpg").write_bytes(b"cat")
    (tmp_path / "folder" / "up").symlink_to(tmp_path / "folder")
    (tmp_path / "folder" / "b.jpg").symlink_to("nowhere")
    (tmp_path / "folder" / "c.jpg").symlink_to("c.jpg")
    os.mkfifo(tmp_path / "folder" / "d.jpg")
    source = Source(tmp_path / "folder", "image")
    found = pairs(list(source.rows()))
    assert found[0] == ("a.jpg", b"cat")
    assert [str(error).partition(";")[0] for _, error in found[1:]] == [
        "b.jpg: b.jpg cannot be read: No such file or directory",
        "c.jpg: c.jpg cannot be read: Too many levels of symbolic links",
        "d.jpg: d.jpg is not a file",
    ]
    assert source.left_out == {"link to a folder": 1}
    assert source.fingerprint() == Source(tmp_path / "folder", "image").fingerprint()


def test_everything_that_a_pattern_matches_is_read_or_told(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\none\n")
    (tmp_path / "b.csv").mkdir()
    (tmp_path / "b.csv" / "c.csv").write_text("text\ntwo\n")
    os.mkfifo(tmp_path / "d.csv")
    source = Source(f"{tmp_path}/*.csv", "text")
    assert pairs(list(source.rows())) == [("2", "one")]
    assert source.left_out == {"folder": 1, "no file": 1}
    (tmp_path / "b.csv" / "e.csv").symlink_to("nowhere")
    with pytest.raises(InvalidInput, match=r"e\.csv: cannot be read: No such file or directory"):
        items(f"{tmp_path}/b.csv/*")


def test_a_folder_of_other_files_says_which(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(InvalidInput, match=r"has nothing in it to submit; the task does not read .*: \.heic 1"):
        items(tmp_path, "image")


@pytest.mark.parametrize(
    ("last", "problem"),
    [
        (b"PK\x03\x04", "is a zip archive"),
        (b"x,y\n1,2\n", "does not say which column is the input"),
        ("text\none\n".encode("utf-16"), "is UTF-16"),
        (b"text\rone\rtwo\r", "has line ends of CR alone"),
        (gzip.compress(b"text\none\n", mtime=0)[:-9], "cannot be unpacked"),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_refused_before_the_first_row(
    tmp_path: Path, last: bytes, problem: str
) -> None:
    """Else the rows of the files before it would be submitted."""
    (tmp_path / "a.csv").write_text("text\none\n")
    (tmp_path / "b.csv").write_bytes(last)
    with pytest.raises(InvalidInput, match=problem):
        next(Source(f"{tmp_path}/*.csv", "text").rows())


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (f"data:image/png;base64,{b64encode(b'cat').decode()}", b"cat"),
        ("DATA:image/png;name=x;BASE64,Y2F0", b"cat"),
        ("data:image/svg+xml,%3Csvg/%3E", b"<svg/>"),
        ({"bytes": "Y2F0", "path": "cat.png"}, b"cat"),
        ("data:image/png;base64,!!!!", "data:image/png;base64,!!!! is not base64: "),
        ({"bytes": "Y2F", "path": None}, "bytes is not base64: Incorrect padding; write all of it"),
        ("x" * 5000, f"{'x' * 200}... cannot be read: File name too long"),
    ],
)
def test_media_that_a_row_holds_as_text(tmp_path: Path, image: Any, expected: bytes | str) -> None:
    """As data URLs, or as a joined file holds the bytes of its source."""
    ((key, found),) = pairs(read(tmp_path / "a.jsonl", json.dumps({"image": image}), "image"))
    if isinstance(expected, bytes):
        assert (key, found) == ("1", expected)
    else:
        assert str(found).removeprefix(f"{tmp_path}/a.jsonl:1: ").startswith(expected)
