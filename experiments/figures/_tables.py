"""Take from a table what a figure draws, or say in one line what it lacks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from seamscope.hooks import RunError, choose


def need(table: pd.DataFrame, what: str, columns: Sequence[str]) -> pd.DataFrame:
    """The table itself; raise `RunError` if it has no rows or lacks a column."""
    missing = [name for name in columns if name not in table.columns]
    if missing and not (table.empty and len(table.columns) == 0):
        has = ", ".join(map(str, table.columns))
        raise RunError(f"the {what} table lacks the column {', '.join(map(repr, missing))}; it has: {has}")
    if table.empty:
        raise RunError(f"the {what} table is empty: there is nothing to draw")
    return table


def keep(table: pd.DataFrame, what: str, column: str, wanted: str | Iterable[str]) -> pd.DataFrame:
    """The rows with the wanted values of a column; each of them must be there."""
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    held = distinct(table, column)
    for name in names:
        choose(f"{column} of the {what} table", name, held, RunError)
    return table[table[column].isin(names)]


def distinct(table: pd.DataFrame, column: str) -> list[str]:
    """Values of a column in the order in which they come."""
    return [str(value) for value in dict.fromkeys(table[column])]


def span_family(span: str) -> str:
    """The place of a span, the same in both runs: `image.object.2` and `intermediate.2` are `objects`."""
    if re.fullmatch(r"(image\.object|intermediate)\.\d+", span):
        return "objects"
    return "image" if span == "intermediate" else span


def target_family(target: str) -> str:
    """`card.0.rank` → `card.*.rank`."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", target)


def number_in(name: str) -> int | None:
    """The first number of a dotted name: 0 for `card.0.rank` and `image.object.0`, None for `last`."""
    found = re.search(r"(?<![^.])\d+(?![^.])", name)
    return int(found[0]) if found else None


PROBE_COLUMNS = ("site", "span", "condition", "target", "accuracy", "low", "high", "chance")
_MEANS = ("accuracy", "low", "high", "chance", "control_accuracy", "shuffled_accuracy", "untrained_accuracy")


def probe_lines(probes: pd.DataFrame, *, span: str, target: str | None) -> pd.DataFrame:
    """Mean over targets at one place: one row per (site, condition).

    `target`: one target, or a family (`card.*.rank`); default, every target that describes one object, as the
    locator averages them, or the only family where there is none such.

    An object's own target is read at its own span (`card.1.rank` at `image.object.1`). The bounds are the
    means of the targets' bounds, which is no narrower than an interval of the mean. Columns: `site,
    condition, accuracy, low, high, chance`, the controls that the table has, and `targets` (how many were
    averaged). Raises `RunError` where some targets are missing at some sites only.
    """
    rows = need(probes, "probes", PROBE_COLUMNS)
    rows = rows.assign(place=rows.span.map(span_family), family=rows.target.map(target_family))
    rows = keep(rows, "probes", "place", span_family(span))
    rows = _one_target(own_rows(rows), target)
    held = [name for name in _MEANS if name in rows.columns]
    grouped = rows.groupby(["site", "condition"], sort=False)
    lines = grouped[held].mean().assign(targets=grouped.target.nunique())
    lines = lines.reset_index()
    few = lines[lines.targets < lines.targets.max()]
    if not few.empty:
        raise RunError(
            f"the probes table lacks a target at {few.site.iloc[0]} ({few.condition.iloc[0]}, {span}): "
            f"{few.targets.iloc[0]} of {lines.targets.max()} are there, and means over different targets "
            "cannot be compared"
        )
    return lines


def own_rows(probes: pd.DataFrame) -> pd.DataFrame:
    """Without the rows in which one object's target is read at another object's span."""
    return probes[[_belong(s, t) for s, t in zip(probes.span, probes.target, strict=True)]]


def _belong(span: str, target: str) -> bool:
    if span_family(span) != "objects":
        return True
    return number_in(target) is None or number_in(target) == number_in(span)


def _one_target(rows: pd.DataFrame, target: str | None) -> pd.DataFrame:
    families = distinct(rows, "family")
    if target in families:
        return rows[rows.family == target]
    if target is not None:
        return keep(rows, "probes", "target", target)
    of_objects = rows[[number_in(name) is not None for name in rows.target]]
    if of_objects.empty and len(families) > 1:
        raise RunError(f"several targets can be drawn: name one with target=: {', '.join(families)}")
    return rows if of_objects.empty else of_objects


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def finite(values: Iterable[Any]) -> list[float]:
    """The values that are numbers."""
    return [float(value) for value in values if pd.notna(value)]
