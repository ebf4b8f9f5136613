"""What a family of models may differ in; whatever is left out is read off the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from seamscope.hooks.families._rules import plain_extra, plain_layout, plain_process, plain_render, plain_views

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np
    from torch import Tensor

    from seamscope.hooks._frame import Framed
    from seamscope.hooks._layout import Layout

    Inputs = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The differences of one family from a plain model: tower, projector, decoder of pre-norm layers.

    `published` names checkpoints that it covers, `lacks` says what does not work, `decoders` gives the `model_type` of
    other decoders that it is published with, by the name of that release. Models belong to it by the `model_type` of
    their configuration, and by that of the tower's where `tower_type` is given.

    Paths start at the model; `parts` are those within one decoder layer, by name (`attn`, `o_proj`, `attn_out`,
    `mid_in`, `mlp_out`). What is None or missing is found by the names that most models use; a tower of "" is none.
    `embed` is the module that gives the decoder's input where it makes that itself, `deepstack` the list of modules
    whose outputs are added behind its first layers. `mixed_rows`: prompts with different numbers of pictures may stand
    in one batch.

    `layout(model, processor, inputs, n)` gives the layout of the first of `n` equal pictures, and
    `views(model, processor, inputs, n)` its views as the model gets them, (3, height, width) each, colours from 0 to
    255, both from what the processor made of a prompt with these pictures. `render(processor, text, n)` writes a prompt
    with `n` pictures as one text, `process(processor, framed, images, padding)` makes inputs of such texts, and
    `extra(model, inputs)` what a forward pass needs besides: positions above all.
    """

    name: str
    model_types: tuple[str, ...]
    tower_type: str | None = None
    published: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    decoders: Mapping[str, str] = field(default_factory=dict)
    tower: str | None = None
    tower_layers: tuple[str, ...] | None = None
    projector: str | None = None
    decoder: str | None = None
    parts: Mapping[str, str] = field(default_factory=dict)
    embed: str | None = None
    deepstack: str | None = None
    mixed_rows: bool = True
    layout: Callable[[Any, Any, Inputs, int], Layout] = field(default=plain_layout, repr=False)
    views: Callable[[Any, Any, Inputs, int], list[np.ndarray[Any, Any]]] = field(default=plain_views, repr=False)
    render: Callable[[Any, str, int], str] = field(default=plain_render, repr=False)
    process: Callable[[Any, Sequence[Framed], Sequence[Sequence[Any]], str], dict[str, Tensor]] = field(
        default=plain_process, repr=False
    )
    extra: Callable[[Any, Inputs], dict[str, Tensor]] = field(default=plain_extra, repr=False)
