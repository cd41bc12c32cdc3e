"""A dry run counts what the student is: weights, tokens, products of its layers; and refuses what cannot fit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import InternVLVisionConfig

from jobs import grpo, sft
from shards_schema.errors import ConfigError
from tests.blocks import DOCS
from tests.trainer.shard_toys import recipe, recipe_values
from tests.trainer.trainer_toys import batch_of
from tests.trainer.vlm_toys import image_processor, tokenizer, vlm
from trainer import build, dry_run
from trainer.config import SFTConfig
from trainer.distributed import ParallelConfig
from trainer.dry_run import Shape, grpo_needs, report, sft_needs
from trainer.grpo_config import GRPOConfig
from trainer.segments import allow_table
from trainer.students.base import Student

ROOT = DOCS.parent
PAGE = (DOCS / "8b.md").read_text()
QWEN2_7B = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "head_dim": 128, "num_key_value_heads": 4, "vocab_size": 151674, "layer_types": ["full_attention"] * 28,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny InternVL."""
    root = tmp_path_factory.mktemp("model")
    for part in (vlm("internvl"), tokenizer(), image_processor("internvl")):
        part.save_pretrained(root)  # type: ignore[operator, union-attr]
    return str(root)


def configured(model: str, **changes: Any) -> SFTConfig:
    student = {"kind": "hf", "model": model, "gradient_checkpointing": True, **changes.pop("student", {})}
    return recipe("nothing is read there", "out", student=student, **changes)


def real(config: SFTConfig) -> Student:
    """The student itself, with answers of the same size."""
    drives = torch.randn(9, 3, 3), torch.randn(9, 4, 7)
    answers = build.make_answers(config.answers, config.student, lambda: drives, 3)
    return build.make_student(config.student, answers, config.counts, views=1, history=4)


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_memory_is_that_of_the_real_weights(model: str, lora: Any) -> None:
    config = configured(model, student={"lora": lora}, machine={"gpus": 1})
    needs = sft_needs(config)
    student = real(config)
    adapters = sum(2 * w + (w + 1) * 16 + 17 * 2048 for w in (student.width, student.width))
    every = sum(p.nbytes for p in student.parameters())
    trained = sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert needs.memory["weights"] == every + 4 * adapters
    assert needs.memory["gradients"] == 4 * (trained + adapters) == needs.memory["AdamW's moments"] / 2
    shared = sft_needs(configured(model, student={"lora": lora}, machine={"gpus": 8}, parallel={"mode": "fsdp"})).memory
    assert shared["weights"] == needs.memory["weights"] / 8
    assert shared["gradients"] == needs.memory["gradients"] / 8
    assert shared["activations"] == needs.memory["activations"]
    if lora is None:
        half = sft_needs(configured(model, student={"dtype": "bfloat16"}, machine={"gpus": 1})).memory
        new = sum(p.numel() for n, p in student.named_parameters() if p.requires_grad and "vlm." not in n) + adapters
        low = trained + adapters - new
        assert half["gradients"] == 2 * low + 4 * new
        assert half["their masters in float32"] == 4 * low
        assert half["AdamW's moments"] == needs.memory["AdamW's moments"]


def test_tokens_and_products_are_those_of_a_real_pass(model: str) -> None:
    config = configured(model, machine={"gpus": 2})
    needs = sft_needs(config)
    student = real(config)
    batch = batch_of(1)
    batch = student.prepare(batch)
    assert abs(batch.lengths[0] + 3 - 1 - needs.tokens) < 12  # but for the digits of a status
    answers = student.answers.encode(batch.future[:, :3], batch.status)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        student(batch, answers, allow_table(1))
    layers = [v for k, v in counter.get_flop_counts().items() if re.search(r"language_model\.layers\.\d$", k)]
    shape, length = Shape(config), batch.lengths[0] + 3 - 1
    assert shape.forward(length) == sum(sum(layer.values()) for layer in layers)
    assert shape.learned(length) == 4 * shape.forward(length)  # and again, and back for inputs and for weights
    assert needs.flops == needs.samples * (shape.learned(needs.tokens) + shape.seen)
    low = Shape(configured(model, student={"lora": {"rank": 4}}))
    assert 3 < low.learned(length) / low.forward(length) < 3.5
    assert (needs.samples, needs.steps) == (4 * 2, 6)


