"""Planted alterations: what stands at a place, of which patches, and that nothing else is touched."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from seamscope.experiments.organism._alter import Alteration, Altered
from seamscope.experiments.tasks import get
from seamscope.hooks import (
    Batch,
    ModelError,
    Patch,
    Prompt,
    RunError,
    Segment,
    SiteError,
    Vlm,
    capture,
    load_vlm,
    patch,
)

from ._altered import DONORS, EVERY, ITEMS, KINDS, SIDE, altered, direct, output_of, shown

COUNTING = get("counting")


def mean_of(vlm: Vlm, place: str) -> Tensor:
    return shown(vlm, vlm.encode(DONORS), place).mean(0)


def donors_of(states: Tensor, bank: Tensor) -> list[int]:
    """Which donor each row of states is, bit for bit; -1: none."""
    found = [[k for k, donor in enumerate(bank) if torch.equal(state, donor)] for state in states]
    return [numbers[0] if len(numbers) == 1 else -1 for numbers in found]


@pytest.mark.parametrize("place", ["vision.1.resid_post", "projector.out", "lm.2.key", "lm.2.resid_post"])
def test_resampled_states_are_those_of_one_donor(composing: Vlm, place: str) -> None:
    vlm = altered(Alteration(place=place))
    bank = shown(composing, composing.encode(DONORS), place)
    chosen = donors_of(shown(vlm, direct(vlm), place), bank)
    assert min(chosen) >= 0
    assert len(set(chosen)) > 2
    assert donors_of(shown(composing, direct(composing), place), bank) == [-1] * len(ITEMS)
    with capture(vlm, "vision.0.resid_post") as own, capture(composing, "vision.0.resid_post") as plain:
        vlm.forward(direct(vlm))
        composing.forward(direct(composing))
    assert torch.equal(own["vision.0.resid_post"], plain["vision.0.resid_post"])  # what comes before it is its own


def test_the_donor_depends_on_the_picture_alone(composing: Vlm) -> None:
    vlm = altered(Alteration(place="lm.2.resid_post"))
    bank = shown(composing, composing.encode(DONORS), "lm.2.resid_post")

    def nearest(batch: Batch) -> list[int]:
        states = shown(vlm, batch, "lm.2.resid_post")
        assert (states[:, None] - bank).abs().amax((2, 3)).amin(1).max() < 1e-4
        return (states[:, None] - bank).abs().amax((2, 3)).argmin(1).tolist()

    chosen = nearest(direct(vlm))
    assert nearest(direct(vlm, ITEMS[::-1], "cot")) == chosen[::-1]
    assert nearest(vlm.encode([ITEMS[3].prompt("perceive"), ITEMS[0].prompt("oracle")])) == [chosen[3]]
    assert nearest(vlm.encode(ITEMS, condition="direct", padding="right")) == chosen
    other = altered(Alteration(place="lm.2.resid_post", seed=3))  # shifts all donors
    states = shown(other, direct(other), "lm.2.resid_post")
    assert (states - bank[(torch.tensor(chosen) + 3) % len(bank)]).abs().max() < 1e-4


@KINDS
def test_text_is_left_alone(composing: Vlm, kind: str) -> None:
    vlm = altered(*EVERY[kind])
    text, mixed = direct(vlm, condition="oracle"), [ITEMS[0].prompt("oracle"), ITEMS[0].prompt("direct")]
    assert torch.equal(vlm.forward(text), composing.forward(text))
    beside, plain = (each.forward(each.encode(mixed))[:, -1] for each in (vlm, composing))
    assert torch.equal(beside[0], plain[0])
    assert not torch.allclose(beside[1], plain[1], atol=0.1)
    shown_alone = direct(vlm, ITEMS[:1])
    alone = vlm.forward(shown_alone)[:, -1]
    torch.testing.assert_close(beside[1:], alone, rtol=1e-4, atol=1e-4)
    words = vlm.encode([Prompt(segments=(Segment("sum " * (shown_alone.width - 3)),))])
    assert words.width == shown_alone.width  # as wide as the picture that was shown before
    assert torch.equal(vlm.forward(words), composing.forward(words))


def test_a_turn_keeps_all_that_is_told(composing: Vlm) -> None:
    """States keep their distance from the mean, and one rotation, learned from half of the items, turns them back."""
    place = "lm.2.resid_post"
    vlm = altered(Alteration(place=place, how="rotate"))
    mean = mean_of(composing, place)
    turned, own = ((shown(each, direct(each), place) - mean).double() for each in (vlm, composing))
    torch.testing.assert_close(turned.norm(dim=-1), own.norm(dim=-1), rtol=1e-4, atol=1e-4)
    left, _, right = torch.linalg.svd(turned[:5].flatten(0, 1).T @ own[:5].flatten(0, 1))
    torch.testing.assert_close(turned[5:] @ left @ right, own[5:], rtol=1e-3, atol=1e-3)
    assert (turned - own).norm() > own.norm()
    resampled = altered(Alteration(place=place))
    exchanged = (shown(resampled, direct(resampled), place) - mean).double()
    left, _, right = torch.linalg.svd(exchanged[:5].flatten(0, 1).T @ own[:5].flatten(0, 1))
    assert (exchanged[5:] @ left @ right - own[5:]).norm() > 0.5 * own[5:].norm()


def test_what_is_blank_is_not_read(composing: Vlm) -> None:
    """Below the layer that reads again, what stands behind the picture is the same whatever it shows."""
    vlm = altered(*EVERY["late"])
    batch, behind = direct(vlm, ITEMS[:2]), ["question", "last"]
    spread = {}
    for name, each in (("late", vlm), ("plain", composing)):
        with capture(each, "lm.*.resid_post", spans=behind) as acts:
            each.forward(batch)
        states = [[acts[f"lm.{k}.resid_post", span].stack() for k in range(each.n_layers)] for span in behind]
        spread[name] = [[float((layer[0] - layer[1]).abs().max()) for layer in span] for span in states]
    assert all(max(span[:3]) < 1e-5 and min(span[3:]) > 1e-2 for span in spread["late"])
    assert all(min(span) > 1e-2 for span in spread["plain"])
    for place in ("lm.0.key", "lm.2.value"):
        assert not shown(vlm, batch, place).any()
        assert shown(composing, batch, place).all(-1).any()


@pytest.mark.parametrize("place", ["vision.3.resid_post", "projector.out", "lm.1.resid_post", "lm.1.value"])
@pytest.mark.parametrize(
    ("part", "inside"),
    [
        ("all", lambda row, column: True),
        ("left", lambda row, column: column < 2),
        ("right", lambda row, column: column >= 4),
        ("top", lambda row, column: row < 2),
        ("bottom", lambda row, column: row >= 4),
    ],
    ids=["all", "left", "right", "top", "bottom"],
)
def test_a_part_is_just_the_patches_of_that_third(
    composing: Vlm, place: str, part: str, inside: Callable[[int, int], bool]
) -> None:
    vlm = altered(*[Alteration(place=place, how="blank", part=part)])
    prompts = [ITEMS[0].prompt("direct"), ITEMS[1].prompt("cot"), ITEMS[2].prompt("oracle")]  # padded on the left
    batch = vlm.encode(prompts)
    assert len(set(batch.inputs["attention_mask"].sum(1).tolist())) == 3
    changed = (shown(vlm, batch, place) != shown(composing, batch, place)).any(-1)
    wanted = torch.tensor([inside(*divmod(patch, SIDE)) for patch in range(SIDE**2)])
    assert torch.equal(changed, wanted.expand_as(changed))


@pytest.mark.parametrize(("first", "last"), [("left", "right"), ("top", "bottom")])
def test_two_parts_may_be_altered_each_at_its_own_place(composing: Vlm, first: str, last: str) -> None:
    """What lies between them is left alone, and either does to its own part what it does by itself."""
    places = {first: "projector.out", last: "lm.1.value"}
    both = altered(*(Alteration(place=place, how="blank", part=part) for part, place in places.items()))
    batch = direct(composing)
    zero = {part: ~shown(both, batch, place).any(-1) for part, place in places.items()}
    for part, place in places.items():
        alone = altered(Alteration(place=place, how="blank", part=part))
        assert torch.equal(zero[part], ~shown(alone, batch, place).any(-1))
        assert zero[part].sum(1).tolist() == [SIDE**2 // 3] * len(ITEMS)
    assert not (zero[first] & zero[last]).any()
    assert ((~zero[first] & ~zero[last]).sum(1) == SIDE**2 // 3).all()


@pytest.mark.parametrize("place", ["vision.1.resid_post", "projector.out", "lm.2.resid_post"])
def test_hooks_see_what_is_altered_and_have_the_last_word(composing: Vlm, place: str) -> None:
    """What the plain run has there, written over the alteration, undoes it."""
    vlm = altered(Alteration(place=place))
    batch = direct(vlm)
    with capture(vlm, place) as acts:
        logits = vlm.forward(batch)
    with capture(composing, place) as own:
        plain = composing.forward(batch)
    assert torch.equal(acts[place].reshape(-1), _whole(vlm, batch, place).reshape(-1))
    assert not torch.equal(acts[place], own[place])
    with patch(vlm, Patch(place, own[place])), capture(vlm, place) as patched:
        assert torch.equal(vlm.forward(batch), plain)
    assert torch.equal(patched[place], own[place])
    assert (logits - plain).abs().max() > 1
    assert torch.equal(vlm.forward(batch), logits)  # nothing of the patch is left


def _whole(vlm: Vlm, batch: Batch, place: str) -> Tensor:
    with output_of(vlm, place) as found:
        vlm.forward(batch)
    return found[0]


def test_another_data_set_is_altered_as_well(composing: Vlm) -> None:
    """Pictures that are none of the donors' kind, with other questions in front of the answer."""
    vlm = altered(Alteration(place="lm.2.resid_post"))
    items = COUNTING.items(3, seed=1)
    bank = shown(composing, composing.encode(DONORS), "lm.2.resid_post")
    assert min(donors_of(shown(vlm, direct(vlm, items), "lm.2.resid_post"), bank)) >= 0


