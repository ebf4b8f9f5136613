"""The figure of `planted_faults.py`: what was planted beside what was said, and the locator beside the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from seamscope.experiments import LOCI

RATES: Final = {"class_accuracy": "class right", "layer_within_one": "layer within one"}
COLOURS: Final = ("#0072B2", "#E69F00")


def draw(records: Sequence[Mapping[str, Any]], found: Mapping[str, Any], file: Path) -> None:
    """A confusion matrix, and bars with intervals."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.6), width_ratios=(1.25, 1), layout="constrained")
    _confusion(left, records)
    _bars(right, found)
    figure.savefig(file, dpi=130)
    plt.close(figure)


def _confusion(ax: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    planted = [name for name in LOCI if any(each["truth"]["locus"] == name for each in records)]
    said = [name for name in LOCI if any(each["locator"]["locus"] == name for each in records)]
    said = [*planted, *(name for name in said if name not in planted)]
    counts = np.zeros((len(planted), len(said)), dtype=int)
    for each in records:
        counts[planted.index(each["truth"]["locus"]), said.index(each["locator"]["locus"])] += 1
    ax.imshow(counts / counts.sum(1, keepdims=True), cmap="Blues", vmin=0, vmax=1.4)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            ax.text(column, row, str(count), ha="center", va="center")
    ax.set_xticks(range(len(said)), [name.replace("_", " ") for name in said], rotation=40, ha="right")
    ax.set_yticks(range(len(planted)), [name.replace("_", " ") for name in planted])
    ax.set(xlabel="the verdict's first loss", ylabel="planted, the first loss", title=f"{len(records)} models")


def _bars(ax: Axes, found: Mapping[str, Any]) -> None:
    methods = {"locator": found, **found["baselines"]}
    for k, (key, words) in enumerate(RATES.items()):
        rates = [row[key] for row in methods.values()]
        middle = np.array([each["estimate"] for each in rates])
        ends = np.array([[each["estimate"] - each["low"], each["high"] - each["estimate"]] for each in rates]).T
        places = np.arange(len(methods)) + (k - 0.5) * 0.36
        ax.barh(places, middle, 0.34, xerr=ends, color=COLOURS[k], label=words, error_kw={"capsize": 2})
    ax.set_yticks(range(len(methods)), list(methods))
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.02), xlabel="share of models, with 95 % intervals")
    ax.legend(frameon=False, loc="lower right")
    ax.spines[["top", "right"]].set_visible(False)
