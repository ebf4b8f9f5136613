from __future__ import annotations

from pathlib import Path

import pytest
import torch

from seamscope.hooks import ModelError, Patch, load_vlm, patch
from seamscope.hooks._families import LLAVA, Visual, anatomy_of

from .conftest import ask, make_config, picture, word_tokenizer


@pytest.mark.parametrize("chosen", [-4, -3, -2, -1, 1, 2, 3])  # transformers itself takes 0 for none
def test_the_layers_that_are_read_are_those_that_matter(siglip_folder: Path, chosen: int):
    """Whatever hidden state the projector takes, layers up to the one that wrote it matter, later ones do not."""
    vlm = load_vlm(siglip_folder, device="cpu", check=False)
    vlm.model.config.vision_feature_layer = chosen
    batch = vlm.encode([ask("red ?", picture(1))])
    plain = vlm.forward(batch)
    (read,) = vlm.vision_read_layers
    for layer in range(3):
        with patch(vlm, Patch(f"vision.{layer}.resid_post", torch.zeros_like)):
            assert torch.equal(vlm.forward(batch), plain) == (layer > read)


def test_several_layers_may_be_read():
    config = make_config("siglip", word_tokenizer())
    config.vision_feature_layer = [-1, 1]
    assert LLAVA.read_layers(config) == (2, 0)


def test_image_tokens_find_their_place_in_a_tower_with_a_class_token():
    visual = Visual(grid=(2, 2), patch=8, tokens=4, dropped=1, prefix=1)
    assert visual.in_tower(torch.arange(8)).tolist() == [1, 2, 3, 4, 6, 7, 8, 9]


def test_a_model_without_layers_is_refused():
    class Bare(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = torch.nn.Module()
            for name in ("vision_tower", "language_model", "multi_modal_projector"):
                setattr(self.model, name, torch.nn.Linear(1, 1))
            self.model.language_model.norm = torch.nn.LayerNorm(1)

    with pytest.raises(ModelError, match="Linear has no list of layers"):
        anatomy_of(Bare(), LLAVA)
