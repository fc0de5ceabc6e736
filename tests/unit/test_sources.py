"""Files become items; what cannot be read names its file and line, and costs only itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from producers.client.request import NewItem
from producers.sources import Row, Source
from producers.wire.catalogue import Limits, Modality
from producers.wire.errors import InputTooLarge, InvalidInput
from producers.wire.messages import PathInput, UrlInput


def read(path: Path, content: bytes | str, modality: Modality = "text", **options: Any) -> list[Row]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(Source(path, modality, **options).rows())


def pairs(rows: list[Row]) -> list[tuple[str | None, object]]:
    """Return what was read as (key, input), and of what could not be read the message."""
    return [(row.key, row.input) if isinstance(row, NewItem) else (None, str(row)) for row in rows]


def test_plain_text_is_one_item_a_line(tmp_path: Path) -> None:
    """Blank lines are no items; the key is the line's number, to find it again."""
    assert pairs(read(tmp_path / "a.txt", "one\r\n\n  \ntwo")) == [("1", "one"), ("4", "two")]


def test_a_byte_order_mark_is_not_part_of_the_text(tmp_path: Path) -> None:
    """Spreadsheets on Windows write one."""
    assert pairs(read(tmp_path / "a.txt", b"\xef\xbb\xbfone\n")) == [("1", "one")]
    assert pairs(read(tmp_path / "a.csv", b"\xef\xbb\xbftext\none\n")) == [("2", "one")]


def test_jsonl_is_read_by_its_columns(tmp_path: Path) -> None:
    """The usual names are found by themselves; others are named."""
    lines = '{"id": 7, "text": "one", "stars": 5}\n"two"\n{"text": "three"}\n'
    assert pairs(read(tmp_path / "a.jsonl", lines)) == [("7", "one"), ("2", "two"), ("3", "three")]
    named = '{"sku": "x", "stars": 5, "said": "one"}\n'
    assert pairs(read(tmp_path / "b.jsonl", named, input_column="said", key_column="sku")) == [("x", "one")]


def test_csv_is_read_by_its_header(tmp_path: Path) -> None:
    """Quoted line ends and separators belong to the text."""
    table = 'id,text\na,"one, and\nmore"\n\nb,two\n'
    assert pairs(read(tmp_path / "a.csv", table)) == [("a", "one, and\nmore"), ("b", "two")]
    assert pairs(read(tmp_path / "a.tsv", "text\tn\none, two\t1\n")) == [("2", "one, two")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": \n{"text": "c"}\n', "a.jsonl:2: is not JSON: "),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "b", "x": "\\ud800"}\n{"text": "c"}\n',
            "a.jsonl:2: has half of a surrogate pair",
        ),
        (
            "a.jsonl",
            '{"text": "a"}\n[1]\n{"text": "c"}\n',
            "a.jsonl:2: is list; each line must be an object or a string",
        ),
        (
            "a.jsonl",
            '{"text": "a"}\n{"x": 1, "y": 2}\n{"text": "c"}\n',
            "a.jsonl:2: does not say which column is the input; name it with --input-column: x, y",
        ),
        ("a.txt", b"a\nna\xefve\nc\n", "a.txt:2: is not UTF-8 (byte 0xef at place 3); convert the file, e.g. iconv"),
        (
            "a.csv",
            b"text\na\nna\xefve\nc\n",
            "a.csv:3: is not UTF-8 (byte 0xef at place 3); convert the file, e.g. iconv",
        ),
        ("a.csv", "text,n\na,1\nb,and,2\nc,3\n", "a.csv:3: has 3 columns where the header has 2; quote cells"),
        ("a.csv", 'text\na\n"b"b\nc\n', "a.csv:3: is not CSV: "),
    ],
)
def test_a_bad_row_names_its_line_and_the_next_are_read(
    tmp_path: Path, name: str, content: bytes | str, message: str
) -> None:
    """Somebody has to find and mend that line; the rest of the file is not to blame."""
    first, bad, last = read(tmp_path / name, content)
    assert isinstance(first, NewItem)
    assert first.input == "a"
    assert isinstance(last, NewItem)
    assert last.input == "c"
    assert isinstance(bad, InvalidInput)
    assert str(bad).removeprefix(f"{tmp_path}/").startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", "", {}, "has nothing in it to submit; check that it is the right file"),
        ("a.csv", "text\n", {}, "has nothing in it to submit"),
        ("a.csv", "x,y\n1,2\n", {}, ":1: does not say which column is the input; name it with --input-column: x, y"),
        ("a.csv", "x,y\n1,2\n", {"input_column": "z"}, ":1: has no column 'z'; columns here: x, y"),
        ("a.csv", "text,y\n1,2\n", {"key_column": "z"}, ": has no column 'z'; columns here: text, y"),
        ("a.csv", b"\xff\xfet\x00e\x00", {}, ":1: no header can be read: "),
    ],
)
def test_a_file_that_is_wrong_as_a_whole_is_refused(
    tmp_path: Path, name: str, content: bytes | str, options: dict[str, str], message: str
) -> None:
    """No row of it could be right, so that skipping would only hide the mistake."""
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path / name, content, **options)
    assert message in str(caught.value)


