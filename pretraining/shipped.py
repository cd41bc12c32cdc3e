"""The folder that a run leaves, laid out as `teachers.weights` finds it: the weights of both networks, and their card.

Weights are rounded to float16, which halves the bytes; figures on the card are of the rounded ones.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from pipeline.stores.disk import write_json
from pretraining.steps import Recipe
from teachers.files import TENSORS
from teachers.vggt.checkpoint import CANDIDATES
from teachers.weights import file_digest

CARD = "card.json"
NOTICE = "Small networks trained on drives of last-shards' generated town. They know this town and nothing else."


def rounded(network: Any) -> Any:
    """The network with the weights that float16 keeps, in float32 again."""
    return network.half().float()


def write(
    out: Path, geometry: nn.Module, dynamics: Any, recipe: Recipe, figures: Mapping[str, Any], seconds: int
) -> dict[str, Any]:
    """Write the folder; gives the card."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in geometry.state_dict().items()}
    save_file(state, out / CANDIDATES[0], metadata={"format": "pt"})
    dynamics.half().save_pretrained(out)
    dynamics.float()
    card = {
        "notice": NOTICE,
        "license": "Apache-2.0",
        "recipe": recipe.model_dump(),
        "commit": _commit(),
        "torch": torch.__version__,
        "processor": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        "seconds": seconds,
        "parameters": {"vggt": _size(geometry), "cv8x8x8": _size(dynamics)},
        "sha256": {name: file_digest(out / name) for name in (CANDIDATES[0], TENSORS, "config.json")},
        "held_out": dict(figures),
    }
    write_json(out / CARD, card)
    return card


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _commit() -> str | None:
    """Of the code, where it is a clone."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
