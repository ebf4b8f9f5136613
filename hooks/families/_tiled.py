"""Families whose pictures become plain grids, one for each tile, and need hardly a word of their own."""

from __future__ import annotations

from seamscope.hooks.families._family import Family

INTERNVL = Family(
    name="InternVL3",
    model_types=("internvl",),
    published=("OpenGVLab/InternVL3-2B-hf", "OpenGVLab/InternVL3-8B-hf"),
)
IDEFICS3 = Family(
    name="Idefics3",
    model_types=("idefics3",),
    published=("HuggingFaceM4/Idefics3-8B-Llama3",),
)
SMOLVLM = Family(
    name="SmolVLM",
    model_types=("smolvlm",),
    published=("HuggingFaceTB/SmolVLM-Instruct", "HuggingFaceTB/SmolVLM2-2.2B-Instruct"),
    lacks=("a processor that works without the package num2words, which has to be installed",),
)
GEMMA3 = Family(
    name="Gemma 3",
    model_types=("gemma3",),
    published=("google/gemma-3-4b-it", "google/gemma-3-12b-it"),
)
