"""Spans against an independent count: which words a row's tokens spell, and how many there must be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from seamscope.hooks import Batch, Box, Prompt, Segment, SpanError
from seamscope.hooks._encode import Encoder
from seamscope.hooks._frame import Framed, Mark
from seamscope.hooks._spans import Row, text_spans
from seamscope.hooks.families._llava import LLAVA

from .conftest import (
    WORDS,
    ask,
    make_config,
    make_encoder,
    make_processor,
    merging_tokenizer,
    picture,
    sentence_tokenizer,
    word_tokenizer,
)

TOKENIZERS = {"word": word_tokenizer, "merging": merging_tokenizer, "sentence": sentence_tokenizer}
# Words that the template has not, so that a word tells its segment.
GROUPS = {
    "question": WORDS[:5],
    "intermediate.0": WORDS[5:9],
    "intermediate.1": WORDS[9:13],
    None: WORDS[13:15],
}


@cache
def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    return TOKENIZERS[name]()


@cache
def encoder(kind: str, tokenizer: str) -> Encoder:
    return make_encoder(kind, tokenizer_of(tokenizer))


def encode(kind: str, tokenizer: str, prompts: list[Prompt], padding: str = "left", answers=None) -> Batch:
    named = [(f"item{row}", prompt) for row, prompt in enumerate(prompts)]
    return encoder(kind, tokenizer)(named, answers=answers, condition=None, padding=padding)


@st.composite
def segments(draw: st.DrawFn) -> tuple[Segment, ...]:
    made = []
    for span in draw(st.lists(st.sampled_from(list(GROUPS)), min_size=1, max_size=5)):
        words = draw(st.lists(st.sampled_from(GROUPS[span]), min_size=1, max_size=4))
        gap = draw(st.sampled_from([" ", "  ", "\n", " \n "]))
        spans = () if span is None else (span, span.split(".")[0]) if "." in span else (span,)
        made.append(Segment(draw(st.sampled_from(["", " "])) + gap.join(words) + gap, spans))
    return tuple(made)


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    size = draw(st.tuples(st.integers(20, 60), st.integers(20, 60)))
    boxes = tuple(
        Box(
            left=x * size[0] / 12,
            top=y * size[1] / 12,
            right=(x + w) * size[0] / 12,
            bottom=(y + h) * size[1] / 12,
        )
        for x, y, w, h in draw(st.lists(st.tuples(*[st.integers(0, 8)] * 2, *[st.integers(1, 4)] * 2), max_size=3))
    )
    n_pictures = draw(st.integers(0, 2))
    return Prompt(segments=draw(segments()), pictures=(picture(0, size=size, boxes=boxes),) * n_pictures)


def spelled(batch: Batch, row: int, tokenizer: str) -> list[str]:
    """Give what each token of a row spells on its own."""
    return [tokenizer_of(tokenizer).decode([token]).strip() for token in batch.inputs["input_ids"][row]]


def words_of(prompt: Prompt, span: str) -> list[str]:
    return [word for each in prompt.segments if span in each.spans for word in each.text.split()]


@settings(deadline=None, max_examples=80)
@given(
    st.lists(prompts(), min_size=1, max_size=3),
    st.sampled_from(["left", "right"]),
    st.sampled_from(list(TOKENIZERS)),
    st.data(),
)
def test_spans_equal_an_independent_count(asked: list[Prompt], padding: str, tokenizer: str, data: st.DataObject):
    kind = data.draw(st.sampled_from(["siglip", "clip"] if all(_square(each) for each in asked) else ["siglip"]))
    answers = data.draw(st.none() | st.lists(st.sampled_from(["1", "king", "4 2"]), min_size=3, max_size=3))
    answers = answers and answers[: len(asked)]
    batch = encode(kind, tokenizer, asked, padding, answers)
    for row, prompt in enumerate(asked):
        spans, words = batch.spans[row], spelled(batch, row, tokenizer)
        for span in ("question", "intermediate", "intermediate.0", "intermediate.1"):
            found = [words[i] for i in spans.get(span, torch.zeros(0, dtype=torch.long)).tolist()]
            assert "".join(found) == "".join(words_of(prompt, span))
        assert [words[i] for i in spans.get("image", [])] == ["<image>"] * (9 * len(prompt.pictures))
        _assert_ends(words, spans, padding, answers and answers[row])
        _assert_objects(prompt, spans)


def _square(prompt: Prompt) -> bool:
    return all(each.image.size[0] == each.image.size[1] for each in prompt.pictures)


def _assert_ends(words: list[str], spans, padding: str, answer: str | None) -> None:
    length = len(words) - words.count("<pad>")
    start = len(words) - length if padding == "left" else 0
    ending = [] if answer is None else [*answer.split(), "</s>"]
    assert "".join(words[i] for i in spans.get("answer", [])) == "".join(ending)
    n_answer = len(spans.get("answer", ()))
    assert spans["prompt"].tolist() == list(range(start, start + length - n_answer))
    assert spans["last"].tolist() == [start + length - n_answer - 1]


def _assert_objects(prompt: Prompt, spans) -> None:
    """Boxes lie on twelfths of the image, so that each patch of the 3 x 3 grid is four of them wide."""
    k = 0
    for number, each in enumerate(prompt.pictures):
        width, height = each.image.size
        for box in each.boxes:
            left, right = round(box.left * 12 / width), round(box.right * 12 / width)
            top, bottom = round(box.top * 12 / height), round(box.bottom * 12 / height)
            cells = {(y // 4) * 3 + x // 4 for y in range(top, bottom) for x in range(left, right)}
            wanted = [int(spans["image"][9 * number + cell]) for cell in sorted(cells)]
            assert spans[f"image.object.{k}"].tolist() == wanted
            k += 1
    assert f"image.object.{k}" not in spans


def test_left_and_right_padding_name_the_same_tokens():
    asked = [ask("red card ?", picture(0)), ask("what is the sum of seven ?"), ask("ace", picture(1))]
    left, right = (encode("siglip", "merging", asked, side, ["1", "king", "4 2"]) for side in ("left", "right"))
    for row in range(3):
        assert left.spans[row].keys() == right.spans[row].keys()
        for span in left.spans[row]:
            ids = [each.inputs["input_ids"][row][each.spans[row][span]].tolist() for each in (left, right)]
            assert ids[0] == ids[1]
    lasts = [torch.cat(each.positions("last")).tolist() for each in (left, right)]
    assert len({a - b for a, b in zip(*lasts, strict=True)}) > 1  # one offset for all rows would be wrong


def test_the_space_that_a_token_swallows_does_not_make_it_belong_to_the_segment_before():
    prompt = Prompt(segments=(Segment("red ", ("a",)), Segment("card", ("b",))))
    batch = encode("siglip", "merging", [prompt])
    token = tokenizer_of("merging")
    assert [token.decode([i]) for i in batch.inputs["input_ids"][0][batch.spans[0]["b"]]] == [" card"]
    assert [token.decode([i]) for i in batch.inputs["input_ids"][0][batch.spans[0]["a"]]] == [" red"]


def test_a_segment_named_twice_has_the_tokens_of_both():
    prompt = Prompt(segments=(Segment("red ", ("a",)), Segment("of ", ()), Segment("card", ("a",))))
    batch = encode("siglip", "word", [prompt])
    assert [spelled(batch, 0, "word")[i] for i in batch.spans[0]["a"]] == ["red", "card"]


def test_a_picture_whose_tokens_are_no_grid_is_refused():
    """With the tower's first token dropped though it is a patch, nobody can say what the others show."""
    processor = make_processor("siglip", word_tokenizer())
    processor.vision_feature_select_strategy = "default"
    model = LlavaForConditionalGeneration(make_config("siglip", processor.tokenizer))
    odd = Encoder(model, processor, LLAVA)
    with pytest.raises(SpanError, match="cannot tell which part of a picture of 3x3 patches its 8 tokens show"):
        odd([("x", ask("red", picture(0)))], answers=None, condition=None, padding="left")


