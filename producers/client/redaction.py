"""Replacement of addresses and numbers with a recognisable form, before anything is sent.

`redact` replaces them in a text. `redacted` replaces them in the input of an item, by the policy ``[limits] redact`` of
a ``fleet.toml``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from string import ascii_uppercase, digits
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

#: The numbers of signs in ISO 13616.
_NUMBERS = {sign: int(sign, 36) for sign in f"{digits}{ascii_uppercase}"}


def _card_end(found: str) -> int:
    """Return where the longest number with Luhn's check digit ends that begins here, or 0.

    It ends between groups of digits. A tenth of all numbers pass by chance.
    """
    end = count = once = twice = 0  # the two sums count the last digit once, and doubled
    for place, sign in enumerate(found, start=1):
        if sign in " -":
            continue
        digit = int(sign)
        once, twice = twice + digit, once + digit * 2 - 9 * (digit > 4)
        count += 1
        if once % 10 == 0 and count >= 13 and (place == len(found) or found[place] in " -"):
            end = place
    return end


def _account_end(found: str) -> int:
    """Return where the longest account with the check digits of ISO 13616 ends that begins here, or 0.

    It ends between groups. The shortest accounts, Norway's, have 15 signs.
    """
    head = int("".join(str(int(sign, 36)) for sign in found[:4]))
    end = rest = 0
    count = 4
    for place, sign in enumerate(found[4:], start=5):
        if sign == " ":
            continue
        number = _NUMBERS[sign]
        rest = (rest * (10 if number < 10 else 100) + number) % 97
        count += 1
        if count >= 15 and (place == len(found) or found[place] == " ") and (rest * 1_000_000 + head) % 97 == 1:
            end = place
    return end


@dataclass(frozen=True, slots=True)
class _Form:
    """A pattern to search for, and the word that replaces each match.

    With `end_of`, a match is replaced up to the end that it returns. If that is 0, the search goes on within the match:
    other words and digits may be before a number.
    """

    pattern: re.Pattern[str]
    word: str
    end_of: Callable[[str], int] | None = None

    def replaced(self, text: str) -> str:
        if self.end_of is None:
            return self.pattern.sub(f"[{self.word}]", text)
        parts: list[str] = []
        kept = at = 0
        while found := self.pattern.search(text, at):
            start = found.start()
            if length := self.end_of(found[0]):
                parts += (text[kept:start], f"[{self.word}]")
                kept = at = start + length
            else:
                at = start + 1
        return "".join((*parts, text[kept:]))


#: In this order: the digits of a card may contain a telephone number. A match with an end of its own is short, so that
#: a text takes time by its length though the search goes on within a match.
_FORMS: Mapping[Redactable, _Form] = {
    # it begins where no such character is before: a long text without any would be read anew from each of them
    "email": _Form(re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "e-mail"),
    "iban": _Form(re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b"), "IBAN", _account_end),
    "card": _Form(re.compile(r"(?<!\w)(?<!\d\.)\d(?:[ -]?\d){12,18}(?!\w)"), "card", _card_end),
    "ip": _Form(re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\w|\.\d)"), "address"),
    "phone": _Form(re.compile(r"(?<![\w-])(?<!\d[. ])(?:\+|00|0|\()\d[\d ()/-]{6,16}\d(?!\w)"), "telephone"),
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
