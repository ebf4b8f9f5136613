"""Where pictures, objects and words are, in every family of models: by arithmetic, and by what the model does."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seamscope.hooks import Batch, Box, Patch, Picture, Prompt, Segment, Vlm, capture, patch

from .conftest import ask, picture
from .families_closed_form import Rect, closed_form
from .families_fixture import ALL, SIZES, families, load
from .families_oracle import PATHS

STACKS = ("vision", "projector", "lm")
PADDINGS = pytest.mark.parametrize("padding", ["left", "right"])
SHARE, LEEWAY = 0.05, 0.03  # of its own width, what a token must show of an object, and how near to that is too near


def tokens_of(name: str, stack: str, sizes: Sequence[tuple[int, int]]) -> list[Rect | None]:
    """The tokens of one prompt's pictures."""
    return [rect for size in sizes for rect in getattr(closed_form(name, size, len(sizes)), stack)]


def found(vlm: Vlm, batch: Batch, stack: str, row: int, span: str) -> list[int]:
    """Number a span's tokens among those of its stack: all in the batch, or, in the decoder, the row's image tokens."""
    if stack != "lm":
        return batch.visual.spans[stack][row].get(span, torch.zeros(0)).tolist()
    images = (batch.inputs["input_ids"][row] == vlm.model.config.image_token_id).nonzero().flatten().tolist()
    return [images.index(position) for position in batch.spans[row].get(span, torch.zeros(0)).tolist()]


def shows(low: float, high: float, start: float, stop: float) -> tuple[bool, bool]:
    """Whether a token from `start` to `stop` surely, and whether it possibly, shows enough of [low, high]."""
    share, whole = ((end - begin) / (stop - start) for begin, end in ((max(start, low), min(stop, high)), (low, high)))
    fits = whole > SHARE + LEEWAY  # what is smaller belongs to the token around its middle
    return fits and share > SHARE + LEEWAY, share > (SHARE - LEEWAY if fits else 0)


def holding(rects: Sequence[Rect | None], box: Box) -> tuple[set[int], set[int]]:
    """Number the tokens that surely, and those that possibly, show a box."""
    told = {
        number: [shows(box.left, box.right, rect[0], rect[2]), shows(box.top, box.bottom, rect[1], rect[3])]
        for number, rect in enumerate(rects)
        if rect is not None
    }
    sure, possible = ({number for number, axes in told.items() if all(axis[k] for axis in axes)} for k in (0, 1))
    return sure, possible


@st.composite
def scenes(draw: st.DrawFn) -> list[tuple[tuple[int, int], Box]]:
    """One picture or two, as sizes, each with a box in it."""

    def edges(side: int) -> list[int]:
        return sorted(draw(st.lists(st.integers(0, side), min_size=2, max_size=2, unique=True)))

    sizes = [(draw(st.integers(25, 110)), draw(st.integers(25, 110))) for _ in range(draw(st.integers(1, 2)))]
    corners = [(edges(width), edges(height)) for width, height in sizes]
    boxes = [Box(left=across[0], top=down[0], right=across[1], bottom=down[1]) for across, down in corners]
    return list(zip(sizes, boxes, strict=True))


@families
@settings(deadline=None, max_examples=15)
@given(scene=scenes(), padding=st.sampled_from(["left", "right"]))
def test_tokens_are_where_arithmetic_puts_them(name: str, scene: list[tuple[tuple[int, int], Box]], padding: str):
    vlm, sizes = load(name), [size for size, _ in scene]
    pictures = [picture(0, size=size, boxes=(box,)) for size, box in scene]
    batch = vlm.encode([ask("what is the sum ?", *pictures), ask("red ?", *pictures)], padding=padding)
    for stack in STACKS:
        every = tokens_of(name, stack, sizes)
        if stack != "lm":
            assert batch.visual.sizes[stack] == 2 * len(every)
        for row in range(2):
            start = row * len(every) if stack != "lm" else 0
            numbers = {each - start for each in found(vlm, batch, stack, row, "image")}
            assert numbers == {k for k, rect in enumerate(every) if rect is not None or stack == "lm"}
            for k, (size, box) in enumerate(scene):
                own = getattr(closed_form(name, size, len(sizes)), stack)
                sure, possible = holding(own, box)
                assert sure <= {each - start for each in found(vlm, batch, stack, row, f"image.object.{k}")} <= possible
                start += len(own)


