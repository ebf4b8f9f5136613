"""How each kind of site is reached in a model: where its tensor passes, and how tokens are laid out in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from seamscope.hooks._errors import SiteError
from seamscope.hooks._taps import Place

if TYPE_CHECKING:
    from seamscope.hooks._families import Anatomy
    from seamscope.hooks._site import Site


@dataclass(frozen=True)
class Point:
    """One site in one model.

    `view` and `unview` convert between the tensor that passes at `place` and the site's own shape: they
    differ for `head_z` only, (batch, pos, heads, head_dim). Tokens are addressed by their number in
    dimensions 0 and 1 taken together; `pattern`, (batch, heads, query, key), is addressed by query.
    """

    site: Site
    place: Place
    heads: int | None = None

    def view(self, passing: Tensor) -> Tensor:
        """Give the site's tensor, without copying."""
        return passing if self.heads is None else passing.reshape(*passing.shape[:-1], self.heads, -1)

    def unview(self, value: Tensor) -> Tensor:
        """Undo `view`."""
        return value if self.heads is None else value.flatten(-2)

    def take(self, value: Tensor, index: Tensor) -> Tensor:
        """Copy the tokens with these numbers, (n, *feature), and nothing else."""
        index = index.to(value.device)
        if self.site.kind == "pattern":
            width = value.shape[2]
            return value.transpose(1, 2)[index // width, index % width]
        return value.flatten(0, 1).index_select(0, index)

    def put(self, value: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
        """Give a copy of `value` with the tokens of these numbers replaced."""
        index, out = index.to(value.device), value.clone()
        if self.site.kind == "pattern":
            width = value.shape[2]
            out.transpose(1, 2)[index // width, index % width] = tokens
            return out
        return out.flatten(0, 1).index_copy_(0, index, tokens).view_as(out)

    @property
    def head_axis(self) -> int:
        """The dimension of the heads in the site's tensor; 1 in tokens taken from it."""
        return 1 if self.site.kind == "pattern" else 2


def point_of(anatomy: Anatomy, site: Site, n_heads: int) -> Point:
    """Find a site in a model."""
    if site.layer is not None:
        return _in_layer(anatomy, site, site.layer, n_heads)
    places = {
        "projector.out": Place(anatomy.projector),
        "lm.embed": Place(anatomy.decoder, side="in", argument="inputs_embeds"),
        "lm.final_norm": Place(anatomy.norm),
        "lm.logits": Place(anatomy.head),
    }
    return Point(site, places[str(site)])


def _in_layer(anatomy: Anatomy, site: Site, layer: int, n_heads: int) -> Point:
    if site.stack == "vision":
        return Point(site, Place(anatomy.tower_layers[layer]))
    places = {
        "resid_pre": lambda: Place(anatomy.layers[layer], side="in"),
        "pattern": lambda: Place(anatomy.part(layer, "attn"), item=1),
        "head_z": lambda: Place(anatomy.part(layer, "o_proj"), side="in"),
        "attn_out": lambda: Place(anatomy.part(layer, "attn_out")),
        "resid_mid": lambda: Place(anatomy.part(layer, "mid_norm"), side="in"),
        "mlp_out": lambda: Place(anatomy.part(layer, "mlp_out")),
        "resid_post": lambda: Place(anatomy.layers[layer]),
    }
    heads = n_heads if site.kind == "head_z" else None
    return Point(site, places[site.kind](), heads)


def require_weights(pattern: str, implementation: str) -> None:
    """Raise `SiteError` for attention patterns where the attention implementation gives no weights."""
    if pattern.endswith(".pattern") and implementation != "eager":
        raise SiteError(
            f"{pattern} needs attention weights, which {implementation!r} attention does not give; "
            "load the model with attn_implementation='eager'"
        )
