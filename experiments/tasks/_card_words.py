"""Playing cards in what a model says."""

from __future__ import annotations

import re
from typing import Final

from ._task import Part

RANKS: Final = ("A", *map(str, range(2, 11)), "J", "Q", "K")
_WORDS: Final = ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NAMES: Final = {"ace": "A", "jack": "J", "queen": "Q", "king": "K", "t": "10"} | dict(
    zip(_WORDS, RANKS[1:10], strict=True)
)
_SUITS: Final = {"s": "spades", "h": "hearts", "d": "diamonds", "c": "clubs"} | dict(
    zip(
        "♠♤♥♡♦♢♣♧",
        ["spades", "spades", "hearts", "hearts", "diamonds", "diamonds", "clubs", "clubs"],
        strict=True,
    )
)
_NAMED: Final = rf"(?i:ace|jack|queen|king|{'|'.join(_WORDS)})"
_SYMBOL: Final = r"[♠♤♥♡♦♢♣♧]\ufe0f?"
_SUIT: Final = r"(?i:(?:spade|heart|diamond|club)s?\b)"
_BETWEEN: Final = r"[\s*_-]"

_SHORT: Final = rf"10|[2-9]|[AJQKT]|[ajqk](?=\s+of\s)|{_NAMED}"  # a small letter is a rank only before "of"

# "5 hearts", "five of hearts", "K of spades", "7♥", "10H", "7h"
_CARD: Final = re.compile(
    rf"(?<!\w)(?:(?P<rank>{_SHORT})"
    rf"(?:{_BETWEEN}*(?i:of{_BETWEEN}+)?(?P<suit>{_SYMBOL}|{_SUIT})|(?P<letter>[SHDC])(?!\w))"
    r"|(?P<number>10|[2-9])(?P<small>[shdc])(?!\w))"
)
# "♥7", in a text whose first symbol stands behind no rank
_TURNED: Final = re.compile(rf"(?P<suit>{_SYMBOL}){_BETWEEN}*(?P<rank>{_SHORT})(?!\w)")
_RANK_FIRST: Final = re.compile(rf"(?:{_SHORT}|\bof){_BETWEEN}*{_SYMBOL}")

_RANK: Final = rf"(?<!\w)(?:10|[2-9]|[AJQK]|{_NAMED}s?)(?:{_SYMBOL}|\b)"
_OF: Final = rf"(?:\s*(?i:of\s+)?{_SUIT})?"
_GAP: Final = r"""[\s,;<>≤|/\\→*_.\[\]{}'"–—-]*(?:(?i:and|then)\b[\s,*]*)?"""
_RUN: Final = re.compile(rf"{_RANK}{_OF}(?:{_GAP}{_RANK}{_OF})*")


def find_cards(text: str) -> tuple[Part, ...] | None:
    """Find every card, in order, as "rank suit"; `None` where there is none.

    Accepted: ranks as A 2 … 10 J Q K or as words; suits as words (singular too), as symbols, or as letters
    (`10H`, `7h`); "of" or nothing between them; anything between cards. The suit comes after the rank, or, as
    a symbol, before every rank.
    """
    symbol, ranked = re.search(_SYMBOL, text), _RANK_FIRST.search(text)
    turned = symbol is not None and (ranked is None or ranked.end() > symbol.end())
    return tuple(_card(found) for found in (_TURNED if turned else _CARD).finditer(text)) or None


def _card(found: re.Match[str]) -> Part:
    words = found.groupdict()
    rank = (words["rank"] or words["number"]).lower()
    suit = (words["suit"] or words["letter"] or words["small"]).lower()
    name = f"{_NAMES.get(rank, rank.upper())} {_SUITS.get(suit[0], suit)}"
    return Part(name, found.start(), found.end())


def read_ranks(text: str) -> str | None:
    """Give the ranks of the last list of ranks in a text, as "A 2 K"; `None` where there is none.

    A list is two or more ranks with nothing but separators, "and", "then" or their suits between them. A list
    within one line comes before one that runs over lines; a rank alone counts only where there is no list.
    Small letters are ranks only in a text that holds nothing else.
    """
    if re.fullmatch(r"[\s,;ajqk\d]+", text):
        text = text.upper()
    lists = [run for line in text.splitlines() for run in _runs(line) if len(run) > 1]
    found = lists or [run for run in _runs(text) if len(run) > 1] or _runs(text)
    return " ".join(found[-1]) if found else None


def _runs(text: str) -> list[list[str]]:
    return [[_rank(rank) for rank in re.findall(_RANK, run[0])] for run in _RUN.finditer(text)]


def _rank(word: str) -> str:
    bare = re.sub(_SYMBOL, "", word).lower()
    return _NAMES.get(bare, _NAMES.get(bare.removesuffix("s"), bare.upper()))
