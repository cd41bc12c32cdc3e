"""Each teacher's network on this device against the CPU: largest relative errors, bfloat16's drift, equal batches.

A row is a network with random weights on two synthetic scenes. *float32* holds its targets on the device against those
of the CPU: the largest difference of any value over the target's largest magnitude, and the median one. *bfloat16*
holds the device's bfloat16 against its own float32 in the same way, with the least cosine of any target. *twice* says
whether the same batch gave the same bytes again. On the CPU, float32 is held against the CPU itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from reports.tables import table
from shards_schema.errors import ConfigError, ShardsError
from shards_schema.inputs.models import StrictModel
from teachers import registry
from teachers.base import Targets, Teacher
from teachers.probing import forget
from teachers.testing import synthetic_input

_CLIP = {"size": [256, 128], "pool": 2}
NETWORKS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "VGGT": (
        "vggt",
        "1b",
        {"width": 266, "height": 154, "views": ["CAM_F0", "CAM_L0"], "pools": {"grid": {"rows": 4, "cols": 6}}},
    ),
    "CV8x8x8": ("cosmos", "full", _CLIP),
    "Wan 2.1 VAE": ("cosmos", "full", {**_CLIP, "model": "wan", "layout": "C"}),
    "Predict2": ("cosmos_predict", "2b", _CLIP),
    "V-JEPA 2": ("vjepa2", "vitl", {"size": [256, 144], "pools": {"grid": [4, 6]}}),
}
"""Of each: kind, the published size, and the fields of its config."""


class Config(StrictModel):
    """Knobs."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""
    networks: Literal["auto", "full", "tiny"] = "auto"
    """auto is the published sizes on CUDA, tiny ones on the CPU."""
    scenes: int = Field(default=2, ge=1)
    """Of the batch."""


def run(config: Config) -> None:
    """Measure and print; a network that cannot be built here has its reason in its row."""
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {device}: torch {torch.__version__} sees no CUDA; device=cpu runs anywhere")
    full = config.networks == "full" or (config.networks == "auto" and device.startswith("cuda"))
    rows = []
    for name, (kind, published, fields) in NETWORKS.items():
        network = published if full else "tiny"
        whole = {"weights": {"random": 0}, "network": network, "batch_size": config.scenes, **fields}
        rows.append([f"{name} {network}", *_row(kind, whole, device)])
        print(*rows[-1], sep="  ", flush=True)  # what is known is said, should the next one die
    heads = [f"{device} against the CPU", "float32 largest", "median", "bfloat16 largest", "median", "cosine", "twice"]
    print(f"\n{table(heads, rows)}", flush=True)


def _row(kind: str, fields: dict[str, Any], device: str) -> list[str]:
    try:
        want, _ = _targets(kind, fields, "cpu")
        here, equal = _targets(kind, fields, device)
    except (ModuleNotFoundError, RuntimeError, ShardsError) as error:
        return [f"not measured: {type(error).__name__}: {str(error).splitlines()[0]}", *["-"] * 5]
    exact = [f"{value:.1e}" for value in differences(here, want)[:2]]
    try:
        low, equal_too = _targets(kind, {**fields, "dtype": "bfloat16"}, device)
    except (RuntimeError, ShardsError) as error:
        return [*exact, f"not measured: {str(error).splitlines()[0][:60]}", "-", "-", _yes(equal)]
    largest, middle, cosine = differences(low, here)
    return [*exact, f"{largest:.1e}", f"{middle:.1e}", f"{cosine:.4f}", _yes(equal and equal_too)]


def _targets(kind: str, fields: dict[str, Any], device: str) -> tuple[list[Targets], bool]:
    """The targets of one batch, and whether a second time gives the same bytes; the network is let go."""
    teacher: Teacher = registry.build(kind, fields)
    teacher.load(device)
    batch = [synthetic_input(teacher, seed) for seed in range(teacher.batch_size)]
    first = teacher.compute(batch)
    again = teacher.compute(batch)
    del teacher
    forget(device)
    return first, all(a[name].tobytes() == b[name].tobytes() for a, b in zip(first, again, strict=True) for name in a)


def differences(got: Sequence[Targets], want: Sequence[Targets]) -> tuple[float, float, float]:
    """Of all targets the worst: largest and median difference over the target's largest magnitude, and cosine."""
    largest, middle, cosine = 0.0, 0.0, 1.0
    for name in want[0]:
        a, b = (np.concatenate([s[name].ravel() for s in side]).astype(np.float64) for side in (got, want))
        known = np.isfinite(b)  # depth has cells without a value
        off = np.where(np.isfinite(a) != known, np.inf, np.where(known, np.abs(a - b), 0.0))
        scale = max(float(np.abs(b[known]).max(initial=0.0)), 1e-9)
        largest, middle = max(largest, float(off.max()) / scale), max(middle, float(np.median(off)) / scale)
        length = float(np.linalg.norm(a[known]) * np.linalg.norm(b[known]))
        cosine = min(cosine, float(a[known] @ b[known]) / length if length else 1.0)
    return largest, middle, cosine


def _yes(equal: bool) -> str:
    return "equal" if equal else "DIFFERENT"