@dataclass(frozen=True)
class Told:
    """A row of made-up tokens, one for each letter: padding `_`, image tokens `#`, markers of tiles `|`, text."""

    letters: str
    text: str

    @property
    def row(self) -> Row:
        letters = np.array(list(self.letters))
        return Row(
            name="x",
            ids=letters,
            real=letters != "_",
            is_image=letters == "#",
            plain_ids=np.array(list(self.text)),
            offsets=np.array([(at, at + 1) for at in range(len(self.text))]).reshape(-1, 2),
        )

    def spans(self, *marks: Mark) -> dict[str, list[int]]:
        return {name: where.tolist() for name, where in text_spans(Framed(self.text, marks), self.row).items()}


QUESTION, ANSWER = Mark("question", 2, 5), Mark("answer", 5, 6)


@pytest.mark.parametrize("before", ["", "__"])
@pytest.mark.parametrize("after", ["", "___"])
@pytest.mark.parametrize("grown", ["U*", "b|###|##", "####|", "|"])
def test_only_the_end_of_a_row_must_read_as_its_text_does(before: str, after: str, grown: str):
    """What the processor writes for a picture, and before it, has nothing to do with the text's placeholder."""
    told = Told(before + grown + "redk" + after, "*|redk".replace("|", "U"))
    first = len(before) + len(grown)
    assert told.spans(QUESTION) == {
        "question": [first, first + 1, first + 2],
        "prompt": list(range(len(before), first + 4)),
        "last": [first + 3],
    }
    assert told.spans(QUESTION, ANSWER) == {
        "question": [first, first + 1, first + 2],
        "answer": [first + 3],
        "prompt": list(range(len(before), first + 3)),
        "last": [first + 2],
    }


