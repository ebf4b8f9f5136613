"""What the locator says, and on what grounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from ._json import plain

LOCI: Final = {
    "not_encoded": "the vision tower never makes the intermediate available",
    "lost_in_projector": "the tower has the intermediate, the projector does not hand it on",
    "overwritten": "the intermediate is at image positions at first and is gone before it is read",
    "not_routed": "the intermediate stays at image positions and never reaches the reading positions",
    "too_late": "the intermediate reaches the reading positions after the textual skill could have used it",
    "not_used": "the intermediate is there and does not bring about the answer",
    "text_skill": "no loss of ours: the textual skill fails on the gold intermediate as well",
    "format": "no loss of ours: the form of the output explains the gap",
    "none": "no loss: direct runs answer nearly all that the gold intermediate gives",
    "cannot_tell": "the evidence does not separate the classes",
}

NOT_OURS: Final = ("none", "text_skill", "format")  # told by answers alone: no intermediate is lost

OVERTURN: Final = {
    "not_encoded": "A probe with more data, or a non-linear one, that reads the intermediate in the tower.",
    "lost_in_projector": "A probe that reads the intermediate after the projector as well as before it.",
    "overwritten": "Restoring the early state at image positions in later layers without any effect on the answer.",
    "not_routed": "A probe that reads the intermediate at the reading positions, or a patch there that has an effect.",
    "too_late": "Back-patching that repairs nothing on new items, or text runs that read the intermediate later.",
    "not_used": "An earlier delivery that repairs the answer, or direct answers that depend on it as text answers do.",
    "text_skill": "The gold intermediate in another wording from which the model answers well.",
    "format": "The same gap after the answers are forced into a readable form.",
    "none": "A gap on more or harder items.",
    "cannot_tell": "More items, or a task on which the text run depends on the intermediate's words.",
}


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One question put to the model, and what came of it.

    `kind` is `behaviour`, `probe` (is it there?) or `patch` (is it used?); `estimate` has a 95 % interval and,
    where there is one, a control beside it.
    """

    question: str
    kind: str
    measure: str
    estimate: float
    low: float
    high: float
    control: float | None
    finding: str
    site: str | None = None
    span: str | None = None
    layer: int | None = None


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What was tried to bring the answers back; its linear maps were fitted on other items.

    `restored`: of the answers that direct runs fail on, the share that comes right, with a 95 % interval; `control`:
    the same with the partner's states. `mends` is the class of loss that it should undo, and `named` whether that is
    the verdict's.
    """

    name: str
    words: str
    mends: str
    named: bool
    restored: float
    low: float
    high: float
    control: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A loss of some of the objects: its class, the site at which they are lost, and their numbers."""

    locus: str
    place: str | None
    objects: tuple[int, ...]


def named(objects: Sequence[int]) -> str:
    """Objects by their numbers."""
    return f"object{'s' if len(objects) > 1 else ''} {', '.join(map(str, objects))}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Where the intermediate is lost: the class, the layer with its interval, and how sure.

    `confidence` is the share of bootstrap resamples of the items in which the same evidence gives the same
    class; it knows nothing of a wrong procedure. `place` is the site at which it is lost, in the tower, the projector
    or the decoder, and `layer` the number of its layer; both are `None` where the class has none. `objects` are the
    numbers of the objects that are lost there, where not all are; `also` are losses of others, which have to be
    repaired as well. `spent` counts what finding out took.
    """

    task: str
    model: str
    locus: str
    layer: int | None
    interval: tuple[int, int] | None
    confidence: float
    summary: str
    overturn: str
    gap: dict[str, float]
    evidence: tuple[Evidence, ...]
    place: str | None = None
    objects: tuple[int, ...] = ()
    also: tuple[Loss, ...] = ()
    repairs: tuple[Repair, ...] = ()
    spent: Mapping[str, float] = field(default_factory=dict)

    @property
    def losses(self) -> tuple[Loss, ...]:
        """All losses, the first one first."""
        return (Loss(locus=self.locus, place=self.place, objects=self.objects), *self.also)

    def to_json(self) -> dict[str, Any]:
        """Plain types for `verdict.json`; what could not be measured is None."""
        return plain(asdict(self))  # type: ignore[no-any-return]
