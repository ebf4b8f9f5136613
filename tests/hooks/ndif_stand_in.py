"""A stand-in for a machine of the NDIF: nnsight and torch, nothing of ours, and a list of modules that may be named.

Run with the folder of a checkpoint. Each line on its input is the path of a request, whose envelope lies beside it with
`.json` after its name; the answer is written with `.answer` after it, and its error or nothing on the output.
"""

from __future__ import annotations

import json
import pickle
import sys
from typing import Any

import torch


class NotInstalled:
    """Finds nothing of ours, wherever it is installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in ("seamscope", "hooks", "tests"):
            raise ModuleNotFoundError(f"there is no {name} here")


sys.meta_path.insert(0, NotInstalled())
from nnsight.intervention.serialization import CustomCloudUnpickler  # noqa: E402
from nnsight.modeling.transformers import TransformersModel  # noqa: E402
from nnsight.schema.request import RequestModel  # noqa: E402
from nnsight.tracing.tracer import _saves, dec, inc  # noqa: E402

# From src/ndif/services/ray/nn/security/whitelist.yaml of ndif-team/ndif; contextlib, difflib, inspect are not there.
ALLOWED = (
    *("builtins", "torch", "collections", "nnsight", "numpy", "math", "typing", "operator", "_operator", "functools"),
    *("_functools", "enum", "io", "re", "dataclasses", "pickle", "cloudpickle", "copyreg", "transformers", "PIL"),
    *("__future__", "json", "warnings"),
)


class Strict(CustomCloudUnpickler):
    """Refuses what is not on the list."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] not in ALLOWED:
            raise pickle.UnpicklingError(f"not on the list: {module}.{name}")
        return super().find_class(module, name)


def answer(model: TransformersModel, path: str) -> None:
    """Run one request, as a worker does, and write what it saves."""
    with open(path + ".json") as told, open(path, "rb") as sent:
        envelope, blob = json.load(told), sent.read()
    model._remoteable_set_env(envelope["env"])
    objects = model._remoteable_persistent_objects()
    tracer = RequestModel.deserialize(blob, objects, compress=envelope["compress"], unpickler=Strict)
    inc()
    try:
        with torch.inference_mode():
            tracer.execute(tracer.info.code)
        saved = {name: value for name, value in tracer.info.frame.f_locals.items() if id(value) in _saves()}
    finally:
        dec()
    torch.save(saved, path + ".answer")


def serve(folder: str) -> None:
    """Answer one request after the other."""
    model = TransformersModel(folder, task="image-text-to-text", dispatch=True, dtype=torch.float32)
    model._module.eval()
    for line in sys.stdin:
        try:
            answer(model, line.strip())
            told = ""
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
        sys.stdout.write(told + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    serve(sys.argv[1])