def test_a_missing_file_and_a_folder_of_texts_are_refused(tmp_path: Path) -> None:
    """A message about a path, not one from deep inside."""
    with pytest.raises(InvalidInput, match="does not exist; check the path"):
        list(Source(tmp_path / "none.csv", "text").rows())
    with pytest.raises(InvalidInput, match="is a folder, but the task takes text input; name a file"):
        list(Source(tmp_path, "text").rows())


def test_utf_16_is_recognised(tmp_path: Path) -> None:
    """Windows calls it Unicode. Its other lines would be texts with zero bytes, so the whole file is refused."""
    for encoding in ("utf-16", "utf-32"):
        for name, line in (("a.txt", "one\n"), ("a.jsonl", '{"text": "one"}\n')):
            with pytest.raises(InvalidInput) as caught:
                read(tmp_path / name, (line * 3).encode(encoding))
            named = encoding.upper()
            assert str(caught.value).endswith(f"{name}:1: is {named}; convert the file: iconv -f {named} -t UTF-8")


def test_an_endless_line_is_put_aside_unread(tmp_path: Path) -> None:
    """A file without line ends must not fill the memory."""
    before, bad, after = read(tmp_path / "a.txt", f"one\n{'x' * 25}\ntwo\n", line_bytes=10)
    assert isinstance(bad, InputTooLarge)
    assert pairs([before, after]) == [("1", "one"), ("3", "two")]


def test_a_folder_gives_its_images_in_order(tmp_path: Path) -> None:
    """Bytes are sent, since a worker elsewhere cannot see the folder; other files are left alone."""
    (tmp_path / "sub").mkdir()
    for name in ("b.JPG", "a.png", "notes.txt", "sub/c.webp"):
        (tmp_path / name).write_bytes(name.encode())
    assert pairs(list(Source(tmp_path, "image").rows())) == [
        ("a.png", b"a.png"),
        ("b.JPG", b"b.JPG"),
        ("sub/c.webp", b"sub/c.webp"),
    ]
    sent = list(Source(tmp_path, "image", send_paths=True).rows())
    assert isinstance(sent[0], NewItem)
    assert sent[0].input == PathInput(str(tmp_path / "a.png"))


def test_one_image_is_a_source_too(tmp_path: Path) -> None:
    """`argosy submit cat.jpg` is the first thing to try."""
    assert pairs(read(tmp_path / "cat.jpg", b"bytes", "image")) == [("cat.jpg", b"bytes")]


def test_a_table_of_images_names_files_beside_it_or_urls(tmp_path: Path) -> None:
    """A path in a table is meant from where the table lies."""
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    rows = read(tmp_path / "a.csv", "image\ncat.jpg\nhttps://example.org/dog.jpg\nnone.jpg\n", "image")
    assert pairs(rows[:2]) == [("2", b"cat"), ("3", UrlInput("https://example.org/dog.jpg"))]
    assert isinstance(rows[2], InvalidInput)
    assert str(rows[2]).endswith("none.jpg cannot be read: No such file or directory; check the path")


def test_a_table_of_texts_with_images_reads_the_images(tmp_path: Path) -> None:
    """What is said stands in a column of its own, and the image's file beside the table."""
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    rows = read(tmp_path / "a.csv", "text,image\na cat,cat.jpg\na dog,none.jpg\n", "text-and-image")
    assert pairs(rows[:1]) == [("2", {"text": "a cat", "image": b"cat"})]
    assert isinstance(rows[1], InvalidInput)
    assert "none.jpg" in str(rows[1])
    (tmp_path / "a.jsonl").write_text('{"input": {"text": "a cat", "image": "cat.jpg"}}\n', encoding="utf-8")
    assert pairs(list(Source(tmp_path / "a.jsonl", "text-and-image").rows())) == [
        ("1", {"text": "a cat", "image": b"cat"})
    ]


def test_a_huge_image_is_seen_before_it_is_read(tmp_path: Path) -> None:
    """It may be a film of many gigabytes."""
    (row,) = read(tmp_path / "a.png", b"x" * 11, "image", limits=Limits(max_input_bytes=10))
    assert isinstance(row, InputTooLarge)
    assert "has 11 bytes, over 10" in str(row)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id,question,context\nq1,Who?,It was she.\n"),
        ("a.jsonl", '{"id": "q1", "question": "Who?", "context": "It was she."}\n'),
        ("a.jsonl", '{"id": "q1", "input": {"question": "Who?", "context": "It was she."}}\n'),
    ],
)
def test_an_input_of_several_parts_is_one_column_or_a_column_each(tmp_path: Path, name: str, content: str) -> None:
    """A question and its context, as data sets of questions have them."""
    (row,) = read(tmp_path / name, content, "question")
    assert isinstance(row, NewItem)
    assert (row.key, row.input) == ("q1", {"question": "Who?", "context": "It was she."})
