"""A sample in two halves: what is learnt from the activations of one is tried on the answers of the other."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain, product
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamscope.hooks import Batch, Patch, Ragged, RunError, Site, SpanError, Vlm, capture, choose, patch
from seamscope.probes import EraserFitter, LinearProbe, groups_of

from ._align import expand
from ._capture import describe_rows
from ._probing import object_of
from .tasks import Item, Task

CONDITIONS: Final = ("direct", "oracle")
HANDS: Final = 12  # each half is made of six, a control drawn for each

Names = NDArray[np.object_]
Change = Callable[[Tensor, Tensor], Tensor]  # of tokens (n, d), with the number of the member that each belongs to


class Sample:
    """Members: the items of a sweep, numbered, then their partners in the same order.

    Attributes:
        size: number of items.
        groups: of each member; those that share a `group`, or a picture, are in one, called as the first of its names.
        dealt: of each member, which of `HANDS` its group was dealt to; they are in one `half`, 0 or 1, by turns.
    """

    def __init__(self, vlm: Vlm, task: Task, items: Sequence[Item], *, seed: int) -> None:
        self.vlm, self.size, self.seed = vlm, len(items), seed
        self.members = [*items, *(task.partner(item) for item in items)]
        self.groups = _together(describe_rows(task, self.members))
        names, codes = np.unique(self.groups.astype(str), return_inverse=True)
        if len(names) < 2:
            raise RunError(
                f"items of {len(names)} group cannot be halved; give items of at least two, that share no picture"
            )
        self.dealt = np.random.default_rng(seed).permutation(len(names))[codes] % HANDS
        self.half = self.dealt % 2

    def labels(self, variable: str) -> Names:
        """Each member's label, None where it has none."""
        return np.array([member.variables.get(variable) for member in self.members], dtype=object)

    def plan(
        self, *, conditions: Iterable[str], sites: Iterable[str], spans: Iterable[str], variables: Iterable[str]
    ) -> dict[str, list[Place]]:
        """Cells by condition; `RunError` for unknown names and where there are none.

        Sites before the decoder have spans of the picture only; attention weights are no vectors.
        """
        known = sorted({name for member in self.members for name in member.variables})
        wanted = [choose("variable", name, known, RunError) for name in variables]
        within = [site for site in self.vlm.expand(list(sites)) if Site.parse(site).kind != "pattern"]
        cells = list(product(within, list(spans), wanted))
        plan = {
            condition: [place for cell in cells if (place := Place.of(condition, *cell)) is not None]
            for condition in [choose("condition", name, CONDITIONS, RunError) for name in conditions]
        }
        if not any(plan.values()):
            raise RunError("there is nothing to change: no site has a span of a variable; give other sites or spans")
        return {condition: places for condition, places in plan.items() if places}


def _together(rows: pd.DataFrame) -> Names:
    """The group of each row, whatever their order."""
    parts = groups_of({"": rows})[""]
    return rows["group"].astype(str).groupby(parts).transform("min").to_numpy(dtype=object)


@dataclass(frozen=True, kw_only=True)
class Place:
    """A cell: `spans` are what is changed, each token once; `span` is what they are called together."""

    condition: str
    site: str
    span: str
    spans: tuple[str, ...]
    variable: str

    @classmethod
    def of(cls, condition: str, site: str, span_set: str, variable: str) -> Place | None:
        """Expand a span set, of which `objects` is the variable's own; None where there are none such at the site."""
        own, spans = object_of(variable), list[str]()
        for part in span_set.split("+"):
            if part == "objects" and own is None:
                return None
            found = expand(part, condition, objects=(own or 0) + 1)
            spans += found[-1:] if part == "objects" else found
        if not site.startswith("lm.") and not all(span.startswith("image") for span in spans):
            return None
        name = spans[0] if len(spans) == 1 else span_set
        return cls(condition=condition, site=site, span=name, spans=tuple(spans), variable=variable)

    @contextmanager
    def named(self) -> Iterator[None]:
        """Say where it was that something could not be learnt."""
        try:
            yield
        except RunError as error:
            where = f"{self.variable} at {self.site}, {self.span}, {self.condition}"
            raise RunError(f"{where}: {error}") from None

    def seed(self, seed: int, number: int) -> int:
        """A seed of its own for each cell and number."""
        return zlib.crc32(repr((seed, number, self)).encode())


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A batch, the member that each row is of, what was captured, and the answers' scores, (rows,)."""

    batch: Batch
    members: Sequence[int]
    acts: Mapping[Any, Ragged]
    logprob: Tensor
    right: Tensor

    def owners(self, place: Place) -> dict[str, Tensor]:
        """By span, the member that each of its tokens belongs to; -1 for tokens that an earlier span has."""
        stack, visual = Site.parse(place.site).tokens, self.batch.visual
        rows = self.batch.spans if stack == "lm" or visual is None else visual.spans[stack]
        held = [span for span in place.spans if self.batch.has(place.site, span)]
        owners: dict[str, list[Tensor]] = {span: [] for span in held}
        for member, row in zip(self.members, rows, strict=True):
            taken = torch.zeros(0, dtype=torch.long)
            for span in held:
                here = row.get(span, taken[:0])
                owners[span].append(torch.full_like(here, member).masked_fill(torch.isin(here, taken), -1))
                taken = torch.cat([taken, here])
        return {span: torch.cat(parts) for span, parts in owners.items()}


