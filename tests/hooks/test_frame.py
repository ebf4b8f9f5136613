from __future__ import annotations

from types import SimpleNamespace

import pytest

from seamscope.hooks import ModelError, Prompt, Segment, SpanError
from seamscope.hooks._frame import Framed, Framer, Mark
from seamscope.hooks.families._llava import LLAVA

from .conftest import TEMPLATE, ask, make_processor, merging_tokenizer, picture, word_tokenizer

TWO = Prompt(segments=(Segment("red card ", ("a",)), Segment("of blue ", ()), Segment("sum ?", ("b", "c"))))


IMAGE, END, UNKNOWN = 4, 2, 3  # ids of special tokens, the same in every tokenizer here


def make_framer(template: str = TEMPLATE, *, stops: int | list[int] | None = END, tokenizer=None) -> Framer:
    """A framer for a model whose generation stops at `stops`."""
    model = SimpleNamespace(
        config=SimpleNamespace(image_token_id=IMAGE), generation_config=SimpleNamespace(eos_token_id=stops)
    )
    return Framer(model, make_processor("siglip", tokenizer or word_tokenizer(), template), LLAVA)


@pytest.fixture(scope="module")
def frame() -> Framer:
    return make_framer()


def marked(framed: Framed) -> dict[str, str]:
    return {mark.name: framed.text[mark.start : mark.stop] for mark in framed.marks}


def test_segments_are_marked_where_they_are(frame: Framer):
    framed = frame(TWO, "x")
    assert framed.text == "<s>USER : red card of blue sum ? ASSISTANT : "
    assert marked(framed) == {"a": "red card ", "b": "sum ?", "c": "sum ?"}


def test_the_text_is_found_by_place_and_not_by_its_words(frame: Framer):
    """The word is in the template too, before and after the prompt."""
    (mark,) = frame(ask("USER"), "x").marks
    assert (mark.start, mark.stop) == (10, 14)
    assert frame(ask("ASSISTANT"), "x").marks[0].start == 10


def test_an_answer_comes_after_the_generation_prompt_with_its_end(frame: Framer):
    framed = frame(TWO, "x", "seven")
    assert framed.text.endswith(" ASSISTANT : seven</s>")
    assert marked(framed)["answer"] == "seven</s>"


def test_a_template_that_strips_the_text_moves_the_marks():
    stripping = TEMPLATE.replace("part['text'] }}", "part['text'] | trim }}")
    prompt = Prompt(segments=(Segment("  ", ("lead",)), Segment(" red ", ("a",)), Segment("card  ", ("b",))))
    framed = make_framer(stripping)(prompt, "x")
    assert framed.text == "<s>USER : red card ASSISTANT : "
    assert marked(framed) == {"a": "red ", "b": "card"}


def test_a_template_that_changes_the_text_is_refused():
    shouting = make_framer(TEMPLATE.replace("part['text'] }}", "part['text'] | upper }}"))
    with pytest.raises(SpanError, match="the chat template changes the text of item 'x'"):
        shouting(ask("red card"), "x")


@pytest.mark.parametrize("name", ["image", "image.object.0", "last", "answer", "prompt"])
def test_reserved_spans_are_refused(frame: Framer, name: str):
    with pytest.raises(SpanError, match=f"item 'x' names a segment '{name}'; the names image, last"):
        frame(Prompt(segments=(Segment("red", (name,)),)), "x")


def test_a_placeholder_in_the_text_is_refused(frame: Framer):
    with pytest.raises(SpanError, match="item 'x' contains the placeholder '<image>'"):
        frame(ask("red <image> card", picture(0)), "x")


def test_both_the_word_for_a_picture_and_the_token_for_a_piece_of_it_are_refused():
    """Some processors write one for the other."""
    processor = make_processor("siglip", word_tokenizer())
    processor.image_token = "<picture>"
    model = SimpleNamespace(
        config=SimpleNamespace(image_token_id=IMAGE), generation_config=SimpleNamespace(eos_token_id=None)
    )
    framer = Framer(model, processor, LLAVA)
    for word in ("<picture>", "<image>"):
        with pytest.raises(SpanError, match=f"contains the placeholder '{word}'"):
            framer(ask(f"red {word} card"), "x")
    del processor.image_token
    with pytest.raises(SpanError, match="contains the placeholder '<image>'"):
        Framer(model, processor, LLAVA)(ask("<image>"), "x")


TURNS = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}A {{ m['content'][0]['text'] }}END"
    "{% else %}U {{ m['content'][-1]['text'] }}</s>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A {% endif %}"
)


@pytest.mark.parametrize(
    ("after", "stops", "end"),
    [
        ("<unk> ", UNKNOWN, "<unk>"),  # as Qwen's <|im_end|>: the template ends a turn otherwise than a text ends
        ("<unk></s>", [END, UNKNOWN], "<unk>"),
        ("</s>", END, "</s>"),
        ("<unk>", END, "</s>"),  # generation does not stop there
        ("<unk>", None, "</s>"),
        ("", UNKNOWN, "</s>"),  # the template ends no turn
        (" red<unk>", UNKNOWN, "</s>"),  # and here not at once
    ],
)
def test_answers_end_as_turns_do_if_generation_stops_there(after: str, stops, end: str):
    framer = make_framer(TURNS.replace("END", after), stops=stops, tokenizer=merging_tokenizer())
    assert framer.end == end
    framed = framer(ask("red"), "x", "king")
    assert framed.text == f"U red</s>A king{end}"
    assert marked(framed)["answer"] == f"king{end}"


def test_a_template_that_knows_no_assistant_leaves_the_usual_end():
    strict = "{% if messages | length > 1 %}{{ raise_exception('one turn') }}{% endif %}" + TEMPLATE
    assert make_framer(strict, stops=UNKNOWN).end == "</s>"


def test_a_tokenizer_without_an_end_ends_nothing():
    tokenizer = word_tokenizer()
    tokenizer.eos_token = None
    assert make_framer(tokenizer=tokenizer)(ask("red"), "x", "king").text.endswith(" king")


def test_a_processor_without_a_chat_template_is_refused():
    framer = make_framer("")
    with pytest.raises(ModelError, match="the checkpoint's LlavaProcessor has no chat template"):
        framer(TWO, "x")


def test_marks_are_clipped():
    assert Mark("a", 2, 6).clip((3, 5)) == Mark("a", 3, 5)
    assert Mark("a", 2, 3).clip((3, 5)) is None
