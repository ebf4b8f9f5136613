"""The check-up: what it finds on the organism, how it is printed, and what a failed check does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seamscope.experiments import _cli, _doctor
from seamscope.experiments._doctor import Examination, _ranges, examine
from seamscope.experiments.organism import natural
from seamscope.hooks import Check, ModelError, Vlm, load_vlm, run_checks


@pytest.fixture(scope="module")
def found() -> Examination:
    return examine("organism")


def failing(vlm: Vlm) -> list[Check]:
    return [*run_checks(vlm)[:2], Check("lens", False, "differs by 1.0", 0.1)]


class TestExamine:
    def test_the_organism_is_healthy(self, found: Examination) -> None:
        assert found.healthy
        assert len(found.checks) > 5
        assert {check.name for check in found.checks} >= {"capture", "self_patch", "layer_swap", "padding"}

    def test_json_holds_everything(self, found: Examination) -> None:
        plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
        assert plain["healthy"] is True
        assert plain["sites"] == {name: list(shape) for name, shape in found.sites.items()}
        assert plain["spans"] == found.spans
        assert [check["name"] for check in plain["checks"]] == [check.name for check in found.checks]

    def test_text_lists_every_site_and_span(self, found: Examination) -> None:
        lines = found.text().splitlines()
        vlm = load_vlm("organism", check=False)
        assert tuple(found.sites) == vlm.sites
        for name, shape in found.sites.items():
            assert f"  {name}  ({', '.join(map(str, shape))})" in lines
        assert all(f"  {name}: {_ranges(where)}" in lines for s in found.spans.values() for name, where in s.items())
        assert "FAIL" not in found.text()

    def test_spans_are_those_of_the_prompts(self, found: Examination) -> None:
        direct, oracle = found.spans["direct"], found.spans["oracle"]
        assert {"image", "image.object.0", "question", "last"} <= set(direct)
        assert {"intermediate", "intermediate.0", "question", "last"} <= set(oracle)
        assert "image" not in oracle
        assert set(direct["image.object.0"]) < set(direct["image"])

    def test_eager_attention_has_patterns(self) -> None:
        assert "lm.0.pattern" in examine("organism", attn_implementation="eager", task="counting").sites

    def test_wrong_names(self) -> None:
        with pytest.raises(ModelError):
            examine("./nowhere")


class TestRanges:
    def test_runs_of_positions(self) -> None:
        assert _ranges([]) == ""
        assert _ranges([3]) == "3"
        assert _ranges([3, 4, 5, 9, 11, 12]) == "3-5, 9, 11-12"


class TestCommand:
    @pytest.mark.parametrize("words", [[], ["organism"], ["--model", "organism"], ["-m", str(natural())]])
    def test_the_model_may_be_named_both_ways(
        self, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result = CliRunner().invoke(_cli.app, ["doctor", *words, "--json"])
        assert result.exit_code == 0
        plain = json.loads(result.stdout.splitlines()[-1])
        assert plain["healthy"]
        assert plain["model"] == (words[-1] if words else "organism")
        assert list(tmp_path.iterdir()) == []

    def test_the_argument_wins(self) -> None:
        result = CliRunner().invoke(_cli.app, ["doctor", "./nowhere", "--model", "organism"])
        assert result.exit_code == 2
        assert result.stderr.startswith("seamscope: './nowhere' is not a folder")

    def test_a_failed_check_is_shown_and_told_by_the_exit_code(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(_doctor, "run_checks", failing)
        shown = CliRunner().invoke(_cli.app, ["doctor", "organism"])
        assert shown.exit_code == 1
        assert "  FAIL  lens (0.10 s): differs by 1.0" in shown.stdout.splitlines()
        assert "lm.0.resid_post" in shown.stdout
        plain = CliRunner().invoke(_cli.app, ["doctor", "organism", "--json"])
        assert plain.exit_code == 1
        assert json.loads(plain.stdout)["healthy"] is False
