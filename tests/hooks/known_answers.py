"""Models whose weights are set by hand, so that it is known which heads carry an answer, and by which way.

A picture has one coloured patch, and the answer is that colour's digit; 0, where there is no colour. The tower and the
projector hand the mean colour of every patch on as it is: three numbers, next to one another in the residual stream.
A *copying* head looks from the prompt's last token, and from no other, at the coloured patch, and writes its colour to
where the unembedding reads it. *Decoys* look there as hard, and write what nothing reads. All other weights are noise.

    copying     one head copies, and the logits read what it writes.
    redundant   two heads copy, in two layers. An MLP behind them makes a full answer of what is there once or twice.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from PIL import Image
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

from seamscope.hooks import Box, Picture, Prompt, Vlm, load_vlm

from .conftest import PATCH, PIXELS, ask, make_processor, word_tokenizer

Head = tuple[int, int]  # layer, number in it

LAYERS, HEADS, GROUPS, WIDTH, INNER = 4, 4, 2, 32, 48  # two heads share their keys and values
HEAD: Final = WIDTH // HEADS
CELLS: Final = (PIXELS // PATCH) ** 2
DIGITS: Final = {"red": "7", "green": "2", "blue": "4", None: "0"}  # and what is said of a picture that has none
SHADES: Final = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
QUESTION: Final = "what is the sum of the card ?"

# what the numbers of the residual stream stand for
ONE, ASKS, STARTS, SAYS = 0, 4, 5, 15  # the same everywhere; the prompt's last token; its first; a digit
COLOUR, COPIED, ANSWER, UNREAD = 1, 6, 9, 12  # three numbers each: red, green, blue
FREE: Final = 16  # from here on there is noise only

LEVEL: Final = 24.0  # of ONE: large, so that the norms divide all tokens by about the same
SCALE: Final = (WIDTH / (LEVEL**2 + 1)) ** 0.5  # by what they multiply
NOISE: Final = 0.03
GAIN: Final = 16.0  # logits that a colour's digit is above another's
HEIGHT: Final = 8.0  # a GELU so far up adds nothing of its own


@dataclass(frozen=True)
class Circuit:
    """What is known of a model: which heads carry the answer, which only look as if, and which layer's MLP, if any."""

    copying: tuple[Head, ...]
    decoys: tuple[Head, ...]
    clips: int | None

    @property
    def others(self) -> list[Head]:
        """All heads that do not matter."""
        every = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]
        return [head for head in every if head not in self.copying]


CIRCUITS: Final = {
    "copying": Circuit(copying=((2, 1),), decoys=((1, 3), (3, 0)), clips=None),
    "redundant": Circuit(copying=((1, 2), (2, 1)), decoys=((0, 3), (3, 0)), clips=3),
}


@dataclass(frozen=True)
class Pair:
    """A prompt, and the same with another colour in the same cell, or with none."""

    cell: int
    colour: str
    other: str | None

    @property
    def clean(self) -> Prompt:
        """The prompt of the colour."""
        return shown(self.colour, self.cell)

    @property
    def corrupt(self) -> Prompt:
        """The prompt of the other."""
        return shown(self.other, self.cell)

    @property
    def answer(self) -> str:
        """What is right of the clean one."""
        return DIGITS[self.colour]

    @property
    def rival(self) -> str:
        """What is right of the corrupt one."""
        return DIGITS[self.other]


def build(folder: Path, name: str) -> Path:
    """Save the checkpoint of a circuit."""
    circuit, tokenizer = CIRCUITS[name], word_tokenizer()
    model = LlavaForConditionalGeneration(_config(len(tokenizer), tokenizer.convert_tokens_to_ids("<image>"))).eval()
    layers = model.model.language_model.layers
    with torch.no_grad():
        _make_noise(model)
        _show_colours(model)
        _set_words(model, tokenizer.get_vocab(), read=COPIED if circuit.clips is None else ANSWER)
        for layer, head in (*circuit.copying, *circuit.decoys):
            _copy(layers[layer].self_attn, head, to=COPIED if (layer, head) in circuit.copying else UNREAD)
        if circuit.clips is not None:
            _clip(layers[circuit.clips].mlp)
    model.save_pretrained(folder)
    make_processor("siglip", tokenizer).save_pretrained(folder)
    return folder


@cache
def load(name: str, attention: str = "auto") -> Vlm:
    """The model of a circuit, saved and loaded again, its self-checks passed."""
    with TemporaryDirectory(prefix="seamscope-known-") as folder:
        return load_vlm(build(Path(folder), name), device="cpu", attn_implementation=attention)


