"""Numbers in what a model says: digits and words, in one canonical form."""

from __future__ import annotations

import re
from typing import Final

_SMALL: Final = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS: Final = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_WORTH: Final = {word: n for n, word in enumerate(_SMALL)} | {w: 20 + 10 * k for k, w in enumerate(_TENS)}
_DIGITS: Final = re.compile(r"(-?)((?<!\d)\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(\.\d+)?", re.ASCII)
_NOUGHT: Final = re.compile(r"\b(?:no|none|nought|nothing)\b", re.IGNORECASE)


def canonical_number(text: str) -> str | None:
    """Give the number that the whole text is (a unit sign in front or behind is left out), or `None`.

    One form for equal numbers: `1,000`, `1000.0`, `$1000` and `one thousand`'s digits `1000` are all `1000`.
    """
    bare = text.strip().replace("−", "-").strip("$€£%*. ")
    found = _DIGITS.fullmatch(bare)
    return _plain(*found.groups()) if found else None


def last_number(text: str, *, nought: bool = False) -> str | None:
    """Give the last number in a text, in canonical form.

    Numbers in digits count first; words (to nine hundred and ninety-nine) only where there are no digits, and
    with `nought`, "no" and "none" as `0` where there is neither. A dash is a sign only where nothing is taken
    away: `66 - 53`, `66-53` and `GPT-4` hold no negative number, `result: -4` does.
    """
    text = text.replace("−", "-")
    found = list(_DIGITS.finditer(text))
    if found:
        sign, digits, fraction = found[-1].groups()
        return _plain(sign if _is_sign(text[: found[-1].start()]) else "", digits, fraction)
    spoken = spoken_numbers(text)
    if spoken:
        return str(spoken[-1])
    return "0" if nought and _NOUGHT.search(text) else None


def spoken_numbers(text: str) -> list[int]:
    """Give the numbers that are written as words, such as "one hundred and twenty-three"."""
    numbers: list[int] = []
    room = 0  # numbers below this can still be added to the last one
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in _WORTH:
            worth = _WORTH[word]
            if 0 < worth < room:
                numbers[-1] += worth
            else:
                numbers.append(worth)
            room = 10 if worth >= 20 else 1
        elif word == "hundred" and room and numbers[-1] < 100:
            numbers[-1], room = 100 * numbers[-1], 100
        elif word != "and" or room < 100:
            room = 0
    return numbers


def _is_sign(before: str) -> bool:
    glued = before[-1:].isalpha()
    taken_from = before.rstrip()[-1:]
    return not glued and not taken_from.isdigit() and taken_from != ")"


def _plain(sign: str, digits: str, fraction: str | None) -> str:
    whole = digits.replace(",", "").lstrip("0") or "0"
    rest = (fraction or "").rstrip("0").rstrip(".")
    return f"{sign}{whole}{rest}" if (whole, rest) != ("0", "") else "0"
