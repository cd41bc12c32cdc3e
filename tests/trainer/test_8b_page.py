"""docs/8b.md: its recipe is one, its numbers are of the real shape, and on two ranks it trains a tiny InternVL."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import InternVLConfig, InternVLForConditionalGeneration

from tests.blocks import DOCS, block
from tests.trainer.shard_toys import recipe_values
from tests.trainer.vlm_toys import image_processor, tokenizer, vlm
from trainer import checkpoint
from trainer.config import SFTConfig
from trainer.students import hf

PAGE = (DOCS / "8b.md").read_text()


def recipe() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(block("8b", "recipe"))
    return values


def test_the_recipe_can_be_and_its_keys_are_told() -> None:
    config = SFTConfig.model_validate(recipe())
    assert config.student.kind == "hf"
    table = re.findall(
        r"^\| (`.*?) \|", PAGE.partition("Every key of `kind: hf`")[2].partition("## 3.")[0], re.MULTILINE
    )
    told = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    assert told == hf.HFConfig.model_fields.keys() - {"kind"}


def test_the_numbers_of_weights_are_those_of_the_shape() -> None:
    """InternVL3-8B: Qwen2.5-7B and InternViT-300M, by their published shapes, on the meta device."""
    text = {
        "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
        "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 151674, "tie_word_embeddings": False,
    }  # fmt: skip
    with torch.device("meta"):
        model = InternVLForConditionalGeneration(InternVLConfig(text_config=text, tie_word_embeddings=False))
    whole = sum(p.numel() for p in model.parameters())
    seen = sum(p.numel() for n, p in model.named_parameters() if "vision" in n or "projector" in n)
    low = sum(
        32 * (m.in_features + m.out_features)
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and re.fullmatch(hf._LINEAR, name)
    )
    assert (
        f"has {whole / 1e9:.2f} billion weights, of which {(whole - seen) / 1e9:.2f} are the language model's" in PAGE
    )
    assert f"adds\n{low / 1e6:.1f} million" in PAGE


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_the_recipe_on_two_ranks(shards: str, tmp_path: Path, mode: str) -> None:
    """The page's words, but for the model, the columns of the data and the sizes."""
    for part in (vlm("internvl"), tokenizer(), image_processor("internvl")):
        part.save_pretrained(tmp_path / "model")  # type: ignore[operator, union-attr]
    here = recipe_values(shards, tmp_path / "run")
    values = recipe() | {key: here[key] for key in ("data", "out", "samples", "targets", "device")}
    values["student"] |= {"model": str(tmp_path / "model"), "revision": None}
    values |= {"answers": values["answers"] | {"size": 6}, "stream": {"batch_size": 2, "threads": 1}}
    values |= {
        "stages": [one | {"steps": 2} for one in values["stages"]],
        "parallel": {"mode": mode},
        "baselines": False,
    }
    (tmp_path / "8b.yaml").write_text(yaml.safe_dump(values))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(DOCS.parent), "OMP_NUM_THREADS": "1"}
    for _ in range(2):  # and again, when nothing is left to do
        done = subprocess.run(
            [*command, "-m", "jobs.sft", "8b.yaml"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    stored = checkpoint.load(tmp_path / "run" / "stage_2.pt")["student"]
    assert any("lora_" in name for name in stored)
    assert all(value.dtype is torch.float32 for name, value in stored.items() if "lora_" in name)
    assert not any(name.endswith("q_proj.base_layer.weight") for name in stored)
