"""The planted faults: a sound catalogue, planting that repeats itself, and models that lose what they should."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, product

import numpy as np
import pytest
import torch

from seamscope.experiments import LOCI, Thresholds
from seamscope.experiments.organism import _faults
from seamscope.experiments.organism._alter import Alteration
from seamscope.experiments.organism._faults import LAYERS, PREFIX, SEEDS, SHAKEN, SHAKES, Fault, faults, plant
from seamscope.experiments.organism._schools import SCHOOLS
from seamscope.experiments.tasks import DATA_SETS, Item, get
from seamscope.hooks import Batch, ModelError, Vlm, capture, load_vlm
from seamscope.probes import pair_contrast

CATALOGUE = faults()
LOSSES = ("not_encoded", "lost_in_projector", "overwritten", "not_routed", "too_late", "not_used")
N = 60
FEW, MANY = 100, 200  # pairs: the more, the weaker the traces that probes read
OBJECTS = dict.fromkeys(("cards.sort", "cards.sum"), ("card.{}.rank", 3))
OBJECTS |= {"counting": ("object.{}.shape", 2), "rendered_text": ("number.{}", 2)}


@cache
def planted(name: str) -> Vlm:
    return plant(name, check=False)


@cache
def accuracy(name: str, condition: str) -> float:
    """The share of answers that are right, token by token and to the end."""
    return float(planted(name).score(asked(CATALOGUE[name].task, condition)).greedy.float().mean())


@cache
def asked(task: str, condition: str) -> Batch:
    """Prompts and answers, which are the same to all of these models."""
    items = get(task).items(N, seed=5)
    return planted("none.composing-cards.sum").encode(
        items, condition=condition, answers=[item.answer for item in items]
    )


def direct(name: str) -> float:
    return accuracy(name, "direct")


def base_of(fault: Fault) -> str:
    """The same model with nothing planted."""
    (name,) = (f.name for f in CATALOGUE.values() if is_plain(f) and (f.base, f.task) == (fault.base, fault.task))
    return name


def is_plain(fault: Fault) -> bool:
    return fault.locus == "none" and not fault.alterations and not fault.trained and not fault.shaken


def is_harmless(fault: Fault) -> bool:
    return fault.locus == "none" and not is_plain(fault) and not fault.shaken


def drawn(each: Alteration) -> Alteration:
    """The same alteration without the seed, where nothing is drawn by it."""
    return replace(each, seed=0) if each.how == "blank" else each


def test_names_are_unique() -> None:
    made = [*_faults._by_intervention(), *_faults._by_training()]
    made += [*_faults._reseeded(made), *_faults._shaken(made)]
    assert len({fault.name for fault in made}) == len(made) == len(CATALOGUE)
    assert all(name == fault.name for name, fault in CATALOGUE.items())
    assert not any(re.search(r"[:/\s]", name) for name in CATALOGUE)
    planted = [(f.base, f.task, tuple(map(drawn, f.alterations)), f.seed if f.shaken else None) for f in made]
    assert len(set(planted)) == len(planted)  # no model twice under two names


def test_there_are_enough_of_every_kind() -> None:
    found = Counter(fault.locus for fault in CATALOGUE.values())
    assert found.keys() <= LOCI.keys() - {"cannot_tell"}
    assert found["none"] >= 15
    assert len(CATALOGUE) - found["none"] >= 60
    assert {fault.task for fault in CATALOGUE.values()} == set(DATA_SETS)
    for data in DATA_SETS:
        assert {fault.locus for fault in CATALOGUE.values() if fault.task == data} >= {*LOSSES, "none"}
    assert any(fault.trained for fault in CATALOGUE.values())


def test_both_halves_have_every_class() -> None:
    halves = [[f for f in CATALOGUE.values() if f.held_back == half] for half in (False, True)]
    assert sum(map(len, halves)) == len(CATALOGUE)
    for half in halves:
        assert 0.35 < len(half) / len(CATALOGUE) < 0.65
        assert {fault.locus for fault in half} >= {*LOSSES, "none"}


def test_the_half_follows_from_the_name_alone() -> None:
    """Once and for all: who has looked at one half has not looked at the other."""
    known = {"projector.composing-cards.sum": True, "unrouted.composing-cards.sum": False, "x": True, "y": False}
    for name, held_back in known.items():
        fault = Fault(name=name, task="cards.sum", base="composing", locus="none")
        assert fault.held_back == held_back, name
        assert Fault(name=name, task="counting", base="other", locus="too_late").held_back == held_back


def test_places_are_sites_of_the_model(composing: Vlm) -> None:
    assert composing.n_layers == LAYERS
    for fault in CATALOGUE.values():
        assert fault.place is None or fault.place in composing.sites
        stack = {"not_encoded": "vision", "lost_in_projector": "projector"}.get(fault.locus, "lm")
        assert fault.place is None or fault.place.startswith(stack)
        assert fault.place is not None or fault.locus in ("none", "not_routed", "text_skill", "format") or fault.trained
        for each in fault.alterations:
            inner = re.fullmatch(r"lm\.(\d+)\.(key|value)", each.place)
            assert int(inner[1]) < LAYERS if inner else each.place in composing.sites


def wanted(fault: Fault) -> set[tuple[str, str]]:
    """What is done where, by what the class means."""
    number = int(fault.place.split(".")[1]) if fault.place and fault.place.count(".") == 2 else 0
    inner = {
        "too_late": ("blank", range(number), ("key", "value")),
        "not_routed": ("resample", range(LAYERS), ("key", "value")),
        "not_used": ("rotate", range(LAYERS), ("value",)),
    }
    if fault.locus in inner:
        how, layers, kinds = inner[fault.locus]
        return {(how, f"lm.{k}.{kind}") for k in layers for kind in kinds}
    return {("resample", str(fault.place))}


def test_what_is_done_is_what_the_class_means() -> None:
    for fault in CATALOGUE.values():
        done = {(each.how, each.place) for each in fault.alterations}
        if fault.locus in LOSSES and not fault.also and (not fault.trained or done):
            assert done == wanted(fault), fault.name
        if fault.locus == "none" and not fault.trained:
            assert all(int(place.split(".")[1]) >= LAYERS - 2 for _, place in done), fault.name


def test_planting_repeats_itself_and_takes_a_name_either_way() -> None:
    items = get("cards.sum").items(3, seed=1)
    name = "overwritten-1.composing-cards.sum"
    one, other = planted(name), plant(PREFIX + name, check=False)
    assert one.name == other.name == PREFIX + name == CATALOGUE[name].model
    batch = one.encode(items, condition="direct")
    logits = one.forward(batch)
    assert torch.equal(logits, other.forward(batch))
    plain = load_vlm("organism-composing", check=False)
    assert not torch.allclose(logits, plain.forward(batch), atol=0.1)
    assert torch.equal(planted("none.composing-cards.sum").forward(batch), plain.forward(batch))
    eager = plant(name, check=False, attn_implementation="eager")
    assert eager.attn_implementation == "eager"
    torch.testing.assert_close(eager.forward(batch), logits, rtol=1e-3, atol=1e-3)


def test_further_seeds_plant_the_same_losses_in_other_ways() -> None:
    """For each of them the composing organism has one of each class by which anything is drawn, on every data set."""
    for name, fault in CATALOGUE.items():
        if name.startswith("seed-"):
            first = CATALOGUE[name.partition(".")[2]]
            assert (fault.locus, fault.place, fault.also) == (first.locus, first.place, first.also)
            assert {each.seed for each in fault.alterations} == {fault.seed} == {int(name[5])}
            assert tuple(replace(each, seed=0) for each in fault.alterations) == first.alterations
    for seed, task in product(SEEDS, DATA_SETS):
        own = [f for f in CATALOGUE.values() if (f.base, f.task, f.seed) == ("composing", task, seed)]
        once = Counter(fault.locus for fault in own if not fault.shaken and not fault.also)
        assert once == dict.fromkeys(set(LOSSES) - {"too_late"}, 1)
    assert sum(bool(fault.also) for fault in CATALOGUE.values() if fault.seed == SEEDS[0]) >= 8


@pytest.mark.parametrize("kind", ["projector", "unread"])
def test_another_seed_alters_the_states_otherwise_and_loses_as_much(kind: str) -> None:
    names = [f"{prefix}{kind}.composing-cards.sum" for prefix in ("", *(f"seed-{seed}." for seed in SEEDS))]
    batch = planted(names[0]).encode(get("cards.sum").items(3, seed=1), condition="direct")
    logits = [planted(name).forward(batch) for name in names]
    assert not any(torch.allclose(one, other, atol=0.1) for one, other in combinations(logits, 2))
    assert max(map(direct, names)) < 0.5 * direct("none.composing-cards.sum")


def test_a_school_is_taught_again_from_other_weights() -> None:
    again = {name: fault for name, fault in CATALOGUE.items() if fault.trained and fault.seed and not fault.shaken}
    assert len(again) >= 4
    for name, fault in again.items():
        first = CATALOGUE[name.removesuffix(f"-seed-{fault.seed}")]
        assert replace(fault, name=first.name, base=first.base, seed=0) == first
        assert replace(SCHOOLS[fault.base], seed=SCHOOLS[first.base].seed) == SCHOOLS[first.base]
        weights = [planted(each).model.lm_head.weight for each in (name, first.name)]
        assert torch.corrcoef(torch.stack([weight.flatten() for weight in weights]))[0, 1] < 0.2


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ModelError, match=r"unknown planted model 'projecter\.small-cards\.sum'; nearest: projector"):
        plant("fault:projecter.small-cards.sum")
    with pytest.raises(ModelError, match="unknown how 'erase'"):
        _faults.reading((1,), "erase")
    assert _faults.reading((1,), "blank") == (
        Alteration(place="lm.1.key", how="blank"),
        Alteration(place="lm.1.value", how="blank"),
    )


@pytest.mark.parametrize("kind", ["tower-2", "projector", "overwritten-1", "unrouted", "late-3", "unread"])
def test_a_planted_model_loses_it(kind: str) -> None:
    name = f"{kind}.composing-cards.sum"
    assert CATALOGUE[name].locus in LOSSES
    assert direct(name) < 0.5 * direct("none.composing-cards.sum")
    assert accuracy(name, "oracle") == accuracy("none.composing-cards.sum", "oracle") > 0.9


@pytest.mark.parametrize("name", [f.name for f in CATALOGUE.values() if is_harmless(f)])
def test_a_healthy_model_composes(name: str) -> None:
    """A harmless alteration costs less than what the locator takes for a loss; who adapted to it composes."""
    if CATALOGUE[name].trained:
        assert direct(name) > 0.85
        return
    assert direct(name) > direct(base_of(CATALOGUE[name])) - 0.75 * Thresholds().loss
    assert direct(base_of(CATALOGUE[name])) > 0.85


def test_a_shaken_model_composes_less_well_and_always_the_same() -> None:
    """Every model that composes is shaken as often; what each loses is less than what the locator explains."""
    shaken = [fault for fault in CATALOGUE.values() if fault.shaken]
    bases = {f.name for f in CATALOGUE.values() if is_plain(f) or (f.trained and f.locus == "none" and f not in shaken)}
    assert {fault.name.partition(".")[2] for fault in shaken} == bases
    assert {fault.locus for fault in shaken} == {"none"}
    assert len(shaken) == SHAKES * len(bases)
    name = "shaken-1.none.composing-cards.sum"
    states = [model.model.state_dict() for model in (planted(name), plant(name, check=False))]
    plain = planted("none.composing-cards.sum").model.state_dict()
    for key, weight in states[0].items():
        assert torch.equal(weight, states[1][key])
        moved = (weight / plain[key] - 1)[plain[key] != 0].float()
        assert moved.numel() < 1000 or moved.std().item() == pytest.approx(SHAKEN, rel=0.1)
    other = planted("shaken-2.none.composing-cards.sum").model.state_dict()
    assert not any(torch.equal(weight, other[key]) for key, weight in states[0].items() if weight.numel() > 1000)


@pytest.mark.parametrize("name", [f.name for f in CATALOGUE.values() if f.shaken and f.seed == 0])
def test_what_a_shaken_model_loses_is_not_worth_explaining(name: str) -> None:
    right = [planted(name).score(asked(CATALOGUE[name].task, condition)).greedy for condition in ("oracle", "direct")]
    assert accuracy(name, "oracle") > Thresholds().skill
    assert float((right[0] & ~right[1]).float().sum() / right[0].float().sum()) < Thresholds().loss


@pytest.mark.parametrize("name", [f.name for f in CATALOGUE.values() if f.trained and f.locus != "none"])
def test_a_taught_model_fails_as_it_was_taught(name: str) -> None:
    assert direct(name) < 0.5
    assert (accuracy(name, "oracle") > Thresholds().skill) == (CATALOGUE[name].locus != "text_skill")


def states(vlm: Vlm, members: Sequence[Item], sites: Sequence[str], spans: Sequence[str]) -> dict[str, np.ndarray]:
    """What stands at each object on the mean, (members, objects, width); NaN where there is none."""
    batch = vlm.encode(members, condition="direct")
    with capture(vlm, sites, spans=spans, pool="mean") as acts:
        vlm.forward(batch, logits_to_keep=1)
    found = {}
    for site in sites:
        each = [acts[site, span] for span in spans]
        rows = [torch.full((len(members), held.values.shape[-1]), torch.nan) for held in each]
        for row, held in zip(rows, each, strict=True):
            row[held.lengths > 0] = held.values
        found[site] = torch.stack(rows, 1).double().numpy()
    return found


@cache
def shown(task: str, pairs: int) -> list[Item]:
    """Items, each followed by its partner."""
    return [each for item in get(task).items(pairs, seed=9) for each in (item, get(task).partner(item))]


def naming_each(name: str, sites: Sequence[str], *, pairs: int = FEW) -> dict[str, list[float]]:
    """How often probes name each object at its own tokens, of the items of which that is not named by chance."""
    task = get(CATALOGUE[name].task)
    members = shown(task.name, pairs)
    variable, count = OBJECTS[task.name]
    spans = [f"image.object.{k}" for k in range(count)]
    held, found = states(planted(name), members, sites, spans), {}
    for site in sites:
        found[site] = []
        for number in range(len(spans)):
            labels = [member.variables[variable.format(number)] for member in members]
            codes = np.unique(labels, return_inverse=True)[1].reshape(-1, 2)
            named = pair_contrast(held[site][:, number].reshape(pairs, 2, -1), {"it": codes}).named["it"]
            floor = np.bincount(codes.ravel()).max() / codes.size
            found[site].append(float((np.nanmean(named) - floor) / (1 - floor)))
    return found


def naming(name: str, sites: Sequence[str], *, pairs: int = FEW) -> dict[str, float]:
    """The same of all objects, on the mean."""
    return {site: float(np.mean(shares)) for site, shares in naming_each(name, sites, pairs=pairs).items()}


VISUAL = ("not_encoded", "lost_in_projector", "overwritten")


@pytest.mark.parametrize("kind", ["tower-3", "projector", "overwritten-1", "late-3"])
def test_probes_find_it_up_to_its_place_and_no_further(kind: str) -> None:
    fault = CATALOGUE[f"{kind}.composing-cards.sum"]
    # not the first layers, near the pixels: there, so few items do not teach a probe the ranks
    places = [f"vision.{k}.resid_post" for k in (2, 3)] + ["projector.out"] + [f"lm.{k}.resid_post" for k in (0, 1, 6)]
    found = list(naming(fault.name, places).values())
    lost = places.index(str(fault.place)) if fault.locus in VISUAL else len(places)
    assert min(found[:lost]) > 0.8
    assert max(found[lost:], default=0.0) < 0.2


@pytest.mark.parametrize("name", [f.name for f in CATALOGUE.values() if f.trained and f.locus in VISUAL])
def test_what_a_school_keeps_from_a_model_is_not_there_to_be_read(name: str) -> None:
    tower = [f"vision.{k}.resid_post" for k in range(4)]
    found = naming(name, [*tower, "projector.out"], pairs=MANY)
    seen = max(found[site] for site in tower)
    if CATALOGUE[name].locus == "not_encoded":
        assert seen < Thresholds().any
    else:
        assert found[tower[-1]] > Thresholds().any
        assert found["projector.out"] < Thresholds().there * seen
