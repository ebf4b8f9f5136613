"""The locator: reads the tables of a study and says where the intermediate is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

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
    shares = Counter(other.locus for other in others)
    sure = shares[first.locus] / len(others)
    if sure < limits.sure and first.locus != "cannot_tell":
        first, told = Decision(locus="cannot_tell"), _divided(shares, len(others))
    else:
        told = _summary(first, used=findings.used)
    layers = [other.layer for other in others if other.locus == first.locus and other.layer is not None]
    return Verdict(
        task=task,
        model=model,
        locus=first.locus,
        layer=first.layer,
        interval=_interval(layers) if first.layer is not None and layers else None,
        confidence=sure,
        summary=told,
        overturn=OVERTURN[first.locus],
        gap=findings.gap,
        evidence=tuple(findings.evidence),
    )


def _interval(layers: Sequence[int]) -> tuple[int, int]:
    low, high = np.quantile(layers, [0.025, 0.975], method="nearest")
    return int(low), int(high)


def _divided(shares: Mapping[str, int], n: int) -> str:
    named = ", ".join(f"{locus} in {100 * count / n:.0f} %" for locus, count in Counter(shares).most_common(3))
    return f"{_sentence('cannot_tell')} Resamples of the items disagree: {named}."


def _sentence(locus: str) -> str:
    return LOCI[locus][0].upper() + LOCI[locus][1:] + "."


def _summary(decision: Decision, *, used: float) -> str:
    text, deadline, arrival = _sentence(decision.locus), decision.deadline, decision.arrival
    if decision.reason:
        return f"{text[:-1]}: {decision.reason}."
    if decision.locus == "not_used":
        text += f" The direct answer depends on it {100 * used:.0f} % as much as the text answer does."
    if deadline is None:
        return text
    text += f" Text runs read the intermediate where it stands up to layer {deadline};"
    if arrival is None:
        return f"{text} at the reading positions of direct runs it never becomes half as readable as in text runs."
    text += f" at the reading positions of direct runs it is at least half as readable as in text runs from {arrival}."
    if decision.locus == "not_used" and arrival > deadline:
        text += " That is late, but delivering it earlier repairs too little: time alone is not enough."
    return text
