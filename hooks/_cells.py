"""What a patched run changes of one prompt's run, and which of many are run side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from seamscope.hooks._errors import SiteError, SpanError
from seamscope.hooks._site import Site

if TYPE_CHECKING:
    from jaxtyping import Float, Int

STREAMS: Final = ("resid_post", "embed", "resid_pre")  # of what goes into a layer, in the order in which they come
REPLAYED: Final = (*STREAMS, "head_z", "attn_out", "cross_attn_out", "resid_mid", "mlp_out")
WASTE: Final = 0.1  # share of the tokens of a batch that may be computed though they come before a cell's patch
SPARE: Final = 128  # such tokens that are always accepted: another batch would take longer


@dataclass(frozen=True, eq=False, kw_only=True)
class Edit:
    """New values for some tokens of a site.

    Attributes:
        site: any site that holds tokens, so not `pattern`.
        positions: which tokens, (n,): positions in the prompt; in the tower and the projector, the numbers of their
            tokens.
        values: theirs, (n, *feature).
        heads: of `head_z`, those that are edited; all, if not given.
    """

    site: str
    positions: Int[Tensor, " n"]
    values: Float[Tensor, n * feature]
    heads: tuple[int, ...] | None = None

    @property
    def at(self) -> Site:
        """The site, parsed."""
        return Site.parse(self.site)

    @property
    def begin(self) -> int:
        """The first layer that it changes, or is made in."""
        return begin(self.at)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cut:
    """Attention from some positions, (n,), to others, (m,), that is cut in some layers, as `knockout` does it."""

    layers: tuple[int, ...]
    queries: Int[Tensor, " n"]
    keys: Int[Tensor, " m"]


Cell = Edit | Cut | Sequence[Edit | Cut]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a cell is run: from which layer and token on, what is edited before, and what on the way.

    `direct` are edits of what goes into the layer.
    """

    number: int
    layer: int
    start: int
    direct: tuple[Edit, ...]
    rest: tuple[Edit, ...] = ()
    cuts: tuple[Cut, ...] = ()

    @property
    def alike(self) -> tuple[object, ...]:
        """What cells that are run side by side have in common: nothing, if they have no more to do on the way."""
        if not (self.rest or self.cuts):
            return ()
        return self.layer, tuple(sorted({edit.site for edit in self.rest}))


def parts_of(cell: Cell) -> list[Edit | Cut]:
    """The edits and cuts of a cell."""
    return [cell] if isinstance(cell, Edit | Cut) else list(cell)


def plan_of(number: int, parts: Sequence[Edit | Cut], firsts: Sequence[int], stop: int) -> Plan | None:
    """Plan a cell, or give None for one that changes nothing that is read.

    `firsts` are the first tokens that a change at each position may reach; nothing from `stop` on is read or seen.
    """
    edits = edits_before([part for part in parts if isinstance(part, Edit)], stop)
    cuts = [kept for part in parts if isinstance(part, Cut) for kept in _cut_before(part, stop)]
    if not (edits or cuts):
        return None
    layer = min([*(edit.begin for edit in edits), *(min(cut.layers) for cut in cuts)])
    first = min([*(int(edit.positions.min()) for edit in edits), *(int(cut.queries.min()) for cut in cuts)])
    direct, rest = _entering(edits, layer)
    return Plan(number=number, layer=layer, start=firsts[first], direct=direct, rest=rest, cuts=tuple(cuts))


def _entering(edits: Sequence[Edit], layer: int) -> tuple[tuple[Edit, ...], tuple[Edit, ...]]:
    """Edits of what goes into a layer, in the order in which they come; and the others."""
    enters = [edit.begin == layer and edit.at.kind in STREAMS for edit in edits]
    direct = [edit for edit, own in zip(edits, enters, strict=True) if own]
    direct.sort(key=lambda edit: STREAMS.index(edit.at.kind))
    return tuple(direct), tuple(edit for edit, own in zip(edits, enters, strict=True) if not own)


def edits_before(edits: Sequence[Edit], stop: int) -> list[Edit]:
    """What edits change before some position."""
    return [kept for edit in edits for kept in _before(edit, stop)]


def _before(edit: Edit, stop: int) -> list[Edit]:
    """What an edit changes before some position, if anything."""
    kept = edit.positions < stop
    if kept.all():
        return [edit]
    return [replace(edit, positions=edit.positions[kept], values=edit.values[kept])] if kept.any() else []


def _cut_before(cut: Cut, stop: int) -> list[Cut]:
    queries, keys = (each[each < stop] for each in (cut.queries, cut.keys))
    return [replace(cut, queries=queries, keys=keys)] if len(queries) and len(keys) else []


def begin(site: Site) -> int:
    """The first layer that a change at a site reaches, or is made in."""
    return site.number + 1 if site.kind == "resid_post" else site.number