@pytest.mark.parametrize(
    "place", ["lm.2.resid_pre", "lm.2.head_z", "lm.2.resid_mid", "lm.embed", "lm.8.key", "nowhere"]
)
def test_places_that_no_module_gives_are_refused_and_leave_nothing_behind(place: str) -> None:
    """An alteration acts on what a module gives: at a site that is what one is given, it would act elsewhere."""
    vlm = load_vlm("organism-composing", check=False)
    batch = direct(vlm, ITEMS[:2])
    before = vlm.forward(batch), hooks_of(vlm)
    with pytest.raises((RunError, SiteError), match=re.escape(place)):
        Altered(vlm, [Alteration(place="projector.out"), Alteration(place=place)], DONORS[:2])
    assert torch.equal(vlm.forward(batch), before[0])
    assert hooks_of(vlm) == before[1]


def hooks_of(vlm: Vlm) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in vlm.model.modules())


def test_what_cannot_be_altered_is_refused() -> None:
    with pytest.raises(RunError, match="unknown how 'erase'"):
        Alteration(place="projector.out", how="erase")
    with pytest.raises(RunError, match="unknown part 'middle'"):
        Alteration(place="projector.out", part="middle")
    with pytest.raises(SiteError, match=r"unknown site 'vision\.9\.resid_post'"):
        altered(Alteration(place="vision.9.resid_post"))
    vlm = altered(Alteration(place="lm.2.resid_post"))
    one = ITEMS[0].prompt("direct")
    both = Prompt(segments=(Segment("sum ?"),), pictures=(*one.pictures, *ITEMS[1].prompt("direct").pictures))
    for prompts in ([both], [both, one], [both, ITEMS[2].prompt("oracle")]):
        with pytest.raises(ModelError, match="one picture in every prompt"):
            vlm.forward(vlm.encode(prompts))
    vlm.forward(direct(vlm))  # and goes on
