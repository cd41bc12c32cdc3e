"""Peak memory of a rank while a student is loaded: in one process whole, over 2 and 4 in parts (FSDP2, gloo).

The student is an InternVL of some 400 million random weights in one safetensors file, as the hub has it; a second row
of each is the policy of such a file and GRPO's reference beside it. A figure is the kernel's (VmHWM), less what the
process held with everything imported and its group joined; pages of a file that are mapped while they are copied count.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch.distributed.tensor import DTensor

from benchmarks import measure
from benchmarks.measure import status, temporary
from reports.tables import table
from shards_schema.inputs.models import StrictModel
from trainer import build, checkpoint, distributed
from trainer.answers.text import TextAnswers
from trainer.config import SFTConfig
from trainer.students.base import Student

POLICY = "policy.pt"


class Config(StrictModel):
    """Knobs: the size of the student, and over how many ranks it is cut."""

    width: int = Field(default=1024, ge=64, multiple_of=64)
    layers: int = Field(default=24, ge=1)
    ranks: tuple[int, ...] = (1, 2, 4)


def run(config: Config) -> None:
    with temporary() as root:
        weights = _write(root, config)
        rows, alone = [], {}
        for name in ("a student", "policy and reference"):
            count = weights * (1 + (name != "a student"))
            for ranks in config.ranks:
                peak = max(_peaks(root, ranks, name))
                alone.setdefault(name, peak)
                rows.append([name, str(ranks), f"{peak:.0f}", f"{peak / alone[name]:.2f}", f"{peak / count:.2f}"])
    print(f"{weights / 4:.0f} million weights in float32, {weights:.0f} MB; the largest peak of the ranks\n")
    print(table(["what is loaded", "ranks", "MB a rank", "of one process's", "of the weights"], rows))


def _write(root: Path, config: Config) -> float:
    """A model's folder and a policy of it; the MB of its weights."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    words = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    words.add_special_tokens([AddedToken(t) for t in ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG>")])
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 64, "intermediate_size": 64}
    text = {
        "model_type": "qwen2", "hidden_size": config.width, "intermediate_size": 4 * config.width, "vocab_size": 512,
        "num_hidden_layers": config.layers, "num_attention_heads": config.width // 64,
        "num_key_value_heads": config.width // 64,
    }  # fmt: skip
    torch.manual_seed(0)
    model: Any = InternVLForConditionalGeneration(
        InternVLConfig(
            text_config=text, vision_config={**small, "image_size": [32, 32], "patch_size": [8, 8]},
            image_token_id=words.token_to_id("<IMG>"), image_seq_length=4,
        )
    )  # fmt: skip
    for part in (
        model,
        PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|im_end|>"),
        GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=False),
    ):
        part.save_pretrained(root / "model")
    grid = {"column": "c", "target": "t", "grid": {"x": 1}}
    recipe = SFTConfig.model_validate(
        {
            "data": ".", "out": ".", "student": {"kind": "hf", "model": str(root / "model"), "freeze_vision": False},
            "answers": {"kind": "text"}, "targets": {"wm": grid, "geo": grid}, "stages": [{"stage": 1, "steps": 1}],
        }
    )  # fmt: skip
    content: dict[str, Any] = {"config": recipe.model_dump_json(), "answers": TextAnswers(8, 1).state(), "history": 1}
    student = build.student_of(content)
    checkpoint.save(root / POLICY, content | {"student": student.state_dict()})
    return sum(p.numel() for p in student.parameters()) * 4 / 1e6


def _peaks(root: Path, ranks: int, name: str) -> list[float]:
    """Run the children; the peak of each above what it began with, in MB."""
    ask = json.dumps({"policy": str(root / POLICY), "name": name})
    return [json.loads(line) for line in measure.ranks(ranks, "benchmarks.loading", ask).splitlines()]


def _measured(policy: Path, name: str) -> None:
    """The child: load, print the peak."""
    from transformers import AutoModelForImageTextToText  # noqa: F401 (what is imported is not measured)

    with distributed.session("cpu") as device:
        before = status("VmHWM")
        begun = checkpoint.load(policy)
        kept = [_placed(begun, device, read=name != "a student") for _ in range(1 + (name != "a student"))]
        for value in (value for student in kept for value in student.state_dict().values()):
            value.to_local().sum() if isinstance(value, DTensor) else value.sum()  # one process may have mapped it only
        print(json.dumps(status("VmHWM") - before))


def _placed(begun: dict[str, Any], device: torch.device, *, read: bool) -> Student:
    """A student as `trainer.run` places it, with the weights of the model or of the policy."""
    parallel = distributed.ParallelConfig(mode="fsdp")
    student = build.student_of(begun, unread=distributed.sharded(parallel))
    distributed.shard(student, student.blocks, (), parallel, device, torch.float32, student.unread())
    if read:
        checkpoint.load_weights(student, begun["student"])
    return student


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    _measured(Path(asked["policy"]), asked["name"])
