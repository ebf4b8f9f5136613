"""The planted faults: models of which we know where they lose what they see."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import chain, product
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import nn

from seamscope.hooks import ModelError, choose, load_vlm

from ..tasks import DATA_SETS, generated
from ._alter import DONORS, HOW, Alteration, Altered
from ._school import School
from ._schools import SCHOOLS, graduate

if TYPE_CHECKING:
    from seamscope.hooks import Vlm

PREFIX: Final = "fault:"
DONOR_SEED: Final = 77
LAYERS: Final = 8  # of the decoders of all planted models
COMPOSING: Final = "composing"
TOWER: Final = (0, 1, 2, 3)
EARLY: Final = (0, 1, 2)
SEEDS: Final = (1, 2)  # of further donors and rotations
ENDS: Final = {"cards.sum": ("left", "right"), "cards.sort": ("left", "right"), "rendered_text": ("top", "bottom")}
SHAKEN: Final = 0.06
SHAKES: Final = 8  # of each model that composes
HARMLESS: Final = 6  # from this layer on the composing organism reads nothing of the picture any more


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A model, and what is known of it.

    `base` is the model that is altered. `locus` and `place` are the truth, a class of `LOCI` and a site; `also` are the
    classes of further losses, of other objects. `trained`: the fault was there when the model learned to speak.
    `shaken`: whether all weights are moved a little, by `SHAKEN` of their size. `seed`: of that, of alterations and
    lessons, and of the items that the benchmark asks.
    """

    name: str
    task: str
    base: str
    locus: str
    place: str | None = None
    also: tuple[str, ...] = ()
    alterations: tuple[Alteration, ...] = ()
    trained: bool = False
    shaken: bool = False
    seed: int = 0

    @property
    def held_back(self) -> bool:
        """Whether it is of the test half, at which nobody looks who works on the locator: chosen by its name's hash."""
        return hashlib.blake2b(self.name.encode(), digest_size=1).digest()[0] % 2 == 0

    @property
    def model(self) -> str:
        """The name by which the command line knows the model."""
        return PREFIX + self.name


class _Loss(NamedTuple):
    locus: str
    place: str | None
    alterations: tuple[Alteration, ...]


def reading(layers: Iterable[int], how: str, *, part: str = "all") -> tuple[Alteration, ...]:
    """What layers read from image positions: keys and values, or values alone where they are to be found."""
    choose("how", how, HOW, ModelError)
    kinds = ("value",) if how == "rotate" else ("key", "value")
    return tuple(Alteration(place=f"lm.{k}.{kind}", how=how, part=part) for k in layers for kind in kinds)


def at(place: str, *, part: str = "all") -> tuple[Alteration, ...]:
    """What stands at a site, resampled."""
    return (Alteration(place=place, part=part),)


@cache
def faults() -> dict[str, Fault]:
    """Every planted model, by its name."""
    made = (*_by_intervention(), *_by_training())
    return {fault.name: fault for fault in (*made, *_reseeded(made), *_shaken(made))}


def _by_intervention() -> Iterator[Fault]:
    """Faults of models that compose: the shipped organism, on every data set, and small decoders on their own."""
    bases = [(COMPOSING, task) for task in DATA_SETS]
    bases += [(name, school.task) for name, school in SCHOOLS.items() if school.free]
    every = range(LAYERS)
    for base, task in bases:
        kinds: dict[str, tuple[str, str | None, tuple[Alteration, ...]]] = {
            "none": ("none", None, ()),
            "projector": ("lost_in_projector", "projector.out", at("projector.out")),
            "unrouted": ("not_routed", None, reading(every, "resample")),
            "unread": ("not_used", "lm.0.resid_post", reading(every, "rotate")),
        }
        if base == COMPOSING:  # the small ones read the picture to the end
            kinds["none-late"] = ("none", None, at(f"lm.{HARMLESS}.resid_post"))
            kinds["none-late-reading"] = ("none", None, reading((LAYERS - 1,), "resample"))
        kinds |= {f"tower-{k}": ("not_encoded", f"vision.{k}.resid_post", at(f"vision.{k}.resid_post")) for k in TOWER}
        kinds |= {f"overwritten-{k}": ("overwritten", f"lm.{k}.resid_post", at(f"lm.{k}.resid_post")) for k in EARLY}
        kinds |= {f"late-{k}": ("too_late", f"lm.{k}.resid_post", reading(range(k), "blank")) for k in (2, 3, 4)}
        for kind, (locus, place, alterations) in kinds.items():
            yield Fault(
                name=_called(kind, base, task), task=task, base=base, locus=locus, place=place, alterations=alterations
            )
        if task in ENDS:
            yield from _of_some_objects(base, task)


