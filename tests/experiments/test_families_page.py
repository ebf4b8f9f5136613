"""What is said of the families is so: against the tiny checkpoints, and the page against the code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seamscope.experiments import _cli
from seamscope.experiments._families_page import REFUSED, Coverage, covered, page, table
from seamscope.hooks import Family, ModelError, Picture, Prompt, Segment, load_vlm
from seamscope.hooks.families import FAMILIES, family_of

from ..checkpoints import BUILDERS
from ..checkpoints._fuyu import build_fuyu
from ..hooks.conftest import picture
from ..hooks.families_fixture import checkpoint, load

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
every = pytest.mark.parametrize("name", BUILDERS)


@pytest.fixture(scope="module")
def families() -> tuple[Coverage, ...]:
    return covered()


def row_of(families: tuple[Coverage, ...], family: Family) -> Coverage:
    (row,) = (each for each in families if each.name == family.name)
    return row


def flat(text: str) -> str:
    """A page without its line breaks."""
    return " ".join(text.split())


class TestPage:
    def test_the_file_is_what_the_code_gives(self, families: tuple[Coverage, ...]) -> None:
        """After a change: seamscope families --markdown > docs/families.md."""
        assert PAGE.read_text(encoding="utf-8") == page(families)

    def test_every_family_has_a_row_and_a_section(self) -> None:
        text = PAGE.read_text(encoding="utf-8")
        assert re.findall(r"^### (.+)$", text, flags=re.MULTILINE) == [family.name for family in FAMILIES]
        assert re.findall(r"^\| (.+?) \|", text, flags=re.MULTILINE)[1:] == [family.name for family in FAMILIES]
        for family in FAMILIES:
            assert all(f"`{name}`" in text for name in (*family.published, *family.model_types))
            assert all(f"Lacks {what}." in flat(text) for what in family.lacks)

    @pytest.mark.parametrize(
        "told",
        [
            "The first Molmo.** Its code is not part of transformers but comes with the checkpoint (remote code)",
            "Fuyu.** It is refused when it is loaded: its processor has no chat template",
            "The prompts of one batch must have equally many pictures.",
            "num2words",
            "Lacks a chat template",
            "*DeepStack* (`lm.L.deepstack`)",
            "*Cross-attention* (`lm.L.cross_attn_out`)",
            "sdpa, eager; eager (PaliGemma 2)",
        ],
    )
    def test_it_says_so_plainly(self, told: str) -> None:
        assert told in flat(PAGE.read_text(encoding="utf-8"))

    def test_links_lead_somewhere(self) -> None:
        links = re.findall(r"\]\(([^)]+)\)", PAGE.read_text(encoding="utf-8"))
        assert links
        assert all((PAGE.parent / link).exists() for link in links)

    def test_lines_are_short_but_for_the_table(self) -> None:
        assert all(len(line) <= 120 for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] != "|")


class TestTruth:
    @every
    def test_sites_and_routes(self, name: str, families: tuple[Coverage, ...]) -> None:
        """A real checkpoint of the family has the sites that the class without weights has."""
        vlm = load(name)
        row = row_of(families, vlm.family)
        kinds = {re.sub(r"\.\d+\.", ".L.", site) for site in vlm.sites}
        assert kinds == {*row.sites, "lm.L.pattern"}
        assert {re.sub(r"\.\d+\.", ".L.", site) for site in vlm.routes} == set(row.routes)
        assert type(vlm.model).__name__ in row.classes

    @every
    def test_image_tokens_in_the_decoder(self, name: str, families: tuple[Coverage, ...]) -> None:
        """Some position of the decoder shows some place of the picture, or none does."""
        vlm = load(name)
        shown = Picture(image=picture(0, size=(50, 37)).image)
        batch = vlm.encode([Prompt(segments=(Segment("what is red ?"),), pictures=(shown,))])
        assert batch.visual is not None
        placed = batch.visual.geometries[0][0].in_order("lm")
        assert (len(placed) > 0) == row_of(families, vlm.family).image_tokens_in_decoder

    @every
    def test_attention(self, name: str, families: tuple[Coverage, ...]) -> None:
        """What the page allows loads and passes the checks, what it does not is refused, and auto is the first."""
        row = row_of(families, load(name).family)
        allowed = row.attention["PaliGemma 2" if name == "paligemma2" else ""]
        assert load_vlm(checkpoint(name), device="cpu", check=False).attn_implementation == allowed[0]
        for implementation in ("sdpa", "eager"):
            if implementation in allowed:
                chosen = load_vlm(checkpoint(name), device="cpu", attn_implementation=implementation)
                assert chosen.attn_implementation == implementation
            else:
                with pytest.raises(ModelError, match="does not support an attention implementation"):
                    load_vlm(checkpoint(name), device="cpu", attn_implementation=implementation)

    @every
    def test_both_engines(self, name: str) -> None:
        """Loading runs the self-checks, and would refuse."""
        vlm = load_vlm(checkpoint(name), device="cpu", engine="nnsight")
        assert type(vlm.engine) is not type(load(name).engine)

    def test_each_family_has_a_checkpoint(self) -> None:
        """What is said of a family is tried on one of its models."""
        assert {load(name).family.name for name in BUILDERS} == {family.name for family in FAMILIES}

    @every
    def test_a_family_is_found_by_its_model_type(self, name: str, families: tuple[Coverage, ...]) -> None:
        vlm = load(name)
        row = row_of(families, family_of(vlm.model.config))
        assert vlm.model.config.model_type in row.model_types
        assert row.tower_type in (None, vlm.model.config.vision_config.model_type)

    def test_fuyu_is_refused_in_one_line(self, tmp_path: Path) -> None:
        folder = build_fuyu(tmp_path / "fuyu")
        with pytest.raises(ModelError) as refusal:
            load_vlm(folder, device="cpu")
        assert "\n" not in str(refusal.value)

    def test_why_fuyu_is_refused(self, tmp_path: Path) -> None:
        """A table that says where its parts are does not help: there is no chat template."""
        assert "has no chat template" in REFUSED["Fuyu"]
        parts = Family(name="Fuyu", model_types=("fuyu",), tower="", projector="model.vision_embed_tokens")
        with pytest.raises(ModelError, match="has no chat template"):
            load_vlm(build_fuyu(tmp_path / "fuyu"), device="cpu", family=parts)


class TestCommand:
    def test_json(self, families: tuple[Coverage, ...]) -> None:
        result = CliRunner().invoke(_cli.app, ["families", "--json"])
        assert result.exit_code == 0
        found = json.loads(result.stdout)
        assert found["families"] == json.loads(json.dumps([each.to_json() for each in families]))
        assert found["not_covered"] == REFUSED

    def test_markdown(self) -> None:
        result = CliRunner().invoke(_cli.app, ["families", "--markdown"])
        assert result.exit_code == 0
        assert result.stdout == PAGE.read_text(encoding="utf-8")

    def test_the_list_for_a_reader(self, families: tuple[Coverage, ...]) -> None:
        text = table(families)
        head, _, *lines = text.splitlines()
        assert head.split() == ["family", "model", "types", "images", "come", "in", "by", "in", "decoder", "attention"]
        for each in families:
            (line,) = (line for line in lines if line.startswith(f"{each.name}  "))
            assert ("yes" if each.image_tokens_in_decoder else "no") in line.split()
            assert all(f"    lacks: {what}" in lines for what in each.lacks)
        assert all(f"not covered: {name}. {why}" in lines for name, why in REFUSED.items())

    def test_nothing_is_written(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert CliRunner().invoke(_cli.app, ["families"]).exit_code == 0
        assert list(tmp_path.iterdir()) == []
