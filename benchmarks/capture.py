"""What it costs to keep what flows through a model: `python benchmarks/capture.py --json`.

One process, one model, the same encoded batches; every way keeps the output of every decoder layer at every token, and
is timed in turn, against the forward pass alone:

- ours: `capture`, copies and writing in the background, shards with checksums, joined and on the disk at the end
- output_hidden_states: transformers' own, `torch.save` per batch
- nnsight_cache: nnsight's `tracer.cache`, `torch.save` per batch
- vlm_lens_sqlite: hooks, and a row of SQLite per (item, layer) with a `torch.save` blob and a commit each, as vlm-lens
  (ac8289a) stores them

`time_over_bare_forward` is ours over the bare pass, and `time_over_last_logits_only` over one that, as ours does, makes
logits of the last position only; `speedup_over` and `bytes_over` are each peer's time and bytes over ours (above 1:
ours is ahead). `spans` is the same for what `seamscope capture` keeps by default: spans, pooled.
`peak_memory_growth` compares `seamscope capture` of 10,000 items of the organism with 1,000, in processes of their own.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import pandas as pd
import torch
import transformers
from families import SHAPES, write_shape
from PIL import Image

from seamscope.activations import Background, Schema, Shards, fitting_rows_per_shard, to_host
from seamscope.hooks import Batch, Picture, Prompt, Segment, Vlm, capture, load_vlm

PEERS = ("output_hidden_states", "nnsight_cache", "vlm_lens_sqlite")
WORDS = ("what", "is", "the", "sum", "of", "the", "ranks", "of", "all", "cards", "in", "this", "picture", "?")
# LLaVA with 576 image tokens, narrow enough for two CPU cores
NARROW = {
    "config": {
        "vision_config": {
            **{"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4},
            **{"image_size": 336, "patch_size": 14},
        },
        "text_config": {
            **{"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
            **{"num_key_value_heads": 8, "head_dim": 64, "vocab_size": 32064},
        },
        "image_seq_length": 576,
    },
    "pictures": {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
    "processor": {"patch_size": 14},
}


def prompts(count: int) -> list[Prompt]:
    """Questions of different lengths about noise."""
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (336, 336, 3), dtype=np.uint8)) for _ in range(count)]
    texts = [" ".join(WORDS[: rng.integers(4, len(WORDS))]) for _ in range(count)]
    return [
        Prompt(segments=(Segment(text, ("question",)),), pictures=(Picture(image=picture),))
        for text, picture in zip(texts, pictures, strict=True)
    ]


def bare(vlm: Vlm, batches: Sequence[Batch], folder: Path) -> None:
    """The forward pass, and nothing kept."""
    for batch in batches:
        vlm.forward(batch)


def last_logits_only(vlm: Vlm, batches: Sequence[Batch], folder: Path) -> None:
    """The same without the logits that nobody asks for."""
    for batch in batches:
        vlm.forward(batch, logits_to_keep=1)


def ours(
    vlm: Vlm, batches: Sequence[Batch], folder: Path, *, spans: Sequence[str] = ("prompt",), pool: str | None = None
) -> None:
    """Every layer at every token, or at some spans."""
    schema = Schema(model=vlm.name, task="noise", conditions=("direct",))
    size, rows = len(batches[0]), sum(map(len, batches))
    tokens = 3 if pool else batches[0].width
    per_shard = max(size, fitting_rows_per_shard(tokens * vlm.n_layers * vlm.d_model * vlm.dtype.itemsize, rows))
    with (
        Shards(folder / "store.h5", schema, rows=rows, rows_per_shard=per_shard) as shards,
        Background() as writer,
    ):
        for number in shards.missing():
            file = shards.create(number)
            for begin in range(0, len(shards.rows_of(number)), size):
                batch = batches[(number * per_shard + begin) // size]
                with capture(vlm, "lm.*.resid_post", spans=spans, pool=pool) as acts:
                    vlm.forward(batch, logits_to_keep=1)
                table = pd.DataFrame({"id": [f"{number}-{begin}-{name}" for name in batch.ids]})
                writer.submit(_append, file, table, to_host(dict(acts)))
            writer.submit(file.close)
    shards.join()


def _append(file: Any, table: pd.DataFrame, acts: Callable[[], Any]) -> None:
    file.append("direct", table, acts(), copy=False)


def pooled(vlm: Vlm, batches: Sequence[Batch], folder: Path) -> None:
    """What is kept by default: spans, pooled."""
    ours(vlm, batches, folder, spans=("image", "question", "last"), pool="mean")


def output_hidden_states(vlm: Vlm, batches: Sequence[Batch], folder: Path) -> None:
    """Transformers' own way."""
    for number, batch in enumerate(batches):
        with torch.inference_mode():
            out = vlm.model(**batch.inputs, **batch.extra, use_cache=False, output_hidden_states=True)
        torch.save([each.cpu() for each in out.hidden_states[1:]], folder / f"{number}.pt")


