"""A task from the user's own file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from seamscope.experiments.tasks import Intermediate, JsonlTask, Look, Wording, get
from seamscope.experiments.tasks._jsonl import SOLVE, plain
from seamscope.hooks import Box, TaskError

Write = Callable[..., Path]
QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?"
)
GSM8K = {"question": QUESTION, "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 1,072"}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    Image.new("RGB", (40, 30), (10, 200, 10)).save(tmp_path / "a.png")
    Image.new("RGBA", (40, 30), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    (tmp_path / "broken.png").write_bytes(b"not an image")

    def lines(*records: Any, name: str = "mine.jsonl") -> Path:
        texts = [record if isinstance(record, str) else json.dumps(record) for record in records]
        (tmp_path / name).write_text("\n".join(texts), encoding="utf-8")
        return tmp_path / name

    return lines


def record(**fields: Any) -> dict[str, Any]:
    base = {"image": "a.png", "question": "What is it worth?", "intermediate": ["5", "ace"], "answer": 6}
    return {key: value for key, value in {**base, **fields}.items() if value is not ...}


class TestItems:
    def test_a_record_becomes_an_item(self, write: Write) -> None:
        full = record(
            id="x",
            boxes=[[0, 0, 9, 9.5], [10, 0, 40, 30]],
            variables={"rank": 5},
            group="g",
            perceive="Look.",
        )
        item = get(str(write(full))).items(1)[0]
        assert (item.id, item.task, item.group, item.answer) == ("x", "mine", "g", "6")
        assert item.intermediate == Intermediate(parts=("5", "ace"), separator=", ")
        assert item.boxes[0] == Box(left=0, top=0, right=9, bottom=9.5)
        assert item.variables == {"rank": "5"}
        assert item.types.keys() == item.variables.keys()
        assert item.image.size == (40, 30)
        assert item.image.getpixel((1, 1)) == (10, 200, 10)
        assert item.prompt("perceive").text == "Look."
        spans = [span for segment in item.prompt("oracle").segments for span in segment.spans]
        assert [span for span in spans if "." in span] == ["intermediate.0", "intermediate.1"]

    def test_what_is_left_out_gets_a_default(self, write: Write) -> None:
        task = get(f"jsonl:{write(record(), '', record(id=7), name='mine.json')}")
        first, second = task.items(2)
        assert (first.id, first.group, first.boxes, first.variables) == ("mine-1", "mine-1", (), {})
        assert second.id == "7"
        assert task.name == "mine"
        assert task.size == 2
        assert task.budget == {"small": 512, "full": 512}
        assert task.summary.startswith("2 records of ")

    def test_absolute_paths_and_clear_images(self, write: Write, tmp_path: Path) -> None:
        path = write(record(image=str(tmp_path / "clear.png")))
        assert get(str(path)).items(1)[0].image.getpixel((0, 0)) == (255, 255, 255)

    def test_order(self, write: Write) -> None:
        task = get(str(write(*[record(id=str(k)) for k in range(20)])))
        assert [item.id for item in task.items(3)] == ["0", "1", "2"]
        shuffled = [item.id for item in task.items(20, seed=1)]
        assert sorted(shuffled, key=int) == [str(k) for k in range(20)] != shuffled
        assert [item.id for item in task.items(5, seed=1, split="held_out")] == shuffled[:5]

    def test_own_wording(self, write: Write) -> None:
        words = Wording(perceive="Look.", cot="Look, then {question}", answer_marker="####")
        task = JsonlTask(write(record()), wording=words, budget=9)
        item = task.items(1)[0]
        assert item.prompt("cot").text == "Look, then What is it worth?"
        assert task.score(item, "5 and ace #### 6", condition="cot")
        assert not task.score(item, "6 #### 5", condition="cot")
        assert task.wording["full"] is words
        assert task.budget["small"] == 9

    def test_what_a_perfect_model_says_is_read_back(self, write: Write) -> None:
        task = get(str(write(record(answer="Mount Everest"), record(answer=3), GSM8K)))
        for item in task.items(3):
            for condition in ("direct", "cascaded", "oracle", "cot"):
                assert task.score(item, item.target(condition), condition=condition)
            assert task.saw(item, item.target("perceive"))
            assert task.hand_over(item, item.target("perceive")) == item.intermediate


class TestPartners:
    def test_pair(self, write: Write) -> None:
        other = record(id="b", intermediate=["7", "ace"], answer=8)
        task = get(str(write(record(id="a", pair="b"), other)))
        item = task.items(1)[0]
        partner = task.partner(item)
        assert (partner.id, partner.answer, partner.group) == ("b", "8", item.group)

    def test_partners_share_a_group_along_chains(self, write: Write) -> None:
        rows = [record(id=n, pair=p, answer=k) for k, (n, p) in enumerate(("ab", "bc", ("c", ...), ("d", ...)))]
        for k, row in enumerate(rows):
            row["intermediate"] = [str(k), "ace"]
        groups = [item.group for item in get(str(write(*rows))).items(4)]
        assert groups[0] == groups[1] == groups[2] != groups[3]
        rows[1]["group"] = "mine"
        assert [item.group for item in get(str(write(*rows))).items(4)] == ["mine"] * 3 + ["d"]

    def test_without_a_pair(self, write: Write) -> None:
        task = get(str(write(record())))
        with pytest.raises(TaskError, match=r"line 1: no counterfactual partner; add the field 'pair' with"):
            task.partner(task.items(1)[0])
        with pytest.raises(TaskError, match="is of task 'counting'; it has no partner in"):
            task.partner(get("counting").items(1)[0])

    def test_drawn_partners_share_their_style(self, write: Write) -> None:
        other = {"id": "b", "question": QUESTION.replace("48", "50"), "answer": "#### 75"}
        task = get(str(write({**GSM8K, "id": "a", "pair": "b"}, other)))
        item = task.items(1, look=Look(fonts=("serif",)), seed=3)[0]
        item = next(i for i in task.items(2, look=Look(fonts=("serif",)), seed=3) if i.id == "a")
        assert task.partner(item).source.style == item.source.style
        assert task.partner(item).question == item.question


class TestAnswers:
    def test_numbers(self, write: Write) -> None:
        task = get(str(write(record(answer="1,000"), record(answer=1000.0), record(answer="$1000.00"))))
        for item in task.items(3):
            assert item.answer == "1000"
            for said in ("1000", "1,000", "1000.0", "It is $1,000.", "10 + 990 = 1000", "one, or 1000"):
                assert task.score(item, said)
            for said in ("", "100", "1000 or 2", "-1000", "ten"):
                assert not task.score(item, said)

    def test_texts(self, write: Write) -> None:
        task = get(str(write(record(answer="The Eiffel Tower"), record(answer="B"), record(answer=12))))
        tower, letter, number = task.items(3)
        for said in (
            "eiffel tower",
            " The  Eiffel Tower.",
            '"Eiffel Tower"',
            "The answer is: the Eiffel Tower!",
        ):
            assert task.score(tower, said)
        for said in ("", "the", "Tower", "Eiffel Tower in Paris"):
            assert not task.score(tower, said)
        assert task.score(letter, "(b).")
        assert not task.score(letter, "b or c")
        assert task.score(number, "12.0")
        assert not task.score(number, "12 apples")

    def test_plain(self) -> None:
        assert plain("A") == "a"
        assert plain("a cat") == plain("The Cat.") == "cat"
        assert plain("‘ｘ’") == "x"
        assert plain("1,000.0") == "1000"
        assert plain(" .") is None

    def test_intermediates(self, write: Write) -> None:
        task = get(str(write(record())))
        item = task.items(1)[0]
        assert task.saw(item, "5; an Ace.")
        assert not task.saw(item, "5, ace, ace")
        assert task.hand_over(item, "5;  an Ace. ").parts == ("5", "an Ace.")
        assert task.hand_over(item, "nothing").parts == ()
        assert task.find("1,000 and 2\nb") is not None
        assert task.read_intermediate("1,000, b") == ("1000", "b")


class TestGsm8k:
    def test_the_question_becomes_the_picture(self, write: Write) -> None:
        task = get(str(write(GSM8K)))
        item = task.items(1)[0]
        assert item.question == SOLVE == "Solve the problem. Reply with the number only."
        assert item.intermediate.parts == (QUESTION,)
        assert item.answer == "1072"
        assert item.image.size == (448, 448)
        assert item.prompt("perceive").text.startswith("Transcribe")
        assert task.score(item, "The total is 1,072 clips.")
        assert task.saw(item, QUESTION.upper())
        assert task.hand_over(item, "He sold 4, and 5.").parts == ("He sold 4, and 5.",)

    @pytest.mark.parametrize("font", ["sans", "serif", "mono", "times", "bold", "handwritten"])
    def test_all_ink_is_in_the_box(self, write: Write, font: str) -> None:
        long = {"question": " ".join([QUESTION] * 6), "answer": "#### 1"}
        task = get(str(write(GSM8K, long)))
        for seed in range(3):
            for item in task.items(2, look=Look(fonts=(font,)), seed=seed):
                pixels = np.asarray(item.image).copy()
                (box,) = item.boxes
                inside = pixels[int(box.top) : int(box.bottom), int(box.left) : int(box.right)]
                assert inside.min() < 60
                inside[:] = item.source.style.paper
                assert (pixels == np.array(item.source.style.paper)).all()
                assert 0 < box.top < box.bottom < 448
                assert 0 < box.left < box.right < 448

    def test_more_than_fits(self, write: Write) -> None:
        path = write(GSM8K)
        with pytest.raises(TaskError, match=r"line 1, field 'question': a text of \d+ characters does not fit") as e:
            get(str(path)).items(1, profile_name="small")
        assert "canvas of 72 pixels" in str(e.value)
        with pytest.raises(TaskError, match="does not fit a canvas of 448 pixels"):
            get(str(write({"question": "x" * 300, "answer": "#### 1"}))).items(1)
        short = {"question": "2 + 2 is ?", "answer": "#### 4"}
        assert get(str(write(short))).items(1, profile_name="small")[0].image.size == (72, 72)


BAD: list[tuple[list[Any], str]] = [
    ([], "holds no records; expected one JSON object in each line"),
    (["", "  "], "holds no records"),
    ([record(), "{'a': 1}"], "line 2: this is not JSON (Expecting property name"),
    (["[" * 100_000], "line 1: this is not JSON ("),
    (["[1]"], "line 1: expected a JSON object, got a list"),
    (["", record(question=...)], "line 2, field 'question': missing"),
    ([record(question="  ")], "line 1, field 'question': expected a text, got a text"),
    ([record(question="")], "field 'question': expected a text, got an empty text"),
    ([record(question=3)], "field 'question': expected a text, got a number"),
    ([record(answer=...)], "field 'answer': missing"),
    ([record(answer=True)], "field 'answer': expected a text, got true or false"),
    (['{"image": "a.png", "question": "q", "intermediate": "i", "answer": NaN}'], "field 'answer': expected"),
    ([record(intermediate=...)], "field 'intermediate': missing"),
    ([record(intermediate=[])], "field 'intermediate': expected a text, or a list of one or more texts"),
    (
        [record(intermediate=["a", 3])],
        "field 'intermediate': expected a text, or a list of one or more texts",
    ),
    ([record(image=...)], "field 'image': missing; without one, the answer has to end in '#### number'"),
    ([record(image=3)], "field 'image': expected a text, got a number"),
    ([record(image="b.png")], "field 'image': there is no file "),
    ([record(image="broken.png")], "field 'image': cannot read "),
    ([record(id=[1])], "field 'id': expected a text, got a list"),
    ([record(id="a"), record(id="a")], "line 2, field 'id': 'a' is also that of line 1"),
    ([record(id="mine-2"), record()], "line 2, field 'id': 'mine-2' is also that of line 1"),
    ([record(variables=["a"])], "field 'variables': expected an object of names and labels, got a list"),
    (
        [record(variables={"a": None})],
        "field 'variables': the label of 'a' is null; expected a text or number",
    ),
    ([record(variables={"a": 1}, types={"b": 1})], "field 'types': 'b' is not among the variables: a"),
    ([record(boxes={})], "field 'boxes': expected a list of [left, top, right, bottom], got an object"),
    ([record(boxes=[[0, 0, 1, 1]])], "field 'boxes': there are 1, for 2 texts in 'intermediate'"),
    ([record(boxes=[[0, 0, 1, 1], [1, 2, 3]])], "field 'boxes': box 1 is [1, 2, 3]; expected [left, top, r"),
    (
        [record(boxes=[[5, 0, 1, 1], [0, 0, 1, 1]])],
        "box 0 is [5, 0, 1, 1]; expected it inside the 40 x 30 image",
    ),
    ([record(boxes=[[0, 0, 1, 1], [0, 0, 41, 1]])], "box 1 is [0, 0, 41, 1]; expected it inside the 40 x 30"),
    ([{**GSM8K, "boxes": []}], "field 'boxes': a question that is drawn as the picture gets its box from"),
    (
        [{**GSM8K, "answer": "six #### six"}],
        "field 'answer': expected a number behind the last ####, got 'six'",
    ),
    (
        [record(id="abc"), record(pair="abd")],
        "line 2, field 'pair': there is no other record 'abd'; nearest: abc",
    ),
    ([record(id="a", pair="a")], "line 1, field 'pair': there is no other record 'a'"),
    ([record(id="a"), record(pair="a", answer=6)], "line 2, field 'pair': 'a' has the same intermediate"),
    ([record(id="a"), record(pair="a", intermediate="x")], "field 'pair': 'a' has the same answer"),
    ([record(id="a"), record(pair="a", question="?")], "field 'pair': 'a' has another question, so it is no"),
    (
        [record(id="a", group="g"), record(pair="a", group="h", intermediate="x", answer=1)],
        "line 2, field 'group': 'h', but a partner of it is in 'g'",
    ),
    ([record(varables={})], "field 'varables': unknown; is it 'variables'?"),
]


@pytest.mark.parametrize(("rows", "message"), BAD)
def test_a_bad_record_is_one_line(write: Write, rows: list[Any], message: str) -> None:
    path = write(*rows)
    with pytest.raises(TaskError) as caught:
        get(str(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_files_and_requests(write: Write, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"cannot read .*none.jsonl: No such file"):
        get(str(tmp_path / "none.jsonl"))
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(TaskError, match=r"cannot read .*latin.jsonl: it is not UTF-8 text"):
        get(str(tmp_path / "latin.jsonl"))
    task = get(str(write(record())))
    with pytest.raises(TaskError, match="holds 1 records, 2 were asked for; at most 1"):
        task.items(2)
    with pytest.raises(TaskError, match="has no split 'train': it is all held out; use 'held_out'"):
        task.items(1, split="train")
    with pytest.raises(TaskError, match="cannot make 0 items"):
        task.items(0)


def test_an_image_that_goes_away_is_reported(write: Write, tmp_path: Path) -> None:
    task = get(str(write(record())))
    (tmp_path / "a.png").unlink()
    with pytest.raises(TaskError, match="line 1, field 'image': cannot read"):
        task.items(1)
