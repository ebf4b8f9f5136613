"""What the report's tables show, computed from the result tables and from nothing else."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import pandas as pd

from ._run import Settings
from .figures._depth import Depth
from .figures._style import NAMES, place_name
from .figures._tables import (
    PROBE_COLUMNS,
    distinct,
    finite,
    need,
    number_in,
    own_rows,
    records,
    span_family,
    target_family,
)
from .figures._way import MEASURES

PACKAGES: Final = (
    "seamscope",
    "torch",
    "transformers",
    "scikit-learn",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
)
CONDITIONS: Final = ("direct", "cascaded", "oracle", "cot", "gap")
OPTIONS: Final = (  # settings that every command takes; the first ones are told whatever they are
    *("model", "task", "n", "seed"),
    *("profile", "sites", "spans", "device", "dtype", "attn_implementation", "engine", "batch_size"),
)
TOLD: Final = 4


def number(value: Any, *, signed: bool = False) -> str:
    """Two decimals with a true minus sign; a dash where there is no number."""
    if value is None or pd.isna(value):
        return "–"
    return (f"{value:+.2f}" if signed else f"{value:.2f}").replace("-", "−")


def interval(low: Any, high: Any) -> str:
    """`[0.49, 0.62]`, or nothing where a bound is missing."""
    return "" if pd.isna(low) or pd.isna(high) else f"[{number(low)}, {number(high)}]"


def estimate(row: Mapping[str, Any], *, signed: bool = False) -> str:
    """An estimate with its interval."""
    return f"{number(row['estimate'], signed=signed)} {interval(row['low'], row['high'])}".strip()


def gap_rows(gap: pd.DataFrame) -> tuple[list[str], list[dict[str, Any]]]:
    """The conditions that the table has, and one row for each task and subset with their cells."""
    shown = [name for name in CONDITIONS if name in set(gap.condition)]
    rows = []
    for (task, subset), table in gap.groupby(["task", "subset"], sort=False):
        cells = {record["condition"]: record for record in records(table)}
        parts = [_parts(cells[name]) if name in cells else (number(None),) for name in shown]
        rows.append({"task": task, "subset": subset, "n": int(table.n.max()), "cells": parts})
    return shown, rows


def _parts(row: Mapping[str, Any]) -> tuple[str, str]:
    return number(row["estimate"], signed=row["condition"] == "gap"), interval(row["low"], row["high"])


def gap_of(gap: pd.DataFrame, task: str, *, subset: str) -> dict[str, Any]:
    """Direct, cascaded and gap of one task, as texts, and the number of items; empty where there are none."""
    table = gap[(gap.task == task) & (gap.subset == subset) & gap.estimate.notna()]
    if table.empty:
        return {}
    cells = {record["condition"]: record for record in records(table)}
    texts = {name: estimate(cells[name], signed=name == "gap") for name in CONDITIONS if name in cells}
    return {**texts, "n": int(table.n.max())}


def main_family(table: pd.DataFrame) -> str:
    """The variables that are shown: the first family that describes objects, such as `card.*.rank`, if there is one.

    `table` has a column `target`.
    """
    of_objects = table.target[table.target.map(number_in).notna()]
    return target_family(str((table.target if of_objects.empty else of_objects).iloc[0]))


_CELL: Final = ("place", "condition", "site")


def path_rows(probes: pd.DataFrame) -> list[dict[str, Any]]:
    """Probe accuracy of the `main_family` at `fixed_sites`, one row per (place, condition, site).

    Accuracies and bounds are means over the targets of the family. Rows of a place stand together, in the order of its
    sites.
    """
    table = own_rows(need(probes, "probes", PROBE_COLUMNS))
    table = table[table.target.map(target_family) == main_family(probes)]
    table = table.assign(place=table.span.map(span_family))
    sites = fixed_sites(distinct(table, "site"))
    means = [name for name in ("accuracy", "low", "high", "chance", "control_accuracy") if name in table]
    cells = table[table.site.isin(sites)].groupby([*_CELL], sort=False)[means].mean().reset_index()
    orders = distinct(cells, "place"), distinct(cells, "condition"), sites
    rows = sorted(
        records(cells), key=lambda row: [order.index(row[name]) for name, order in zip(_CELL, orders, strict=True)]
    )
    return [
        {
            **row,
            "place": place_name(row["place"], row["condition"]),
            "estimate": f"{number(row['accuracy'])} {interval(row['low'], row['high'])}",
            "chance": number(row["chance"]),
            "control": number(row.get("control_accuracy")),
        }
        for row in rows
    ]


def way_rows(way: pd.DataFrame) -> list[dict[str, Any]]:
    """What probes read at `fixed_sites` of the intermediate's way, one row per (place, condition, site)."""
    shown = way[way.site.isin([*fixed_sites(distinct(way, "site")), "lm.embed"])]
    return [
        {
            "place": place_name(row["place"], row["condition"]),
            "condition": NAMES.get(row["condition"], row["condition"]),
            "site": row["site"],
            "measure": MEASURES[row["measure"]],
            "score": f"{number(row['score'])} {interval(row['low'], row['high'])}",
            "control": number(row["control"]),
            "n": int(row["n"]),
        }
        for row in records(shown)
    ]


