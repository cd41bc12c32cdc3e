"""TRL's GRPOTrainer around a random language model of a few thousand weights, and nothing from outside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch


def tokenizer() -> Any:
    """One token a byte."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<|end|>", "<|pad|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|pad|>")


def model(positions: int = 256) -> Any:
    """A random Qwen2 of one layer, for prompts and answers of so many bytes together."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=len(tokenizer()), max_position_embeddings=positions, **shape))


def grpo_trainer(rows: Sequence[Mapping[str, Any]], reward: Callable[..., Any], out: Path, **changes: Any) -> Any:
    """A trainer on `rows` (with a ``prompt`` each); groups of 2, two prompts a step."""
    import datasets
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

    arguments: dict[str, Any] = {
        "output_dir": str(out), "max_steps": 1, "per_device_train_batch_size": 4, "num_generations": 2,
        "max_completion_length": 8, "report_to": [], "use_cpu": True, "bf16": False, "learning_rate": 0.1,
        "gradient_checkpointing": False, "save_strategy": "no", "logging_steps": 1, "remove_unused_columns": False,
    }  # fmt: skip
    return GRPOTrainer(
        model=model(),
        reward_funcs=[reward],
        args=GRPOConfig(**{**arguments, **changes}),
        train_dataset=datasets.Dataset.from_list([dict(row) for row in rows]),
        processing_class=tokenizer(),
    )
