"""The locator: reads the tables of a study and says where the intermediate is lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ._decide import Decision, Thresholds, decide
from ._findings import Findings
from ._verdict import LOCI, OVERTURN, Verdict


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
        patch_rows: from `sweep`, with noise, text_noise, cross, cross_control and backpatch.
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
        summary=_summary(first),
        overturn=OVERTURN[first.locus],
        gap=findings.gap,
        evidence=tuple(findings.evidence),
    )


def _interval(layers: Sequence[int]) -> tuple[int, int]:
    low, high = np.quantile(layers, [0.025, 0.975], method="nearest")
    return int(low), int(high)


def _summary(decision: Decision) -> str:
    text = LOCI[decision.locus][0].upper() + LOCI[decision.locus][1:] + "."
    deadline, arrival = decision.deadline, decision.arrival
    if deadline is None:
        return text
    text += f" Text runs read the intermediate where it stands up to layer {deadline};"
    if arrival is None:
        return f"{text} at the reading positions of direct runs it never becomes half as readable as in text runs."
    text += f" at the reading positions of direct runs it is at least half as readable as in text runs from {arrival}."
    if decision.locus == "not_used" and arrival > deadline:
        text += " It arrives late as well, but delivering it earlier repairs too little: time alone is not enough."
    return text
