"""The wheel, installed into a fresh environment: what it holds, and that it works far from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MEGABYTES = 24
CHECKPOINTS = [place for place in ("natural", "composing") if (ROOT / "experiments/organism" / place).is_dir()]

pytestmark = pytest.mark.slow


def call(*command: str | Path, cwd: Path) -> str:
    """Run a program in an environment that knows nothing of this one; give what it printed."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tracked() -> Sequence[str]:
    """The files that a clone would have, and those that are about to be added."""
    listed = call("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return [name for name in dict.fromkeys(listed.split("\0")) if name]


@pytest.fixture(scope="module")
def before() -> set[str]:
    """What lay in the checkout before anything was built."""
    return {path.name for path in ROOT.iterdir()} - {".pytest_cache"}


@pytest.fixture(scope="module")
def wheel(before: set[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs the git checkout")
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in tracked():
        source = ROOT / name
        if source.is_file() and not source.is_symlink():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy / name)
    build = f"import setuptools.build_meta as b; b.build_wheel({str(out)!r})"
    call(sys.executable, "-c", build, cwd=copy)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of an environment with the wheel; dependencies are borrowed from the one that runs the tests."""
    root = tmp_path_factory.mktemp("fresh") / "env"
    venv.create(root, with_pip=False, symlinks=True)
    site = site_packages(root)
    pip = [sys.executable, "-m", "pip", "--python", python(root)]
    call(*pip, "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=root)
    # a plain line of a .pth file comes after the environment's own packages, and its .pth files are not read
    (site / "borrowed.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    return root


def python(root: Path) -> Path:
    return root / "bin/python"


def site_packages(root: Path) -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(root), "platbase": str(root)}))


def test_what_it_holds(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"seamscope"}
    rooms = {name.split("/")[1] for name in names if name.startswith("seamscope/")}
    assert rooms == {"hooks", "activations", "probes", "experiments"}
    held = set(names)
    for room in rooms:
        assert f"seamscope/{room}/py.typed" in held
    assert {f"seamscope/experiments/{name}.html.jinja" for name in ("report", "comparison", "page", "parts")} <= held
    assert CHECKPOINTS
    for place in CHECKPOINTS:
        for file in (ROOT / "experiments/organism" / place).iterdir():
            assert f"seamscope/experiments/organism/{place}/{file.name}" in held
    sources = [name for name in tracked() if name.endswith(".py") and name.split("/")[0] in rooms]
    assert {f"seamscope/{name}" for name in sources if (ROOT / name).exists()} <= held


def test_it_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < MEGABYTES * 2**20


def test_only_seamscope_is_installed(fresh: Path) -> None:
    found = {path.name for path in site_packages(fresh).iterdir()} - {"borrowed.pth"}
    assert {name for name in found if not name.endswith(".dist-info")} == {"seamscope"}


def test_the_checkout_is_not_what_is_imported(fresh: Path, tmp_path: Path) -> None:
    code = "import seamscope.hooks, seamscope.experiments as e; print(seamscope.hooks.__file__); print(e.__file__)"
    for line in call(python(fresh), "-c", code, cwd=tmp_path).split():
        assert Path(line).is_relative_to(site_packages(fresh))


def test_it_works(fresh: Path, tmp_path: Path) -> None:
    program = fresh / "bin/seamscope"
    assert "cards.sort" in json.loads(call(program, "tasks", "--json", cwd=tmp_path))
    found = json.loads(call(program, "doctor", "organism", "--json", cwd=tmp_path).splitlines()[-1])
    assert found["healthy"] is True
    assert [file.name for file in tmp_path.iterdir()] == ["doctor.organism.png"]  # the overlay


def test_its_report_can_be_drawn(fresh: Path, tmp_path: Path) -> None:
    code = "from seamscope.experiments._report import _template; _template()"
    call(python(fresh), "-c", code, cwd=tmp_path)


def test_the_checkout_stays_as_it_was(before: set[str], wheel: Path) -> None:
    assert {path.name for path in ROOT.iterdir()} - {".pytest_cache"} == before
