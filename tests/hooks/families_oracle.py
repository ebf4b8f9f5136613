"""What every family's sites must hold, and what its model does by itself, without a line of the library's."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from seamscope.hooks import Batch, Prompt, Vlm

PROJECTOR = "model.multi_modal_projector"


@dataclass(frozen=True, kw_only=True)
class Paths:
    """Where a family keeps its parts; `sandwiched` layers add what norms behind attention and MLP give."""

    tower: tuple[str, ...]
    projector: str = PROJECTOR
    decoder: str = "model.language_model"
    sandwiched: bool = False
    crossed: tuple[int, ...] = ()
    deepstack: str | None = None
    end: str  # the token that ends the assistant's turn


_SIGLIP = ("model.vision_tower.encoder.layers",)
_PIXTRAL = ("model.vision_tower.transformer.layers",)
_QWEN: Any = {"tower": ("model.visual.blocks",), "projector": "model.visual.merger", "end": "<|im_end|>"}
_IDEFICS: Any = {
    "tower": ("model.vision_model.encoder.layers",),
    "projector": "model.connector",
    "decoder": "model.text_model",
    "end": "<end_of_utterance>",
}
_MLLAMA = ("model.vision_model.transformer.layers", "model.vision_model.global_transformer.layers")
PATHS = {
    "llava": Paths(tower=_SIGLIP, end="</s>"),
    "llava_next": Paths(tower=_SIGLIP, end="</s>"),
    "llava_onevision": Paths(tower=_SIGLIP, end="<|im_end|>"),
    "qwen2_vl": Paths(**_QWEN),
    "qwen2_5_vl": Paths(**_QWEN),
    "qwen3_vl": Paths(**_QWEN, deepstack="model.visual.deepstack_merger_list"),
    "mllama": Paths(tower=_MLLAMA, crossed=(1, 3), end="<|eot_id|>"),
    "molmo2": Paths(tower=("model.vision_tower.layers",), projector=f"{PROJECTOR}.image_projector", end="<|im_end|>"),
    "internvl": Paths(tower=("model.vision_tower.encoder.layer",), end="<|im_end|>"),
    "idefics3": Paths(**_IDEFICS),
    "smolvlm": Paths(**_IDEFICS),
    "paligemma": Paths(tower=_SIGLIP, end="<eos>"),
    "paligemma2": Paths(tower=_SIGLIP, sandwiched=True, end="<eos>"),
    "gemma3": Paths(tower=_SIGLIP, sandwiched=True, end="<end_of_turn>"),
    "mistral3": Paths(tower=_PIXTRAL, end="</s>"),
    "pixtral": Paths(tower=_PIXTRAL, end="</s>"),
    "gemma4_unified": Paths(
        tower=(), projector="model.embed_vision.multimodal_embedder", sandwiched=True, end="<turn|>"
    ),
}


def read_by_hand(name: str, vlm: Vlm, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    """Every site's tensor, by hooks on modules written out here, and the logits of that run."""
    paths, find, found = PATHS[name], vlm.model.get_submodule, {}
    with ExitStack() as stack, torch.inference_mode():

        def keep(site: str, module: nn.Module, item: int = 0) -> None:
            def hook(module: Any, args: Any, output: Any) -> None:
                value = output[item] if isinstance(output, tuple) else output
                if value is not None:  # there are weights under eager attention only
                    found[site] = value.clone()

            stack.callback(module.register_forward_hook(hook).remove)

        def keep_input(site: str, module: nn.Module, argument: str = "hidden_states") -> None:
            def hook(module: Any, args: Any, kwargs: Any) -> None:
                found[site] = (args[0] if args else kwargs[argument]).clone()

            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

        for number, layer in enumerate(layer for path in paths.tower for layer in find(path)):
            keep(f"vision.{number}.resid_post", layer)
        keep("projector.out", find(paths.projector))
        for number, merger in enumerate(find(paths.deepstack) if paths.deepstack else ()):
            keep(f"lm.{number}.deepstack", merger)
        decoder = find(paths.decoder)
        if paths.crossed:
            keep("lm.embed", decoder.embed_tokens)
        else:
            keep_input("lm.embed", decoder, "inputs_embeds")
        for number, layer in enumerate(decoder.layers):
            here, crossed = f"lm.{number}.", number in paths.crossed
            attention = layer.cross_attn if crossed else layer.self_attn
            keep_input(here + "resid_pre", layer)
            keep_input(here + "head_z", attention.o_proj)
            keep(here + "pattern", attention, 1)
            keep(here + ("cross_attn_out" if crossed else "attn_out"), _added(paths, layer, attention))
            keep_input(here + "resid_mid", _before_mlp(paths, layer))
            keep(here + "mlp_out", layer.post_feedforward_layernorm if paths.sandwiched else layer.mlp)
            keep(here + "resid_post", layer)
        keep("lm.final_norm", decoder.norm)
        keep("lm.logits", vlm.model.lm_head)
        logits = vlm.model(**batch.inputs, **batch.extra, use_cache=False).logits
    heads = vlm.model.config.get_text_config().num_attention_heads
    for site in (site for site in found if site.endswith("head_z")):
        found[site] = found[site].unflatten(-1, (heads, -1))
    return found, logits


