"""The recipes do what they say: their blocks run as they stand, and what comes out is what they promise."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.documents import ROOT, Reader

RECIPES = ROOT / "docs" / "recipes"


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """Somebody in a copy of `examples`."""
    shutil.copytree(ROOT / "examples" / "handbook", tmp_path / "handbook")
    reader = Reader(tmp_path)
    yield reader
    reader.stop()


@pytest.mark.long
@pytest.mark.timeout(600)
def test_documents_answer_serve_and_articles_are_recommended(
    reader: Reader, pulled_models: object, pulled_chat: object
) -> None:
    """One fleet for three recipes."""
    reader.follow(RECIPES / "answers.md")
    assert re.search(r"index\.safetensors: \d+ passages of 10 documents", reader.said[-2])
    answers = reader.said[-1]
    assert re.search(r"shipping take\?\n  \[1\] delivery\.md, characters \d+ to \d+: .*3 working days", answers)
    assert re.search(r"gift card valid\?\n  \[1\] payment\.md, characters \d+ to \d+: .*3 years", answers)
    assert len(re.findall(r"in other words: .*\[(?:\d|not in the documents)\]\n", answers)) == 2
    assert answers.endswith("Who wrote Hamlet?\n  no answer: 'passages' gave nothing for it\n")

    reader.follow(RECIPES / "service.md")
    turns = reader.said[-1].split("> ")[1:]
    assert turns[0].startswith("How much does delivery cost?  [delivery and shipping, ")
    assert re.search(r"delivery\.md: .*4\.90 euros", turns[0])
    assert "delivery.md" in turns[1]
    known = [int(count) for count in re.findall(r"(\d+) of \d+ tokens were known", reader.said[-1])]
    assert known[1] > 60, "the turn before is read once"
    assert ", negative]" in turns[2]
    assert "warranty.md" in turns[2]
    assert turns[3].endswith("I do not know that. A colleague will call you.\n")

    reader.follow(RECIPES / "recommendation.md")
    found = re.search(r"of their topic: ([\d.]+)%; chosen at random: ([\d.]+)%", reader.said[-1])
    assert found is not None
    assert float(found[1]) > 2 * float(found[2])


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_threshold_by_cost_is_the_cheapest(reader: Reader) -> None:
    """On pages that were held out; and every decision has its reasons."""
    reader.follow(RECIPES / "risk.md")
    said = reader.said[-1]
    costs = {
        name: int(euros.replace(",", ""))
        for name, euros in re.findall(r"^([a-z ]+): ([\d,]+) euros$", said, re.MULTILINE)
    }
    assert costs["by cost"] == min(costs.values())
    assert len(re.findall(r"^[01]\.\d{3} \((?:phishing|honest)\): \w+ [+-]\d", said, re.MULTILINE)) == 3
