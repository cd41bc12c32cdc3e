"""A random Qwen2.5-VL of two layers on disk, with the family's real special tokens at their real ids.

Libraries know those ids by heart (ms-swift's template says 151655 for an image), so a toy vocabulary will not do: the
256 bytes, unused words up to 151,643, and the special tokens behind them. Nothing is downloaded.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
FIRST = 151_643
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IMAGES = {
    "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "min_pixels": 56 * 56, "max_pixels": 112 * 56,
    "size": {"shortest_edge": 56 * 56, "longest_edge": 112 * 56}, "do_resize": True, "do_rescale": True,
    "do_normalize": True, "do_convert_rgb": True, "rescale_factor": 1 / 255, "resample": 3,
    "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "Qwen2_5_VLProcessor",
}  # fmt: skip


def write(folder: Path) -> None:
    """The model, its tokenizer and its processor, as `from_pretrained` reads them."""
    words = _tokenizer()
    ids = {name: words.convert_tokens_to_ids(name) for name in SPECIAL}
    assert ids["<|image_pad|>"] == FIRST + 12 == 151_655
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    text = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 4096, "vocab_size": 151_936,
        "tie_word_embeddings": False, "rope_parameters": rope, "rope_scaling": rope,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": 14, "temporal_patch_size": 2, "in_channels": 3,
        "out_hidden_size": 32, "intermediate_size": 48, "spatial_merge_size": 2, "window_size": 112,
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, image_token_id=ids["<|image_pad|>"],
            video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
            vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=False,
        )
    )  # fmt: skip
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    kinds = {"preprocessor_config": "image_processor", "video_preprocessor_config": "video_processor"}
    for name, kind in kinds.items():
        made = "Qwen2VLImageProcessor" if kind == "image_processor" else "Qwen2VLVideoProcessor"
        (folder / f"{name}.json").write_text(json.dumps({**IMAGES, f"{kind}_type": made}))


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {c: i for i, c in enumerate(alphabet)}
    vocabulary |= {f"<unused{i}>": i for i in range(len(alphabet), FIRST)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT,
        model_max_length=4096,
    )  # fmt: skip
