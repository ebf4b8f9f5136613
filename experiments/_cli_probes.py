"""`seamscope probe`, `lens` and `erase`: what is there, what the layers would say, and what is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pandas as pd

from . import _options as o

if TYPE_CHECKING:
    from ._study import Study

COPIES: Final = 0.5  # share of test rows with a near copy in training, above which a reader is told
SURE: Final = 0.05


def probe(study: Study, as_json: bool) -> None:
    """Show the best cell of each variable, and what probes of one run read in the other."""
    table, transfer = study.probes, study.transfer
    if as_json:
        return o.emit({"probes": table, "transfer": transfer, "run": study.run.folder})
    best = table.sort_values("accuracy", ascending=False).groupby(["condition", "target"]).head(1)
    columns = ["condition", "target", "site", "span", "accuracy", "low", "high"]
    columns += [f"{name}_accuracy" for name in ("control", "shuffled", "untrained", "pixels")] + ["chance", "q"]
    o.show(best.sort_values(["target", "condition"])[columns].round(2).to_string(index=False, na_rep="-"))
    o.show(f"\nthe best of {len(table)} cells for each target, chosen and scored on the same items")
    if len(transfer):
        o.show("\n" + _transfer_text(transfer))
    o.show("\n".join(["", *_warnings(table), f"tables: {study.run.folder}/probes.csv, transfer.csv"]))


def lens(study: Study, *, tuned: bool, as_json: bool) -> None:
    """Show where the item's own words stand out most from its partner's."""
    table = study.lens(tuned=tuned)
    if as_json:
        return o.emit({"lens": table, "run": study.run.folder})
    best = table.sort_values("difference", ascending=False).groupby(["condition", "what"]).head(1)
    columns = ["condition", "what", "site", "span", "rank", "partner_rank", "logprob", "partner_logprob"]
    columns += ["difference", "difference_low", "difference_high", "n"]
    o.show(best.sort_values(["what", "condition"])[columns].round(2).to_string(index=False, na_rep="-"))
    o.show(f"\nof {len(table)} cells those in which the item's own words stand out most from its partner's, chosen and")
    o.show(f"scored on the same items; all of them: {study.run.folder}/{'lens.tuned' if tuned else 'lens'}.csv")


def erase(study: Study, as_json: bool) -> None:
    """Show where erasing and pushing do most beyond chance, and draw what is there against what is used."""
    from ._erasing_effects import WARNING
    from ._plates import draw_plates

    erased, pushed, pairs = study.erasing, study.pushing, study.causal
    (plate,) = draw_plates(study.run.folder / "figures", {"decodable_causal": pairs})
    if as_json:
        tables = {"erased": erased, "pushed": pushed, "decodable_causal": pairs}
        return o.emit({**tables, "warning": WARNING, "figure": plate.saved.pdf, "run": study.run.folder})
    o.show(f"erased: what becomes of the answer, in nats\n{_strongest(pairs, 'accuracy', 'selectivity')}")
    if len(pushed):
        o.show(f"\npushed to the partner's label: what becomes of the partner's answer, in nats\n{_strongest(pushed)}")
    counts = f"{len(erased)} cells erased and {len(pushed)} pushed"
    o.show(f"\nof {counts} those of each variable and place that differ most from the random control, chosen and")
    o.show("scored on the same items; q: of the difference, over all cells of a table")
    for name in dict.fromkeys(name for name in erased.variable if name not in set(pushed.variable)):
        o.show(f"note: {name} was not pushed: no partner has another label that the other half of the items has too")
    o.show(f"note: {WARNING}")
    o.show(f"tables: {study.run.folder}/erased.csv, pushed.csv, decodable_causal.csv; figure: {plate.saved.pdf}")


def _strongest(table: pd.DataFrame, *beside: str) -> str:
    """The cell of each variable and place whose effect differs most from that of the random control."""
    best = table.sort_values("difference", key=abs, ascending=False).groupby(["variable", "span"]).head(1)
    columns = ["variable", "span", "site", *beside, "effect", "random_effect"]
    columns += ["difference", "difference_low", "difference_high", "q"]
    return best.sort_values(["variable", "span"])[columns].round(2).to_string(index=False, na_rep="-")


def _transfer_text(transfer: pd.DataFrame) -> str:
    """Probes of one run on another, at the same site: the best layer of each kind of variable, and its control."""
    same = transfer[transfer.train_site == transfer.site]
    same = same.assign(kind=same.target.str.replace(r"(?<=\.)\d+(?=\.|$)", "*", regex=True))
    places = ["train_condition", "train_span", "condition", "span"]
    same[["train_span", "span"]] = same[["train_span", "span"]].replace(r"\.\d+$", ".*", regex=True)
    means = same.groupby([*places, "kind", "site"], sort=False)[
        ["accuracy", "recentred_accuracy", "control_accuracy", "chance"]
    ].mean()
    best = means.sort_values("recentred_accuracy", ascending=False).groupby([*places, "kind"], sort=False).head(1)
    table = best.reset_index().sort_values(["kind", *places])
    lines = [
        f"{row.kind:14} {row.train_condition} {row.train_span} → {row.condition} {row.span}: "
        f"{row.recentred_accuracy:.2f} recentred, {row.accuracy:.2f} as it is, control {row.control_accuracy:.2f}, "
        f"chance {row.chance:.2f}  ({row.site})"
        for row in table.itertuples()
    ]
    return "\n".join(["probes of one run on the other, best layer:", *lines])


def _warnings(table: pd.DataFrame) -> list[str]:
    """What a reader should know before believing a probe."""
    starved, stuck = int(table.starved.sum()), int((~table.converged.astype(bool)).sum())
    edge = int((table.weakest > 0.5).sum())
    told = {
        f"{starved} of {len(table)} cells are starved: more items would still read more; raise --n": starved,
        f"{stuck} of {len(table)} cells did not converge": stuck,
        f"{edge} of {len(table)} cells take the weakest penalty offered: a weaker one might read a little more": edge,
    }
    copied = table[(table.copies > COPIES) & (table.q < SURE)]
    where = ", ".join(dict.fromkeys(f"{row.condition} {row.span}" for row in copied.itertuples()))
    told[
        f"in {len(copied)} cells more than half of the items have a near copy among those fitted on, as where words "
        f"repeat ({where}): there a probe may remember, see the control"
    ] = len(copied)
    return [f"note: {text}" for text, count in told.items() if count]