def _added(paths: Paths, layer: Any, attention: nn.Module) -> nn.Module:
    return layer.post_attention_layernorm if paths.sandwiched else attention


def _before_mlp(paths: Paths, layer: Any) -> nn.Module:
    return layer.pre_feedforward_layernorm if paths.sandwiched else layer.post_attention_layernorm


def embed_by_hand(name: str, vlm: Vlm, batch: Batch) -> Tensor:
    """Look the tokens up, and let the model's own image features take the image tokens' places, in order."""
    model, ids = vlm.model, batch.inputs["input_ids"]
    words = model.get_input_embeddings()(ids)
    if "pixel_values" not in batch.inputs or name == "mllama":
        return words
    text_keys = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "position_ids")
    given = {key: value for key, value in batch.inputs.items() if key not in (*text_keys, "image_num_crops")}
    found = model.get_image_features(**given).pooler_output
    width = words.shape[-1]
    features = torch.cat([each.reshape(-1, width) for each in ([found] if isinstance(found, Tensor) else found)])
    where = ids == model.config.image_token_id
    words[where] = features + (words[where] if name == "molmo2" else 0)
    return words


# Their templates write the first token, which their tokenizers would write as well.
_BEGUN = ("mllama", "idefics3", "gemma3", "mistral3", "pixtral")


def plain_inputs(name: str, vlm: Vlm, prompt: Prompt, answer: str | None = None) -> dict[str, Tensor]:
    """What the processor alone makes of one prompt, with nothing said about positions."""
    images = [picture.image for picture in prompt.pictures]
    if name.startswith("paligemma"):
        return _paligemma_inputs(vlm.processor, prompt.text, images, answer)
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": prompt.text}]
    turns = [{"role": "user", "content": content}]
    text = vlm.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    text += "" if answer is None else answer + PATHS[name].end
    options = {"add_special_tokens": False} if name in _BEGUN else {}
    made = vlm.processor(text=[text], images=[images] if images else None, return_tensors="pt", **options)
    return {key: value for key, value in made.items() if isinstance(value, Tensor)}


def _paligemma_inputs(processor: Any, text: str, images: list[Any], answer: str | None) -> dict[str, Tensor]:
    """Its processor takes answers apart, and no text without a picture: that is written as with one, without it."""
    suffix = None if answer is None else [answer]
    if images:
        made = processor(text=["<image>" * len(images) + text], images=[images], suffix=suffix)
        pixels = {"pixel_values": torch.stack([torch.as_tensor(each) for each in made["pixel_values"]])}
        return pixels | {key: torch.tensor(made[key]) for key in ("input_ids", "attention_mask", "token_type_ids")}
    read = processor.tokenizer(f"<bos>{text}\n", add_special_tokens=False)["input_ids"]
    told = [] if answer is None else processor.tokenizer(answer + "<eos>", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([read + told])
    kinds = torch.tensor([[0] * len(read) + [1] * len(told)])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": kinds}


def plain_logits(name: str, vlm: Vlm, prompt: Prompt, answer: str | None = None) -> Tensor:
    """Run the model alone on one prompt: logits of all its tokens, (pos, vocab)."""
    with torch.inference_mode():
        return vlm.model(**plain_inputs(name, vlm, prompt, answer)).logits[0]


def plain_score(name: str, vlm: Vlm, prompt: Prompt, answer: str) -> tuple[float, bool, bool]:
    """Log-probability of an answer and its end; whether its first token, and every one, is the likeliest."""
    start = plain_inputs(name, vlm, prompt)["input_ids"].shape[1]
    ids = plain_inputs(name, vlm, prompt, answer)["input_ids"][0]
    assert ids[-1] == vlm.processor.tokenizer.convert_tokens_to_ids(PATHS[name].end)
    told = plain_logits(name, vlm, prompt, answer)[start - 1 : -1].log_softmax(-1)
    hits = told.argmax(-1) == ids[start:]
    return float(told.gather(-1, ids[start:, None]).sum()), bool(hits[0]), bool(hits.all())


def plain_tokens(name: str, vlm: Vlm, prompt: Prompt, n: int) -> list[int]:
    """Let the model continue one prompt greedily, with no penalty."""
    inputs = plain_inputs(name, vlm, prompt)
    tokens = vlm.model.generate(**inputs, max_new_tokens=n, do_sample=False, num_beams=1, repetition_penalty=1.0)
    return tokens[0, inputs["input_ids"].shape[1] :].tolist()
