"""Transcriptions in OpenAI's shapes: which times a form needs, and what stands for those that a model does not tell."""

from __future__ import annotations

import json

import pytest
from openai.types.audio import TranscriptionVerbose

from producers.gateway.openai.transcriptions import Format, Granularity, segments_of, shown, subtitles, timestamps


@pytest.mark.parametrize(
    ("form", "granularities", "expected"),
    [
        ("json", [], [False]),
        ("text", ["word"], [False]),
        ("srt", ["word"], [True]),
        ("verbose_json", [], [True]),
        ("verbose_json", ["word"], ["word"]),
        ("verbose_json", ["word", "segment", "word"], ["word", True]),
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
    heard = {"text": "yes", "language": "english", "duration": 1.5, "words": words}
    assert json.loads(bytes(shown(heard, "verbose_json").body)) == {
        "task": "transcribe",
        "language": "english",
        "duration": 1.5,
        "text": "yes",
        "usage": {"type": "duration", "seconds": 1.5},
        "words": words,
    }


def test_a_segment_has_every_field_of_openais_schema() -> None:
    """Those of a model that tells no details are 0; a language that nobody told is unknown."""
    chunks = [{"text": " a", "timestamp": [0.0, 1.0], "tokens": [7], "avg_logprob": -0.5}]
    found = json.loads(
        bytes(shown({"text": "a", "duration": 2, "segments": segments_of({"chunks": chunks})}, "verbose_json").body)
    )
    TranscriptionVerbose.model_validate(found, strict=True)
    (segment,) = found["segments"]
    assert (found["language"], segment["tokens"], segment["avg_logprob"], segment["seek"]) == ("unknown", [7], -0.5, 0)
