"""What of a text should not leave the house: addresses and numbers that can be told by their form, replaced before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

#: By what they are replaced with, the longest first: a card's number has telephone numbers in it.
_FORMS: Mapping[str, str] = {
    "e-mail": r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "IBAN": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b",
    "card": r"(?<![\w.])\d(?:[ -]?\d){12,18}(?!\w)",
    "address": r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.])",
    "telephone": r"(?<![\w.,-])(?<!\d )(?:\+|00|0|\()\d[\d ()/-]{6,16}\d(?!\w)",
}


def redact(text: str) -> str:
    """Return a text with e-mail addresses, bank accounts (IBAN), card numbers, IP addresses and telephone numbers replaced by what they
    were: ``[e-mail]`` … Names and streets have no form of their own, and stay.
    """
    for name, form in _FORMS.items():
        text = re.sub(form, _replacing(name), text)
    return text


def _replacing(name: str) -> Callable[[re.Match[str]], str]:
    valid: Callable[[str], bool] = _CHECKS.get(name, lambda _: True)
    return lambda found: f"[{name}]" if valid(found[0]) else found[0]


def _is_card(number: str) -> bool:
    """Luhn's check digit: what passes it by chance is one number in ten."""
    digits = [int(digit) for digit in number if digit.isdigit()][::-1]
    doubled = [digit * 2 - 9 * (digit > 4) for digit in digits[1::2]]
    return (sum(digits[::2]) + sum(doubled)) % 10 == 0


def _is_account(account: str) -> bool:
    """The two check digits of ISO 13616."""
    plain = account.replace(" ", "")
    moved = plain[4:] + plain[:4]
    return int("".join(str(int(character, 36)) for character in moved)) % 97 == 1


_CHECKS: Mapping[str, Callable[[str], bool]] = {"card": _is_card, "IBAN": _is_account}
