"""Which families of models are covered, and how: read off their real classes, which are built without weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from textwrap import fill
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from seamscope.hooks import Family, Vlm
from seamscope.hooks.families import FAMILIES
from seamscope.hooks.families import REFUSED as UNFIT

IMPLEMENTATIONS: Final = ("sdpa", "eager")
REFUSED: Final = {
    "the first Molmo": "Its code is not part of transformers but comes with the checkpoint (remote code), and is not "
    "covered. Molmo2 is.",
    "Fuyu": f"It is refused when it is loaded: {UNFIT['fuyu']}. The encoder-free family that is covered is Gemma 4.",
}
CROSSED: Final = "lm.L.cross_attn_out"
ENGINES: Final = "Every family runs under both engines, torch and nnsight, and passes the same self-checks there."
WIDTH: Final = 118


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """What is covered of one family.

    `routes` are the sites by which images come to the decoder, `sites` all kinds of sites (under eager attention
    `lm.L.pattern` besides); in both, L stands for a layer. `attention` gives the implementations that may be chosen,
    the one of `"auto"` first, for the family's usual decoder ("") and for others by name.
    """

    name: str
    model_types: tuple[str, ...]
    tower_type: str | None
    classes: tuple[str, ...]
    published: tuple[str, ...]
    routes: tuple[str, ...]
    sites: tuple[str, ...]
    image_tokens_in_decoder: bool
    attention: dict[str, tuple[str, ...]]
    mixed_batches: bool
    lacks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def covered() -> tuple[Coverage, ...]:
    """Every covered family, in the order of its table."""
    return tuple(map(_coverage, FAMILIES))


def _coverage(family: Family) -> Coverage:
    models = [_empty(kind, family) for kind in family.model_types]
    vlm = Vlm(name=family.name, model=models[0], processor=None, family=family)
    return Coverage(
        name=family.name,
        model_types=family.model_types,
        tower_type=family.tower_type,
        classes=tuple(type(model).__name__ for model in models),
        published=family.published,
        routes=_kinds(vlm.routes),
        sites=_kinds(vlm.sites),
        image_tokens_in_decoder=not any(layer.crossed for layer in vlm.anatomy.layers),
        attention={name: _attention(family, decoder) for name, decoder in _decoders(family).items()},
        mixed_batches=family.mixed_rows,
        lacks=family.lacks,
    )


def _empty(kind: str, family: Family, *, decoder: str | None = None, **settings: Any) -> Any:
    """A model of the real class, of the size that its configuration has by itself, whose weights take no memory."""
    parts: dict[str, Any] = {"vision_config": {"model_type": family.tower_type} if family.tower_type else {}}
    parts |= {"text_config": {"model_type": decoder}} if decoder else {}
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.for_model(kind, **parts), **settings)


def _kinds(sites: tuple[str, ...]) -> tuple[str, ...]:
    """Names of sites with L for the layer, each once."""
    return tuple(dict.fromkeys(re.sub(r"\.\d+\.", ".L.", site) for site in sites))


def _decoders(family: Family) -> dict[str, str | None]:
    return {"": None, **family.decoders}


def _attention(family: Family, decoder: str | None) -> tuple[str, ...]:
    kind = family.model_types[0]
    usual = _empty(kind, family, decoder=decoder).config.get_text_config()._attn_implementation
    others = [name for name in IMPLEMENTATIONS if name != usual]
    return (usual, *(name for name in others if _takes(kind, family, decoder, name)))


def _takes(kind: str, family: Family, decoder: str | None, implementation: str) -> bool:
    try:
        _empty(kind, family, decoder=decoder, attn_implementation=implementation)
    except ValueError:  # what transformers raises for an implementation that a class does not support
        return False
    return True


def table(families: tuple[Coverage, ...]) -> str:
    """For a terminal: one line for each family, and below it what it lacks."""
    head = ("family", "model types", "images come in by", "in decoder", "attention")
    rows = [head, *(_cells(each) for each in families)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    below = [[f"    lacks: {what}" for what in each.lacks] for each in families]
    listed = [line for line, more in zip(lines[1:], below, strict=True) for line in (line, *more)]
    refused = [f"not covered: {name}. {why}" for name, why in REFUSED.items()]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *listed, "", ENGINES, *refused])


def _cells(each: Coverage) -> tuple[str, ...]:
    tower = f" with a {each.tower_type} tower" if each.tower_type else ""
    inside = "yes" if each.image_tokens_in_decoder else "no"
    attention = [", ".join(names) + (f" ({decoder})" if decoder else "") for decoder, names in each.attention.items()]
    return each.name, ", ".join(each.model_types) + tower, ", ".join(_ways_in(each)), inside, "; ".join(attention)


def _ways_in(each: Coverage) -> list[str]:
    return [*each.routes, *(site for site in each.sites if site == CROSSED)]


def page(families: tuple[Coverage, ...]) -> str:
    """docs/families.md."""
    names = dict.fromkeys(site for each in families for site in each.sites)
    common = [site for site in names if sum(site in each.sites for each in families) > len(families) / 2]
    head = "| family | model types | images come in by | image tokens in the decoder | `attn_implementation` |"
    rows = ["| " + " | ".join(_marked(each)) + " |" for each in families]
    sites = _filled(f"**Sites.** Families have {_code(common)}, unless they say otherwise below; {SITES}")
    sections = [_section(each, common) for each in families]
    refused = [_filled(f"- **{name[0].upper()}{name[1:]}.** {why}", indent="  ") for name, why in REFUSED.items()]
    engines = _filled(f'**Engines.** {ENGINES} `load_vlm(..., engine="nnsight")` chooses the second.') + "\n"
    lines = [
        HEAD,
        head,
        "|---|---|---|---|---|",
        *rows,
        "",
        sites,
        NOTES,
        engines,
        *sections,
        "## Not covered\n",
        *refused,
    ]
    return "\n".join(lines) + "\n"


def _marked(each: Coverage) -> tuple[str, ...]:
    name, _, _, inside, attention = _cells(each)
    tower = f" with a `{each.tower_type}` tower" if each.tower_type else ""
    return name, _code(each.model_types) + tower, _code(_ways_in(each)), inside, attention


def _section(each: Coverage, common: Sequence[str]) -> str:
    besides = [site for site in each.sites if site not in common]
    missing = [site for site in common if site not in each.sites]
    lines = [
        f"{_code(each.classes)}, published as {_code(each.published)}.",
        *([f"Sites besides: {_code(besides)}."] if besides else []),
        *([f"Sites that it does not have: {_code(missing)}."] if missing else []),
        *([] if each.mixed_batches else ["The prompts of one batch must have equally many pictures."]),
        *(f"Lacks {what}." for what in each.lacks),
    ]
    return "\n".join([f"### {each.name}", "", *(_filled(f"- {line}", indent="  ") for line in lines), ""])


def _code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _filled(text: str, *, indent: str = "") -> str:
    return fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


HEAD: Final = """\
# Covered families