@families
def test_image_tokens_are_counted_row_by_row(name: str):
    """Prompts with two pictures, with one and with none."""
    vlm = load(name)
    texts = ["what is the sum ?", "red ?", "king ?"]
    sizes = [SIZES[:2], SIZES[2:], ()]
    prompts = [ask(text, *(picture(0, size=size) for size in row)) for text, row in zip(texts, sizes, strict=True)]
    for chosen in [(0, 1, 2)] if vlm.family.mixed_rows else [(0,), (1,), (2,)]:
        batch = vlm.encode([prompts[row] for row in chosen])
        for row, own in enumerate(sizes[each] for each in chosen):
            count = len(tokens_of(name, "lm", own))
            positions = batch.spans[row].get("image", torch.zeros(0)).tolist()
            assert len(positions) == count
            assert positions == sorted(positions)
            ids = batch.inputs["input_ids"][row]
            assert int((ids == vlm.model.config.image_token_id).sum()) == count


@families
def test_the_image_span_goes_through_the_picture_alike_in_all_stacks(name: str):
    vlm = load(name)
    batch = vlm.encode([ask("red ?", picture(0, size=SIZES[0]))])
    shown = {}
    for stack in STACKS:
        rects = tokens_of(name, stack, SIZES[:1])
        shown[stack] = [rects[each] for each in found(vlm, batch, stack, 0, "image") if rects[each] is not None]
    if len(shown["projector"]) == len(shown["lm"]):
        assert shown["projector"] == shown["lm"]
    if name.startswith(("qwen", "mistral", "pixtral")):  # one view: from the top left to the bottom right
        assert shown["vision"] == sorted(shown["vision"], key=lambda rect: (rect[1], rect[0]))


SIZE, PAINTED = (100, 75), Box(left=26, top=12, right=46, bottom=27)
AROUND = Box(left=12, top=0, right=60, bottom=41)  # as far as a resize mixes, and a token and a half more


def painted(seed: int) -> Prompt:
    """A question about a picture of which a part depends on the seed; its boxes are that part, and what may be near."""
    image = picture(1, size=SIZE).image
    image.paste(picture(seed, size=(20, 15)).image, (int(PAINTED.left), int(PAINTED.top)))
    return ask("what is the sum ?", Picture(image=image, boxes=(PAINTED, AROUND)))


def changed(one: Tensor, other: Tensor) -> set[int]:
    """Number the tokens that differ."""
    return set((one != other).reshape(-1, one.shape[-1]).any(-1).nonzero().flatten().tolist())


def object_tokens(vlm: Vlm, batch: Batch, stack: str) -> tuple[set[int], set[int], set[int]]:
    """Number, in a batch of one, the tokens of the painted part, of what may be near, and all."""
    spans = ("image.object.0", "image.object.1", "image")
    some, near, every = (set(found(vlm, batch, stack, 0, span)) for span in spans)
    assert some
    assert near < every
    return some, near, every


