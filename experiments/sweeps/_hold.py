"""Hold what stands at the image positions: is it lost there before it is read?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from seamscope.hooks import Edit, Vlm

from ._experiment import Who
from ._runs import Runs
from ._sweep import Plan
from ._trials import Trial

HOLD: Final = "hold"
DIRECT: Final[Who] = ("item", "direct")
PARTNER: Final[Who] = ("partner", "direct")


def hold_sites(vlm: Vlm) -> list[str]:
    """What must be captured."""
    return ["lm.embed", *(f"lm.{layer}.resid_post" for layer in range(vlm.n_layers - 1))]


def holds(vlm: Vlm) -> Plan:
    """The direct run's own state at the image positions, before each layer, held in that layer and all after it.

    The control holds the partner's. Whatever a layer does to these positions from there on is undone; what other
    positions read from them stays.
    """
    sites = hold_sites(vlm)

    def plan(runs: Runs) -> Iterator[Trial]:
        places = runs.places(DIRECT, "lm.embed", "image")
        for who in (DIRECT, PARTNER):
            own = runs.places(who, "lm.embed", "image")
            if places is None or own is None or not len(places) or len(own) != len(places):
                continue  # the decoder attends to the image from outside; or the partner's has other tokens
            for layer, site in enumerate(sites[:-1]):
                held = runs.values(who, site)
                if held is None:
                    continue
                values = held[own.to(held.device)]
                yield Trial(
                    labels={
                        "experiment": HOLD if who is DIRECT else f"{HOLD}_control",
                        "source_site": site,
                        "target_site": f"lm.{layer}.resid_post",
                        "window": len(sites) - 1 - layer,
                        "span": "image",
                    },
                    parts=[Edit(site=each, positions=places, values=values) for each in sites[layer + 1 :]],
                    target=DIRECT,
                )

    return plan
