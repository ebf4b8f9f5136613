"""Load a vision-language model by name and make sure that its sites can be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import constants, get_session
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.utils import logging

from seamscope.hooks._checks import run_checks
from seamscope.hooks._engine import ENGINES, TorchEngine
from seamscope.hooks._errors import ModelError, choose
from seamscope.hooks._vlm import Vlm
from seamscope.hooks.families import Family, family_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from seamscope.hooks._engine import Engine

GROUP = "seamscope.models"


def load_vlm(
    name: str | Path,
    *,
    device: str | torch.device = "auto",
    device_map: str | Mapping[str, Any] | None = None,
    dtype: str | torch.dtype = "auto",
    attn_implementation: str = "auto",
    engine: str = "torch",
    remote: bool | str = False,
    family: Family | None = None,
    untrained: bool = False,
    seed: int = 0,
    trust_remote_code: bool = False,
    check: bool = True,
) -> Vlm:
    """Load a model by the name of an installed one, the path of a checkpoint folder, or its id on the hub.

    `device_map` spreads a model over several devices as transformers does ("auto", or module names to devices), in
    place of `device`. `device="auto"` is the accelerator if there is one. `dtype="auto"` is the checkpoint's dtype, but
    float32 on a CPU. `attn_implementation="auto"` is what the model chooses, sdpa for most; `"eager"` is needed for
    `lm.L.pattern`. `untrained=True` keeps the configuration and draws fresh weights from `seed`, as a control. Unless
    `check=False`, the self-checks are run at once; not on fresh weights, whose gates may be closed. `family` says what
    the model does differently, in place of what is known here or can be read off the model (docs/add_a_family.md).

    `engine="nnsight"` runs the model through nnsight, to the same effect; with `remote=True`, on the NDIF, where it
    must be deployed under its hub id. Here is then only its skeleton, and no self-checks are run (docs/engines.md).

    Raises `ModelError`, in one line, if the name leads nowhere, the checkpoint is damaged or lacks weights,
    its family is not supported, or a self-check fails.
    """
    choose("engine", engine, ENGINES, ModelError)
    choose("remote", str(remote), ("False", "True", "local"), ModelError)
    if remote and (engine != "nnsight" or device != "auto" or device_map is not None or untrained):
        raise ModelError("remote=True goes with engine='nnsight' and trained weights, and leaves devices to the NDIF")
    if device_map is not None and (device != "auto" or untrained):
        raise ModelError("a device_map goes with trained weights, and takes the place of device")
    source, place = _resolve(str(name)), torch.device("meta") if remote else _device(device)
    with _one_line_errors(str(name)), _quiet():
        options = {"trust_remote_code": trust_remote_code, **_hub_options(source)}
        config = AutoConfig.from_pretrained(source, **options)
        family = family or family_of(config)
        processor = AutoProcessor.from_pretrained(source, **options)
        settings: dict[str, Any] = {"dtype": _dtype(dtype, place)}
        settings |= {} if device_map is None else {"device_map": device_map}
        settings |= {} if attn_implementation == "auto" else {"attn_implementation": attn_implementation}
        if remote:
            model, runner = _elsewhere(source, remote, settings | options, config=config, processor=processor)
        else:
            model = _untrained(config, settings, seed) if untrained else _trained(source, settings | options)
            model = (model if device_map else model.to(place)).eval()
            runner = _here(model) if engine == "nnsight" else TorchEngine(model)
    vlm = Vlm(name=str(name), model=model, processor=_with_padding(processor), family=family, engine=runner)
    if check and not untrained and not remote:
        _refuse_untrustworthy(vlm)
    return vlm


def installed_models() -> dict[str, Any]:
    """Give the entry points of the models that are installed with packages, by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def checkpoint_folder(name: str) -> Path | None:
    """The folder of an installed model or of a checkpoint here; None for what is on a hub, or nowhere."""
    installed = installed_models()
    folder = Path(installed[name].load()()) if name in installed else Path(name).expanduser()
    return folder if (folder / "config.json").is_file() else None


