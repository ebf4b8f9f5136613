"""The rates of `planted_faults.py`, from what was kept of each model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from _planted_baselines import METHODS, dated
from scipy.stats import binomtest

from seamscope.experiments._verdict import NOT_OURS
from seamscope.experiments.organism._faults import LAYERS
from seamscope.hooks import Site

BINS: Final = 10


def summary(records: Sequence[dict[str, Any]], *, elsewhere: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Everything that is reported of the records; the baselines take what they have to choose from those elsewhere."""
    counted = still(records)
    return {
        "models": len(counted),
        "trained": sum(record["trained"] for record in counted),
        "healthy": sum(record["truth"]["locus"] == "none" for record in counted),
        "shaken": len(records) - len(counted),
        "twice": sum(bool(record["truth"]["also"]) for record in counted),
        **scores(records, [record["locator"] for record in records]),
        "by_base": parted(counted, by_base),
        "by_seed": parted(counted, by_seed),
        **calibration(counted),
        "loss": losses(records),
        "cannot_tell": sum(record["locator"]["locus"] == "cannot_tell" for record in counted),
        "baselines": {name: baseline(name, records, still(elsewhere)) for name in METHODS},
        "repairs": repaired(counted),
        "seconds_per_model": float(np.mean([record["seconds"] for record in counted])),
    }


def told(found: dict[str, Any]) -> str:
    """The rates as a table."""
    rows = {"locator": found, **found["baselines"]}
    columns = ("class_accuracy", "class_of_losses", "layer_within_one", "layer_alone", "false_alarm_rate")
    table = pd.DataFrame(
        {
            column: {
                name: f"{row[column]['estimate']:.3f} [{row[column]['low']:.3f}, {row[column]['high']:.3f}]"
                for name, row in rows.items()
            }
            for column in columns
        }
    )
    error = found["expected_calibration_error"]
    off = f"{error['estimate']:.3f} [{error['low']:.3f}, {error['high']:.3f}]"
    return (
        f"{table.to_string()}\n{found['models']} models, of which {found['cannot_tell']} cannot tell, and "
        f"{found['shaken']} shaken ones; calibration error {off}"
    )


def right_class(truth: dict[str, Any], said: dict[str, Any]) -> bool:
    """Whether the class is right, and those of further losses if the method can name any."""
    further = tuple(said.get("also", truth["also"]))
    return bool(truth["locus"] == said["locus"]) and further == tuple(truth["also"])


def right_layer(truth: dict[str, Any], said: dict[str, Any]) -> bool:
    """Whether the stack is right, and the layer within one."""
    if said["place"] is None:
        return False
    planted, named = Site.parse(truth["place"]), Site.parse(said["place"])
    return planted.stack == named.stack and abs(planted.number - named.number) <= 1


