"""What must not leave the house is replaced; what only looks like it stays."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.client.redaction import redact


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Write to ada.l+news@mail.example.org, please", "Write to [e-mail], please"),
        ("My card is 4111 1111 1111 1111.", "My card is [card]."),
        ("pay DE89 3704 0044 0532 0130 00 today", "pay [IBAN] today"),
        ("Call +44 20 7946 0958 or (030) 901820.", "Call [telephone] or [telephone]."),
        ("from 192.168.0.12 on", "from [address] on"),
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
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert redact(text) == text


@given(st.text(max_size=80))
def test_doing_it_twice_changes_nothing(text: str) -> None:
    assert redact(redact(text)) == redact(text)
