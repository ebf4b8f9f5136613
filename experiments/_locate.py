"""The locator: reads the tables of a study and says where the intermediate is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from ._decide import Decision, Facts, Thresholds, decide
from ._measures import Curve, Floats, Items, behaviour, patch_curve, probe_curve
from ._verdict import LOCI, Evidence, Verdict

READ_AT: Final = ("last", "question")
LEAST: Final = 0.2  # text runs that show less than this where they read are no measure for direct runs


def locate(
    *,
    answers: pd.DataFrame,
    probe_hits: pd.DataFrame,
    patch_rows: pd.DataFrame,
    model: str,
    task: str,
    seed: int = 0,
    thresholds: Thresholds | None = None,
) -> Verdict:
    """Weigh behaviour, probes and patches of one model on one task.

    The procedure is `decide`; it is run on the items and on 1,000 resamples of them, which gives the confidence
    and the layer's interval. Best layers and cells are chosen on one half of the items and scored on the other.

    Args:
        answers: from `run_conditions`, with direct, cascaded and oracle.
        probe_hits: from `item_hits`.
        patch_rows: from `sweep`, with text_noise, cross, cross_control and backpatch.
        model: the model's name, for the verdict.
        task: the task's name, for the verdict.
        seed: of the halves and the resamples.
        thresholds: what counts as how much.
    """
    findings = Findings(answers, probe_hits, patch_rows, seed=seed)
    limits = thresholds or Thresholds()
    decisions = [decide(facts, limits) for facts in findings.facts()]
    first, others = decisions[0], decisions[1:]
    same = [other for other in others if other.locus == first.locus]
    layers = [other.layer for other in same if other.layer is not None]
    return Verdict(
        task=task,
        model=model,
        locus=first.locus,
        layer=first.layer,
        interval=_interval(layers) if first.layer is not None and layers else None,
        confidence=len(same) / len(others),
        summary=_summary(first, findings),
        overturn=OVERTURN[first.locus],
        gap=findings.gap,
        evidence=tuple(findings.evidence),
    )


class Findings:
    """Every measure that the procedure weighs, as one value per resample, and as a row of evidence."""

    def __init__(self, answers: pd.DataFrame, probe_hits: pd.DataFrame, patch_rows: pd.DataFrame, *, seed: int) -> None:
        self.items = Items(list(dict.fromkeys(answers.group)), seed=seed)
        self.evidence: list[Evidence] = []
        self._behave(answers)
        self._probe(probe_hits)
        self._patch(patch_rows)

    def facts(self) -> list[Facts]:
        """The sample's facts, then those of each resample."""
        return [
            Facts(
                gap=self._gap[k],
                oracle=self._oracle[k],
                unreadable=self._unreadable[k],
                tower=self._tower[k],
                projector=self._projector[k],
                image=self._image[k],
                reading=self._reading[k],
                text_needs=self._text_needs[k],
                earlier=self._earlier[k],
            )
            for k in range(len(self._gap))
        ]

    def _behave(self, answers: pd.DataFrame) -> None:
        found = behaviour(self.items, answers)
        passing = found["passing"] == 1
        difference = np.where(passing, found["cascaded"] - found["direct"], np.nan)
        self.failing = passing & (found["direct"] == 0)
        unreadable = np.where(self.failing, found["unreadable"], np.nan)
        mean = self.items.mean
        self._gap, self._oracle, self._unreadable = (
            np.nan_to_num(mean(column[:, None])[:, 0]) for column in (difference, found["oracle"], unreadable)
        )
        everywhere = mean((found["cascaded"] - found["direct"])[:, None])[:, 0]
        self.gap = {
            **_estimate(everywhere, "all"),
            **_estimate(self._gap, "passing"),
            "n": len(self.items.groups),
            "n_passing": int(passing.sum()),
        }
        self._note(
            "What is the gap, cascaded − direct, on items whose two steps both pass?",
            "behaviour",
            "difference of accuracies",
            self._gap,
            "the gap that is to be explained",
        )
        self._note(
            "Does the textual skill work alone?",
            "behaviour",
            "accuracy from the gold intermediate",
            self._oracle,
            "if not, the loss is the textual skill's own",
        )
        self._note(
            "Is the form of the output to blame?",
            "behaviour",
            "unreadable share of failed direct answers",
            self._unreadable,
            "if most are unreadable, format explains the gap",
        )

    def _probe(self, hits: pd.DataFrame) -> None:
        self._tower, _ = self._best_probe(hits, "vision", "Is the intermediate in the vision tower?")
        self._projector, _ = self._best_probe(hits, "projector", "Does the projector hand it on?")
        self._image = self._probe_layers(hits, "objects")
        self._reading = self._read_as_in_text_runs(hits)
        self._best_probe(hits, "lm", "Is it at its image positions in the decoder?", span="objects")
        self._best_probe(hits, "lm", "Does it reach the last position?", span="last")

    def _read_as_in_text_runs(self, hits: pd.DataFrame) -> Floats:
        """What direct runs hold at the reading positions, as a share of the most that text runs hold there.

        A sum, say, is made from cards that no linear probe reads well at the last token even where the answer
        comes out; so what the textual skill itself shows there is the measure.
        """
        direct, text = (
            np.fmax.reduce([self._probe_layers(hits, span, condition) for span in READ_AT])
            for condition in ("direct", "cascaded")
        )
        most = np.nanmax(text, axis=1, initial=0.0)
        self._note(
            "How much of it is at the reading positions of text runs?",
            "probe",
            "the most of any layer, as a share of what chance leaves open",
            most,
            "the measure for direct runs: half of this counts as arrived",
        )
        return direct / np.maximum(most, LEAST)[:, None]

    def _best_probe(
        self, hits: pd.DataFrame, stack: str, question: str, *, span: str = "objects"
    ) -> tuple[Floats, Floats]:
        curve = probe_curve(self.items, hits, condition="direct", span=span, stack=stack)
        if curve is None:
            return np.full(len(self._gap), np.nan), np.full(len(self._gap), np.nan)
        score, control, chosen = self.items.best(curve)
        layer = curve.places[chosen[0]]
        self._note(
            question,
            "probe",
            "held-out accuracy of the objects' variables at the best layer",
            score,
            f"chance {curve.floor:.2f}; the layer was chosen on the other half of the items",
            control=float(control[0]),
            site=f"{stack}.{layer}.resid_post" if stack != "projector" else "projector.out",
            span=span,
            layer=int(layer) if stack == "lm" else None,
        )
        return _recovered(score, curve), control

    def _probe_layers(self, hits: pd.DataFrame, span: str, condition: str = "direct") -> Floats:
        curve = probe_curve(self.items, hits, condition=condition, span=span, stack="lm")
        if curve is None:
            return np.full((len(self._gap), 1), np.nan)
        return _recovered(self.items.mean(curve.values), curve)

    def _patch(self, rows: pd.DataFrame) -> None:
        passing = ~np.isnan(self._lost_base(rows))
        lost = self._share_lost(rows, passing)
        self._text_needs = np.nan_to_num(lost)
        self._earlier = self._repair(
            rows,
            "backpatch",
            ("objects", "reading"),
            "Does delivering its own state earlier repair the direct run?",
        )
        self._repair(
            rows,
            "cross",
            ("objects",),
            "Does the text run's state, written over the objects, restore the answer?",
        )
        self._repair(
            rows,
            "cross",
            ("reading",),
            "Does the text run's state at the reading positions restore the answer?",
        )
        self._note(
            "Does the text run read the intermediate where it stands?",
            "patch",
            "share of the answer's log-probability lost when it is exchanged at the first layer",
            self._text_needs.max(axis=1),
            "the last layer with half of this loss is the deadline for the intermediate",
            span="objects",
        )

    def _lost_base(self, rows: pd.DataFrame) -> Floats:
        chosen = rows[(rows.experiment == "text_noise") & (rows.span == "objects")]
        return self.items.align(chosen, "base", places="experiment")[0][:, 0]

    def _share_lost(self, rows: pd.DataFrame, counted: np.ndarray) -> Floats:
        curves = [
            patch_curve(self.items, rows, counted, experiment="text_noise", span="objects", value=value)
            for value in ("base", "ceiling", "patched")
        ]
        base, ceiling, patched = (self.items.mean(c.values) for c in curves if c is not None)
        return (base - patched) / np.maximum(base - ceiling, 1e-6)

    def _repair(self, rows: pd.DataFrame, experiment: str, spans: Sequence[str], question: str) -> Floats:
        """The best cell's share of repaired answers among those that fail directly, less what stays without it."""
        best: Floats | None = None
        for span in spans:
            curve = patch_curve(self.items, rows, self.failing, experiment=experiment, span=span, value="right")
            if curve is None or not self.failing.any():
                continue
            control = patch_curve(
                self.items, rows, self.failing, experiment=f"{experiment}_control", span=span, value="right"
            )
            score, _, chosen = self.items.best(curve)
            beside = None if control is None else float(np.nanmean(control.values[:, chosen[0]]))
            place = curve.places[chosen[0]]
            layer = int(place[1] if isinstance(place, tuple) else place)
            origin = f"lm.{int(place[0])}.resid_post → " if isinstance(place, tuple) else ""
            self._note(
                question,
                "patch",
                "share of failed direct answers that come right, at the best cell",
                score,
                "the cell was chosen on the other half of the items",
                control=beside,
                site=f"{origin}lm.{layer}.resid_post",
                span=span,
                layer=layer,
            )
            best = score if best is None else np.fmax(best, score)
        return np.zeros(len(self._gap)) if best is None else np.nan_to_num(best)

    def _note(
        self,
        question: str,
        kind: str,
        measure: str,
        values: Floats,
        finding: str,
        *,
        control: float | None = None,
        site: str | None = None,
        span: str | None = None,
        layer: int | None = None,
    ) -> None:
        low, high = np.nanquantile(values[1:], [0.025, 0.975]) if not np.isnan(values[1:]).all() else (np.nan,) * 2
        self.evidence.append(
            Evidence(
                question=question,
                kind=kind,
                measure=measure,
                estimate=float(values[0]),
                low=float(low),
                high=float(high),
                control=control,
                finding=finding,
                site=site,
                span=span,
                layer=layer,
            )
        )


