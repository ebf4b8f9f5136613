"""How losses are located today, each by one method alone, put to the same models as the locator.

Whether there is a loss at all, and whether it is the textual skill's or the format's, is told them by the same answers;
they only have to say where it is. From which layer on something is late, none of them measures: half of the layers is
taken, until `dated` is given what serves a method best on other models.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from seamscope.experiments import Decision, Study
from seamscope.experiments.locator._asking import layer_of
from seamscope.experiments.locator._decide import first, lost_at
from seamscope.experiments.locator._evidence import Findings
from seamscope.experiments.sweeps import Cell, layer_cells

HALF: Final = 0.5
ITEMS: Final = 60  # on which patches and cuts are made


class Tools:
    """What the methods measure of one model, each with its own experiments."""

    def __init__(self, study: Study, findings: Findings) -> None:
        self.study, self.findings = study, findings
        self.n_layers = study.vlm.n_layers

    def place(self, layer: int | None) -> str | None:
        """The stream behind a layer."""
        return None if layer is None else f"lm.{layer}.resid_post"

    def sweep(self, name: str, cells: dict[str, list[Cell]]) -> pd.DataFrame:
        """Some experiments on some of the items, in the run's folder."""
        asking = self.findings.asking
        return self.study.run.table(f"baseline.{name}", lambda: asking.sweep(f"baseline.{name}", cells, count=ITEMS))


def probes_alone(tools: Tools) -> Decision:
    """Where probes of the usual kind read it: in the tower, behind the projector, at image and reading positions."""
    path, places = tools.findings.of("path")[0], tools.findings.places
    most = np.nanmax(path, initial=0.0)
    lost = lost_at(path, places, HALF * most)
    if lost is not None:
        kinds = {"vision": "not_encoded", "projector": "lost_in_projector", "lm": "overwritten"}
        return Decision(locus=kinds[lost.split(".")[0]], place=lost)
    table = tools.findings.asking.reading()
    rows = table[(table.condition == "direct") & (table.kind == "object")]
    level = (rows.named - rows.floor) / (1 - rows.floor)
    curve = level.groupby([rows.span, rows.site.map(layer_of)]).mean().groupby(level=1).max()
    arrival = first(curve.to_numpy() >= HALF * most)
    if arrival is None:
        return Decision(locus="not_routed")
    return Decision(locus="not_used", place=tools.place(arrival))


def last_token_patching(tools: Tools) -> Decision:
    """From which layer on the text run's state at the last token brings the answer."""
    cells = layer_cells(tools.study.vlm, sites=["lm.*.resid_post"], spans=["last"])
    rows = _failed(tools.sweep("last", {"cross": cells}))
    curve = rows.groupby(rows.target_site.map(layer_of)).first_right.mean().sort_index()
    layer = first(curve.to_numpy() >= HALF)
    if layer is None:
        return Decision(locus="not_used")
    return Decision(locus="not_routed", place=tools.place(layer))


def best_cell(tools: Tools) -> Decision:
    """The strongest cell of the grid of layers and spans, chosen and scored on the same items."""
    spans = ["objects", "question", "last"]
    cells = layer_cells(tools.study.vlm, sites=["lm.embed", "lm.*.resid_post"], spans=spans)
    rows = tools.sweep("grid", {"cross": cells})
    effect = (rows.patched - rows.base).groupby([rows.span, rows.target_site], sort=False).mean()
    span, site = effect.idxmax()
    if span == "objects":
        return Decision(locus="lost_in_projector" if site == "lm.embed" else "overwritten", place=str(site))
    return Decision(locus="not_used", place=str(site))


def knockout_alone(tools: Tools) -> Decision:
    """Whether, and from which layers on, cutting the reading positions from the image changes the answer."""
    rows = tools.sweep("knockout", {"knockout": []})
    rows = rows[(rows.experiment == "knockout") & (rows.queries == "reading") & (rows["keys"] == "image")]
    effect = rows.groupby("first").kl.mean().sort_index()
    if not effect.max() >= 0.1:  # nats: nothing is read
        return Decision(locus="not_routed")
    layer = int(effect.index[np.flatnonzero(effect.to_numpy() >= HALF * effect.max())[0]])
    return Decision(locus="not_used", place=tools.place(layer))


class Method(NamedTuple):
    """A way to locate a loss; `in_time` is what it says of what it finds at some layer, unless that is late."""

    find: Callable[[Tools], Decision]
    in_time: str


METHODS: Final = {
    "probes alone": Method(probes_alone, "not_used"),
    "last-token patching alone": Method(last_token_patching, "not_routed"),
    "best cell without a split": Method(best_cell, "not_used"),
    "attention knockout alone": Method(knockout_alone, "not_used"),
}


def baselines(study: Study, findings: Findings) -> dict[str, dict[str, Any]]:
    """What each method says of a model that has a loss of its own; late is the second half of the layers."""
    tools = Tools(study, findings)
    said = {name: method.find(tools) for name, method in METHODS.items()}
    return {
        name: dated({"locus": each.locus, "place": each.place}, name, tools.n_layers // 2)
        for name, each in said.items()
    }


def dated(said: dict[str, Any], method: str, late_from: int) -> dict[str, Any]:
    """What a method says if things are late from another layer on."""
    in_time = METHODS[method].in_time
    if said["locus"] not in ("too_late", in_time) or said["place"] is None:
        return said
    return {**said, "locus": "too_late" if layer_of(said["place"]) >= late_from else in_time}


def _failed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.base_rank > 0]
