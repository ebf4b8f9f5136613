"""What every site must hold, from plain hooks written by hand and from what transformers returns."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from seamscope.hooks import Batch, Vlm


def read_by_hand(vlm: Vlm, batch: Batch) -> dict[str, Tensor]:
    """Run the model with one hook of our own for each site, written out for LLaVA."""
    model, found = vlm.model.model, {}
    with ExitStack() as stack, torch.inference_mode():

        def keep_output(module, name: str, pick=lambda output: output) -> None:
            hook = module.register_forward_hook(lambda m, i, o: found.__setitem__(name, pick(o).clone()))
            stack.callback(hook.remove)

        def keep_input(module, name: str) -> None:
            hook = module.register_forward_pre_hook(lambda m, i: found.__setitem__(name, i[0].clone()))
            stack.callback(hook.remove)

        for number, layer in enumerate(model.vision_tower.encoder.layers):
            keep_output(layer, f"vision.{number}.resid_post")
        keep_output(model.multi_modal_projector, "projector.out")
        for number, layer in enumerate(model.language_model.layers):
            keep_input(layer, f"lm.{number}.resid_pre")
            keep_output(layer.self_attn, f"lm.{number}.attn_out", lambda output: output[0])
            keep_input(layer.self_attn.o_proj, f"lm.{number}.head_z")
            keep_input(layer.post_attention_layernorm, f"lm.{number}.resid_mid")
            keep_output(layer.mlp, f"lm.{number}.mlp_out")
            keep_output(layer, f"lm.{number}.resid_post")
        keep_output(model.language_model.norm, "lm.final_norm")
        eager = vlm.attn_implementation == "eager"
        out = vlm.model(**batch.inputs, use_cache=False, output_attentions=eager)
        found["lm.embed"] = embed_by_hand(vlm, batch)
    found["lm.logits"] = out.logits
    for number in range(vlm.n_layers):
        found[f"lm.{number}.head_z"] = found[f"lm.{number}.head_z"].view(*batch.inputs["input_ids"].shape, 4, 8)
        if eager:
            found[f"lm.{number}.pattern"] = out.attentions[number]
    return found


def embed_by_hand(vlm: Vlm, batch: Batch) -> Tensor:
    """Look tokens up, and put image features, image by image, over the placeholders of each row."""
    with torch.inference_mode():
        embedded = vlm.model.get_input_embeddings()(batch.inputs["input_ids"]).clone()
        if "pixel_values" not in batch.inputs:
            return embedded
        tower = vlm.model.model.vision_tower(batch.inputs["pixel_values"], output_hidden_states=True)
        chosen = tower.hidden_states[vlm.model.config.vision_feature_layer]
        if vlm.model.config.vision_feature_select_strategy == "default":
            chosen = chosen[:, 1:]
        features, number = vlm.model.model.multi_modal_projector(chosen), 0
        for row, spans in enumerate(batch.spans):
            for positions in spans["image"].split(9) if "image" in spans else ():
                embedded[row, positions], number = features[number], number + 1
    return embedded
