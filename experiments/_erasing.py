"""From there to used: erase what a probe reads, or push it to another label, and see what becomes of the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from seamscope.hooks import Ragged, RunError, Site, Vlm
from seamscope.probes import Eraser, LinearProbe, fit_direction

from ._halves import HANDS, Change, Lesson, Names, Place, Sample, Stage, means
from .tasks import Item, Task

Columns = dict[str, Any]


def erase_sweep(
    vlm: Vlm,
    task: Task,
    items: Sequence[Item],
    *,
    variables: Iterable[str],
    sites: Iterable[str],
    spans: Iterable[str],
    conditions: Iterable[str] = ("direct",),
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> pd.DataFrame:
    """Erase each variable at each site and span, by LEACE (2306.03819), and score the answers.

    Groups of items, those with the same picture in one, are dealt into two halves; what is erased from the items of
    one half is learnt on those of the other and their partners, every token of the span being a row: what tells labels
    apart in opposite ways at two tokens is left. The control erases what the same rows hold of random numbers, as many
    as make the same rank, which all tokens of an item share as they share its label; they are drawn anew for each
    twelfth of the items.

    Args:
        vlm: the model.
        task: where the items are from.
        items: to be measured.
        variables: names, such as `card.0.rank`.
        sites: names or globs.
        spans: span sets, or names of spans. `objects` is the object of the variable, in the picture or in the words
            of a text run; a variable of the whole item has none, and is left out there.
        conditions: of `direct` and `oracle`.
        seed: of halves and random subspaces.
        batch_size: items run at once.
        progress: show a progress bar.

    Returns:
        One row per item and cell (condition, site, span, variable): `base, erased, random`, log-probabilities in nats
        of the item's whole answer, teacher-forced; `base_right, erased_right, random_right`, whether greedy decoding
        gives it; `read_before, read_after, read_random`, whether a linear probe of the span's mean, fitted on the other
        half, reads the variable from this item as it is, erased, and after the random erasure; `read_anew`, whether a
        probe does that was fitted on what is erased, of other groups of its own half: where that is above `chance`,
        whether the commonest label of the other half is right, not all is erased, and more items are needed; `rank`,
        of what is erased; `changed` and `random_changed`, how much the tokens of the item's half were changed, and by
        the control, which is of the same rank but need not change as much: the mean square of the change, as a share
        of the variance around the mean; `n_left_out`, items of the cell without tokens or label.

    Raises:
        RunError, SiteError, SpanError: for an unknown name, nothing to erase, or too few items.
    """
    sample = Sample(vlm, task, items, seed=seed)
    plan = sample.plan(conditions=conditions, sites=sites, spans=spans, variables=variables)
    return _measure(_erase, sample, plan, batch_size=batch_size, progress=progress)


def push_sweep(
    vlm: Vlm,
    task: Task,
    items: Sequence[Item],
    *,
    variables: Iterable[str],
    sites: Iterable[str],
    spans: Iterable[str],
    conditions: Iterable[str] = ("direct",),
    strength: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    progress: bool = False,
) -> pd.DataFrame:
    """Push each item towards its partner's label, by the difference of the labels' means, and score both answers.

    Means are learnt on the half that the item is not in, as in `erase_sweep`. The control pushes as far in a random
    direction. Items whose partner has the same label are left out.

    Args:
        vlm, task, items, variables, sites, spans, conditions, seed, batch_size, progress: as in `erase_sweep`.
        strength: how many differences of the means are added.

    Returns:
        One row per item and cell: `own, partner`, log-probabilities in nats of the item's and of its partner's whole
        answer; the same when pushed, `own_pushed, partner_pushed`, and when pushed at random, `own_random,
        partner_random`; each with `_right`, whether greedy decoding gives that answer; `read_before`, whether a probe
        fitted on the other half reads the item's own label, `read_after`, its partner's after the push; `strength`;
        `n_left_out`, items of the cell without tokens, or without two labels that differ and that the other half has.

    Raises:
        RunError, SiteError, SpanError: as in `erase_sweep`, and where no item has a partner with another label.
    """
    sample = Sample(vlm, task, items, seed=seed)
    plan = sample.plan(conditions=conditions, sites=sites, spans=spans, variables=variables)
    return _measure(partial(_push, strength=strength), sample, plan, batch_size=batch_size, progress=progress)


def _measure(
    how: Callable[[Stage, Place, Ragged], Columns],
    sample: Sample,
    plan: Mapping[str, Sequence[Place]],
    *,
    batch_size: int,
    progress: bool,
) -> pd.DataFrame:
    """Measure every cell; a decoder that sees pictures from outside has no tokens of them."""
    tables = []
    with tqdm(total=sum(map(len, plan.values())), desc="change", unit="cell", disable=not progress) as bar:
        for places in plan.values():
            stage = Stage(sample, places, batch_size=batch_size)
            for place in places:
                held = stage.tokens(place)
                if held is not None:
                    tables.append(pd.DataFrame(how(stage, place, held)))
                bar.update()
    if not tables:
        raise RunError("there is nothing to change: no site has tokens of a span; give other sites or spans")
    return pd.concat(tables, ignore_index=True)


def _columns(stage: Stage, place: Place, measured: Sequence[int]) -> Columns:
    """What identifies the rows of a cell."""
    items = [stage.sample.members[number] for number in measured]
    return {
        "id": [item.id for item in items],
        "group": stage.sample.groups[measured],
        "condition": place.condition,
        "site": place.site,
        "layer": pd.array([Site.parse(place.site).layer] * len(items), dtype="Int64"),
        "span": place.span,
        "variable": place.variable,
        "n_left_out": stage.sample.size - len(items),
    }


def _erase(stage: Stage, place: Place, held: Ragged) -> Columns:
    """Erase a variable at a place."""
    sample, labels = stage.sample, stage.sample.labels(place.variable)
    lessons = Lesson.pair(sample, held, labels)
    with place.named():
        erasers = [each.fitter.fit(each.row_labels) for each in lessons]
    controls = [
        lessons[hand % 2].fitter.random(
            erasers[hand % 2].rank, place.seed(sample.seed, hand), groups=lessons[hand % 2].row_members
        )
        for hand in range(HANDS)
    ]
    measured = [number for number in range(sample.size) if labels[number] is not None and held.lengths[number]]
    halves, own, numbers = sample.half[measured], labels[measured], torch.tensor(measured)
    erased = partial(_erased, erasers=erasers, which=torch.from_numpy(sample.half))
    random = partial(_erased, erasers=controls, which=torch.from_numpy(sample.dealt))
    vectors = means(held[measured])
    return {
        **_columns(stage, place, measured),
        **_scores(stage, place, measured, {"base": None, "erased": erased, "random": random}),
        "read_before": _read(lessons, halves, vectors) == own,
        "read_after": _read(lessons, halves, erased(vectors, numbers)) == own,
        "read_random": _read(lessons, halves, random(vectors, numbers)) == own,
        "read_anew": _read_anew(sample, held, labels, erased)[measured] == own,
        "chance": np.array([lessons[half].commonest for half in halves]) == own,
        "rank": np.array([eraser.rank for eraser in erasers])[halves],
        "changed": _changed(held[measured], numbers, halves, erased),
        "random_changed": _changed(held[measured], numbers, halves, random),
    }


def _erased(tokens: Tensor, member: Tensor, *, erasers: Sequence[Eraser], which: Tensor) -> Tensor:
    """Tokens after that of the erasers which is for their member."""
    new = tokens.clone()
    for number, eraser in enumerate(erasers):
        mine = which[member] == number
        new[mine] = eraser.erase(tokens[mine])
    return new


def _changed(held: Ragged, numbers: Tensor, halves: NDArray[np.int64], change: Change) -> NDArray[np.float64]:
    """Of each member, the mean squared change of the tokens of its half, as a share of their variance."""
    tokens, row = held.values.cpu(), held.row_of
    moved = (change(tokens, numbers[row]).double() - tokens.double()).square().sum(1)
    share, half = np.full(2, np.nan), torch.from_numpy(halves)[row]
    for number in np.unique(halves):
        there = tokens[half == number].double()
        share[number] = moved[half == number].mean() / there.var(0, correction=0).sum()
    return share[halves]


def _push(stage: Stage, place: Place, held: Ragged, *, strength: float) -> Columns:
    """Push towards the partner's label of a variable at a place."""
    sample, labels = stage.sample, stage.sample.labels(place.variable)
    lessons = Lesson.pair(sample, held, labels)
    with place.named():
        directions = [fit_direction(each.rows, each.row_labels) for each in lessons]
    own, partners = labels[: sample.size], labels[sample.size :]
    measured = [
        number
        for number in range(sample.size)
        if own[number] != partners[number]
        and held.lengths[number]
        and {own[number], partners[number]} <= set(directions[sample.half[number]].labels)
    ]
    if not measured:
        raise RunError(
            f"nothing can be pushed at {place.site}, {place.span}: no item has tokens there and a partner of another "
            f"{place.variable} that the other half of the items has too; give more items, or other variables"
        )
    shifts, drawn = torch.zeros(2, sample.size, held.values.shape[1], dtype=torch.float64)
    for number in measured:
        way, pair = directions[sample.half[number]], (own[number], partners[number])
        shifts[number] = strength * way.between(*pair)
        drawn[number] = strength * way.random(*pair, seed=place.seed(sample.seed, number))
    pushed = partial(_shifted, shifts=shifts)
    changes = {"": None, "_pushed": pushed, "_random": partial(_shifted, shifts=drawn)}
    halves, vectors = sample.half[measured], means(held[measured])
    others = [number + sample.size for number in measured]
    return {
        **_columns(stage, place, measured),
        **_scores(stage, place, measured, {f"own{after}": change for after, change in changes.items()}),
        **_scores(stage, place, measured, {f"partner{after}": change for after, change in changes.items()}, others),
        "read_before": _read(lessons, halves, vectors) == own[measured],
        "read_after": _read(lessons, halves, pushed(vectors, torch.tensor(measured))) == partners[measured],
        "strength": strength,
    }


