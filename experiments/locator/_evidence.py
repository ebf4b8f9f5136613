"""What the experiments say, in the sample and in every resample of its items; asked when it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from .._verdict import Evidence
from . import _behaviour, _patched, _probed
from ._asking import Asking, layer_of
from ._curves import Curves
from ._items import Floats, Items, interval

ANSWERED: Final = ("oracle", "loss", "seen", "unreadable")  # what the answers tell costs nothing more


class NotAskedError(Exception):
    """A resample wants to know what was not measured; `name` says what."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Findings:
    """Values of everything that `decide` may want to know, (1 + resamples, ...); row 0 is the sample itself.

    A value is measured when it is first asked for, unless `closed`; then `NotAskedError` is raised.
    """

    def __init__(self, asking: Asking, *, seed: int) -> None:
        self.asking, self.closed = asking, False
        self.items = Items(list(dict.fromkeys(asking.answers.group)), seed=seed)
        self.curves = Curves(self.items, asking)
        self.notes: list[Evidence] = []
        self._known: dict[str, Floats] = {}
        self._apart: dict[tuple[str, int], Floats] = {}
        for name in ANSWERED:
            self.of(name)

    def of(self, name: str) -> Floats:
        """The values of a fact."""
        if name not in self._known:
            if self.closed:
                raise NotAskedError(name)
            self._known[name] = MEASURES[name](self)
        return self._known[name]

    def of_object(self, name: str, number: int) -> Floats:
        """The values of a fact for one object; they come with those for all."""
        if name not in APART:
            return self.of(name)
        self.of(name)
        if (name, number) not in self._apart:
            self._apart[name, number] = APART[name](self.curves, number)
        return self._apart[name, number]

    @property
    def n_layers(self) -> int:
        """How many layers the decoder has."""
        return self.asking.n_layers

    @property
    def places(self) -> tuple[str, ...]:
        """The sites of `path`, in forward order."""
        return self.curves.places

    def answered(self, condition: str, name: str) -> Floats:
        """A column of the answers under a condition, by item."""
        answers = self.asking.answers
        return self.items.column(answers[answers.condition == condition], name)

    @cached_property
    def able(self) -> NDArray[np.bool_]:
        """Items that are answered from the gold intermediate."""
        return np.asarray(self.answered("oracle", "correct") == 1)

    @cached_property
    def failing(self) -> NDArray[np.bool_]:
        """Those of them that are not answered directly."""
        return np.asarray(self.able & (self.answered("direct", "correct") == 0))

    def note(
        self,
        question: str,
        kind: str,
        measure: str,
        values: Floats,
        finding: str,
        *,
        at: int | None = None,
        control: float | None = None,
        site: str | None = None,
        span: str | None = None,
    ) -> Floats:
        """Note what a measurement says, for the reader; gives its values back. `at`: the layer that is told."""
        told = values if at is None else values[:, at]
        low, high = interval(told)
        layer = layer_of(site) if site is not None and site.startswith("lm.") else None
        self.notes.append(
            Evidence(
                question=question,
                kind=kind,
                measure=measure,
                estimate=float(told[0]),
                low=low,
                high=high,
                control=control,
                finding=finding,
                site=site,
                span=span,
                layer=layer,
            )
        )
        return values


APART: Final[dict[str, Callable[[Curves, int], Floats]]] = {
    "path": lambda curves, number: curves.own("direct", number).named()[0],
    "reading": lambda curves, number: curves.reading("direct", number),
    "text_reading": lambda curves, number: curves.reading("oracle", number),
}
MEASURES: Final[dict[str, Callable[[Findings], Floats]]] = {
    "oracle": _behaviour.oracle,
    "loss": _behaviour.loss,
    "seen": _behaviour.seen,
    "unreadable": _behaviour.unreadable,
    "longer": _behaviour.longer,
    "path": _probed.path,
    "words": _probed.words,
    "reading": _probed.reading,
    "text_reading": _probed.text_reading,
    "form": _probed.form,
    "hold": _patched.hold,
    "needs": _patched.needs,
    "given": _patched.given,
    "severed": _patched.severed,
}


class Row:
    """The facts of the sample, or of one resample, for `decide`: of all objects, or of one."""

    def __init__(self, findings: Findings, number: int, *, object_: int | None = None) -> None:
        self._findings, self._number, self._object = findings, number, object_

    @property
    def places(self) -> Sequence[str]:
        """The sites of `path`."""
        return self._findings.places

    @property
    def objects(self) -> Sequence[Row]:
        """The facts of each object that can be followed on its own."""
        self._findings.of("path")
        return [Row(self._findings, self._number, object_=each) for each in self._findings.curves.objects]

    @property
    def pairs(self) -> int:
        """How many items have another object than their partner, of an object."""
        return 0 if self._object is None else self._findings.curves.pairs(self._object)

    def __getattr__(self, name: str) -> Floats:
        findings, of = self._findings, self._object
        values = findings.of(name) if of is None else findings.of_object(name, of)
        found: Floats = values[self._number]
        return found