def nnsight_cache(vlm: Vlm, batches: Sequence[Batch], folder: Path) -> None:
    """nnsight's way."""
    root = nnsight.NNsight(vlm.model)
    layers = [root.get(path) for path in _layers(vlm)]
    for number, batch in enumerate(batches):
        with torch.inference_mode(), root.trace(**batch.inputs, **batch.extra, use_cache=False) as tracer:
            cache = tracer.cache(modules=layers)
        torch.save([cache[f"model.{path}"].output for path in _layers(vlm)], folder / f"{number}.pt")


def vlm_lens_sqlite(vlm: Vlm, batches: Sequence[Batch], folder: Path) -> None:
    """A row per (item, layer), committed one by one."""
    with sqlite3.connect(folder / "store.db") as base:
        base.execute("CREATE TABLE tensors (id INTEGER PRIMARY KEY, item TEXT, layer TEXT, tensor BLOB)")
        for batch in batches:
            held: dict[str, torch.Tensor] = {}
            hooks = [vlm.model.get_submodule(path).register_forward_hook(_keeper(held, path)) for path in _layers(vlm)]
            with torch.inference_mode():
                vlm.model(**batch.inputs, **batch.extra, use_cache=False)
            for hook in hooks:
                hook.remove()
            for path, output in held.items():
                for name, row in zip(batch.ids, output.cpu(), strict=True):
                    blob = io.BytesIO()
                    torch.save(row.clone(), blob)
                    values = (name, path, blob.getvalue())
                    base.execute("INSERT INTO tensors (item, layer, tensor) VALUES (?, ?, ?)", values)
                    base.commit()
    base.close()


def _keeper(held: dict[str, torch.Tensor], path: str) -> Callable[..., None]:
    def keep(module: Any, args: Any, output: torch.Tensor) -> None:
        held[path] = output

    return keep


def _layers(vlm: Vlm) -> list[str]:
    """The decoder layers, by their paths in the model."""
    names = {id(module): name for name, module in vlm.model.named_modules()}
    return [names[id(layer.block)] for layer in vlm.anatomy.layers]


WAYS = {
    each.__name__: each
    for each in (bare, last_logits_only, ours, pooled, output_hidden_states, nnsight_cache, vlm_lens_sqlite)
}


