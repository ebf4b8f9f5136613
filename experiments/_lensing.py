"""Where the answer and the intermediate come up in a model's layers, read through a lens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from seamscope.hooks import Batch, Ragged, RunError, Site, SpanError, TaskError, Vlm, capture, choose
from seamscope.probes import Lens, bootstrap_interval, lens_ranks, median_interval, paired_bootstrap_interval

from ._align import SPAN_SETS, expand
from ._conditions import hear
from .tasks import CONDITIONS, Item, Task

CELL: Final = ["condition", "site", "layer", "span", "what"]
SPANS: Final = ("objects", "question", "last")
BEFORE: Final = ("", " ", "\n")  # what a text may follow: many tokenizers have other tokens for a word after a space


def lens_table(
    vlm: Vlm,
    task: Task,
    items: Sequence[Item],
    *,
    lens: Lens,
    conditions: Iterable[str] = ("direct", "cascaded"),
    sites: Iterable[str] = ("lm.*.resid_post",),
    spans: Iterable[str] = SPANS,
    profile: str = "small",
    batch_size: int = 64,
    progress: bool = False,
) -> pd.DataFrame:
    """Read the first token of every item's answer and of each part of its intermediate, at every site and span.

    A text may start with several tokens: with or without white space before it, and in capitals. The better of them
    counts, at the best of the span's tokens. Beside it stands the same for the item's counterfactual partner, whose
    texts the run has not seen: what any text of the kind would get. Tokens that both may start with are left out.

    Args:
        vlm: the model.
        task: gives partners, and reads what call 1 of a cascade says.
        items: what is run.
        lens: a `LogitLens` or `TunedLens` of this model.
        conditions: names; `cascaded` is its call 2, after what the model itself said in call 1.
        sites: names or globs of residual streams that the lens reads.
        spans: span sets, such as `objects` (`image.object.k`, or `intermediate.k` in text), or names of spans.
        profile: the one of the items, for the budget of call 1.
        batch_size: items that are run together; their streams at all sites and spans are held.
        progress: show a progress bar.

    Returns:
        One row per item, condition, site, span and text: `id, group, condition, site, layer, span`; `what`, `answer` or
        `intermediate.k`; `rank` (0 is the likeliest) and `logprob` (nats), `partner_rank` and `partner_logprob`; `same`
        where item and partner cannot be told apart by their first tokens. Items without tokens of a span at a site
        have no row there, and parts of the intermediate that the partner lacks have none.

    Raises:
        TaskError, SiteError, SpanError, RunError: for unknown names, a lens that does not go with the model or the
            sites, or a text for which the model has no token.
    """
    names = [choose("condition", name, CONDITIONS, TaskError) for name in conditions]
    where = [lens.require(site) for site in vlm.expand(list(sites))]
    if lens.vlm is not vlm:
        raise RunError(f"{lens} reads the streams of another model object; make the lens of the one that is run")
    reading = _Reading(vlm, lens, where, _known(vlm, items, names, spans))
    tables: list[pd.DataFrame] = []
    with tqdm(total=len(names) * len(items), desc="lens", unit="run", disable=not progress) as bar:
        for start in range(0, len(items), batch_size):
            batch = list(items[start : start + batch_size])
            sought = _Sought.of(vlm, batch, [task.partner(item) for item in batch])
            for name in names:
                run = hear(vlm, task, batch, budget=task.budget[profile])[0] if name == "cascaded" else batch
                tables += reading.of(run, sought, name)
                bar.update(len(batch))
    if not tables:
        raise RunError("there is nothing to read: no item has tokens of these spans under these conditions")
    return pd.concat(tables, ignore_index=True).astype({"layer": "Int64"})


def _known(vlm: Vlm, items: Sequence[Item], conditions: Sequence[str], spans: Iterable[str]) -> list[str]:
    """The span sets and spans that were asked for; `SpanError` for one that no condition has."""
    if not items:
        raise RunError("there is nothing to read: an empty list of items")
    longest = max(items, key=lambda item: len(item.intermediate.parts))
    heard = longest.saying(longest.intermediate)
    held = [span for name in conditions for span in vlm.encode([heard], condition=name).span_names]
    return [choose("span", name, [*SPAN_SETS, *held], SpanError) for name in spans]


def summarise_lens(table: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """One row per condition, site, span and text of a `lens_table`; rows that are the `same` do not count.

    Columns: the cell; `n` rows, and `n_same` that were left out; `rank` and `partner_rank`, medians, `logprob` and
    `partner_logprob`, means in nats, and `difference` = logprob - partner_logprob on the same items, each with `_low`
    and `_high`. Intervals are of 95 %, by a bootstrap over groups; NaN where nothing is left.
    """
    cells = table.groupby(CELL, sort=False, dropna=False)
    rows = [{**dict(zip(CELL, key, strict=True)), **_summary(cell, seed)} for key, cell in cells]
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def _summary(cell: pd.DataFrame, seed: int) -> dict[str, float]:
    kept = cell[~cell.same]
    own, other = kept.logprob, kept.partner_logprob
    low, high = paired_bootstrap_interval(own, other, kept.group, seed=seed)
    return {
        "n": len(kept),
        "n_same": len(cell) - len(kept),
        **_median("rank", kept["rank"], kept.group, seed),
        **_median("partner_rank", kept.partner_rank, kept.group, seed),
        **_mean("logprob", own, kept.group, seed),
        **_mean("partner_logprob", other, kept.group, seed),
        "difference": float((own - other).mean()),
        "difference_low": low,
        "difference_high": high,
    }


def _mean(name: str, values: pd.Series[Any], groups: pd.Series[Any], seed: int) -> dict[str, float]:
    low, high = bootstrap_interval(values, groups, seed=seed)
    return {name: float(values.mean()), f"{name}_low": low, f"{name}_high": high}


def _median(name: str, values: pd.Series[Any], groups: pd.Series[Any], seed: int) -> dict[str, float]:
    low, high = median_interval(values, groups, seed=seed)
    return {name: float(values.median()), f"{name}_low": low, f"{name}_high": high}


@dataclass(frozen=True, eq=False)
class _Sought:
    """The first tokens of some items' texts: `tokens` by item, text, item or partner, and variant."""

    what: tuple[str, ...]
    tokens: Tensor
    there: NDArray[np.bool_]
    same: NDArray[np.bool_]

    @classmethod
    def of(cls, vlm: Vlm, items: Sequence[Item], partners: Sequence[Item]) -> _Sought:
        first = _Starts(vlm)
        told = [
            [_told_apart(first(own), first(other)) for own, other in zip(_texts(item), _texts(partner), strict=False)]
            for item, partner in zip(items, partners, strict=True)
        ]
        n_texts = max(map(len, told))
        size = max(len(ids) for row in told for own, other, _ in row for ids in (own, other))
        tokens = torch.zeros(len(items), n_texts, 2, size, dtype=torch.long)
        there, same = (np.zeros((len(items), n_texts), dtype=bool) for _ in range(2))
        for row, texts in enumerate(told):
            for k, (own, other, alike) in enumerate(texts):
                there[row, k], same[row, k] = True, alike
                for whose, ids in enumerate((own, other)):
                    tokens[row, k, whose] = torch.tensor([*ids, *ids[:1] * (size - len(ids))])
        return cls(("answer", *(f"intermediate.{k}" for k in range(n_texts - 1))), tokens, there, same)