def fixed_sites(sites: Sequence[str]) -> list[str]:
    """Tower's last, projector, decoder's first, middle and last, of those that are there."""
    depth = Depth.of(sites)
    ends = [run for stack in ("vision", "projector") if (run := depth.run(stack))]
    chosen = [last for _, last in ends]
    layers = [k for k, site in enumerate(depth.sites) if site.stack == "lm" and site.layer is not None]
    if layers:
        chosen += [layers[0], layers[len(layers) // 2], layers[-1]]
    return [str(depth.sites[k]) for k in dict.fromkeys(chosen)]


def control_rows(tables: Mapping[str, pd.DataFrame]) -> list[dict[str, str]]:
    """Each control that the tables hold: what it is, what came of it, and beside what it stands."""
    held = {name: table for name, table in tables.items() if not table.empty}
    makers: dict[str, Callable[[pd.DataFrame], list[dict[str, str]]]] = {
        "way": _way_controls,
        "layers": _layer_controls,
        "probes": _probe_controls,
        "transfer": _transfer_controls,
        "lens": partial(_lens_controls, lens_name="Logit lens"),
        "lens.tuned": partial(_lens_controls, lens_name="Tuned lens"),
        "decodable_causal": _erasing_controls,
        "effects": _patch_controls,
    }
    return [row for name, make in makers.items() if name in held for row in make(held[name])]


_PROBE_CONTROLS: Final = {
    "shuffled_accuracy": "Probe on shuffled labels: accuracy",
    "control_accuracy": "Probe on a control task (random labels by type): accuracy",
    "untrained_accuracy": "Probe on an untrained model of the same shape: accuracy",
    "pixels_accuracy": "Probe on raw pixels: accuracy",
}


def _probe_controls(probes: pd.DataFrame) -> list[dict[str, str]]:
    rows = [_probe_control(probes, name, what) for name, what in _PROBE_CONTROLS.items() if name in probes]
    if "embedded_accuracy" in probes:
        words = probes[probes.condition == "cascaded"]
        rows.append(_probe_control(words, "embedded_accuracy", "Probe on token embeddings, text runs: accuracy"))
    if "selectivity" in probes:
        rows.append(_ranged("Selectivity (accuracy − control task)", probes.selectivity, "0 would be no more"))
    return rows


def _probe_control(probes: pd.DataFrame, column: str, what: str) -> dict[str, str]:
    held = probes[probes[column].notna()]
    return _ranged(what, held[column], f"chance: {_range(held.chance)}; the probes: {_range(held.accuracy)}")


def _way_controls(way: pd.DataFrame) -> list[dict[str, str]]:
    words = way[(way.place == "objects") & (way.condition != "direct")]
    direct = way[way.condition == "direct"]
    rows = [
        _ranged(f"Control task, {MEASURES[str(name)]}, beyond chance", own.control, f"the probes: {_range(own.score)}")
        for name, own in direct.groupby("measure", sort=False)
    ]
    beside = f"the most in direct runs: {_range([direct.score[direct.place == 'objects'].max()])}"
    return [*rows, _ranged("Probes of the words themselves, beyond chance", words.score, beside)]


def _layer_controls(layers: pd.DataFrame) -> list[dict[str, str]]:
    what = {"hold": "Partner's image states held", "given": "Partner's text state written at the reading positions"}
    return [
        _ranged(
            f"{what[str(name)]}: failed answers that come right", own.control, f"the item's own: {_range(own.score)}"
        )
        for name, own in layers.groupby("table", sort=False)
        if name in what
    ]


def _transfer_controls(transfer: pd.DataFrame) -> list[dict[str, str]]:
    same = transfer[transfer.train_site == transfer.site]
    beside = f"chance: {_range(same.chance)}; the probes, recentred: {_range(same.recentred_accuracy)}"
    return [_ranged("Transfer of random labels, same site: accuracy", same.control_accuracy, beside)]


def _lens_controls(lens: pd.DataFrame, *, lens_name: str) -> list[dict[str, str]]:
    what = f"{lens_name}, text of the partner: log-probability (nats)"
    return [_ranged(what, lens.partner_logprob, f"the item's own: {_range(lens.logprob)}")]


def _erasing_controls(pairs: pd.DataFrame) -> list[dict[str, str]]:
    what = "Random directions erased: change of log-probability (nats)"
    return [_ranged(what, pairs.random_effect, f"what probes read erased: {_range(pairs.effect)}")]


def _patch_controls(effects: pd.DataFrame) -> list[dict[str, str]]:
    control = effects[effects.experiment == "cross_control"]
    if control.empty:
        return []
    own = _range(effects[effects.experiment == "cross"].right)
    beside = f"the item's own: {own}; unpatched: {_range(control.base_right)}"
    return [_ranged("Partner's text state patched in: share answered right", control.right, beside)]


def _ranged(what: str, values: Iterable[Any], beside: str) -> dict[str, str]:
    return {"what": what, "found": _range(values), "beside": beside}


def _range(values: Iterable[Any]) -> str:
    numbers = finite(values)
    if not numbers:
        return "–"
    low, high = number(min(numbers)), number(max(numbers))
    return low if low == high else f"{low} to {high}"


def experiment_rows(effects: pd.DataFrame, questions: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every patching experiment in the table: question, cells, items, and pairs below the margin."""
    return [
        {
            "name": name,
            "question": questions.get(str(name), ""),
            "cells": len(table),
            "n": int(table.n.max()),
            "below": int(table.below_margin.max()) if "below_margin" in table else None,
        }
        for name, table in effects.groupby("experiment", sort=False)
    ]


def settings_rows(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, text)."""
    rows: list[tuple[str, str]] = []
    for key, value in settings.items():
        nested = isinstance(value, Mapping)
        rows += settings_rows(value, f"{prefix}{key}.") if nested else [(f"{prefix}{key}", str(value))]
    return rows


def again(settings: Mapping[str, Any]) -> str:
    """The command that does such a run anew; empty where a setting is none of its options."""
    usual = {name: _listed(value) for name, value in asdict(Settings()).items()}
    asked = {name: _listed(value) for name, value in settings.items() if name in usual}
    moved = [name for name in asked if asked[name] != usual[name]]
    if set(moved) - set(OPTIONS):
        return ""
    shown = [name for k, name in enumerate(OPTIONS) if name in asked and (k < TOLD or name in moved)]
    options = [(f"--{name.replace('_', '-')}", value) for name in shown for value in asked[name]]
    return shlex.join(["seamscope", "locate", *(part for option in options for part in option), "--out", "FOLDER"])


def _listed(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, (list, tuple)) else [str(value)]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
