"""A screen: attribution patching estimates every cell, the strongest are measured, and so are some others, to tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from tqdm import tqdm

from seamscope.hooks import Attribution, RunError, Site, Vlm, choose
from seamscope.probes import bootstrap_interval

from ._cells import Cell
from ._experiment import EXPERIMENTS, Experiment
from ._runs import Runs
from ._sweep import patching, sites_of, sweep_item
from ._tokens import token_names
from ._trials import Trial

if TYPE_CHECKING:
    from ..tasks import Item, Task

KEY: Final = ["target_site", "span", "token"]


def screen(
    vlm: Vlm,
    task: Task,
    items: Sequence[Item],
    *,
    cells: Sequence[Cell],
    experiment: str = "denoise",
    top: int = 20,
    sample: int = 20,
    dropping: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Estimate what every token's patch does, and measure the strongest cells and a random sample of the others.

    A few passes back and forth tell of all cells at once (attribution patching, with the corrections of AtP*
    2403.00745). The strongest are chosen on one half of the items and measured on the other. The sample says how much
    the screen misses; see `screen_agreement`.

    Args:
        vlm: the model; with eager attention, weights are made anew (see `Attribution`).
        task: the task of the items.
        items: two at least.
        cells: from `layer_cells`; every token of the prompt is one, whatever their spans. Residual streams, `attn_out`,
            `mlp_out`, `resid_mid` or `head_z` (all heads at once) of the decoder.
        experiment: one of `EXPERIMENTS`.
        top: how many of the strongest cells are measured.
        sample: how many of the others.
        dropping: rank by gradients without each layer in turn, a pass for each; else by the estimate's size.
        seed: of the halves, the sample and the intervals.
        progress: show a progress bar.

    Returns:
        One row per cell that at least half of the choosing items have: `source_site, target_site, span, token, kind,
        layer`; `score`, by which it was ranked (nats, mean over the half that chose); `estimate`, of the other half;
        `measured`: `top`, `sample` or empty; `exact` with `low, high`, what it does there, nats; `n` items of that
        half.
    """
    plan = EXPERIMENTS[choose("experiment", experiment, EXPERIMENTS, RunError)]
    groups = list(dict.fromkeys(item.group for item in items))
    if len(groups) < 2:
        raise RunError(f"a screen chooses on one half of the items and measures on the other; got {len(groups)} groups")
    rng = np.random.default_rng(seed)
    choosing = {groups[k] for k in rng.permutation(len(groups))[: len(groups) // 2]}
    estimates = pd.concat(
        [
            pd.DataFrame(_estimates(Runs(vlm, task, item, sites=sites_of(cells)), plan, cells, dropping=dropping))
            for item in tqdm(items, desc="screen", unit="item", disable=not progress)
        ],
        ignore_index=True,
    )
    if estimates.empty:
        raise RunError(f"{experiment}: the two runs of no item have equally many tokens in every span")
    chose = estimates.group.isin(choosing)
    enough = estimates[chose].groupby(["source_site", *KEY]).group.nunique() * 2 >= len(choosing)
    estimates = estimates.set_index(["source_site", *KEY]).loc[enough[enough].index].reset_index()
    chose = estimates.group.isin(choosing)
    table = _mean(estimates[~chose], "estimate").merge(_mean(estimates[chose], "score"), on=["source_site", *KEY])
    order = table.score.abs().sort_values(ascending=False, kind="stable").index
    others = rng.permutation(order[top:].to_numpy())[:sample]
    table["measured"] = ""
    table.loc[order[:top], "measured"] = "top"
    table.loc[others, "measured"] = "sample"
    wanted = set(table[table.measured != ""][KEY].itertuples(index=False, name=None))

    def exact(runs: Runs) -> Iterator[Trial]:
        trials = patching(experiment, cells, by="token")(runs)
        return (trial for trial in trials if tuple(trial.labels[name] for name in KEY) in wanted)

    scored = [item for item in items if item.group not in choosing]
    rows = pd.concat(
        [
            sweep_item(vlm, task, item, [exact], sites=sites_of(cells))
            for item in tqdm(scored, desc="measure", unit="item", disable=not progress)
        ]
    )
    found = pd.DataFrame([{**dict(zip(KEY, key, strict=True)), **_exact(own, seed)} for key, own in rows.groupby(KEY)])
    table = table.merge(found, on=KEY, how="left")
    sites = {name: Site.parse(name) for name in table.target_site.unique()}
    table.insert(4, "kind", [sites[name].kind for name in table.target_site])
    table.insert(5, "layer", [sites[name].layer for name in table.target_site])
    return table


def _estimates(runs: Runs, plan: Experiment, cells: Sequence[Cell], *, dropping: bool) -> Iterator[dict[str, object]]:
    """What is estimated of one item's tokens, those of the answer left out."""
    batch = runs.batch(plan.target)
    names = token_names(batch)
    if names != token_names(runs.batch(plan.source)):
        return
    exact_attention = runs.vlm.attn_implementation == "eager"
    sites = list(dict.fromkeys(cell.target_site for cell in cells))
    found = Attribution(runs.vlm, batch, sites, exact_attention=exact_attention, dropping=dropping)
    answers = set(batch.spans[0]["answer"].tolist())
    for cell in {(cell.source_site, cell.target_site): cell for cell in cells}.values():
        new, there = runs.values(plan.source, cell.source_site), runs.values(plan.target, cell.target_site)
        if new is None or there is None:
            continue
        changes = (new - there).float().clone()
        total = found.estimate(cell.target_site, changes).reshape(len(changes), -1).sum(1)
        if exact_attention:
            total = total + found.attention(runs.replay(plan.target), cell.target_site, changes).to(total)
        size = found.dropped(cell.target_site, changes).reshape(len(total), -1).sum(1) if dropping else total.abs()
        for position, (span, token) in enumerate(names):
            if position not in answers:
                yield {
                    "group": runs.item.group,
                    "source_site": cell.source_site,
                    "target_site": cell.target_site,
                    "span": span,
                    "token": token,
                    "estimate": float(total[position]),
                    "score": float(size[position]),
                }


def _mean(table: pd.DataFrame, name: str) -> pd.DataFrame:
    return table.groupby(["source_site", *KEY], sort=False)[name].mean().reset_index()


def _exact(own: pd.DataFrame, seed: int) -> dict[str, float]:
    effect = (own.patched - own.base).to_numpy(dtype=float)
    low, high = bootstrap_interval(effect, own.group, seed=seed)
    return {"exact": effect.mean(), "low": low, "high": high, "n": len(own)}


def screen_agreement(table: pd.DataFrame) -> pd.DataFrame:
    """How far a screen can be trusted, from its measured cells.

    Returns:
        One row for the `sample` and one for the `top` cells: `cells`; `rank_correlation`, Spearman's, of estimate and
        exact effect; `same_sign`, the share with equal signs; `largest`, the largest exact effect. Where the sample's
        largest is above most of the top ones, the screen has missed cells.
    """
    rows = []
    for name in ("top", "sample"):
        own = table[table.measured == name]
        known = len(own) > 2 and own.estimate.nunique() > 1 and own.exact.nunique() > 1
        rows.append(
            {
                "measured": name,
                "cells": len(own),
                "rank_correlation": float(spearmanr(own.estimate, own.exact).statistic) if known else float("nan"),
                "same_sign": float((np.sign(own.estimate) == np.sign(own.exact)).mean()) if len(own) else float("nan"),
                "largest": float(own.exact.abs().max()) if len(own) else float("nan"),
            }
        )
    return pd.DataFrame(rows)
