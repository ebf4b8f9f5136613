"""Direct paths from one site to later ones, as sweeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from seamscope.hooks import Cut, Edit, RunError, SiteError, choose, direct_path

from ._cells import Cell
from ._experiment import EXPERIMENTS
from ._runs import Runs
from ._sweep import Plan
from ._trials import Trial, edit_of, pairs_of


def paths(
    senders: Sequence[Cell], receivers: Sequence[str], *, experiment: str = "denoise", rule: str = "stretch"
) -> Plan:
    """The direct path from every sender to every receiver behind it, and beside it all that the sender does.

    Args:
        senders: what is patched, as for `sweep`: cells of `attn_out`, `mlp_out`, `head_z` or the residual stream.
        receivers: sites that are reached, see `direct_path`.
        experiment: one of `EXPERIMENTS`: which run is patched with which.
        rule: what is done when spans differ in size.

    Returns:
        A plan for `sweep_all`, whose rows have a column `receiver`; `all` is the sender's patch itself.
    """
    plan = EXPERIMENTS[choose("experiment", experiment, EXPERIMENTS, RunError)]

    def trials(runs: Runs) -> Iterator[Trial]:
        run = runs.replay(plan.target)
        for cell in senders:
            spans = pairs_of(runs, plan, cell.span)
            sender = edit_of(runs, plan, cell.source_site, cell.target_site, spans, rule)
            if sender is None:
                continue
            for receiver in ("all", *receivers):
                parts: list[Edit | Cut] = [sender]
                if receiver != "all":
                    try:
                        parts = [direct_path(run, sender, receiver)]
                    except SiteError:
                        continue  # it comes before the sender
                labels = {"source_site": cell.source_site, "target_site": cell.target_site, "span": cell.span}
                labels |= {"experiment": f"path_{plan.name}", "receiver": receiver}
                yield Trial(labels=labels, parts=parts, target=plan.target, ceiling=plan.source)

    return trials
