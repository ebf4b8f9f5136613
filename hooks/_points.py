"""How each kind of site is reached in a model: where its tensor passes, and how tokens are laid out in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from seamscope.hooks._errors import SiteError
from seamscope.hooks._moves import count
from seamscope.hooks._site import LAYER_KINDS
from seamscope.hooks._taps import Place

if TYPE_CHECKING:
    from seamscope.hooks._anatomy import Anatomy
    from seamscope.hooks._site import Site


@dataclass(frozen=True)
class Point:
    """One site in one model; `heads` how many it is split into, where it is."""

    site: Site
    place: Place
    heads: int | None = None

    def count(self, value: Tensor) -> int:
        """How many tokens the site's tensor holds."""
        return count(value, **self.layout)

    @property
    def layout(self) -> dict[str, Any]:
        """What `_moves` must know of the site."""
        return {"site": str(self.site), "heads": self.heads, "by_query": self.site.kind == "pattern"}


def point_of(anatomy: Anatomy, site: Site, n_heads: int) -> Point:
    """Find a site in a model."""
    if site.layer is not None:
        return _in_layer(anatomy, site, site.layer, n_heads)
    places = {
        "projector.out": Place(anatomy.projector),
        "lm.embed": Place(anatomy.embed)
        if anatomy.embed
        else Place(anatomy.decoder, side="in", argument="inputs_embeds"),
        "lm.final_norm": Place(anatomy.norm),
        "lm.logits": Place(anatomy.head),
    }
    return Point(site, places[str(site)])


def _in_layer(anatomy: Anatomy, site: Site, layer: int, n_heads: int) -> Point:
    if site.stack == "vision":
        return Point(site, Place(anatomy.tower_layers[layer]))
    if site.kind == "deepstack":
        return Point(site, Place(anatomy.deepstack[layer]))
    parts = anatomy.layers[layer]
    places = {
        "resid_pre": Place(parts.block, side="in"),
        "pattern": Place(parts.attn, item=1),
        "head_z": Place(parts.o_proj, side="in"),
        "attn_out": Place(parts.attn_out),
        "cross_attn_out": Place(parts.attn_out),
        "resid_mid": Place(parts.mid_in, side="in"),
        "mlp_out": Place(parts.mlp_out),
        "resid_post": Place(parts.block),
    }
    heads = n_heads if site.kind == "head_z" else None
    return Point(site, places[site.kind], heads)


def kinds_of(anatomy: Anatomy, layer: int, implementation: str) -> tuple[str, ...]:
    """Which kinds of sites a decoder layer has: weights under eager attention only, visual routes where they are."""
    crossed = anatomy.layers[layer].crossed
    missing = {"attn_out" if crossed else "cross_attn_out"}
    missing |= set() if layer < len(anatomy.deepstack) else {"deepstack"}
    missing |= set() if implementation == "eager" else {"pattern"}
    return tuple(kind for kind in LAYER_KINDS["lm"] if kind not in missing)


def require_weights(pattern: str, implementation: str) -> None:
    """Raise `SiteError` for attention patterns where the attention implementation gives no weights."""
    if pattern.endswith(".pattern") and implementation != "eager":
        raise SiteError(
            f"{pattern} needs attention weights, which {implementation!r} attention does not give; "
            "load the model with attn_implementation='eager'"
        )
