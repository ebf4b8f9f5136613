"""One cell of the grid: the pooled activations of a site at a span."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from seamscope.activations import Store
from seamscope.hooks import Ragged, Site, StoreError


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Features (rows, d) in float64; `held` where a row has any; `place` is what identifies them in a table."""

    features: Tensor
    held: NDArray[np.bool_]
    place: dict[str, Any]

    @property
    def width(self) -> int:
        """How many features."""
        return self.features.shape[1]

    @classmethod
    def read(cls, store: Store, site: str, span: str, condition: str, *, pool: str, device: str = "cpu") -> Cell:
        """Pool each row's tokens in float64, some rows at a time; `StoreError` for values that are not finite."""
        parts, held = [], []
        for _, acts in store.stream(site, span, condition):
            wide = Ragged(acts.values.double(), acts.lengths).pool(pool).values.flatten(1)
            if not wide.isfinite().all():
                raise StoreError(f"{site} at {span} under {condition} holds values that are not finite")
            features = wide.new_zeros(len(acts), wide.shape[1])
            features[acts.lengths > 0] = wide
            parts.append(features.to(device))
            held.append(acts.lengths > 0)
        return cls(features=torch.cat(parts), held=torch.cat(held).numpy(), place=place_of(site, span, condition))


def place_of(site: str, span: str, condition: str) -> dict[str, Any]:
    """The columns that say where activations stand."""
    parsed = Site.parse(site)
    return {"site": site, "layer": parsed.layer, "stack": parsed.stack, "span": span, "condition": condition}
