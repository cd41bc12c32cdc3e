"""What a recipe says of a pretrained student."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shards_schema.inputs.models import StrictModel


class LoraConfig(StrictModel):
    """Low-rank adaptation of the language model's linear layers (peft)."""

    rank: int = Field(default=32, ge=1)
    alpha: float = Field(default=64.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class HFConfig(StrictModel):
    """A pretrained student."""

    kind: Literal["hf"] = "hf"
    model: str
    """A folder, or a repository of the hub."""
    revision: str | None = None
    """Of the hub's repository."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the pretrained weights; what LoRA adds, latents and answer head are float32. Weights in bfloat16 that are
    trained have float32 masters in the optimiser (not with fsdp, whose float32 shards are the masters)."""
    lora: LoraConfig | None = None
    """None trains every weight (but those of a frozen vision tower)."""
    freeze_vision: bool = True
    """Whether the vision tower stays as it is."""
    gradient_checkpointing: bool = False
    """Recompute activations (gradients are the same)."""
    tiles: int = Field(default=1, ge=1)
    """InternVL only: most tiles an image is cut into."""
    align_layer: int = -1
    """See `TinyConfig`."""
