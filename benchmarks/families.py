"""Load, capture and patch models of published sizes with random weights: `python benchmarks/families.py --json`.

The shapes are those of LLaVA-1.5-7B and Qwen2.5-VL-7B, the weights noise in bfloat16, the processors the tiny ones of
the tests with the published picture sizes. Meant for a GPU; `--layers 1` makes them small enough to try anywhere. Keys,
per shape: `load_s`, `weights_gb`, `peak_gb`, `checks_failed`, `forward_s`, `capture_s`, `capture_ratio`, `patch_s`,
`captured_mb_per_item`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from seamscope.hooks import Batch, Patch, Picture, Prompt, Segment, Vlm, capture, load_vlm, patch, run_checks

ROOT = Path(__file__).parents[1]
SITES, SPANS = ("vision.*.resid_post", "projector.out", "lm.*.resid_post"), ("image", "last")
LLAVA = {
    "config": {
        "vision_config": {
            **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
            **{"image_size": 336, "patch_size": 14, "projection_dim": 768},
        },
        "text_config": {
            **{"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
            **{"num_key_value_heads": 32, "vocab_size": 32064, "head_dim": 128},
        },
        "image_seq_length": 576,
    },
    "pictures": {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    "processor": {"patch_size": 14},
}
QWEN = {
    "config": {
        "vision_config": {
            **{"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584},
            **{"patch_size": 14, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31]},
        },
        "text_config": {
            **{"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
            **{"num_key_value_heads": 4, "vocab_size": 152064, "max_window_layers": 28, "layer_types": None},
            "rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0},
        },
    },
    "pictures": {"patch_size": 14, "size": {"shortest_edge": 3136, "longest_edge": 1003520}},
    "processor": {},
}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "LLaVA-1.5-7B": ("llava", LLAVA),
    "Qwen2.5-VL-7B": ("qwen2_5_vl", QWEN),
}


def write_shape(folder: Path, family: str, shape: dict[str, Any], layers: int | None) -> Path:
    """A checkpoint folder without weights: the tiny one of a family, grown to a published size."""
    sys.path.insert(0, str(ROOT))
    from tests.checkpoints import BUILDERS

    BUILDERS[family](folder)
    (folder / "model.safetensors").unlink()
    config = _grown(json.loads((folder / "config.json").read_text()), shape["config"])
    if layers is not None:
        config["text_config"]["num_hidden_layers"] = layers
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"] |= shape["pictures"]
    (folder / "processor_config.json").write_text(json.dumps(settings | shape["processor"]))
    return folder


def _grown(config: dict[str, Any], shape: dict[str, Any]) -> dict[str, Any]:
    """Nested settings replaced one by one; None removes a setting."""
    grown = {
        key: _grown(config.get(key, {}), value) if isinstance(value, dict) else value for key, value in shape.items()
    }
    return {key: value for key, value in {**config, **grown}.items() if value is not None}


def measure(folder: Path, device: str, *, batch_size: int, repeats: int) -> dict[str, Any]:
    """Load one shape and time what the library does with it."""
    started = time.perf_counter()
    vlm = load_vlm(folder, untrained=True, device=device, dtype=torch.bfloat16)
    loaded = time.perf_counter() - started
    failed = [f"{check.name}: {check.detail}" for check in run_checks(vlm) if not check.passed]
    batch = vlm.encode([_prompt(k) for k in range(batch_size)])
    plain = _timed(lambda: vlm.forward(batch), repeats)
    captured, megabytes = _capture(vlm, batch, repeats)
    zero = Patch(f"lm.{vlm.n_layers // 2}.resid_post", torch.zeros_like, span="last")
    with patch(vlm, zero):
        patched = _timed(lambda: vlm.forward(batch), repeats)
    weights = sum(each.numel() * each.element_size() for each in vlm.model.parameters())
    return {
        "load_s": loaded,
        "weights_gb": weights / 1e9,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if vlm.device.type == "cuda" else None,
        "checks_failed": failed,
        "image_tokens": len(batch.positions("image")[0]),
        "batch_size": batch_size,
        "forward_s": plain,
        "capture_s": captured,
        "capture_ratio": captured / plain,
        "patch_s": patched,
        "captured_mb_per_item": megabytes / batch_size,
    }


def _capture(vlm: Vlm, batch: Batch, repeats: int) -> tuple[float, float]:
    with capture(vlm, SITES, SPANS) as acts:
        seconds = _timed(lambda: vlm.forward(batch), repeats)
    return seconds, sum(each.values.numel() * each.values.element_size() for each in acts.values()) / 1e6


def _prompt(seed: int) -> Prompt:
    pixels = np.random.default_rng(seed).integers(0, 256, (448, 672, 3), dtype=np.uint8)
    return Prompt(
        segments=(Segment("what is the sum of the cards?"),), pictures=(Picture(image=Image.fromarray(pixels)),)
    )


def _timed(work: Callable[[], object], repeats: int) -> float:
    """The median time of some work, in seconds, after one run that does not count."""
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def main() -> None:
    """Measure and print; with `--save`, write results/families.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--layers", type=int, help="decoder layers; all of them by default")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--save", dest="keep", action="store_true", help="write results/families.json")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    found: dict[str, Any] = {}
    for name, (family, shape) in SHAPES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_shape(Path(folder), family, shape, options.layers)
            sizes = {"batch_size": options.batch_size, "repeats": options.repeats}
            found[name] = measure(Path(folder), options.device, **sizes)
        print(name, {key: round(value, 4) if isinstance(value, float) else value for key, value in found[name].items()})
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {platform.machine()}"
    found["about"] = {
        "device": device,
        "layers": options.layers,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    if options.keep:
        target = ROOT / "benchmarks" / "results" / "families.json"
        target.write_text(json.dumps(found, indent=1) + "\n")
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
