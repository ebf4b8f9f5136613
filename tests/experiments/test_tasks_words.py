"""Reading what models say: equivalent forms, and what must not count."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seamscope.experiments.tasks import DATA_SETS, Intermediate, Item, get
from seamscope.experiments.tasks._numbers import canonical_number, last_number, spoken_numbers

SORT, SUM, COUNT, TEXT = (get(name) for name in ("cards.sort", "cards.sum", "counting", "rendered_text"))


def full(name: str) -> Item:
    return get(name).items(1, profile_name="full", seed=1)[0]


@pytest.mark.parametrize(
    ("said", "cards"),
    [
        ("5 hearts 9 diamonds K spades", ("5 hearts", "9 diamonds", "K spades")),
        ("Two of hearts, ace of Spades.", ("2 hearts", "A spades")),
        ("7♥ K♠", ("7 hearts", "K spades")),
        ("7♥8♠", ("7 hearts", "8 spades")),
        ("♥7 ♠K", ("7 hearts", "K spades")),
        ("J♦️ T♧", ("J diamonds", "10 clubs")),
        ("10H AS 7h", ("10 hearts", "A spades", "7 hearts")),
        ("**5** of **hearts**", ("5 hearts",)),
        ("1. 5 of hearts\n2. king of spades", ("5 hearts", "K spades")),
        ("The image shows the queen-of-spades and the 3 of ♥.", ("Q spades", "3 hearts")),
        ("5 of hearts 5 of hearts", ("5 hearts", "5 hearts")),
        ("a of spades", ("A spades",)),
        ("There is a spade, and a heart.", None),
        ("As requested", None),
        ("15 of hearts", None),
        ("1 of hearts", None),
        ("", None),
    ],
)
def test_cards(said: str, cards: tuple[str, ...] | None) -> None:
    assert SORT.read_intermediate(said) == cards


@pytest.mark.parametrize(
    ("said", "ranks"),
    [
        ("A 2 K", "A 2 K"),
        ("A, 2, K.", "A 2 K"),
        ("ace two King", "A 2 K"),
        ("a, 2, k", "A 2 K"),
        ("A < 2 < K", "A 2 K"),
        ("[2, 3, and K]", "2 3 K"),
        ("2\n3\nK", "2 3 K"),
        ("2♥ 3♠ K♦", "2 3 K"),
        ("2 of hearts, 3 of spades, K of clubs", "2 3 K"),
        ("A hand sorted: 2, 3, K", "2 3 K"),
        ("2 3 K (aces are low)", "2 3 K"),
        ("K, 3, 2\n2, 3, K", "2 3 K"),
        ("The ranks are K 3 2, so 2 3 K.", "2 3 K"),
        ("2 3 K K", "2 3 K K"),
        ("12 3", "3"),
        ("no idea", None),
        ("", None),
    ],
)
def test_ranks(said: str, ranks: str | None) -> None:
    assert SORT.read_answer(said) == ranks


@pytest.mark.parametrize(
    ("said", "shapes"),
    [
        ("red circle, Blue square", ("red circle", "blue square")),
        ("1. a red-circle\n2. a **blue square**", ("red circle", "blue square")),
        ("red circles, blue square", None),
        ("2 red circles", None),
        ("bored circle", None),
        ("", None),
    ],
)
def test_shapes(said: str, shapes: tuple[str, ...] | None) -> None:
    assert COUNT.read_intermediate(said) == shapes


@pytest.mark.parametrize(
    ("said", "lines"),
    [
        ("ann has 6 gets 3", ("ann has 6", "gets 3")),
        ("The text reads: Ann has 66,\ngets 53.", ("ann has 66", "gets 53")),
        ("- Ann has 66\n- gets 53", ("ann has 66", "gets 53")),
        ("1. Ann has 66\n2. gets 53", ("ann has 66", "gets 53")),
        ("63\n− 5\n+ 3", ("63", "- 5", "+ 3")),
        ("63 minus 5 =", ("63", "- 5")),
        ("63 + 5 = 68", ("63", "+ 5", "68")),
        ("Ann has 66 gets 53 apples", None),
        ("Ann", None),
        ("", None),
    ],
)
def test_lines(said: str, lines: tuple[str, ...] | None) -> None:
    assert TEXT.read_intermediate(said) == lines


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("12", "12"),
        ("2.", "2"),
        ("Two", "2"),
        ("the answer is 12", "12"),
        ("007", "7"),
        ("12.0", "12"),
        ("$1,000.50", "1000.5"),
        ("1,000", "1000"),
        ("3, 4, 5", "5"),
        ("66-53 = 13", "13"),
        ("66-53", "53"),
        ("66 - 53", "53"),
        ("result: −4", "-4"),
        ("-0", "0"),
        ("GPT-4", "4"),
        ("2, one of which is hidden", "2"),
        ("one hundred and twenty-three", "123"),
        ("9" * 6000, "9" * 6000),
        ("no", None),
        ("", None),
    ],
)
def test_numbers(said: str, number: str | None) -> None:
    assert last_number(said) == SUM.read_answer(said) == TEXT.read_answer(said) == number


def test_counts_know_nought() -> None:
    assert COUNT.read_answer("There are no red circles.") == "0"
    assert COUNT.read_answer("None") == "0"
    assert COUNT.read_answer("No, there are two.") == "2"


def test_spoken_numbers() -> None:
    assert spoken_numbers("two, three and twenty five hundred") == [2, 3, 2500]
    assert spoken_numbers("ten ninety nine hundred") == [10, 9900]
    assert spoken_numbers("hundreds of things") == []
    assert spoken_numbers("one hundred one hundred") == [101]
    assert last_number("one hundred " * 5000) == "101"


@given(st.integers(-(10**9), 10**9))
def test_equal_numbers_have_one_form(n: int) -> None:
    for said in (str(n), f"{n:,}", f"{n}.0", f"{n}.", f"${n:,}.00" if n >= 0 else str(n)):
        assert canonical_number(said) == last_number(said) == str(n)


@settings(max_examples=60, deadline=None)
@given(st.text(st.sampled_from("aAkK2 10\n,.-−:♥♠sofhearts redcircle9(#")) | st.text())
def test_nothing_that_is_said_breaks_a_parser(said: str) -> None:
    for name in DATA_SETS:
        task, item = get(name), ITEMS[name]
        handed = task.hand_over(item, said)
        assert handed.text == said.strip()
        task.saw(item, said)
        for condition in (None, "direct", "cot"):
            task.score(item, said, condition=condition)


ITEMS = {name: full(name) for name in DATA_SETS}


class TestScore:
    def test_before_the_marker_nothing_counts(self) -> None:
        item = get("rendered_text").items(1, seed=1)[0]
        seen, answer = item.intermediate.text, item.answer
        assert TEXT.score(item, f"{seen} so {answer}", condition="cot")
        assert not TEXT.score(item, f"{answer} so 99", condition="cot")
        assert not TEXT.score(item, f"{seen} + {answer} so", condition="cot")
        assert not TEXT.score(item, f"{seen} so so", condition="cot")
        assert TEXT.score(item, f"{seen} so 99 so {answer}", condition="cot")

    def test_a_direct_answer_may_hold_the_marker(self) -> None:
        item = get("rendered_text").items(1, seed=1)[0]
        for said in (f"{item.answer} so", f"so {item.answer}", f"it is so : {item.answer} so", item.answer):
            assert TEXT.score(item, said, condition="direct")
            assert TEXT.score(item, said)
        big = ITEMS["cards.sum"]
        for said in (f"{big.answer} is the answer.", f"So, {big.answer}", f"The answer is {big.answer}."):
            assert SUM.score(big, said, condition="direct")
        sort = ITEMS["cards.sort"]
        assert SORT.score(sort, f"{sort.intermediate.text}. **Answer:** {sort.answer}", condition="cot")
        assert SORT.score(sort, f"Answer: {sort.answer}. I hope this answer helps!", condition="cot")

    def test_empty_and_wrong(self) -> None:
        for name, item in ITEMS.items():
            for said in ("", " ", "Answer:", "I cannot see the image"):
                assert not get(name).score(item, said, condition="cot")
                assert not get(name).saw(item, said)

    def test_an_extra_object_is_not_seen(self) -> None:
        for name, item in ITEMS.items():
            text, parts = item.intermediate.text, item.intermediate.parts
            assert get(name).saw(item, text)
            assert not get(name).saw(item, item.intermediate.separator.join((*parts, parts[0])))
            assert not get(name).saw(item, item.intermediate.separator.join(parts[:-1]))
            assert not get(name).saw(item, item.intermediate.separator.join(parts[::-1]))


class TestHandOver:
    def test_what_was_said_is_kept_and_aligned(self) -> None:
        item = get("cards.sort").items(1, profile_name="full", seed=1)[0]
        assert item.intermediate.text == "queen of spades, ace of diamonds, 6 of diamonds, 7 of hearts"
        said = "I see the Queen of Spades; ace of diamonds, 6♦ and 2H!"
        handed = SORT.hand_over(item, f" {said}\n")
        assert handed.parts == ("Queen of Spades", "ace of diamonds", "6♦", "2H")
        assert handed.text == said
        prompt = item.saying(handed).prompt("cascaded")
        assert said in prompt.text
        held = ["".join(s.text for s in prompt.segments if f"intermediate.{k}" in s.spans) for k in range(4)]
        assert held == list(handed.parts)
        assert said == "".join(s.text for s in prompt.segments if "intermediate" in s.spans)

    def test_nothing_is_aligned_where_the_numbers_differ(self) -> None:
        for name, item in ITEMS.items():
            said = item.intermediate.separator.join(item.intermediate.parts[:-1])
            handed = get(name).hand_over(item, said)
            assert handed.parts == ()
            assert handed.text == said
            spans = {span for s in item.saying(handed).prompt("cascaded").segments for span in s.spans}
            assert spans == {"question", "intermediate"}

    def test_silence(self) -> None:
        item = ITEMS["counting"]
        assert COUNT.hand_over(item, " ") == Intermediate(parts=(), separator=", ", around=("",))
        assert item.question in item.saying(COUNT.hand_over(item, "")).prompt("cascaded").text