class Stage:
    """A sample under one condition: every member is run once as it is, and captured at all places."""

    def __init__(self, sample: Sample, places: Sequence[Place], *, batch_size: int) -> None:
        self.sample, self._places, self._batch_size = sample, places, batch_size
        self._answering: dict[tuple[int, ...], list[Run]] = {}
        sites = list(dict.fromkeys(place.site for place in places))
        items, partners = range(sample.size), range(sample.size, 2 * sample.size)
        self._plain = [self._run_all(members, members, sites) for members in (items, partners)]
        self._answering[(*items, *items)] = self._plain[0]
        known = sorted({span for run in self._plain[0] for span in run.batch.span_names})
        for span in dict.fromkeys(span for place in places for span in place.spans):
            choose("span", span, known, SpanError)

    def answering(self, members: Sequence[int], answers_of: Sequence[int]) -> list[Run]:
        """Runs of members with their own answers or with those of others, made when they are first asked for."""
        asked = (*members, *answers_of)
        if asked not in self._answering:
            self._answering[asked] = self._run_all(members, answers_of)
        return self._answering[asked]

    def tokens(self, place: Place) -> Ragged | None:
        """The tokens of every member at a place, (tokens, d); None where nobody has any."""
        values, owners = [], []
        for run in chain(*self._plain):
            for span, owner in run.owners(place).items():
                values.append(run.acts[place.site, span].values.flatten(1)[owner >= 0])
                owners.append(owner[owner >= 0])
        if not values:
            return None
        owner = torch.cat(owners)
        held = torch.cat(values)[owner.argsort(stable=True)]
        return Ragged(held.to(self.sample.vlm.device), owner.bincount(minlength=2 * self.sample.size))

    def changed(self, runs: Sequence[Run], place: Place, change: Change) -> list[Run]:
        """The same runs once more, with the tokens of a place changed."""
        return [self._changed(run, place, change) for run in runs]

    def _changed(self, run: Run, place: Place, change: Change) -> Run:
        new = {span: partial(_new, change=change, owner=owner) for span, owner in run.owners(place).items()}
        with patch(self.sample.vlm, [Patch(place.site, value, span=span) for span, value in new.items()]):
            score = self.sample.vlm.score(run.batch)
        return replace(run, logprob=score.logprob.cpu(), right=score.greedy.cpu())

    def _run_all(self, members: Sequence[int], answers_of: Sequence[int], sites: Sequence[str] = ()) -> list[Run]:
        pieces = [slice(start, start + self._batch_size) for start in range(0, len(members), self._batch_size)]
        return [self._run(members[piece], answers_of[piece], sites) for piece in pieces]

    def _run(self, members: Sequence[int], answers_of: Sequence[int], sites: Sequence[str]) -> Run:
        """Run one batch, and capture the spans of all places at some sites."""
        known, vlm = self.sample.members, self.sample.vlm
        batch = vlm.encode(
            [known[number] for number in members],
            condition=self._places[0].condition,
            answers=[known[number].answer for number in answers_of],
        )
        spans = dict.fromkeys(span for place in self._places for span in place.spans if span in batch.span_names)
        with capture(vlm, sites, spans=spans) as acts:
            score = vlm.score(batch)
        held = {key: each.to("cpu") for key, each in acts.items()}
        return Run(batch=batch, members=members, acts=held, logprob=score.logprob.cpu(), right=score.greedy.cpu())


def _new(tokens: Tensor, *, change: Change, owner: Tensor) -> Tensor:
    """What comes in place of the tokens of a span, (n, *feature); those without an owner stay."""
    new, mine = tokens.flatten(1).clone(), owner >= 0
    new[mine] = change(new[mine], owner[mine])
    return new.view_as(tokens)


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is learnt from for the members of one half: members of the other that have tokens, and their labels."""

    tokens: Ragged
    labels: Names

    @classmethod
    def pair(cls, sample: Sample, held: Ragged, labels: Names) -> tuple[Lesson, Lesson]:
        """The lessons of half 0 and of half 1."""
        usable = np.array([label is not None for label in labels]) & (held.lengths > 0).numpy()
        first, second = (torch.from_numpy(usable & (sample.half != half)) for half in (0, 1))
        return cls(held[first], labels[first.numpy()]), cls(held[second], labels[second.numpy()])

    @property
    def rows(self) -> Tensor:
        """Every token, (tokens, d)."""
        return self.tokens.values

    @property
    def row_labels(self) -> Names:
        """The label of every token's member, (tokens,)."""
        return self.labels[self.row_members]

    @property
    def row_members(self) -> NDArray[np.int64]:
        """The number of every token's member among those that are learnt from, (tokens,)."""
        return self.tokens.row_of.numpy()

    @property
    def commonest(self) -> str:
        """What to guess without looking."""
        names, counts = np.unique(self.labels.astype(str), return_counts=True)
        return str(names[counts.argmax()])

    @cached_property
    def fitter(self) -> EraserFitter:
        """What is made of the tokens once for all erasers."""
        return EraserFitter(self.rows)

    @cached_property
    def probe(self) -> LinearProbe:
        """What reads the label from the mean of a member's tokens."""
        return LinearProbe().fit(means(self.tokens).numpy(), self.labels.astype(str))


def means(held: Ragged) -> Tensor:
    """The mean of each row's tokens, none empty, in float64 on the host."""
    return Ragged(held.values.cpu().double(), held.lengths).mean()