def _resolve(name: str) -> str:
    """Give the folder or the hub id that a name stands for."""
    installed = installed_models()
    if name in installed:
        try:
            folder = Path(installed[name].load()())
        except Exception as error:
            raise ModelError(f"the installed model {name!r} cannot be found: {_first_line(error)}") from error
        return _folder(folder, f"the installed model {name!r}")
    path = Path(name).expanduser()
    if path.exists() or name.startswith((".", "/", "~", "\\")) or name.count("/") > 1:
        return _folder(path, repr(name))
    if "/" not in name:  # what is on a hub has its owner's name before it
        choose("model", name, [*installed, "the path of a checkpoint folder", "owner/name on a hub"], ModelError)
    return name


def _folder(path: Path, what: str) -> str:
    if not path.is_dir():
        raise ModelError(f"{what} is not a folder: {path} does not exist or is a file")
    if not (path / "config.json").is_file():
        raise ModelError(f"{what} is not a checkpoint: {path} has no config.json")
    return str(path)


def _device(device: str | torch.device) -> torch.device:
    if device != "auto":
        try:
            return torch.device(device)
        except RuntimeError as error:
            raise ModelError(f"unknown device {device!r}; expected auto, cpu, cuda, cuda:1, ...") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _dtype(dtype: str | torch.dtype, device: torch.device) -> str | torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise ModelError(f"unknown dtype {dtype!r}; expected auto, float32, bfloat16 or float16")
    return found


def _trained(source: str, settings: dict[str, Any]) -> PreTrainedModel:
    model, report = AutoModelForImageTextToText.from_pretrained(source, output_loading_info=True, **settings)
    absent = sorted({*report["missing_keys"], *(str(each[0]) for each in report["mismatched_keys"])})
    if absent:  # transformers would leave them random
        raise ModelError(f"the checkpoint lacks {len(absent)} weights or has them in other shapes: {absent[0]}, …")
    return model


def _untrained(config: Any, settings: dict[str, Any], seed: int) -> PreTrainedModel:
    if settings["dtype"] == "auto":
        settings = {**settings, "dtype": config.dtype or torch.float32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForImageTextToText.from_config(config, **settings)


def _here(model: PreTrainedModel) -> Engine:
    """Trace a model with nnsight, whose import takes a second, and gives every Python object a method `save`."""
    from seamscope.hooks._nnsight import here

    return here(model)


def _elsewhere(source: str, remote: bool | str, settings: dict[str, Any], **parts: Any) -> tuple[Any, Engine]:
    """Give the skeleton of a model that is on another machine, and what runs the model there."""
    from seamscope.hooks._nnsight import elsewhere

    local = {"local_files_only": settings.pop("local_files_only", False)}
    engine = elsewhere(source, remote, **settings, **parts)
    with suppress(OSError):  # a checkpoint may have no such file
        engine.model.generation_config = GenerationConfig.from_pretrained(source, **local)
    return engine.model, engine


def _with_padding(processor: Any) -> Any:
    """Batches need a padding token; which one does not matter, since it is masked."""
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return processor


def _refuse_untrustworthy(vlm: Vlm) -> None:
    failed = [check for check in run_checks(vlm) if not check.passed]
    if failed:
        told = "; ".join(f"{check.name}: {check.detail}" for check in failed)
        raise ModelError(f"{vlm.name!r} fails {len(failed)} self-checks, so its sites cannot be trusted: {told}")


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    """Turn whatever goes wrong inside transformers, the hub or a file into one line."""
    try:
        yield
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(f"cannot load {name!r}: {_first_line(error)}") from error


def _hub_options(source: str) -> dict[str, Any]:
    """Ask nothing of a hub that cannot be reached: transformers would retry for half a minute per file."""
    local = Path(source).is_dir() or not _hub_answers()
    return {"local_files_only": True} if local else {}


def _hub_answers() -> bool:
    try:
        get_session().head(constants.ENDPOINT, timeout=5)
    except Exception:
        return False
    return True


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bar of weights off the terminal."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