def _texts(item: Item) -> list[str]:
    return [item.answer, *item.intermediate.parts]


def _told_apart(own: list[int], other: list[int]) -> tuple[list[int], list[int], bool]:
    """The tokens that only one of two texts may start with, or all of both, and True, where one has none."""
    mine, theirs = [each for each in own if each not in other], [each for each in other if each not in own]
    return (mine, theirs, False) if mine and theirs else (own, other, True)


class _Starts:
    """The tokens that a text may start with in a model's vocabulary."""

    def __init__(self, vlm: Vlm) -> None:
        self._name, self._tokenizer = vlm.name, vlm.processor.tokenizer
        self._special = set(self._tokenizer.all_special_ids)
        self._blank = lru_cache(maxsize=None)(self._is_blank)

    def __call__(self, text: str) -> list[int]:
        """Those of its forms; white space alone and what stands for unknown words are none."""
        forms = dict.fromkeys((text, text[:1].upper() + text[1:], text.upper()))
        read = self._tokenizer([before + form for form in forms for before in BEFORE], add_special_tokens=False)
        inked = (next((each for each in ids if not self._blank(each)), None) for ids in read["input_ids"])
        found = list(dict.fromkeys(each for each in inked if each is not None and each not in self._special))
        if not found:
            raise RunError(f"{self._name} has no token that {text!r} starts with")
        return found

    def _is_blank(self, token: int) -> bool:
        return not self._tokenizer.decode([token]).strip()


