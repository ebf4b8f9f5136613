"""What is read where, and what is written where."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from seamscope.hooks import Vlm

BACK_SPANS: Final = ("objects", "reading")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One patch: what is read where, and what is written where.

    With a `window` of several layers, those after the source are written into as many after the target.
    """

    source_site: str
    target_site: str
    span: str
    window: int = 1

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The sites that are read and written, of every layer of the window."""
        return [(_later(self.source_site, k), _later(self.target_site, k)) for k in range(self.window)]


def _later(site: str, layers: int) -> str:
    return re.sub(r"\.(\d+)\.", lambda found: f".{int(found[1]) + layers}.", site) if layers else site


def decoder_sites(vlm: Vlm, sites: Iterable[str]) -> list[str]:
    """Those of the sites that a text run has too: the layers of the decoder."""
    return [site for site in vlm.expand(list(sites)) if site.startswith("lm.")]


def layer_cells(vlm: Vlm, *, sites: Iterable[str], spans: Iterable[str]) -> list[Cell]:
    """The same site in both runs, for every site and span set; sites before the decoder know the image only."""
    spans = list(spans)
    return [
        Cell(source_site=site, target_site=site, span=span)
        for site in vlm.expand(list(sites))
        for span in spans
        if site.startswith("lm.") or span in ("image", "objects") or span.startswith("image.")
    ]


def back_cells(vlm: Vlm, *, spans: Iterable[str], window: int = 1) -> list[Cell]:
    """Every later layer into every earlier one (2406.12775), or as many layers at a time as the window has."""
    spans = list(spans)
    return [
        Cell(source_site=f"lm.{s}.resid_post", target_site=f"lm.{t}.resid_post", span=span, window=window)
        for span in spans
        for s in range(1, vlm.n_layers - window + 1)
        for t in range(s)
    ]
