"""Tiny random models of the three families, with a byte tokenizer, made of configs: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from tests.trainer.trainer_toys import COUNTS, motion_answers
from trainer.answers.base import Answers
from trainer.students.hf import FAMILIES, HFStudent
from trainer.students.hf_config import HFConfig

SPECIAL = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
    "<img>", "</img>", "<IMG_CONTEXT>",
)  # fmt: skip

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens of ChatML and of the three families."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")


def vlm(family: str, attention: str = "sdpa") -> torch.nn.Module:
    """A random model of two layers."""
    words = tokenizer()
    ids = {name: words.convert_tokens_to_ids(name) for name in SPECIAL}
    text = {**TEXT, "vocab_size": len(words)}
    torch.manual_seed(0)
    if family == "internvl":
        config: Any = InternVLConfig(
            text_config={**text, "model_type": "qwen2"},
            vision_config={
                "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
                "image_size": [32, 32], "patch_size": [8, 8],
            },
            image_token_id=ids["<IMG_CONTEXT>"],
            image_seq_length=4,
            downsample_ratio=0.5,
        )  # fmt: skip
        kind: Any = InternVLForConditionalGeneration
    else:
        tokens = {
            "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
            "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
        }  # fmt: skip
        rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
        text |= {"rope_parameters": rope, "rope_scaling": rope}
        vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 8, "temporal_patch_size": 2}
        if family == "qwen3_vl":
            extra = {"out_hidden_size": 32, "intermediate_size": 48, "num_position_embeddings": 64}
            deep = {"spatial_merge_size": 2, "deepstack_visual_indexes": [0, 1]}
            config = Qwen3VLConfig(text_config=text, vision_config=vision | extra | deep, **tokens)
            kind = Qwen3VLForConditionalGeneration
        else:
            extra = {"out_hidden_size": 32, "intermediate_size": 48, "spatial_merge_size": 2, "window_size": 32}
            config = Qwen2_5_VLConfig(
                text_config=text, vision_config=vision | extra | {"fullatt_block_indexes": [1]}, **tokens
            )
            kind = Qwen2_5_VLForConditionalGeneration
    config._attn_implementation = attention
    made: torch.nn.Module = kind(config)
    return made


def image_processor(family: str) -> Any:
    """The family's own image processor, without torchvision, for patches of 8 pixels."""
    if family == "internvl":
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

        return GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=False)
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, min_pixels=16 * 16, max_pixels=48 * 32)


def hf_student(family: str, answers: Answers | None = None, **config: object) -> HFStudent:
    """A student around a tiny random model."""
    assert family in FAMILIES
    values = HFConfig.model_validate({"model": family, **config})
    return HFStudent(vlm(family), tokenizer(), image_processor(family), values, answers or motion_answers(), COUNTS)
