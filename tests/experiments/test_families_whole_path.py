"""The whole path, gap to report, on families other than the organism's: only hooks may know one from another."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from seamscope.activations import open_store
from seamscope.experiments import LOCI, Run, Settings, Study
from seamscope.experiments._cli import main
from seamscope.experiments.locator._asking import Asking
from seamscope.hooks import RunError
from seamscope.hooks.families import FAMILIES

from ..checkpoints import BUILDERS

ROOT = Path(__file__).parents[2]
TABLES = ("gap.csv", "probes.csv", "effects.csv", "verdict.json", "report.html")
SITES, SPANS = ("projector.out", "lm.3.resid_post"), ("objects", "reading")


@pytest.mark.parametrize("name", ["llava_next", "mllama", "molmo2", "qwen2_5_vl"])
def test_from_gap_to_report(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Models of noise answer nothing, so the textual skill is to blame; every table and figure is there."""
    model, run = BUILDERS[name](tmp_path / name), tmp_path / "run"
    given = ["--model", str(model), "--device", "cpu", "--n", "20", "--batch-size", "16", "--out", str(run)]
    given += [word for site in SITES for word in ("--sites", site)]
    given += [word for span in SPANS for word in ("--spans", span)]
    for command in ("gap", "capture", "probe", "patch", "report"):
        monkeypatch.setattr("sys.argv", ["seamscope", command, *([str(run)] if command == "report" else given)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code in (0, None), f"{command}: {capsys.readouterr().err}"

    assert all((run / table).is_file() for table in TABLES)
    verdict = json.loads((run / "verdict.json").read_text())
    assert verdict["locus"] in LOCI
    assert verdict["locus"] == "text_skill"
    with open_store(run / "activations.h5") as store:
        assert ("projector.out", "image.object.0") in store.cells("direct")
        assert ("lm.3.resid_post", "last") in store.cells("cascaded")
    effects = pd.read_csv(run / "effects.csv")
    assert {"denoise", "noise", "text_noise", "cross", "cross_control", "backpatch"} <= set(effects.experiment)
    patched_objects = ((effects.experiment == "noise") & (effects.span == "objects")).any()
    assert patched_objects == (name != "mllama"), "its decoder has no tokens of the image"


@pytest.mark.parametrize(("name", "has"), [("mllama", False), ("qwen2_5_vl", True)])
def test_a_decoder_without_tokens_of_objects_has_no_route_from_them(name: str, has: bool, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", Settings(model=str(BUILDERS[name](tmp_path / name)), device="cpu", n=3))
    for _ in range(2):  # made, and read again
        assert Asking(Study(run), there=0.5).severed().empty != has
    if has:
        assert set(Study(run).cut("severed").experiment) == {"severed", "severed_control"}
        return
    for _ in range(2):
        with pytest.raises(RunError, match="severed: no token of this model's decoder"):
            Study(run).cut("severed")


def test_no_code_outside_hooks_knows_a_family() -> None:
    words = {kind for family in FAMILIES for kind in family.model_types}
    rooms = [ROOT / room for room in ("activations", "probes", "experiments")]
    sources = [path for room in rooms for path in room.rglob("*.py") if "organism" not in path.parts]
    assert len(sources) > 40
    knowing = [(path.name, word) for path in sources for word in words if f'"{word}"' in path.read_text()]
    assert knowing == []
