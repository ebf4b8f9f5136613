"""When replays are proved: on few prompts, and on all once a proof has failed."""

from __future__ import annotations

from collections import Counter

Kinds = frozenset[str]


class Proofs:
    """What was replayed in one model so far, and of which kinds of sites a replay is not to be trusted."""

    def __init__(self) -> None:
        self.asked: Counter[Kinds] = Counter()
        self.failed: set[Kinds] = set()

    def is_due(self, kinds: Kinds) -> bool:
        """Whether these kinds are to be proved again: the 1st, 2nd, 4th, 8th ... time; always, once one has failed."""
        self.asked[kinds] += 1
        return self.asked[kinds].bit_count() == 1 or kinds in self.failed