Written by `seamscope families --markdown` from the code, with every model class built as it is in transformers; a
test checks that this page is what that command prints. `seamscope doctor MODEL` examines one checkpoint.

A model belongs to a family by the `model_type` of its configuration. Within a family any checkpoint will do: sizes,
numbers of layers and resolutions are read off the model and its processor. A model of no family is tried as a plain one
(tower, projector, decoder of pre-norm layers), and loaded if it passes every self-check; otherwise it is refused in one
line that names the check. [add_a_family.md](add_a_family.md) tells what to do then.
"""
SITES: Final = (
    "under eager attention also `lm.L.pattern`. Every route by which a picture comes to the decoder is a site. "
    "`projector.out` is one everywhere; where no other is listed, nothing of the picture passes it by."
)
NOTES: Final = """
- *Idle layers of the tower.* LLaVA 1.5 and LLaVA-NeXT read their tower before its last layer: what is patched behind
  the layer that is read changes nothing, and says nothing of the picture.
- *DeepStack* (`lm.L.deepstack`): what the model adds to the image tokens behind its first layers. `lm.L.resid_pre` of
  the next layer is `lm.L.resid_post` plus this, so patching the projector alone, or one early layer alone, leaves a
  bypass open.
- *Cross-attention* (`lm.L.cross_attn_out`): some layers attend to what the projector gave, outside the sequence. They
  have no `attn_out`, and no image token enters the decoder: the spans `image.object.k` exist in the tower and the
  projector only. In the decoder, the span `image` is the placeholder of the picture.

**Attention.** The first implementation listed is what `attn_implementation="auto"` chooses. Others, such as flash
attention, are refused by the self-check `knockout`: they take no mask that a knockout could edit.

**Prompts** are written with the checkpoint's own chat template, where the family has one. Prompts with different
numbers of pictures, or with none, may stand in one batch unless a family says otherwise below.
"""