def _of_some_objects(base: str, task: str) -> Iterator[Fault]:
    """The first or the last object is lost, or both, each at a place of its own."""
    first, last = ENDS[task]
    blind = _Loss("not_encoded", "vision.2.resid_post", at("vision.2.resid_post", part=first))
    narrow = _Loss("lost_in_projector", "projector.out", at("projector.out", part=first))
    gone, gone_last = (
        _Loss("overwritten", "lm.0.resid_post", at("lm.0.resid_post", part=part)) for part in (first, last)
    )
    unrouted = _Loss("not_routed", None, reading(range(LAYERS), "resample", part=last))
    late = _Loss("too_late", "lm.3.resid_post", reading(range(3), "blank", part=last))
    kinds = {
        "tower-2-first": (blind,),
        "overwritten-0-last": (gone_last,),
        "unrouted-last": (unrouted,),
        "tower-2-first-overwritten-0-last": (blind, gone_last),
        "projector-first-unrouted-last": (narrow, unrouted),
    }
    if task == "cards.sum":  # elsewhere most answers come right when the last object alone is late
        kinds["late-3-last"] = (late,)
        kinds["tower-2-first-late-3-last"] = (blind, late)
        kinds["overwritten-0-first-late-3-last"] = (gone, late)
    for kind, losses in kinds.items():
        yield Fault(
            name=_called(kind, base, task),
            task=task,
            base=base,
            locus=losses[0].locus,
            place=losses[0].place,
            also=tuple(each.locus for each in losses[1:]),
            alterations=tuple(chain.from_iterable(each.alterations for each in losses)),
        )


def _called(kind: str, base: str, task: str) -> str:
    return f"{kind}.{base if base != COMPOSING else f'{base}-{task}'}"


def _by_training() -> Iterator[Fault]:
    for name, school in SCHOOLS.items():
        if school.free:
            continue
        locus, place = school.truth
        yield Fault(
            name=f"taught-{name}",
            task=school.task,
            base=name,
            locus=locus,
            place=place,
            alterations=reading(range(school.late), "blank"),
            trained=True,
            seed=0 if school.seed == School.seed else school.seed,
        )


def _reseeded(made: Iterable[Fault]) -> Iterator[Fault]:
    """The composing organism with other donors or rotations, on every data set; where it is late, nothing is drawn."""
    for seed, fault in product(SEEDS, made):
        if fault.base != COMPOSING:
            continue
        kinds = ("projector", "unrouted", "unread", f"tower-{TOWER[seed]}", f"overwritten-{EARLY[seed]}")
        if fault.name.partition(".")[0] in kinds or (fault.also and seed == SEEDS[0]):
            alterations = tuple(replace(each, seed=seed) for each in fault.alterations)
            yield replace(fault, name=f"seed-{seed}.{fault.name}", alterations=alterations, seed=seed)


def _shaken(made: Iterable[Fault]) -> Iterator[Fault]:
    """Models that compose, with weights that are a little off, so that they answer less well."""
    for fault in made:
        if fault.locus == "none" and (fault.trained or not fault.alterations):
            for seed in range(SHAKES):
                yield replace(fault, name=f"shaken-{seed}.{fault.name}", shaken=True, seed=seed)


def _shake(model: nn.Module, seed: int) -> None:
    """Move every weight by a normal deviate of its own size; the same seed moves each the same way."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + SHAKEN * torch.randn(weight.shape, generator=drawn).to(weight))


def find(name: str) -> Fault:
    """A planted model by its name, without or with `fault:` before it; `ModelError` for an unknown one."""
    return faults()[choose("planted model", name.removeprefix(PREFIX), faults(), ModelError)]


def plant(name: str, **options: Any) -> Vlm:
    """Load a planted model by its name, without or with `fault:` before it; options are those of `load_vlm`."""
    fault = find(name)
    vlm = load_vlm("organism-composing", **options) if fault.base == COMPOSING else graduate(fault.base, **options)
    vlm.name = fault.model
    if fault.shaken:
        _shake(vlm.model, fault.seed)
    if fault.alterations:
        task = generated(fault.task)
        donors = [task.item(k, seed=DONOR_SEED, split="train").prompt("perceive") for k in range(DONORS)]
        Altered(vlm, fault.alterations, donors)
    return vlm