def compare(vlm: Vlm, batches: Sequence[Batch], *, repeats: int, scratch: Path) -> dict[str, Any]:
    """Seconds and bytes of every way, in turn, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    sizes: dict[str, int] = {}
    for _ in range(repeats + 1):
        for name, way in WAYS.items():
            with tempfile.TemporaryDirectory(dir=scratch) as folder:
                os.sync()
                started = time.perf_counter()
                way(vlm, batches, Path(folder))
                if vlm.device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - started)
                sizes[name] = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    timed = {name: np.array(each[1:]) for name, each in seconds.items()}
    return {
        "time_over_bare_forward": _ratio(timed["ours"], timed["bare"]),
        "time_over_last_logits_only": _ratio(timed["ours"], timed["last_logits_only"]),
        "speedup_over": {name: _ratio(timed[name], timed["ours"]) for name in PEERS},
        "bytes_over": {name: round(sizes[name] / sizes["ours"], 3) for name in PEERS},
        "spans": {
            "time_over_bare_forward": _ratio(timed["pooled"], timed["bare"]),
            "speedup_over": {name: _ratio(timed[name], timed["pooled"]) for name in PEERS},
            "bytes_over": {name: round(sizes[name] / sizes["pooled"], 1) for name in PEERS},
        },
        "spread": {name: _spread(each, timed["bare"]) for name, each in timed.items()},
        "seconds": {name: round(float(np.median(each)), 3) for name, each in timed.items()},
        "bytes": sizes,
        "items": sum(map(len, batches)),
        "positions": [batch.width for batch in batches],
    }


def _ratio(one: Any, other: Any) -> float:
    """The median of the ratios of one round each."""
    return round(float(np.median(one / other)), 3)


def _spread(one: Any, other: Any) -> list[float]:
    """The least and the largest ratio of a round."""
    return [round(float(value), 3) for value in ((one / other).min(), (one / other).max())]


def peak_memory(items: int, scratch: Path) -> int:
    """The most bytes that `seamscope capture` holds."""
    run = [sys.executable, "-c", PEAK, str(items), str(scratch / f"memory-{items}")]
    found = subprocess.run(run, check=True, capture_output=True, text=True)
    shutil.rmtree(scratch / f"memory-{items}")
    return 1024 * int(found.stdout.splitlines()[-1])


PEAK = """
import resource, sys
from seamscope.experiments._cli import app
app(["capture", "--n", sys.argv[1], "--out", sys.argv[2]], standalone_mode=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def model(shape: str, folder: Path, device: str) -> Vlm:
    """The organism, or noise in a published or narrow shape."""
    if shape == "organism":
        return load_vlm("organism", device=device)
    grown = NARROW if shape == "narrow" else SHAPES["LLaVA-1.5-7B"][1]
    write_shape(folder, "llava", grown, None)
    dtype = torch.bfloat16 if shape == "7B" else torch.float32
    return load_vlm(folder, untrained=True, device=device, dtype=dtype)


def main() -> None:
    """Measure and print; with `--save`, write results/capture.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shape", choices=("organism", "narrow", "7B"), nargs="*", help="default: 7B on a GPU")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", type=int, nargs=2, default=(1000, 10000), help="items; 0 0: none")
    parser.add_argument("--scratch", type=Path, help="where to write; a temporary folder by default")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    # nnsight gives every object a method `save`, which argparse would take for the option
    parser.add_argument("--save", dest="keep", action="store_true", help="write results/capture.json")
    options = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    shapes = options.shape or (["7B"] if torch.cuda.is_available() else ["narrow", "organism"])
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        found = _measure(options, shapes, Path(scratch))
    if options.keep:
        (Path(__file__).parent / "results" / "capture.json").write_text(json.dumps(found, indent=1) + "\n")
    if options.json:
        print(json.dumps(found))


def _measure(options: argparse.Namespace, shapes: list[str], scratch: Path) -> dict[str, Any]:
    by_shape: dict[str, Any] = {}
    for shape in shapes:
        vlm = model(shape, scratch / shape, options.device)
        every = prompts(options.batches * options.batch_size)
        batches = [
            vlm.encode(every[start : start + options.batch_size]) for start in range(0, len(every), options.batch_size)
        ]
        by_shape[shape] = compare(vlm, batches, repeats=options.repeats, scratch=scratch)
        print(shape, json.dumps(by_shape[shape], indent=1))
    few, many = options.memory
    peaks = {items: peak_memory(items, scratch) for items in (few, many) if items}
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {os.cpu_count()} cores"
    return {
        **by_shape[shapes[0]],
        "peak_memory_growth": round(peaks[many] / peaks[few] - 1, 4) if peaks else None,
        "peak_memory_bytes": peaks,
        "shapes": by_shape,
        "about": {
            "device": f"{device}, {platform.machine()}",
            "batch_size": options.batch_size,
            "repeats": options.repeats,
            "versions": {name: version(name) for name in ("torch", "transformers", "nnsight", "h5py")},
        },
    }


if __name__ == "__main__":
    main()
