"""What the locator found out, measure by measure: one value per resample, and a row of evidence for a reader."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pandas as pd

from ._decide import Facts
from ._measures import Curve, Floats, Items, behaviour, patch_curve, probe_curve
from ._verdict import Evidence

READ_AT: Final = ("last", "question")
LEAST: Final = 0.2  # text runs that show less than this where they read are no measure for direct runs
BESIDE: Final = 1e-6


class Findings:
    """Every measure that the procedure weighs, as one value per resample, and as a row of evidence."""

    def __init__(self, answers: pd.DataFrame, probe_hits: pd.DataFrame, patch_rows: pd.DataFrame, *, seed: int) -> None:
        self.items = Items(list(dict.fromkeys(answers.group)), seed=seed)
        self.evidence: list[Evidence] = []
        self._behave(answers)
        self._probe(probe_hits)
        self._patch(patch_rows)

    @property
    def used(self) -> float:
        """How much the direct answer depends on the intermediate, as a share of how much the text answer does."""
        return float(self._used[0])

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
                used=self._used[k],
                probes=self._probes[k],
            )
            for k in range(len(self._gap))
        ]

    def _behave(self, answers: pd.DataFrame) -> None:
        found = behaviour(self.items, answers)
        passing = found["passing"] == 1
        difference = np.where(passing, found["cascaded"] - found["direct"], np.nan)
        self.passing, self.failing = passing, passing & (found["direct"] == 0)
        unreadable = np.where(self.failing, found["unreadable"], np.nan)
        mean = self.items.mean
        self._gap, self._oracle, self._unreadable = (
            mean(column[:, None])[:, 0] for column in (difference, found["oracle"], unreadable)
        )
        everywhere = mean((found["cascaded"] - found["direct"])[:, None])[:, 0]
        self.gap = {
            **_estimate(everywhere, "all"),
            **_estimate(self._gap, "passing"),
            "groups": len(self.items.groups),
            "groups_passing": int(passing.sum()),
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
        words = hits.assign(layer=hits.layer.where(hits.site != "lm.embed", -1))  # where nothing has mixed them yet
        self._probes = np.nanmax(self._probe_layers(words, "objects", "cascaded"), axis=1, initial=0.0)
        self._note(
            "Do the probes read it where it stands as text?",
            "probe",
            "the most of any layer, as a share of what chance leaves open",
            self._probes,
            "the probes' positive control: if they fail here, they cannot deny it elsewhere",
            span="objects",
        )
        self._best_probe(hits, "lm", "Is it at its image positions in the decoder?", span="objects")
        for span in READ_AT:
            self._best_probe(hits, "lm", f"Does it reach the {span} position{'s' * (span != 'last')}?", span=span)

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
        share: Floats = direct / np.where(most >= LEAST, most, np.nan)[:, None]
        return share

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
        self._text_needs = np.nan_to_num(self._share_lost(rows))
        self._note(
            "Does the text run read the intermediate where it stands?",
            "patch",
            "share of the answer's log-probability lost when it is exchanged, at the most sensitive layer",
            self._text_needs.max(axis=1),
            "the last layer with half of this loss is the deadline for the intermediate",
            span="objects",
        )
        direct, text = (self._dependence(rows, experiment) for experiment in ("noise", "text_noise"))
        self._used = direct / np.maximum(text, BESIDE)
        self._note(
            "How much does the direct answer depend on it, beside the text answer?",
            "patch",
            f"share of the {text[0]:.1f} nats that the text answer loses with the partner's intermediate",
            self._used,
            "half of it counts as used",
        )
        self._earlier = self._repair(
            rows, "backpatch", ("objects", "reading"), "Does delivering its own state earlier repair the direct run?"
        )
        self._repair(
            rows, "cross", ("objects",), "Does the text run's state, written over the objects, restore the answer?"
        )
        self._repair(
            rows, "cross", ("reading",), "Does the text run's state at the reading positions restore the answer?"
        )

    def _dependence(self, rows: pd.DataFrame, experiment: str) -> Floats:
        """Nats that the answer loses when everything is the partner's, on items whose two steps both pass."""
        chosen = rows[rows.experiment == experiment]
        if chosen.empty:
            return np.full(len(self._gap), np.nan)
        lost, _ = self.items.align(chosen.assign(lost=chosen.base - chosen.ceiling), "lost", places="experiment")
        return self.items.mean(np.where(self.passing[:, None], lost, np.nan))[:, 0]

    def _share_lost(self, rows: pd.DataFrame) -> Floats:
        """By layer of the text run; (1 + resamples, layers)."""
        curves = [
            patch_curve(self.items, rows, experiment="text_noise", spans=("objects",), value=value)
            for value in ("base", "ceiling", "patched")
        ]
        base, ceiling, patched = (self.items.mean(curve.values) for curve in curves if curve is not None)
        return (base - patched) / np.maximum(base - ceiling, BESIDE)

    def _repair(self, rows: pd.DataFrame, experiment: str, spans: Sequence[str], question: str) -> Floats:
        """The share of answers, of those that fail directly, that come right at the best cell of several spans."""
        curve = patch_curve(self.items, rows, experiment=experiment, spans=spans, value="right")
        failing = None if curve is None else curve.among(self.failing)
        measure = "share of failed direct answers that come right, at the best cell"
        return self._best_patch(failing, question, measure)

    def _best_patch(self, curve: Curve | None, question: str, measure: str) -> Floats:
        if curve is None or np.isnan(curve.values).all():
            return np.full(len(self._gap), np.nan)
        score, control, chosen = self.items.best(curve)
        span, source, layer = curve.places[chosen[0]]
        origin = "" if source == layer else f"lm.{source}.resid_post → "
        self._note(
            question,
            "patch",
            measure,
            score,
            "the cell was chosen on the other half of the items",
            control=None if np.isnan(control[0]) else float(control[0]),
            site=f"{origin}lm.{layer}.resid_post",
            span=span,
            layer=int(layer),
        )
        return score

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
    low, high = np.nanquantile(values[1:], [0.025, 0.975]) if not np.isnan(values[1:]).all() else (np.nan, np.nan)
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}
