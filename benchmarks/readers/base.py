"""What every library is given to write, and what is wanted of it then."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from shards_schema.inputs.models import StrictModel
from shards_schema.specs import TargetSpec

SPEC = TargetSpec(
    name="latents", dims=("view", "patch", "channel"), shape=(2, 196, 1024), dtype="float16", unit="1", meaning="noise"
)
IMAGE = "image.bin"
"""Not ``.jpg``, which our stream and others would decode."""


class Shape(StrictModel):
    """Samples in all and a shard, bytes of the image, batch, DataLoader workers."""

    samples: int = Field(default=400, ge=1)
    shard_size: int = Field(default=50, ge=1)
    image_bytes: int = Field(default=179_000, ge=1)
    batch_size: int = Field(default=8, ge=1)
    workers: tuple[int, ...] = (0, 2)


@dataclass(frozen=True, slots=True)
class Bytes:
    """The samples: tokens, images, latents."""

    tokens: Sequence[str]
    images: Sequence[bytes]
    latents: NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Reader:
    """One way to read: the folder of its files, what iterates over batches, and from where a resumed one goes on.

    Attributes:
        folder: whose files are dropped from the page cache.
        open: begins to read; an item is a batch, or one sample where the reader has no batches.
        resume: begins at half of the epoch; None where the library cannot.
    """

    folder: Path
    open: Callable[[], Iterator[Any]]
    resume: Callable[[], Iterator[Any]] | None = None


def made(shape: Shape) -> Bytes:
    """Noise, the same each time."""
    rng = np.random.default_rng(0)
    return Bytes(
        [f"{i:016x}" for i in range(shape.samples)],
        [rng.bytes(shape.image_bytes) for _ in range(shape.samples)],
        rng.standard_normal((shape.samples, *SPEC.fixed_shape), np.float32).astype(np.float16),
    )


def json_of(row: int) -> bytes:
    return json.dumps({"row": row, "future": [[0.1 * i, 0.2 * i, 0.3 * i] for i in range(8)]}).encode()


def stacked(samples: Sequence[tuple[Any, ...]]) -> dict[str, Any]:
    """(token, json, image, latents) of a batch: one copy of each latent, as our own collate makes it."""
    tokens, _, images, latents = zip(*samples, strict=True)
    return {"token": list(tokens), "image": list(images), "latents": torch.from_numpy(np.stack(latents))}