def pairs(name: str, n: int = 6) -> list[Pair]:
    """Colours in every cell of the picture, and what stands against them: another colour; for two heads, none.

    Two heads can each be enough only if the other's part is missing, not if it is wrong: one run in which one head
    says red and the other blue is the mixture of both pairs, and would have to answer both.
    """
    names = list(SHADES)
    alone = len(CIRCUITS[name].copying) == 1
    return [
        Pair(cell=5 * k % CELLS, colour=names[k % 3], other=names[(k + 1 + k // 3 % 2) % 3] if alone else None)
        for k in range(n)
    ]


def write_records(folder: Path, name: str, n: int = 6) -> Path:
    """The same pairs as a file of records, for `JsonlTask`: the first `n` are the clean ones."""
    found = pairs(name, n)
    sides = [[(each.colour, each.clean, each.answer) for each in found]]
    sides += [[(each.other, each.corrupt, each.rival) for each in found]]
    rows = []
    for side, shows in enumerate(sides):
        for k, (colour, prompt, answer) in enumerate(shows):
            (picture,), own = prompt.pictures, f"{k}-{side}"
            picture.image.save(folder / f"{own}.png")
            boxes = [[box.left, box.top, box.right, box.bottom] for box in picture.boxes]
            row = {"id": own, "image": f"{own}.png", "question": QUESTION, "intermediate": [colour or "no colour"]}
            rows.append({**row, "answer": answer, "boxes": boxes, "pair": f"{k}-{1 - side}"})
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def shown(colour: str | None, cell: int, *, question: str = QUESTION) -> Prompt:
    """A black picture with one patch of a colour, in one of nine cells; its box is there without a colour, too."""
    top, left = (PATCH * place for place in divmod(cell, PIXELS // PATCH))
    image = Image.new("RGB", (PIXELS, PIXELS))
    if colour is not None:
        image.paste(SHADES[colour], (left, top, left + PATCH, top + PATCH))
    box = Box(left=left, top=top, right=left + PATCH, bottom=top + PATCH)
    return ask(question, Picture(image=image, boxes=(box,)))


def _config(words: int, image: int) -> LlavaConfig:
    seeing = SiglipVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=PIXELS,
        patch_size=PATCH,
        vision_use_head=False,
    )
    reading = LlamaConfig(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        rms_norm_eps=1e-6,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlavaConfig(
        vision_config=seeing,
        text_config=reading,
        image_token_index=image,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )


def _make_noise(model: LlavaForConditionalGeneration) -> None:
    """Norms do nothing but norm, biases are 0, and all else is little and random."""
    rng = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.fill_(1)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.normal_(std=NOISE, generator=rng)


def _show_colours(model: LlavaForConditionalGeneration) -> None:
    """Make 0 to 1 of a patch's mean red, green and blue, which are -1 to 1, and hand them on through the projector."""
    seen, projector = model.model.vision_tower.embeddings, model.model.multi_modal_projector
    seen.patch_embedding.weight[:3] = 0
    seen.position_embedding.weight[:, :3] = 0
    for k in range(3):
        seen.patch_embedding.weight[k, k] = 0.5 / PATCH**2
    seen.patch_embedding.bias[:3] = 0.5
    projector.linear_1.weight[:3] = 0
    projector.linear_1.bias[:3] = HEIGHT
    projector.linear_2.weight[:FREE] = 0
    projector.linear_2.bias[ONE] = LEVEL
    for k in range(3):
        projector.linear_1.weight[k, k] = 1
        projector.linear_2.weight[COLOUR + k, k] = 1
        projector.linear_2.bias[COLOUR + k] = -HEIGHT
    projector.linear_2.bias[FREE:] -= HEIGHT * projector.linear_2.weight[FREE:, :3].sum(1)


def _set_words(model: LlavaForConditionalGeneration, words: dict[str, int], read: int) -> None:
    """Mark the tokens that matter, and let the digits be read from three numbers of the stream, and the end from one.

    0 is half as likely as a colour that is there, and as much likelier than one that is not.
    """
    embedded, head = model.get_input_embeddings().weight, model.lm_head.weight
    embedded[:, :FREE] = 0
    embedded[:, ONE] = LEVEL
    embedded[words[":"], ASKS] = 1
    embedded[words["<s>"], STARTS] = 1
    said = [words[DIGITS[colour]] for colour in SHADES]
    nothing, end = words[DIGITS[None]], words["</s>"]
    head[:, :FREE] = 0
    for k, digit in enumerate(said):
        head[digit, read + k] = GAIN / SCALE
    head[nothing, ONE] = GAIN / 2 / SCALE / LEVEL
    embedded[[*said, nothing], SAYS] = 1
    head[end, SAYS] = 3 * GAIN / SCALE


def _copy(attention: torch.nn.Module, head: int, to: int) -> None:
    """Look from `:` at a colour, from elsewhere at the first token, and write what colour is there.

    Both looks use the numbers that rotary embeddings turn the least: by 1/1000 and 1/100 of a radian per token.
    """
    query, key, value, out = (getattr(attention, f"{name}_proj").weight for name in "qkvo")
    mine, shared = head * HEAD, head * GROUPS // HEADS * HEAD  # the first of the head's numbers, and of its group's
    for rows in (query[mine : mine + HEAD], key[shared : shared + HEAD], value[shared : shared + HEAD]):
        rows.zero_()
    out[:, mine : mine + HEAD] = 0
    slow, slowest = HEAD // 2 - 2, HEAD // 2 - 1
    per_score = HEAD**0.25 / SCALE  # so that the scores below are scores
    query[mine + slowest, ASKS] = 50 * per_score
    key[shared + slowest, COLOUR : COLOUR + 3] = per_score
    query[mine + slow, ONE] = 20 * per_score / LEVEL
    key[shared + slow, STARTS] = per_score
    for k in range(3):
        value[shared + k, COLOUR + k] = 1 / SCALE
        out[to + k, mine + k] = 1


def _clip(mlp: torch.nn.Module) -> None:
    """Make 0 of a colour that is copied less than 0.3 times, and 1 of one that is 0.7 times or more: once, or twice.

    A SiLU this steep is a bend: the first starts the rise at 0.3, the second ends it at 0.7.
    """
    gate, up, down = (getattr(mlp, f"{name}_proj").weight for name in ("gate", "up", "down"))
    steep, low, high = 300.0, 0.3, 0.7
    rise = steep * SCALE**2 * LEVEL * (high - low)
    for k in range(3):
        for unit, bend, sign in ((2 * k, low, 1), (2 * k + 1, high, -1)):
            for weights in (gate[unit], up[unit], down[:, unit]):
                weights.zero_()
            gate[unit, COPIED + k], gate[unit, ONE] = steep, -steep * bend / LEVEL
            up[unit, ONE] = 1
            down[ANSWER + k, unit] = sign / rise
