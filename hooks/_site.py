"""The canonical address of an activation, the same for every family of models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from seamscope.hooks._errors import SiteError, choose

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

LAYER_KINDS = {
    "vision": ("resid_post",),
    "lm": (
        *("resid_pre", "pattern", "head_z", "attn_out", "cross_attn_out"),
        *("resid_mid", "mlp_out", "resid_post", "deepstack"),
    ),
}
WHOLE_KINDS = {"projector": ("out",), "lm": ("embed", "final_norm", "logits")}
_STACKS = ("vision", "projector", "lm")
_FORMS = tuple(
    f"{stack}{middle}{kind}"
    for table, middle in ((LAYER_KINDS, ".L."), (WHOLE_KINDS, "."))
    for stack, kinds in table.items()
    for kind in kinds
)
# In the order in which a forward pass computes them: embeddings, then layers, then what follows the layers.
_STAGE = {"embed": 0, "final_norm": 2, "logits": 3}


@dataclass(frozen=True)
class Site:
    """One address: `stack` (`vision`, `projector`, `lm`), `layer` (None outside layers) and `kind`.

    Sites compare equal by value and sort in the order of the forward pass.
    """

    stack: str
    kind: str
    layer: int | None = None

    @classmethod
    def parse(cls, text: str | Site) -> Site:
        """Read `lm.3.resid_post`, `projector.out` and the like; raise `SiteError` for anything else."""
        if isinstance(text, Site):
            return text
        match = re.fullmatch(r"(?P<stack>[a-z]+)(?:\.(?P<layer>\d+))?\.(?P<kind>[a-z_]+)", text)
        form = re.sub(r"\.\d+\.", ".L.", text)
        choose("site", form, _FORMS, SiteError)
        if match is None:
            raise SiteError(f"site {text!r} needs a layer number where its form {form!r} has an L")
        layer = match["layer"]
        return cls(match["stack"], match["kind"], None if layer is None else int(layer))

    def __str__(self) -> str:
        middle = "" if self.layer is None else f"{self.layer}."
        return f"{self.stack}.{middle}{self.kind}"

    def __lt__(self, other: Site) -> bool:
        return self._order() < other._order()

    def _order(self) -> tuple[int, int, int, int]:
        stage = 1 if self.layer is not None else _STAGE.get(self.kind, 0)
        kinds = LAYER_KINDS.get(self.stack, ())
        within = kinds.index(self.kind) if self.layer is not None else 0
        return _STACKS.index(self.stack), stage, -1 if self.layer is None else self.layer, within

    @property
    def number(self) -> int:
        """The layer's; 0 for a site before the first one."""
        return self.layer or 0

    @property
    def visual(self) -> bool:
        """Whether the site holds patches of images, as opposed to tokens of a text."""
        return self.tokens != "lm"

    @property
    def tokens(self) -> str:
        """The stack whose tokens the site holds: DeepStack features are a projector's, on their way to a layer."""
        return "projector" if self.kind == "deepstack" else self.stack


def sites_of(*, n_vision_layers: int, lm: Sequence[Collection[str]]) -> tuple[str, ...]:
    """Name every site of a model in forward order; `lm` are the kinds that each decoder layer has."""
    tower = [Site("vision", "resid_post", layer) for layer in range(n_vision_layers)]
    layers = [Site("lm", kind, layer) for layer, kinds in enumerate(lm) for kind in kinds]
    whole = [Site(stack, kind) for stack, kinds in WHOLE_KINDS.items() for kind in kinds]
    return tuple(str(site) for site in sorted(tower + layers + whole))


def expand_sites(patterns: str | Site | Iterable[str | Site], sites: Sequence[str]) -> tuple[str, ...]:
    """Resolve names and globs such as `lm.*.resid_post` to names among `sites`, in forward order, each once.

    A pattern that fits nothing raises `SiteError` with the nearest names.
    """
    wanted = [patterns] if isinstance(patterns, str | Site) else list(patterns)
    found = {name for pattern in wanted for name in _matches(str(pattern), sites)}
    return tuple(name for name in sites if name in found)


def _matches(pattern: str, sites: Sequence[str]) -> list[str]:
    hits = [name for name in sites if fnmatchcase(name, pattern)]
    return hits or [choose("site", pattern, sites, SiteError)]