def _shifted(tokens: Tensor, member: Tensor, *, shifts: Tensor) -> Tensor:
    """Tokens with the shift of their member added."""
    return (tokens.cpu().double() + shifts[member]).to(tokens)


def _scores(
    stage: Stage,
    place: Place,
    members: Sequence[int],
    changes: Mapping[str, Change | None],
    answers_of: Sequence[int] | None = None,
) -> Columns:
    """By the name of each change, the log-probability of the members' answers or of those of others; is it said?"""
    plain, found = stage.answering(members, answers_of or members), {}
    for name, change in changes.items():
        runs = plain if change is None else stage.changed(plain, place, change)
        found[name] = torch.cat([run.logprob for run in runs]).numpy()
        found[f"{name}_right"] = torch.cat([run.right for run in runs]).numpy()
    return found


def _read(lessons: Sequence[Lesson], half: NDArray[np.int64], vectors: Tensor) -> Names:
    """What the probe of each vector's half reads from it."""
    read = np.empty(len(vectors), dtype=object)
    for number in np.unique(half):
        read[half == number] = lessons[number].probe.predict(vectors[half == number].numpy())
    return read


def _read_anew(sample: Sample, held: Ragged, labels: Names, change: Change) -> Names:
    """What probes read from each changed member that are fitted on the other half of its half; None without one."""
    known = np.array([number for number, label in enumerate(labels) if label is not None and held.lengths[number]])
    vectors = change(means(held[known.tolist()]), torch.from_numpy(known)).numpy()
    read = np.full(len(labels), None, dtype=object)
    for half, other in product((0, 1), (0, 1)):
        own, turn = sample.half[known] == half, sample.dealt[known] // 2 % 2
        mine, others = own & (turn == other), own & (turn != other)
        names = labels[known[others]].astype(str)
        if mine.any() and len(set(names)) > 1:
            read[known[mine]] = LinearProbe().fit(vectors[others], names).predict(vectors[mine])
    return read
