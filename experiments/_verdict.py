"""What the locator says, and on what grounds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
    "none": "there is no composition gap to explain",
    "cannot_tell": "the evidence does not separate the classes",
}

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
class Verdict:
    """Where the intermediate is lost: the class, the decoder layer with its interval, and how sure.

    `confidence` is the share of bootstrap resamples of the items in which the same evidence gives the same
    class; it knows nothing of a wrong procedure. `layer` is `None` where the class has no layer.
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

    def to_json(self) -> dict[str, Any]:
        """Plain types for `verdict.json`; what could not be measured is None."""
        return plain(asdict(self))  # type: ignore[no-any-return]
