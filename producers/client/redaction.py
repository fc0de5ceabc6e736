"""Replacement of addresses and numbers with a recognisable form, before anything is sent.

`redact` replaces them in a text. `redacted` replaces them in the input of an item, by the policy ``[limits] redact`` of
a ``fleet.toml``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, assert_never

from msgspec.structs import replace

from producers.wire.forms import Redactable
from producers.wire.messages import (
    BlobInput,
    DerivedInput,
    InlineBytes,
    Input,
    JsonInput,
    MessagesInput,
    PathInput,
    QuestionInput,
    RowInput,
    SeedInput,
    SentencesInput,
    SeriesInput,
    TextAndImageInput,
    UrlInput,
)


def _is_card(number: str) -> bool:
    """Return whether Luhn's check digit is right: a tenth of all numbers pass by chance."""
    digits = [int(digit) for digit in number if digit.isdigit()][::-1]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_account(account: str) -> bool:
    """Return whether the two check digits of ISO 13616 are right."""
    plain = account.replace(" ", "")
    moved = plain[4:] + plain[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


@dataclass(frozen=True, slots=True)
class _Form:
    """A pattern to search for, and the word that replaces each `valid` match."""

    pattern: re.Pattern[str]
    word: str
    valid: Callable[[str], bool] = lambda _: True

    def replaced(self, text: str) -> str:
        return self.pattern.sub(lambda found: f"[{self.word}]" if self.valid(found[0]) else found[0], text)


#: In this order: the digits of a card may contain a telephone number.
_FORMS: Mapping[Redactable, _Form] = {
    # it begins where no such character is before: a long text without any would be read anew from each of them
    "email": _Form(re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "e-mail"),
    "iban": _Form(re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), "IBAN", _is_account),
    "card": _Form(re.compile(r"(?<![\w.])\d(?:[ -]?\d){12,18}(?!\w)"), "card", _is_card),
    "ip": _Form(re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])"), "address"),
    "phone": _Form(re.compile(r"(?<![\w.,-])(?<!\d )(?:\+|00|0|\()\d[\d ()/-]{6,16}\d(?!\w)"), "telephone"),
}


def redact(text: str, names: Collection[Redactable] = tuple(_FORMS)) -> str:
    """Return a text with its addresses and numbers replaced, each by a word such as ``[e-mail]``.

    The forms are e-mail addresses, bank accounts (IBAN), card numbers, IP addresses and telephone numbers; `names`
    chooses some of them. Names and streets have no recognisable form, and stay.
    """
    for name, form in _FORMS.items():
        if name in names:
            text = form.replaced(text)
    return text


def redacted(value: Input, names: Collection[Redactable]) -> Input:
    """Return an input with its texts redacted. Files, URLs of files, numbers and column names stay as they are."""
    changed = partial(redact, names=names)
    match value:
        case str():
            value = changed(value)
        case QuestionInput():
            value = QuestionInput(changed(value.question), changed(value.context))
        case SentencesInput():
            value = SentencesInput(changed(value.source_sentence), tuple(map(changed, value.sentences)))
        case MessagesInput():
            value = MessagesInput(
                tuple(replace(message, content=changed(message.content)) for message in value.messages)
            )
        case RowInput():
            cells = value.values.items()
            value = RowInput({name: changed(cell) if isinstance(cell, str) else cell for name, cell in cells})
        case JsonInput():
            value = JsonInput(_in_json(value.value, changed))
        case TextAndImageInput():
            value = replace(value, text=changed(value.text))
        case InlineBytes() | PathInput() | UrlInput() | BlobInput() | SeriesInput() | SeedInput() | DerivedInput():
            pass
        case _:
            assert_never(value)
    return value


def _in_json(value: Any, changed: Callable[[str], str]) -> Any:
    """Return JSON with its texts changed. The names of fields stay."""
    if isinstance(value, str):
        return changed(value)
    if isinstance(value, dict):
        return {name: _in_json(own, changed) for name, own in value.items()}
    if isinstance(value, list):
        return [_in_json(own, changed) for own in value]
    return value