@dataclass(frozen=True, kw_only=True)
class Inside:
    """What a plan edits and cuts within its first layer, and at which tokens, ascending, (n,)."""

    plan: Plan
    edits: list[Edit]
    cuts: list[Cut]
    places: Tensor

    @classmethod
    def of(cls, plan: Plan) -> Inside:
        """Of a plan that edits nothing that goes into that layer."""
        edits = [edit for edit in plan.rest if edit.begin == plan.layer and edit.at.kind not in STREAMS]
        cuts = [cut for cut in plan.cuts if plan.layer in cut.layers]
        places = torch.cat([*(edit.positions.cpu() for edit in edits), *(cut.queries.cpu() for cut in cuts)])
        return cls(plan=plan, edits=edits, cuts=cuts, places=torch.unique(places))

    def done(self, values: Tensor) -> Plan:
        """What is left of the plan once the layer has given `values`, (n, d_model), at the places."""
        plan, behind = self.plan, self.plan.layer + 1
        given = Edit(site=f"lm.{plan.layer}.resid_post", positions=self.places, values=values)
        direct, rest = _entering([edit for edit in plan.rest if edit not in self.edits], behind)
        cuts = (replace(cut, layers=tuple(each for each in cut.layers if each != plan.layer)) for cut in plan.cuts)
        left = tuple(cut for cut in cuts if cut.layers)
        return replace(plan, layer=behind, direct=(given, *direct), rest=rest, cuts=left)


def batches(plans: Sequence[Plan], width: int, most: int) -> Iterator[list[Plan]]:
    """Cells that are run side by side, `most` tokens at a time, in the order of the layers at which they begin.

    They begin at about the same token. Those that have more to do on the way begin at the same layer as well, and are
    edited at the same sites.
    """
    alike: dict[tuple[object, ...], list[Plan]] = {}
    for plan in plans:
        alike.setdefault(plan.alike, []).append(plan)
    for several in alike.values():
        several.sort(key=lambda plan: -plan.start)
        some: list[Plan] = []
        needed = 0  # tokens, if none were wasted
        for plan in several:
            length = width - plan.start
            taken = (len(some) + 1) * length
            wasted = taken - needed - length
            if some and (taken > most or wasted > max(SPARE, WASTE * taken)):
                yield sorted(some, key=lambda plan: plan.layer)
                some, needed = [], 0
            some.append(plan)
            needed += length
        yield sorted(some, key=lambda plan: plan.layer)


def portions(several: Sequence[Inside], most: int) -> Iterator[list[Inside]]:
    """Some at a time, which have `most` tokens together; or one that has more."""
    some: list[Inside] = []
    held = 0
    for each in several:
        if some and held + len(each.places) > most:
            yield some
            some, held = [], 0
        some.append(each)
        held += len(each.places)
    if some:
        yield some


def check_edit(edit: Edit, count: int, feature: tuple[int, ...], n_heads: int) -> None:
    """Refuse an edit of a site that holds `count` tokens of these features, before anything is run."""
    _check_positions(f"{edit.site}: positions", edit.positions)
    if len(edit.positions) == 0 or edit.positions.min() < 0 or edit.positions.max() >= count:
        raise SpanError(f"{edit.site}: positions must be in 0 to {count - 1}, at least one")
    if not isinstance(edit.values, Tensor):
        raise SiteError(f"{edit.site}: values are a tensor, not a {type(edit.values).__name__}; a Ragged has .values")
    needed = (len(edit.positions), *feature)
    if edit.values.shape != needed:
        raise SiteError(f"{edit.site} needs values of shape {needed}; got {tuple(edit.values.shape)}")
    if edit.heads is not None:
        if edit.at.kind != "head_z":
            raise SiteError(f"{edit.site} has no heads; heads=... goes with head_z")
        unknown = [head for head in edit.heads if not 0 <= head < n_heads]
        if unknown or not edit.heads:
            raise SiteError(f"{edit.site} has heads 0 to {n_heads - 1}, not {unknown}")


def check_cut(cut: Cut, width: int, n_layers: int) -> None:
    """Refuse a cut of positions or layers that are not there."""
    unknown = [layer for layer in cut.layers if not 0 <= layer < n_layers]
    if unknown or not cut.layers:
        raise SiteError(f"the decoder has layers 0 to {n_layers - 1}, not {unknown}")
    for name, positions in (("queries", cut.queries), ("keys", cut.keys)):
        _check_positions(f"cut: {name}", positions)
        if len(positions) == 0 or positions.min() < 0 or positions.max() >= width:
            raise SpanError(f"cut: {name} must be in 0 to {width - 1}, at least one")


def _check_positions(what: str, positions: object) -> None:
    if not (isinstance(positions, Tensor) and positions.ndim == 1 and positions.dtype in (torch.int64, torch.int32)):
        raise SpanError(f"{what} must be whole numbers in a tensor of one dimension, such as torch.tensor([3, 4])")
