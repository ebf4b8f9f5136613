"""The figures of forms: probes of one run read in the other, and what layers would say through a lens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import pandas as pd

from . import figures
from ._plate import Draft, Tables, Words, extremes
from ._plates_probes import CONDITIONS
from ._report_views import main_family
from .figures._style import place_name
from .figures._tables import own_rows, span_family, target_family

Place = tuple[str, str]
LENSES: Final = {"lens": "Logit lens", "lens.tuned": "Tuned lens"}
READ: Final = (("answer", "last"), ("intermediate", "objects"), ("intermediate", "last"))
RUNS: Final[Mapping[str, str]] = {"direct": "direct", "cascaded": "text"}


def transfer_drafts(tables: Tables) -> list[Draft]:
    """For each pair of runs a matrix of layers, where it was measured, and the curves at the same layer."""
    if "transfer" not in tables:
        return []
    transfer = tables["transfer"]
    own = transfer[transfer.target.map(target_family) == main_family(transfer)]
    own = own_rows(own_rows(own, "train_span"))
    own = own.assign(train_place=own.train_span.map(span_family), place=own.span.map(span_family))
    pairs = own.groupby(["train_condition", "train_place", "condition", "place"], sort=False)
    matrices = [
        _matrix(rows.drop(columns=["train_place", "place"]), (str(a), str(b)), (str(c), str(d)))
        for (a, b, c, d), rows in pairs
        if (rows.train_site != rows.site).any()
    ]
    curves = [_transfer_curves(rows, str(name)) for name, rows in own.groupby("condition", sort=False)]
    return [*matrices, *curves]


def _matrix(rows: pd.DataFrame, train: Place, test: Place) -> Draft:
    family = main_family(rows)
    source, found = (f"{RUNS.get(name, name)} runs ({place_name(place, name)})" for name, place in (train, test))
    cells = rows.groupby(["train_site", "site"], sort=False).recentred_accuracy.mean().reset_index()
    cells = cells.assign(site=cells.train_site + " → " + cells.site)
    words = Words(
        title=f"Probes of {source}, read in {found}",
        caption=f"Upwards the layer whose probes of {family} were fitted in {source}; across the layer at which they "
        f"are tested in {found}, on other items. The colour is their accuracy, from chance to 1, after the tested rows "
        "were recentred, which forgives a shift between the two. Framed: the same layer. Hatched: no better than "
        "chance (q > 0.05), or the 95 % interval reaches down to the control task.",
        controls="chance and the control task, whose random labels are the same on both sides, decide on the hatching; "
        "both are drawn in the curves below, with the probes as they are, not recentred.",
        caveat="that the model reads this form, only that both runs write it alike. Where little is read across, it "
        "may stand in another form, or not be there: compare the probes fitted in place.",
        alt=f"Matrix of transfer accuracy by both layers: {extremes(cells, 'recentred_accuracy')}.",
    )
    return Draft(
        name=f"transfer_matrix_{train[0]}_to_{test[0]}_{test[1]}",
        draw=lambda: figures.transfer_matrix(rows, train=train, test=test, target=family),
        data=rows,
        words=words,
        section="transfer",
    )


def _transfer_curves(tested: pd.DataFrame, condition: str) -> Draft:
    family, rows = main_family(tested), tested[tested.train_site == tested.site]
    others = " and ".join(f"{RUNS.get(name, name)} runs" for name in dict.fromkeys(rows.train_condition))
    told = [
        f"{place_name(str(place), condition)}: "
        + extremes(table.groupby("site", sort=False).recentred_accuracy.mean().reset_index(), "recentred_accuracy")
        for place, table in rows.groupby("place", sort=False)
    ]
    rows = rows.drop(columns=["train_place", "place"])
    words = Words(
        title=f"The same layer of {others}, read in {RUNS.get(condition, condition)} runs",
        caption=f"Accuracy over depth of probes of {family} that were fitted at the same layer of {others}, on other "
        "items: with markers after recentring, dashed as they are, each with its 95 % band.",
        controls="chance (dotted), and a control task with the same random labels on both sides (thin): what it gains, "
        "it gains from the two runs having the same items' types, not from the variable.",
        caveat="that the model reads this form; and a probe that fails here has shown another form only where one that "
        "is fitted in place succeeds.",
        alt=f"Curves of transfer accuracy by layer. {'; '.join(told)}.",
    )
    return Draft(
        name=f"transfer_to_{condition}",
        draw=lambda: figures.transfer_panels(rows, target=family),
        data=rows,
        words=words,
        section="transfer",
    )


def lens_drafts(tables: Tables) -> list[Draft]:
    """For each lens the answer where it is made, and the intermediate where it stands and where it is needed."""
    return list(_lens_drafts(tables))


def _lens_drafts(tables: Tables) -> Iterator[Draft]:
    for name in LENSES:
        for what, place in READ if name in tables else ():
            rows = _shared(tables[name], what, place)
            if not rows.empty:
                yield _lens(rows, name, what, place)


def _shared(lens: pd.DataFrame, what: str, place: str) -> pd.DataFrame:
    """The rows of those texts that have a number at every site of the place, in every condition that has any."""
    rows = lens[(lens.what.map(lambda text: text.split(".")[0]) == what) & (lens.span.map(span_family) == place)]
    rows = own_rows(rows.assign(target=rows.what)).drop(columns="target").dropna(subset=["logprob"])
    cells = rows.condition + " " + rows.site
    return rows[cells.groupby(rows.what).transform("nunique") == cells.nunique()]


def _lens(rows: pd.DataFrame, name: str, what: str, place: str) -> Draft:
    runs = [each for each in CONDITIONS if each in set(rows.condition)]
    tuned = ", after an affine translator for each layer that was fitted on other items" if name != "lens" else ""
    parts = rows.what.nunique()
    text = "the answer" if what == "answer" else f"a part of the intermediate (mean of {parts})"
    where = "the objects" if place == "objects" else f"the {place_name(place, 'direct')}"
    means = rows.groupby(["condition", "site"], sort=False).logprob.mean().reset_index()
    told = [f"{RUNS[run]} runs: {extremes(means[means.condition == run], 'logprob')}" for run in runs]
    words = Words(
        title=f"{LENSES[name]}: the {what}, at {where}",
        caption=f"What the model would say if a layer's state went straight to its head{tuned}. Above: the mean "
        f"log-probability of the first token of {text}, in nats; below: its median rank among all tokens (1 is the "
        "likeliest); both with 95 % bands.",
        controls="dashed, the same for the text of the counterfactual partner, whose picture the run has not seen. A "
        "lens that raises both alike has found nothing; the paired difference, with its interval, is in the CSV file.",
        caveat="that a later layer reads this form. A text that stays low may stand there in another form than that of "
        "the output.",
        alt=f"Curves of log-probability and rank by layer. {'; '.join(told)}.",
    )
    return Draft(
        name=f"{name.replace('.', '_')}_{what}_{place}",
        draw=lambda: figures.lens_panels(rows, what=what, span=place, conditions=runs),
        data=rows,
        words=words,
        section="lens",
    )