@dataclass(frozen=True)
class _Reading:
    """Runs items and reads their streams."""

    vlm: Vlm
    lens: Lens
    sites: list[Site]
    spans: list[str]

    def of(self, items: Sequence[Item], sought: _Sought, condition: str) -> Iterator[pd.DataFrame]:
        batch = self.vlm.encode(items, condition=condition)
        spans = self._spans(batch, objects=max(len(item.boxes) for item in items))
        if not spans:
            return
        with capture(self.vlm, [str(site) for site in self.sites], spans=spans) as acts:
            self.vlm.forward(batch, logits_to_keep=1)
        for site in self.sites:
            for span in spans:
                held = acts[site, span]
                cell = {"condition": condition, "site": str(site), "layer": site.layer, "span": span}
                yield _rows(items, sought, cell, (held.lengths > 0).numpy(), self._best(site, held, sought.tokens))

    def _spans(self, batch: Batch, *, objects: int) -> list[str]:
        """The spans of the sets that the decoder has tokens of."""
        condition = str(batch.condition)
        wanted = dict.fromkeys(each for name in self.spans for each in expand(name, condition, objects=objects))
        return [span for span in wanted if batch.has(self.sites[0], span)]

    def _best(self, site: Site, held: Ragged, tokens: Tensor) -> tuple[NDArray[Any], NDArray[Any]]:
        """Rank and log-probability by row with tokens, text, and item or partner: best of variants and tokens."""
        sought = tokens[held.row_of]
        rank, logprob = (
            each.view(sought.shape) for each in lens_ranks(self.lens, site, held.values, sought.flatten(1))
        )
        lengths = held.lengths[held.lengths > 0].numpy()
        starts = np.cumsum(lengths) - lengths
        least, most = rank.amin(-1).numpy(), logprob.amax(-1).numpy()
        return np.minimum.reduceat(least, starts), np.maximum.reduceat(most, starts)


def _rows(
    items: Sequence[Item],
    sought: _Sought,
    cell: dict[str, Any],
    held: NDArray[np.bool_],
    best: tuple[NDArray[Any], NDArray[Any]],
) -> pd.DataFrame:
    """One row for each item with tokens and each text that it and its partner have."""
    rows, texts = np.nonzero(sought.there & held[:, None])
    place = np.cumsum(held)[rows] - 1
    rank, logprob = (values[place, texts] for values in best)
    return pd.DataFrame(
        {
            "id": np.array([item.id for item in items], dtype=object)[rows],
            "group": np.array([item.group for item in items], dtype=object)[rows],
            **cell,
            "what": np.array(sought.what, dtype=object)[texts],
            "rank": rank[:, 0],
            "logprob": logprob[:, 0],
            "partner_rank": rank[:, 1],
            "partner_logprob": logprob[:, 1],
            "same": sought.same[rows, texts],
        }
    )
