from __future__ import annotations

import pytest

from seamscope.hooks import ModelError, Prompt, Segment, SpanError
from seamscope.hooks._frame import Mark, frame

from .conftest import TEMPLATE, ask, make_processor, picture, word_tokenizer

TWO = Prompt(segments=(Segment("red card ", ("a",)), Segment("of blue ", ()), Segment("sum ?", ("b", "c"))))


@pytest.fixture(scope="module")
def processor():
    return make_processor("siglip", word_tokenizer())


def marked(framed) -> dict[str, str]:
    return {mark.name: framed.text[mark.start : mark.stop] for mark in framed.marks}


def test_segments_are_marked_where_they_are(processor):
    framed = frame(processor, TWO, "x")
    assert framed.text == "<s>USER : red card of blue sum ? ASSISTANT : "
    assert marked(framed) == {"a": "red card ", "b": "sum ?", "c": "sum ?"}


def test_the_text_is_found_by_place_and_not_by_its_words(processor):
    """The word is in the template too, before and after the prompt."""
    (mark,) = frame(processor, ask("USER"), "x").marks
    assert (mark.start, mark.stop) == (10, 14)
    assert frame(processor, ask("ASSISTANT"), "x").marks[0].start == 10


def test_an_answer_comes_after_the_generation_prompt_with_its_end(processor):
    framed = frame(processor, TWO, "x", "seven")
    assert framed.text.endswith(" ASSISTANT : seven</s>")
    assert marked(framed)["answer"] == "seven</s>"


def test_a_template_that_strips_the_text_moves_the_marks():
    stripping = TEMPLATE.replace("part['text'] }}", "part['text'] | trim }}")
    processor = make_processor("siglip", word_tokenizer(), stripping)
    prompt = Prompt(segments=(Segment("  ", ("lead",)), Segment(" red ", ("a",)), Segment("card  ", ("b",))))
    framed = frame(processor, prompt, "x")
    assert framed.text == "<s>USER : red card ASSISTANT : "
    assert marked(framed) == {"a": "red ", "b": "card"}


def test_a_template_that_changes_the_text_is_refused():
    shouting = make_processor(
        "siglip", word_tokenizer(), TEMPLATE.replace("part['text'] }}", "part['text'] | upper }}")
    )
    with pytest.raises(SpanError, match="the chat template changes the text of item 'x'"):
        frame(shouting, ask("red card"), "x")


@pytest.mark.parametrize("name", ["image", "image.object.0", "last", "answer", "prompt"])
def test_reserved_spans_are_refused(processor, name: str):
    with pytest.raises(SpanError, match=f"item 'x' names a segment '{name}'; the names image, last"):
        frame(processor, Prompt(segments=(Segment("red", (name,)),)), "x")


def test_a_placeholder_in_the_text_is_refused(processor):
    with pytest.raises(SpanError, match="item 'x' contains the image placeholder '<image>'"):
        frame(processor, ask("red <image> card", picture(0)), "x")


def test_a_processor_without_a_chat_template_is_refused():
    processor = make_processor("siglip", word_tokenizer())
    processor.chat_template = None
    with pytest.raises(ModelError, match="the checkpoint's LlavaProcessor has no chat template"):
        frame(processor, TWO, "x")


def test_marks_are_clipped():
    assert Mark("a", 2, 6).clip((3, 5)) == Mark("a", 3, 5)
    assert Mark("a", 2, 3).clip((3, 5)) is None