def first_input(name: str, vlm: Vlm, batch: Batch) -> Tensor:
    """What the tower's first layer is given, or, without a tower, what the projector gives."""
    held = []
    paths = PATHS[name].tower
    if not paths:
        with capture(vlm, "projector.out") as acts:
            vlm.forward(batch)
        return acts["projector.out"]
    layer = vlm.model.get_submodule(paths[0])[0]
    handle = layer.register_forward_pre_hook(
        lambda module, args, kwargs: held.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with ExitStack() as stack:
        stack.callback(handle.remove)
        vlm.forward(batch)
    return held[0]


@families
def test_pixels_of_an_object_change_its_tokens_in_the_tower(name: str):
    vlm = load(name)
    one, other = (vlm.encode([painted(seed)]) for seed in (2, 3))
    some, near, _ = object_tokens(vlm, one, "vision" if PATHS[name].tower else "projector")
    assert some <= changed(first_input(name, vlm, one), first_input(name, vlm, other)) <= near


READ = {"llava": 1, "llava_next": 1}  # they read the layer before the last one


def seen(vlm: Vlm, batch: Batch, site: str, written: str) -> set[int]:
    """Number the tokens of `site` that change when those of the object are turned round at another site."""
    with capture(vlm, site) as acts:
        vlm.forward(batch)
    before = acts[site]
    turn = Patch(written, torch.neg, span="image.object.0")
    with capture(vlm, site) as acts, patch(vlm, turn):
        vlm.forward(batch)
    return changed(before, acts[site])


@pytest.mark.parametrize("name", [name for name in ALL if PATHS[name].tower])
def test_an_objects_tokens_in_the_tower_become_its_tokens_behind_the_projector(name: str):
    vlm = load(name)
    batch = vlm.encode([painted(2)])
    some, near, _ = object_tokens(vlm, batch, "projector")
    last = READ.get(name, vlm.n_vision_layers - 1)
    assert some <= seen(vlm, batch, "projector.out", f"vision.{last}.resid_post") <= near


@pytest.mark.parametrize("name", [name for name in ALL if not PATHS[name].crossed])
def test_an_objects_tokens_behind_the_projector_become_its_tokens_in_the_prompt(name: str):
    vlm = load(name)
    batch = vlm.encode([painted(2)])
    some, near = (set(batch.spans[0][f"image.object.{k}"].tolist()) for k in (0, 1))
    there = seen(vlm, batch, "lm.embed", "projector.out")
    assert some <= there <= near
    if name != "llava_onevision":  # its tokens may be mixed from several
        assert there == some
    if PATHS[name].deepstack:
        assert seen(vlm, batch, "lm.1.resid_pre", "lm.0.deepstack") == some


SEGMENTS = (
    Segment("what is the sum of ", ("question",)),
    Segment("seven", ("question", "intermediate.0")),
    Segment(" + ", ("question",)),
    Segment("two", ("question", "intermediate.1")),
    Segment(" ?", ("question",)),
)
WORDS = {"question": "what is the sum of seven + two ?", "intermediate.0": "seven", "intermediate.1": "two"}


@PADDINGS
@families
def test_spans_of_text_spell_their_words(name: str, padding: str):
    vlm = load(name)
    tokenizer, pictures = vlm.processor.tokenizer, [picture(k, size=SIZES[k]) for k in range(2)]
    rows = [
        (Prompt(segments=SEGMENTS, pictures=tuple(pictures[:n])), answer)
        for n, answer in enumerate(["one", "red king", "ace"])
    ]
    for chosen in [rows] if vlm.family.mixed_rows else [rows[:1], rows[1:2], rows[2:]]:
        prompts, answers = zip(*chosen, strict=True)
        for batch, told in (
            (vlm.encode(prompts, padding=padding), None),
            (vlm.encode(prompts, answers=answers, padding=padding), answers),
        ):
            for row in range(len(prompts)):
                ids, spans = batch.inputs["input_ids"][row], batch.spans[row]
                words = WORDS | ({} if told is None else {"answer": told[row] + PATHS[name].end})
                for span, text in words.items():
                    assert tokenizer.decode(ids[spans[span]]).strip() == text
                real = batch.inputs["attention_mask"][row].nonzero().flatten()
                told_tokens = spans.get("answer", real[:0])
                assert torch.equal(torch.cat([spans["prompt"], told_tokens]), real)
                assert spans["last"].tolist() == [int(spans["prompt"][-1])]