def test_a_recipe_that_cannot_fit_is_refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, other = tmp_path / "sft.yaml", tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(recipe_values("not there", tmp_path / "out") | {"dry_run": True}))
    assert sft.main([str(path)]) == {}
    assert re.search(r"weights +0\.00 GB.*a step: 32 samples of \d+ tokens", capsys.readouterr().out, re.DOTALL)
    with pytest.raises(ConfigError, match=r"a rank takes .*weights .* and has 0\.0 .*parallel\.mode: fsdp"):
        sft.main([str(path), "machine.memory=0.0001"])
    mixed = {"kind": "hf", "model": model, "dtype": "bfloat16", "freeze_vision": False}
    other.write_text(yaml.safe_dump(recipe_values("not there", tmp_path / "out") | {"student": mixed}))
    with pytest.raises(ConfigError, match="are trained together"):
        sft.main([str(other), "dry_run=true", "parallel.mode=fsdp"])
    assert not (tmp_path / "out").exists()


def test_the_page_has_the_numbers_of_the_recipes(model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the published shape of InternVL3-8B, with the 420 tokens that the page counts on."""
    settings = json.loads((Path(model) / "config.json").read_text())
    settings |= {"text_config": settings["text_config"] | QWEN2_7B, "vision_config": InternVLVisionConfig().to_dict()}
    settings |= {"downsample_ratio": 0.5, "image_seq_length": 256, "tie_word_embeddings": False}
    shutil.copytree(model, tmp_path / "8b", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    (tmp_path / "8b" / "config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(dry_run, "_prompt", lambda student, config: (413, 256))
    values = {
        name: yaml.safe_load((ROOT / f"configs/{name}_internvl3_8b.yaml").read_text()) for name in ("sft", "grpo")
    }
    values["sft"]["student"] |= {"model": str(tmp_path / "8b"), "revision": None}
    config, grpo_config = SFTConfig.model_validate(values["sft"]), GRPOConfig.model_validate(values["grpo"])
    found, refined = sft_needs(config), grpo_needs(grpo_config, config)
    names = ["weights", "gradients", "AdamW's moments", "gathered", "their gradients", "activations", "in all"]
    rows = {row.strip("* "): cells for row, *cells in (line[2:].split(" | ") for line in PAGE.splitlines() if line)}
    for name in names:
        for needs, cell in zip((found, refined), rows[name], strict=False):
            size = sum(size for part, size in needs.memory.items() if part.startswith(name) or name == "in all")
            assert cell.strip("* ") == f"{size / 1e9:.2f}", name
    shape = Shape(config)
    for number in (shape.forward(420), shape.learned(420), shape.seen, found.flops, refined.flops):
        assert f"| {number:.2e} |".replace("e+", "e") in PAGE
    for needs, machine in ((found, config.machine), (refined, grpo_config.machine)):
        said = report(needs, machine)
        assert all(f"{part} s" in PAGE for part in re.findall(r"FLOPs, (\S+) s", said))
        assert all(f"{steps} steps: {hours} h" in PAGE for steps, hours in re.findall(r"(\d+) steps: (\S+) h", said))
    ddp = sft_needs(config.model_copy(update={"parallel": ParallelConfig(mode="ddp")}))
    assert f"would take {sum(ddp.memory.values()) / 1e9:.0f} GB" in PAGE
    with pytest.raises(ConfigError, match=r"a rank takes 14\d\.\d GB"):
        report(ddp, config.machine)


def test_grpo_keeps_a_reference_and_answers_of_groups(model: str, tmp_path: Path) -> None:
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(configured(model).model_dump(mode="json")))
    asked = {"policy": str(path), "data": "not there", "out": str(tmp_path / "out"), "steps": 5, "micro": 4}
    changes = ({}, {"beta": 0.0, "group": 2}, {"micro": 1})
    needs, less, alone = (grpo_needs(GRPOConfig.model_validate(asked | more), configured(model)) for more in changes)
    assert needs.memory["reference"] == needs.memory["weights"] == less.memory["weights"]
    assert "reference" not in less.memory
    assert needs.flops > 2 * less.flops
    assert alone.flops > 3 * needs.flops, "four of a scene's answers stand behind one prompt"
    assert 2 * (needs.tokens - alone.tokens) == 3 * (needs.tokens - less.tokens) > 0
    (tmp_path / "grpo.yaml").write_text(yaml.safe_dump(asked))
    assert grpo.main([str(tmp_path / "grpo.yaml"), "dry_run=true"]) is None
