"""Take from a table what a figure draws, or say in one line what it lacks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from seamscope.hooks import RunError, choose


def need(table: pd.DataFrame, what: str, columns: Sequence[str]) -> pd.DataFrame:
    """The table itself; raise `RunError` if it has no rows or lacks a column."""
    if table.empty:
        raise RunError(f"the {what} table is empty: there is nothing to draw")
    missing = [name for name in columns if name not in table.columns]
    if missing:
        has = ", ".join(map(str, table.columns))
        raise RunError(f"the {what} table lacks the column {', '.join(map(repr, missing))}; it has: {has}")
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
    if re.fullmatch(r"(image\.object|intermediate)\.(\d+|\{k\})", span):
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
_SCORES = ("control", "shuffled", "untrained", "pixels")
_MEANS = (
    *PROBE_COLUMNS[4:],
    *(f"{name}_{part}" for name in _SCORES for part in ("accuracy", "low", "high")),
    *(f"{name}{part}" for name in ("selectivity", "bits") for part in ("", "_low", "_high")),
    "uniform_bits",
)


def probe_lines(probes: pd.DataFrame, *, span: str, target: str | None) -> pd.DataFrame:
    """Mean over targets at one place: one row per (site, condition).

    `target`: one target, or a family (`card.*.rank`); default, every target that describes one object, as the
    locator averages them, or the only family where there is none such.

    An object's own target is read at its own span (`card.1.rank` at `image.object.1`). The bounds are the
    means of the targets' bounds, which is no narrower than an interval of the mean. Columns: `site,
    condition, accuracy, low, high, chance`, the controls and other measures that the table has, `q`, the largest of
    the targets, and `targets` (how many were averaged). Raises `RunError` where some targets are missing at some
    sites only.
    """
    rows = need(probes, "probes", PROBE_COLUMNS)
    rows = keep(rows.assign(place=rows.span.map(span_family)), "probes", "place", span_family(span))
    rows = of_target(rows, "probes", target)
    return averaged(rows, "probes", ("site", "condition"), _MEANS)


def averaged(rows: pd.DataFrame, what: str, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Means of those columns that there are over the targets of each cell, and the largest `q`.

    NaN where one of a cell's targets was not measured; `RunError` where a cell lacks a target that another has.
    """
    held = [name for name in columns if name in rows.columns]
    grouped = rows.groupby(list(by), sort=False)
    whole = grouped[held].count().eq(grouped.size(), axis=0)
    lines = grouped[held].mean().where(whole).assign(targets=grouped.target.nunique())
    if "q" in rows.columns:
        lines["q"] = grouped["q"].max()
    lines = lines.reset_index()
    few = lines[lines.targets < lines.targets.max()]
    if not few.empty:
        where = ", ".join(str(few[name].iloc[0]) for name in by)
        raise RunError(
            f"the {what} table lacks a target at {where}: {few.targets.iloc[0]} of {lines.targets.max()} are there, "
            "and means over different targets cannot be compared"
        )
    return lines


def own_rows(table: pd.DataFrame, column: str = "span") -> pd.DataFrame:
    """Without the rows in which one object's target is read at another object's span."""
    return table[[_belong(s, t) for s, t in zip(table[column], table.target, strict=True)]]


def _belong(span: str, target: str) -> bool:
    if span_family(span) != "objects":
        return True
    return number_in(target) is None or number_in(target) == number_in(span)


def of_target(rows: pd.DataFrame, what: str, target: str | None, spans: Sequence[str] = ("span",)) -> pd.DataFrame:
    """The rows of a target or a family of them; None: of all that describe one object, or of the only family.

    In each of the columns `spans`, an object's own target is read at its own span.
    """
    for column in spans:
        rows = own_rows(rows, column)
        if rows.empty:
            raise RunError(f"the {what} table has no target at the {column} of its own object: nothing can be drawn")
    family = rows.target.map(target_family)
    families = list(dict.fromkeys(family))
    if target in families:
        return rows[family == target]
    if target is not None:
        return keep(rows, what, "target", target)
    of_objects = rows[rows.target.map(number_in).notna()]
    if of_objects.empty and len(families) > 1:
        raise RunError(f"several targets can be drawn: name one with target=: {', '.join(families)}")
    return rows if of_objects.empty else of_objects


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dictionaries."""
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def finite(values: Iterable[Any]) -> list[float]:
    """The values that are numbers."""
    return [float(value) for value in values if pd.notna(value)]