def _recovered(accuracy: Floats, curve: Curve) -> Floats:
    """The share of what chance leaves open."""
    return (accuracy - curve.floor) / (1 - curve.floor)


def _estimate(values: Floats, name: str) -> dict[str, float]:
    low, high = np.quantile(values[1:], [0.025, 0.975])
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def _interval(layers: Sequence[int]) -> tuple[int, int]:
    low, high = np.quantile(layers, [0.025, 0.975], method="nearest")
    return int(low), int(high)


def _summary(decision: Decision, findings: Findings) -> str:
    text = LOCI[decision.locus][0].upper() + LOCI[decision.locus][1:] + "."
    if decision.deadline is not None:
        text += f" Text runs read the intermediate where it stands up to layer {decision.deadline};"
        text += (
            " in direct runs it does not become readable at the reading positions."
            if decision.arrival is None
            else f" in direct runs it is readable at the reading positions from layer {decision.arrival}."
        )
    return text


OVERTURN: Final = {
    "not_encoded": "A probe with more data, or a non-linear one, that reads the intermediate in the tower.",
    "lost_in_projector": "A probe that reads the intermediate after the projector as well as before it.",
    "overwritten": "Restoring the early state at image positions in later layers without any effect on the answer.",
    "not_routed": "A probe that reads the intermediate at the reading positions, or a patch there that has an effect.",
    "too_late": "Back-patching that repairs nothing on new items, or text runs that read the intermediate later.",
    "not_used": "An earlier delivery that repairs the answer, or an effect of noising the intermediate where it is.",
    "text_skill": "The gold intermediate in another wording from which the model answers well.",
    "format": "The same gap after the answers are forced into a readable form.",
    "none": "A gap on more or harder items.",
    "cannot_tell": "More items, or a task on which the text run depends on the intermediate's words.",
}
