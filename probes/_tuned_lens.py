"""The tuned lens: how it reads, and how it is kept."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear

from seamscope.hooks import RunError, Site, StoreError, Vlm
from seamscope.probes._lens import at_home, require_stream

if TYPE_CHECKING:
    from jaxtyping import Float

    from seamscope.probes._lens import Logits, Stream

Translator = tuple[Tensor, Tensor]

PARTS: Final = ("weight", "bias")
LOSSES: Final = ("before", "after", "held_out_before", "held_out_after")
FORMAT: Final = "seamscope tuned lens 1"
ANOTHER: Final = 0.1  # share of the largest logit by which a head may miss another that differs in precision only


@dataclass(frozen=True, eq=False)
class TunedLens:
    """The tuned lens (Belrose et al., 2303.08112): a stream x is read as x + A x + b by the model's norm and head.

    `weights` and `biases` are A and b in float32, one for each decoder layer but the last, whose logits are the model's
    own. `losses` has one row for each `layer`: the mean KL(final || lens) in nats, `before` and `after` fitting, on the
    tokens that it was fitted on and on `held_out` ones. `fitted` says what it was fitted with. Made by
    `fit_tuned_lens` or `load_tuned_lens`.
    """

    kinds: ClassVar[tuple[str, ...]] = ("resid_post",)
    vlm: Vlm
    weights: tuple[Float[Tensor, "d_model d_model"], ...]
    biases: tuple[Float[Tensor, " d_model"], ...]
    losses: pd.DataFrame
    fitted: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"TunedLens({self.vlm.name!r}, {len(self.weights)} translators of width {self.vlm.d_model})"

    def require(self, site: str | Site) -> Site:
        """Raise `SiteError` for everything but `lm.L.resid_post`, where the translators were fitted."""
        return require_stream(self.vlm, site, self.kinds)

    def __call__(self, site: str | Site, stream: Stream) -> Logits:
        """Give logits in the model's dtype and on its device, without gradients; `stream` may be anywhere."""
        layer = self.require(site).layer or 0
        home = at_home(self.vlm, site, stream)
        with torch.no_grad():
            if layer < len(self.weights):
                home = translated(home, self.weights[layer], self.biases[layer])
            return self.vlm.unembed(home)

    def save(self, path: str | Path) -> None:
        """Write the lens as safetensors, whole or not at all; `StoreError` if that fails."""
        place = Path(path)
        partial = place.with_name(f".{place.name}.partial")
        losses = torch.tensor(self.losses[list(LOSSES)].to_numpy()).contiguous()
        held = [(weight.cpu(), bias.cpu()) for weight, bias in zip(self.weights, self.biases, strict=True)]
        tensors = _tensors(held, losses, _head(self.vlm))
        try:
            save_file(tensors, partial, _identity(self.vlm) | _sealed(tensors, self.fitted))
            os.replace(partial, place)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"cannot write {place}: {error}") from error
        finally:
            partial.unlink(missing_ok=True)


def load_tuned_lens(path: str | Path, vlm: Vlm) -> TunedLens:
    """Read what `TunedLens.save` wrote, for the same model.

    Raises `RunError` for the lens of another model, width or number of layers, and `StoreError` for a file that is
    damaged, not there, or no tuned lens.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("format") != FORMAT:
                raise StoreError(f"{path} is not a tuned lens of seamscope")
            _require_same(path, about, _identity(vlm))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
        fitted = json.loads(about.get("fitted", ""))
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"cannot read {path} as a tuned lens: {error}") from error
    if about != _identity(vlm) | _sealed(tensors, fitted):
        raise StoreError(f"{path} is damaged: its content differs from its checksum")
    _require_translators(path, tensors, vlm)
    layers = range(vlm.n_layers - 1)
    return TunedLens(
        vlm,
        weights=tuple(tensors[f"{layer}.weight"].to(vlm.device) for layer in layers),
        biases=tuple(tensors[f"{layer}.bias"].to(vlm.device) for layer in layers),
        losses=losses_table(tensors["losses"]),
        fitted=fitted,
    )


def translated(stream: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x + A x + b, in float32 at least, and in the stream's dtype again."""
    wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
    return (wide + linear(wide, weight.to(wide), bias.to(wide))).to(stream.dtype)


def begun(vlm: Vlm, device: torch.device) -> list[Translator]:
    """Translators that change nothing, one for each layer but the last."""
    size = vlm.d_model
    return [(torch.zeros(size, size, device=device), torch.zeros(size, device=device)) for _ in range(vlm.n_layers - 1)]


def losses_table(losses: Tensor) -> pd.DataFrame:
    """Losses (layers, 4) with their names."""
    table = pd.DataFrame(losses.numpy(), columns=list(LOSSES))
    table.insert(0, "layer", range(len(table)))
    return table


def _identity(vlm: Vlm) -> dict[str, str]:
    """What a lens belongs to, as a file says it."""
    return {"format": FORMAT, "model": vlm.name, "d_model": str(vlm.d_model), "n_layers": str(vlm.n_layers)}


def _sealed(tensors: Mapping[str, Tensor], fitted: Mapping[str, Any]) -> dict[str, str]:
    """How a lens was fitted, and a checksum of that and of all tensors, their names and shapes."""
    told = json.dumps(fitted, sort_keys=True)
    digest = sha256(told.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"fitted": told, "sha256": digest.hexdigest()}


def _tensors(made: Sequence[Translator], losses: Tensor, head: Tensor) -> dict[str, Tensor]:
    """What a file holds, by name."""
    named = {f"{layer}.{what}": each for layer, pair in enumerate(made) for what, each in zip(PARTS, pair, strict=True)}
    return named | {"losses": losses, "head": head}


def _require_same(path: str | Path, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    other = [f"{name} {theirs.get(name)}, not {value}" for name, value in ours.items() if theirs.get(name) != value]
    if other:
        raise RunError(f"{path} is a lens of another model: {'; '.join(other)}; load that one, or fit a lens of this")


def _head(vlm: Vlm) -> Float[Tensor, " vocab"]:
    """What the model's head makes of one fixed stream: it tells models of one name apart."""
    stream = torch.linspace(-1, 1, vlm.d_model).to(vlm.device, vlm.dtype)
    with torch.no_grad():
        return vlm.unembed(stream).float().cpu()


def _require_translators(path: str | Path, tensors: Mapping[str, Tensor], vlm: Vlm) -> None:
    """Refuse a file without all that a lens of this model has, or made for a model of the same name only."""
    head = _head(vlm)
    losses = torch.zeros(vlm.n_layers, len(LOSSES), dtype=torch.float64)
    wanted = _tensors(begun(vlm, torch.device("meta")), losses, head)
    forms, ours = ({name: (each.dtype, each.shape) for name, each in held.items()} for held in (tensors, wanted))
    if forms != ours:
        raise StoreError(f"{path} does not hold what a lens of {vlm.name!r} has: {len(ours)} tensors of its sizes")
    if (tensors["head"] - head).abs().max() > ANOTHER * head.abs().max():
        raise RunError(f"{path} is a lens of other weights than those of {vlm.name!r}; fit a lens of this model")