@pytest.mark.parametrize(
    ("letters", "lost"),
    [
        ("*UrEdk", "question"),
        ("*Uredkx", "question, answer"),
        ("*Ured", "question, answer"),
        ("redk*U", "question, answer"),
        ("*U", "question, answer"),
        ("", "question, answer"),
    ],
)
def test_a_text_that_the_processor_changes_is_refused(letters: str, lost: str):
    with pytest.raises(SpanError, match=f"item 'x': the processor changes the text of {lost}$"):
        Told(letters, "*Uredk").spans(QUESTION, ANSWER)


def test_what_lies_before_the_change_may_be_white_space():
    """A blank at the start of a mark may have grown together with what is before it."""
    assert Told("##redk", "*   redk").spans(Mark("question", 1, 7))["question"] == [2, 3, 4]


def test_tokens_of_no_characters_belong_to_no_mark():
    told = replace(Told("#aeb", "*aeb").row, offsets=np.array([(0, 1), (1, 2), (2, 2), (2, 3)]))
    spans = text_spans(Framed("*ab", (Mark("question", 1, 3),)), told)
    assert spans["question"].tolist() == [1, 3]


def test_a_llava_template_with_a_llama_tokenizer():
    """The template of the LLaVA 1.5 checkpoints, whose answers begin with a space."""
    template = (
        "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
        "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    llava = make_encoder("clip", tokenizer_of("sentence"), template)
    prompt = Prompt(segments=(Segment("red card", ("a",)), Segment(" of blue ?", ("b",))), pictures=(picture(0),))
    batch = llava([("x", prompt)], answers=[" king"], condition=None, padding="left")
    assert batch.texts == ("USER: <image>\nred card of blue ? ASSISTANT: king</s>",)
    ids, spans = batch.inputs["input_ids"][0], batch.spans[0]
    said = {name: tokenizer_of("sentence").decode(ids[spans[name]]) for name in ("a", "b", "last", "answer")}
    assert said == {"a": "red card", "b": " of blue ?", "last": ":", "answer": " king</s>"}


def test_an_answer_that_grows_together_with_the_prompt_is_refused():
    template = "{% for m in messages %}{{ m['content'][-1]['text'] }}{% endfor %} so k"
    grown = make_encoder("siglip", merging_tokenizer(), template)
    with pytest.raises(SpanError, match="the answer of item 'x' shares its first token with the end of the prompt"):
        grown([("x", ask("red"))], answers=["ing"], condition=None, padding="left")


def test_an_answer_without_tokens_is_refused():
    endless = word_tokenizer()
    endless.eos_token = None
    bare = make_encoder("siglip", endless)
    with pytest.raises(SpanError, match="the answer of item 'x' has no tokens"):
        bare([("x", ask("red"))], answers=[" "], condition=None, padding="left")
