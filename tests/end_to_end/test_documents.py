"""README and docs do what they say: their blocks run as they stand, their links lead somewhere."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.documents import DOCUMENTS, ROOT, Reader, blocks
from workers import settings
from workers.training.compressing import compress_recipe
from workers.training.recipes import recipe_file

_LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)#?([^)\s]*)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    reader = Reader(tmp_path)
    yield reader
    reader.stop()


@pytest.mark.timeout(600)
def test_the_readme_can_be_followed(reader: Reader, pulled_models: object) -> None:
    """A newcomer's first ten minutes: pull, up, ten lines of Python, the command; the answers make sense."""
    reader.follow(ROOT / "README.md")
    said = "\n".join(reader.said)
    assert "'label': 'positive'" in said
    assert re.search(r"^0 topic succeeded \[.*'business'", said, re.MULTILINE)
    assert re.search(r"^1 topic succeeded \[.*'sport'", said, re.MULTILINE)
    assert "1536 bytes of float32" in said
    with (reader.folder / "results.csv").open(encoding="utf-8", newline="") as file:
        found = {(row["key"], row["task"]): row for row in csv.DictReader(file)}
    assert {state for row in found.values() for state in [row["state"]]} == {"succeeded"}
    assert "positive" in found["a1", "sentiment"]["output"]
    assert "negative" in found["a2", "sentiment"]["output"]
    assert re.search(r"^0 .*mood.*'negative'.*about: \[.*'sport'", said, re.MULTILINE)
    assert "about: skipped: 'mood' gave nothing for it" in said
    reader.follow(ROOT / "docs" / "steps.md")
    assert re.search(r"^0 vector succeeded", reader.said[-1], re.MULTILINE)
    assert re.search(r"^1 vector skipped 'mood' gave nothing for it", reader.said[-1], re.MULTILINE)
    reader.follow(ROOT / "docs" / "explanations.md")
    why = "\n".join(reader.said)
    assert re.search(r"^negative 0\.9", why, re.MULTILINE)
    assert re.search(r"^\+\d\.\d\d  waste", why, re.MULTILINE)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_model_of_ones_own_runs_as_described(reader: Reader) -> None:
    """docs/models.md, followed to the letter, ends with two answers of the reader's own class, and with new weights
    for it.
    """
    reader.follow(ROOT / "docs" / "models.md")
    *_, answers, reloaded = reader.said
    assert "'label': 'easy'" in answers.splitlines()[0]
    assert "'label': 'hard'" in answers.splitlines()[1]
    assert re.search("worker.*: weights-2@|argosy-cpu.*: weights-2@", reloaded)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_page_on_a_model_of_ones_own_runs_as_described(reader: Reader) -> None:
    """docs/own-model.md ends with the numbers of a regressor, and with JSON that the client has checked."""
    reader.follow(ROOT / "docs" / "own-model.md")
    checks, answers = reader.said
    assert checks.count("the same answers alone and together") == 2
    assert answers.splitlines() == [
        "{'price': 277.0, 'rent': 2.0}",
        "{'total': 22.5, 'items': 2}",
        "input.prices[0]: must be number, not string",
    ]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_screening_recipe_ends_with_reasons(reader: Reader) -> None:
    """Trained, served and asked as described: five biopsies, each with a label, a probability and what spoke for it."""
    reader.follow(ROOT / "docs" / "recipes" / "screening.md")
    answers = reader.said[-1].splitlines()
    assert len(answers) == 5
    assert all(re.match(r"(benign|malignant) [01]\.\d{3} \((benign|malignant)\): \w+ [+-]\d", line) for line in answers)
    assert sum(line.split()[0] == line.split("(")[1].split(")")[0] for line in answers) >= 4


def test_a_celery_application_tests_itself_with_the_stub(tmp_path: Path) -> None:
    """It needs no fleet, no broker and none of our code."""
    (stub,) = [block.text for block in blocks(ROOT / "docs" / "operations" / "celery.md") if block.file == "stub.py"]
    ran = subprocess.run([sys.executable, "-c", stub], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout == "['positive']\n"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_two_commands_exist() -> None:
    """Those the README names; that they do their work is what they are there to show."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"^make ([\w-]+)", text, re.MULTILINE)
    assert targets == ["demo", "test"]
    subprocess.run(["make", "--dry-run", *targets], cwd=ROOT, capture_output=True, check=True)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document: Path) -> None:
    """Files move; a reader of the documents is the last to be told."""
    broken = []
    for file, place in _LINK.findall(document.read_text(encoding="utf-8")):
        page = document.parent / file if file else document
        if not page.exists() or (place and page.suffix == ".md" and place not in _places(page)):
            broken.append(f"{file}#{place}")
    assert broken == []


def _places(page: Path) -> set[str]:
    """Return the places in a page that a link may name, as GitHub makes them of headings."""
    headings = _HEADING.findall(page.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_all_toml_shown_is_valid(document: Path, tmp_path: Path) -> None:
    """Settings are checked with names and types, so an example cannot outlive the setting that it shows."""
    readers = {"[data]": recipe_file.load, "[[steps]]": compress_recipe.from_file}
    for number, block in enumerate(block for block in blocks(document) if block.language == "toml"):
        path = tmp_path / f"{number}.toml"
        path.write_text(block.text, encoding="utf-8")
        read = next((read for table, read in readers.items() if table in block.text), settings.load)
        read(path)
