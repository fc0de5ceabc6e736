"""Transcriptions in OpenAI's shapes: which times a form needs, and what stands for those that a model does not tell."""

from __future__ import annotations

import json

import pytest

from producers.gateway.openai.transcriptions import Format, Granularity, segments_of, shown, subtitles, timestamps


@pytest.mark.parametrize(
    ("form", "granularities", "expected"),
    [
        ("json", [], [False]),
        ("text", ["word"], [False]),
        ("srt", ["word"], [True]),
        ("verbose_json", [], [True]),
        ("verbose_json", ["word"], ["word"]),
        ("verbose_json", ["word", "segment", "word"], [True, "word"]),
    ],
)
def test_each_sort_of_times_is_an_item_of_its_own(
    form: Format, granularities: list[Granularity], expected: list[bool | str]
) -> None:
    assert timestamps(form, granularities) == expected


def test_a_time_that_the_model_did_not_tell_is_its_neighbours() -> None:
    """A recording that breaks off amid a word has no end; subtitles need one."""
    times = [[0.0, 1.5], [None, None], [2.5, None], [4.0, 5.0], [6.0, None]]
    chunks = [{"text": f" {n}", "timestamp": own} for n, own in enumerate(times)]
    found = segments_of({"text": "", "chunks": chunks})
    assert [(one["start"], one["end"]) for one in found] == [(0.0, 1.5), (1.5, 2.5), (2.5, 4.0), (4.0, 5.0), (6.0, 6.0)]
    assert "00:00:02,500 --> 00:00:04,000" in subtitles(found, "srt")


def test_the_verbose_form_has_what_was_asked_for() -> None:
    words = [{"word": "yes", "start": 0.5, "end": 1.25}]
    assert json.loads(bytes(shown({"text": "yes", "words": words, "duration": 1.5}, "verbose_json").body)) == {
        "task": "transcribe",
        "language": "unknown",
        "duration": 1.5,
        "text": "yes",
        "usage": {"type": "duration", "seconds": 1.5},
        "words": words,
    }
    nothing = {"text": "", "segments": [], "duration": 0, "language": "en"}
    assert json.loads(bytes(shown(nothing, "verbose_json").body))["language"] == "en"
