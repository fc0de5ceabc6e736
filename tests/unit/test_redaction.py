"""What must not leave the house is replaced; what only looks like it stays."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.client.redaction import redact, redacted
from producers.client.request import NewItem, Request
from producers.wire.catalogue import KINDS, Catalogue, Limits, Task
from producers.wire.errors import ConfigurationError, InputTooLarge
from producers.wire.forms import Redactable
from producers.wire.messages import (
    InlineBytes,
    Input,
    JsonInput,
    Message,
    MessagesInput,
    PathInput,
    QuestionInput,
    RowInput,
    SentencesInput,
    SeriesInput,
    TextAndImageInput,
    UrlInput,
)
from workers import settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to ada.l+news@mail.example.org, please", "Write to [e-mail], please"),
        ("My card is 4111 1111 1111 1111.", "My card is [card]."),
        ("pay DE89 3704 0044 0532 0130 00 today", "pay [IBAN] today"),
        ("Call +44 20 7946 0958 or (030) 901820.", "Call [telephone] or [telephone]."),
        ("from 192.168.0.12 on", "from [address] on"),
        ("to AT61 1904 3002 3457 3201 BIC BKAUATWW", "to [IBAN] BIC BKAUATWW"),
        ("BE68 5390 0754 7034 EUR 500", "[IBAN] EUR 500"),
        ("AB12 AT61 1904 3002 3457 3201, please", "AB12 [IBAN], please"),
        ("4111 1111 1111 1111 12/27", "[card] 12/27"),
        ("card 4111-1111-1111-1111 123", "card [card] 123"),
        ("2 4111 1111 1111 1111", "2 [card]"),
        ("Nr.4111111111111111", "Nr.[card]"),
        ("from 192.168.0.12.", "from [address]."),
        ("Ada,0301234567,Berlin", "Ada,[telephone],Berlin"),
        ("Tel.0301234567", "Tel.[telephone]"),
    ],
)
def test_what_has_a_form_is_replaced(text: str, expected: str) -> None:
    assert redact(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "Order 4111 1111 1111 1112 of 2026-11-22",  # the check digit is wrong
        "Invoice DE00 3704 0044 0532 0130 00",
        "It costs 1,234,567.89 euros, or 0.1234567890 a piece",
        "Ada Lovelace, Harbour Street 12",
        "version 1.2.3, at 10:30 on 2026-11-22",
        "version 1.2.3.4.5",
        "0.4111111111111111 and 1.0301234567",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize("part", ["a", "1", "a.", "a@", "a@a-", "a@a.", "0-", "1 ", "(", "AB12 ", " A1B2", "+1 "])
def test_any_text_takes_time_by_its_length(part: str) -> None:
    """The gateway redacts texts of strangers: one that is read anew from each place would take it for an hour."""
    redact(part * 300_000)


@given(st.text(max_size=80))
def test_doing_it_twice_changes_nothing(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize("name", get_args(Redactable))
def test_only_what_is_named_is_replaced(name: Redactable) -> None:
    """Each name alone replaces its own."""
    samples = {
        "email": "ada@example.org",
        "iban": "DE89 3704 0044 0532 0130 00",
        "card": "4111 1111 1111 1111",
        "ip": "192.168.0.12",
        "phone": "+44 20 7946 0958",
    }
    for other, text in samples.items():
        assert (redact(text, (name,)) != text) == (other == name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("from a@b.de", "from [e-mail]"),
        (QuestionInput("who is a@b.de?", "a@b.de is Ada"), QuestionInput("who is [e-mail]?", "[e-mail] is Ada")),
        (SentencesInput("a@b.de", ("a@b.de", "other")), SentencesInput("[e-mail]", ("[e-mail]", "other"))),
        (MessagesInput((Message("user", "I am a@b.de"),)), MessagesInput((Message("user", "I am [e-mail]"),))),
        (RowInput({"a@b.de": "a@b.de", "age": 4, "none": None}), RowInput({"a@b.de": "[e-mail]", "age": 4, "none": None})),
        (JsonInput({"a@b.de": ["a@b.de", 1, None]}), JsonInput({"a@b.de": ["[e-mail]", 1, None]})),
        (TextAndImageInput("a@b.de", InlineBytes(b"a@b.de")), TextAndImageInput("[e-mail]", InlineBytes(b"a@b.de"))),
        *((same, same) for same in (
            InlineBytes(b"a@b.de"), PathInput("/a@b.de"), UrlInput("https://a@b.de/x"), SeriesInput(((1.0,),), ("a@b.de",)),
        )),
    ],
)  # fmt: skip
def test_the_texts_of_every_form_of_input_are_redacted(value: Input, expected: Input) -> None:
    """What is no text, and what names a file or a column, stays as it is."""
    assert redacted(value, ("email",)) == expected


def _request(limits: Limits) -> Request:
    tasks = {"topic": Task("topic", KINDS["text-classification"], "text", "")}
    return Request.check(Catalogue(tasks, limits), "topic", priority="bulk")


def test_an_item_is_redacted_where_it_is_made() -> None:
    """Both clients make their items here. Key and parameters are the caller's own, and without the setting nothing
    is replaced.
    """
    given_ = NewItem("I am a@b.de", key="a@b.de", params={"explain": True, "explain_label": "a@b.de"})
    item = _request(Limits(redact=("email",))).item(0, given_, field="input")
    assert (item.input, item.key, item.params["topic"]["explain_label"]) == ("I am [e-mail]", "a@b.de", "a@b.de")
    assert _request(Limits()).item(0, given_, field="input").input == given_.input


def test_what_replaces_something_counts_towards_the_limit() -> None:
    """Told by the client, as the worker would refuse it."""
    request = _request(Limits(max_text_chars=6, redact=("email",)))
    with pytest.raises(InputTooLarge, match=r"inputs\[3\]: has 8 characters, over 6"):
        request.item(3, "a@b.de", field="inputs[3]")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('redact = ["email", "mail"]', r"limits.redact\[1\]: .*'mail'; one of email, iban, card, ip, phone"),
        ('redact = "email"', "limits.redact: Expected `array`"),
        ('redacts = ["email"]', "limits.redacts: no such setting; did you mean 'redact'"),
    ],
)
def test_a_name_that_is_none_is_refused_by_client_and_worker(table: str, message: str, tmp_path: Path) -> None:
    """Nobody may believe that something is replaced which is not."""
    file = tmp_path / "fleet.toml"
    file.write_text(f"[limits]\n{table}\n", encoding="utf-8")
    for read in (Catalogue.from_toml, settings.load):
        with pytest.raises(ConfigurationError, match=message):
            read(file)


def test_the_setting_reaches_whoever_submits(tmp_path: Path) -> None:
    """Clients that find the file, and those that are given a fleet's own tasks."""
    file = tmp_path / "fleet.toml"
    file.write_text('[limits]\nredact = ["card", "email"]\n', encoding="utf-8")
    assert Catalogue.from_toml(file).limits == settings.load(file).catalogue.limits == Limits(redact=("card", "email"))
