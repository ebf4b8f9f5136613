"""Make a model lose what it sees at one place, and nowhere else: the faults that are planted by intervention.

Every alteration acts on what stands at image positions or comes before them, so that a continued run, whose keys and
values are kept, and a replay, which runs single layers, meet the same fault as a whole pass.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import torch
from torch import Tensor, nn

from seamscope.hooks import ModelError, RunError, SiteError, choose

if TYPE_CHECKING:
    from seamscope.hooks import Batch, Prompt, Vlm

HOW: Final = ("resample", "rotate", "blank")
PARTS: Final = ("all", "left", "right", "top", "bottom")
DONORS: Final = 64  # pictures of the bank from which states are resampled
INNER: Final = re.compile(r"lm\.(\d+)\.(key|value)$")


@dataclass(frozen=True, kw_only=True)
class Alteration:
    """What is done at a place, to the tokens of all patches or of those in one third of the picture.

    Places are sites up to the image positions of the decoder: `vision.2.resid_post`, `projector.out`,
    `lm.3.resid_post`; and `lm.3.key`, `lm.3.value`, by which attention in that layer reads image positions. `resample`
    puts there what another picture has there, so that states stay natural and tell nothing of their own picture;
    `rotate` turns states about their mean, so that they tell as much, in a form that nothing behind reads; `blank` puts
    zeros.
    """

    place: str
    how: str = "resample"
    part: str = "all"
    seed: int = 0

    def __post_init__(self) -> None:
        choose("how", self.how, HOW, RunError)
        choose("part", self.part, PARTS, RunError)


class _Seats(NamedTuple):
    """Which patch each token of a layer shows, -1 for none, (rows or 1, tokens); and the donor of each row."""

    patches: Tensor
    donors: Tensor


class Altered:
    """A model with alterations, from now on and for good.

    Args:
        vlm: a model that has one picture in a prompt, of a fixed number of patches, and `v_proj` in its decoder.
        alterations: what is done where.
        donors: prompts with one picture each, whose states are the bank.
    """

    def __init__(self, vlm: Vlm, alterations: Sequence[Alteration], donors: Sequence[Prompt]) -> None:
        self.vlm, self._token = vlm, int(vlm.model.config.image_token_id)
        self._seats: _Seats | None = None
        self._donors = torch.zeros(0, dtype=torch.long)
        self._count = len(donors)
        batch = vlm.encode(list(donors))
        if vlm.anatomy.tower is None:
            raise ModelError("faults are planted in models with a vision tower")
        for each in alterations:
            self._module(each.place)  # refuses what cannot be altered, before anything is hooked
        vlm.anatomy.tower.register_forward_pre_hook(self._look, with_kwargs=True)
        vlm.model.model.register_forward_pre_hook(self._meet, with_kwargs=True)
        banks = self._banks(batch, [each.place for each in alterations])
        for each in alterations:
            _wrap(self._module(each.place), self._change(each, banks[each.place]))

    def _module(self, place: str) -> nn.Module:
        found = INNER.match(place)
        if found and int(found[1]) >= self.vlm.n_layers:
            raise SiteError(f"{place} cannot be altered: the decoder has layers 0 to {self.vlm.n_layers - 1}")
        if found:
            attention = self.vlm.anatomy.layers[int(found[1])].attn
            return cast("nn.Module", attention.k_proj if found[2] == "key" else attention.v_proj)
        at = self.vlm.point(place)
        if at.place.side != "out" or at.site.kind in ("embed", "logits"):
            raise SiteError(f"{place} cannot be altered; expected such as vision.2.resid_post or lm.3.key")
        return at.place.module

    def _banks(self, batch: Batch, places: Sequence[str]) -> dict[str, Tensor]:
        """What stands at each place for each donor, (donors, patches, width)."""
        found: dict[str, Tensor] = {}
        handles = []
        for place in dict.fromkeys(places):

            def note(_: Any, __: Any, output: Any, place: str = place) -> None:
                state = output[0] if isinstance(output, tuple) else output
                if place.startswith("lm."):
                    state = state[self._now().patches >= 0]
                found[place] = state.reshape(self._count, -1, state.shape[-1]).detach().clone()

            handles.append(self._module(place).register_forward_hook(note))
        try:
            self.vlm.forward(batch, logits_to_keep=1)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def _look(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Note the donors of the pictures that the tower is given: `generate` calls it before the model."""
        self._donors = self._donors_of(args[0] if args else kwargs["pixel_values"])

    def _meet(self, _: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Note which tokens of a pass show which patches; later passes, and passes over text, have none."""
        ids = args[0] if args else kwargs.get("input_ids")
        self._seats = None
        if ids is not None and (ids == self._token).any():
            pixels = kwargs.get("pixel_values")
            self._seats = self._seated(ids, self._donors if pixels is None else self._donors_of(pixels))

    def _seated(self, ids: Tensor, donors: Tensor) -> _Seats:
        shown = ids == self._token
        if len(donors) != int(shown.any(1).sum()):
            raise ModelError("a planted fault takes one picture in every prompt")
        found = torch.full((len(ids),), -1, dtype=torch.long, device=ids.device)
        found[shown.any(1)] = donors
        return _Seats(torch.where(shown, shown.cumsum(1) - 1, -1), found)

    def _donors_of(self, pixels: Tensor) -> Tensor:
        """The donor that stands in for each picture, always the same."""
        seen = ((pixels.float() + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
        hashes = [hashlib.blake2b(each.tobytes(), digest_size=4).digest() for each in seen]
        return torch.tensor([int.from_bytes(each, "big") % self._count for each in hashes], device=pixels.device)

    def _now(self) -> _Seats:
        portion = self.vlm.wiring.portion
        if portion is None:
            if self._seats is None:
                return _Seats(torch.full((1, 1), -1), torch.full((1,), -1))
            return self._seats
        inputs = portion.batch.inputs
        if "pixel_values" not in inputs:
            return _Seats(torch.full((1, 1), -1), torch.full((1,), -1))
        whole = self._seated(inputs["input_ids"], self._donors_of(inputs["pixel_values"]))
        return _Seats(whole.patches[:, portion.positions], whole.donors)

    def _change(self, asked: Alteration, bank: Tensor) -> Callable[[Tensor], Tensor]:
        """What an alteration makes of a module's output."""
        chosen = _chosen(asked.part, bank.shape[1]).to(bank.device)
        mean = bank.mean(0)
        turn = _turn(bank.shape[-1], asked.seed).to(bank)

        def change(state: Tensor, patches: Tensor, donors: Tensor) -> Tensor:
            """The new states of tokens, (n, width), each with its patch and its donor."""
            if asked.how == "resample":
                return bank[(donors + asked.seed) % len(bank), patches].to(state)
            if asked.how == "blank":
                return torch.zeros_like(state)
            return ((state - mean[patches].to(state)) @ turn.to(state)) + mean[patches].to(state)

        def before_decoder(state: Tensor) -> Tensor:
            donors = self._donors
            flat = state.reshape(len(donors), bank.shape[1], -1).clone()
            rows = torch.arange(len(donors), device=state.device)[:, None].expand(-1, int(chosen.sum()))
            columns = torch.nonzero(chosen)[:, 0].expand_as(rows)
            flat[rows, columns] = change(flat[rows, columns], columns, donors[rows])
            return flat.reshape(state.shape)

        def in_decoder(state: Tensor) -> Tensor:
            seats = self._now()
            if (seats.patches < 0).all() or seats.patches.shape[1] != state.shape[1]:
                return state
            told = (seats.patches >= 0) & chosen[seats.patches.clamp(min=0)] & (seats.donors >= 0)[:, None]
            told, patches = told.expand(len(state), -1), seats.patches.expand(len(state), -1)
            donors = seats.donors[:, None].expand(-1, seats.patches.shape[1]).expand(len(state), -1)
            changed = state.clone()
            changed[told] = change(state[told], patches[told], donors[told])
            return changed

        return in_decoder if asked.place.startswith("lm.") else before_decoder


def _wrap(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Let a module give something else; hooks, whoever sets them, see only that."""
    forward = module.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    module.forward = changed


def _chosen(part: str, n_patches: int) -> Tensor:
    """Which patches of a square picture are meant, (patches,)."""
    side = round(n_patches**0.5)
    grid = torch.zeros(side, side, dtype=torch.bool)
    third = side // 3
    rows = {"top": slice(0, third), "bottom": slice(side - third, side)}.get(part, slice(0, side))
    columns = {"left": slice(0, third), "right": slice(side - third, side)}.get(part, slice(0, side))
    grid[rows, columns] = True
    return grid.flatten()


def _turn(width: int, seed: int) -> Tensor:
    """A random rotation."""
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    turned: Tensor = torch.linalg.qr(drawn)[0]
    return turned.float()