def still(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that are not shaken."""
    return [record for record in records if not record["shaken"]]


def scores(records: Sequence[dict[str, Any]], said: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All rates of one method, with their intervals."""
    every = list(zip(records, said, strict=True))
    healthy = [each for record, each in every if record["truth"]["locus"] == "none"]
    pairs = [(record["truth"], each) for record, each in every if not record["shaken"]]
    layered = [pair for pair in pairs if pair[0]["place"] and Site.parse(pair[0]["place"]).layer is not None]
    return {
        "class_accuracy": rate([right_class(*pair) for pair in pairs]),
        "class_of_losses": rate([right_class(*pair) for pair in pairs if pair[0]["locus"] not in NOT_OURS]),
        "layer_within_one": rate([right_class(*pair) and right_layer(*pair) for pair in layered]),
        "layer_alone": rate([right_layer(*pair) for pair in layered]),
        "false_alarm_rate": rate([each["locus"] not in ("none", "cannot_tell") for each in healthy]),
    }


def baseline(method: str, records: Sequence[dict[str, Any]], elsewhere: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rates of a method that calls late what serves it best on other models, if there are any."""
    own = [record["baselines"][method] for record in records]
    if not elsewhere:
        return scores(records, own)

    def hits(late_from: int) -> int:
        return sum(
            right_class(each["truth"], dated(each["baselines"][method], method, late_from)) for each in elsewhere
        )

    best = max(range(LAYERS + 1), key=hits)
    return {**scores(records, [dated(each, method, best) for each in own]), "late_from": best}


def losses(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The least that is lost where something was planted, and the most where nothing was."""
    healthy = [each["loss"] for each in records if each["truth"]["locus"] == "none"]
    return {
        "least_planted": min(each["loss"] for each in records if each["truth"]["locus"] not in NOT_OURS),
        "most_healthy": max(healthy),
    }


def rate(hits: Sequence[bool]) -> dict[str, float]:
    """A share with its exact interval."""
    if not hits:
        return {"estimate": float("nan"), "low": float("nan"), "high": float("nan"), "n": 0}
    ends = binomtest(sum(hits), len(hits)).proportion_ci(method="exact")
    return {"estimate": sum(hits) / len(hits), "low": float(ends.low), "high": float(ends.high), "n": len(hits)}


def calibration(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Expected calibration error of what the locator claims."""
    claims = [
        (record["locator"]["confidence"], right_class(record["truth"], record["locator"]))
        for record in records
        if record["locator"]["locus"] != "cannot_tell"
    ]
    stated, hits = (np.array(column, dtype=float) for column in zip(*claims, strict=True))
    right = rate([bool(hit) for hit in hits])
    rng = np.random.default_rng(0)
    draws = [rng.integers(len(hits), size=len(hits)) for _ in range(1000)]
    resampled = [_error(stated[rows], hits[rows]) for rows in draws]
    low, high = np.quantile(resampled, [0.025, 0.975])
    error = {"estimate": _error(stated, hits), "low": float(low), "high": float(high), "n": len(hits)}
    return {"expected_calibration_error": error, "claims_right": right}


def _error(stated: Any, hits: Any) -> float:
    bins = np.minimum((stated * BINS).astype(int), BINS - 1)
    parts = [abs(stated[bins == k].mean() - hits[bins == k].mean()) * (bins == k).mean() for k in np.unique(bins)]
    return float(sum(parts))


def by_base(record: dict[str, Any]) -> str:
    """The model that was altered, and its data set."""
    base = "taught" if record["trained"] else record["base"].split("-")[0]
    return f"{base} {record['task']}"


def by_seed(record: dict[str, Any]) -> str:
    """The seed of alterations, lessons and items."""
    return str(record["seed"])


def parted(records: Sequence[dict[str, Any]], by: Callable[[dict[str, Any]], str]) -> dict[str, Any]:
    """How often the locator names the right class, in each part of the models."""
    hits: dict[str, list[bool]] = {}
    for record in records:
        hits.setdefault(by(record), []).append(right_class(record["truth"], record["locator"]))
    return {name: rate(own) for name, own in sorted(hits.items())}


def repaired(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of the models in which a loss is told: what the repair that the verdict names restores, and the best other.

    Beyond their controls; means over models, with 95 % intervals by resampling models. `handed`: of all repairs, among
    them handing over in words; `in_place`: of those in the direct run itself, one for each class. `n` models have a
    named repair of the kind and another one, `without` have none. Which is best is told by the same items.
    """
    told = [record for record in records if record["repairs"]]
    found: dict[str, Any] = {}
    for locus in sorted({record["truth"]["locus"] for record in told}):
        own = [record["repairs"] for record in told if record["truth"]["locus"] == locus]
        found[locus] = {"handed": _compared(own), "in_place": _compared([_in_place(each) for each in own])}
    return found


def _in_place(repairs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in repairs if not each["name"].startswith("hand over")]


def _compared(models: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    pairs = []
    for repairs in models:
        net = [(each["named"], each["restored"] - (each["control"] or 0)) for each in repairs]
        if len({named for named, _ in net}) == 2:
            pairs.append([max(gain for named, gain in net if named == wanted) for wanted in (True, False)])
    found: dict[str, Any] = {"n": len(pairs), "without": len(models) - len(pairs)}
    if pairs:
        named, other = np.array(pairs).T
        found |= {"named": _mean(named), "best_other": _mean(other), "named_ahead": int((named > other).sum())}
    return found


def _mean(values: Any) -> dict[str, float]:
    draws = np.random.default_rng(0).choice(values, size=(1000, len(values))).mean(axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"estimate": float(values.mean()), "low": float(low), "high": float(high)}
