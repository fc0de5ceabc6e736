"""Documents before anything is sent: cut into passages that can be found again, and answers' sentences beside them."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from producers import InvalidInput
from producers.documents import Document, cite, passages, read_documents
from producers.documents.index_file import Contents, write
from producers.documents.passages import PIECES, _size

GUIDE = """# Returns

You may return goods within 30 days. The receipt is needed! "No receipt?" Ask Mr. Lee.

## Delivery
Parcels take 3.5 days. Is it late? Write to us:
- by mail
- by phone
"""


def cut(text: str, pieces: int = PIECES) -> list[str]:
    return [passage.text for passage in passages(Document("guide.md", text), pieces=pieces)]


def test_passages_are_whole_sentences_and_headings_begin_new_ones() -> None:
    found = cut(GUIDE)
    assert len(found) == 2
    assert found[0].startswith("# Returns")
    assert found[1].startswith("## Delivery")
    assert cut(GUIDE, 12)[:3] == [
        "# Returns\n\nYou may return goods within 30 days.",
        'The receipt is needed! "No receipt?"',
        "Ask Mr. Lee.",
    ]


def test_a_figure_is_no_end_and_an_item_of_a_list_is() -> None:
    assert "## Delivery\nParcels take 3.5 days." in cut(GUIDE, 10)
    assert cut(GUIDE, 5)[-2:] == ["- by mail", "- by phone"]


def test_text_without_spaces_is_cut_all_the_same() -> None:
    """Of other scripts each character counts, and no passage is over the limit."""
    assert cut("東京は日本の首都です。大阪も大きい。", 12) == ["東京は日本の首都です。", "大阪も大きい。"]
    assert [len(part) for part in cut("字" * 25, 10)] == [10, 10, 5]
    assert cut("x" * 95, 4) == ["x" * 40, "x" * 40, "x" * 15]


@given(st.text(alphabet=st.sampled_from('ab .!?\n#-1)字"é\t'), max_size=200), st.integers(1, 30))
def test_a_passage_is_where_it_says_and_nothing_is_left_out(text: str, pieces: int) -> None:
    """In order, apart, within the limit; what is between them is space."""
    end, kept = 0, ""
    for passage in passages(Document("d", text), pieces=pieces):
        assert end <= passage.start < passage.end
        assert passage.text == text[passage.start : passage.end] == passage.text.strip()
        assert 1 <= _size(passage.text) <= pieces
        end, kept = passage.end, kept + passage.text
    assert "".join(kept.split()) == "".join(text.split())


# --- files ---


@pytest.mark.parametrize(
    ("text", "problem"),
    [("null", "is null, a missing text"), ('["a"]', "must be text, not list")],
)
def test_a_row_without_a_text_is_no_document(tmp_path: Path, text: str, problem: str) -> None:
    """An index of the word None would answer with it."""
    table = tmp_path / "faq.jsonl"
    table.write_text(f'{{"id": "q1", "text": "{"word " * 30_000}"}}\n{{"id": "q2", "text": {text}}}\n')
    documents = read_documents([table])
    assert next(documents).name == "q1"
    with pytest.raises(InvalidInput, match=rf"faq\.jsonl:2: {problem}"):
        next(documents)


def test_documents_are_files_folders_and_rows(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("Second.", encoding="utf-8")
    (tmp_path / "a.txt").write_text("First.", encoding="utf-8")
    (tmp_path / "picture.png").write_bytes(b"\x89")
    table = tmp_path / "faq.csv"
    table.write_text("id,text\nq1,Third.\nq2,\n,Fourth.\n", encoding="utf-8")
    found = list(read_documents([tmp_path, table]))
    assert [(one.name, one.text) for one in found][:3] == [
        ("a.txt", "First."),
        ("deep/b.md", "Second."),
        ("q1", "Third."),
    ]
    assert "faq.csv" in found[3].name


@pytest.mark.parametrize(
    ("name", "problem"), [("none.txt", "cannot be read"), ("latin.txt", "not UTF-8 text"), ("empty", "has no file")]
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match=problem) as raised:
        list(read_documents([tmp_path / name]))
    assert name in str(raised.value)


def test_an_index_is_a_safetensors_file(tmp_path: Path) -> None:
    """Any reader of the format has the same numbers; the one before stays until the new one is whole."""
    texts, vectors = [b'{"text":"one"}', b'{"text":"two more"}', b"{}"], np.arange(9, dtype="<f4")
    (tmp_path / "texts").write_bytes(b"".join(texts))
    (tmp_path / "vectors").write_bytes(vectors.tobytes())
    bounds = array("q", [0, 14, 33, 35])
    file = write(Contents(tmp_path / "texts", bounds, tmp_path / "vectors", 3, "model==1", "abc"), tmp_path / "index")
    with safe_open(file, framework="numpy") as opened:
        assert opened.metadata() == {"format": "argosy-index/1", "encoder": "model==1", "edition": "abc"}
        np.testing.assert_array_equal(opened.get_tensor("vectors"), vectors.reshape(3, 3))
        np.testing.assert_array_equal(opened.get_tensor("bounds"), list(bounds))
        assert json.loads(opened.get_tensor("passages")[14:33].tobytes()) == {"text": "two more"}
    assert [path.name for path in file.parent.iterdir()] == [file.name]


# --- citing ---


def test_sentences_name_the_passage_that_has_their_words_and_figures() -> None:
    """A figure that no passage has is nobody's, however alike the words are."""
    known = [
        {"text": "Goods may be returned within 30 days of delivery."},
        {"text": "Delivery takes three working days."},
    ]
    found = cite("You can return goods within 30 days. Delivery takes three days. Return goods within 14 days!", known)
    assert [(one.passage, one.sentence) for one in found] == [
        (1, "You can return goods within 30 days."),
        (2, "Delivery takes three days."),
        (None, "Return goods within 14 days!"),
    ]
    assert cite("Within 30 days.", known)[0].passage == 1
    assert str(found[0]) == "You can return goods within 30 days. [1]"
    assert str(found[2]).endswith("[not in the documents]")
    assert cite("Anything at all.", [])[0].passage is None
