"""Weights into a network: from the official file, or pseudo-random ones from a seed.

A file must fit exactly: every parameter of the network is in it with its shape, and nothing else is, except the
parameters of heads that the network does not have (the official file also holds a point and a track head). Tensors are
copied one at a time, as float32, from a memory-mapped file straight to the device.

Random parameters are for tests and demonstrations. Each is uniform, drawn from a bit generator seeded by
sha256("seed:name"), by integer arithmetic and one correctly rounded float32 product: the same bits on every machine and
device, whatever order, and PyTorch's and NumPy's global generators are not touched.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from shards_schema.errors import WeightsError
from teachers.files import refuse_other_shapes

CANDIDATES = ("model.safetensors", "model.pt", "vggt_1B_commercial.pt")
"""File names of the official repositories, in the order in which they are tried."""

_HEADS = ("camera_head", "depth_head", "point_head", "track_head")


def load_checkpoint(network: nn.Module, path: Path, device: str) -> None:
    """Fill `network`, which may be on the meta device, with the float32 weights of the file at `path`.

    Args:
        network: a network whose parameter names are the official ones.
        path: a ``.safetensors`` file, or a state dict that ``torch.save`` wrote.
        device: where the weights go.

    Raises:
        WeightsError: the file cannot be read, or does not fit; up to 5 names of each kind are given.
    """
    expected = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    absent = tuple(f"{head}." for head in _HEADS if not any(name.startswith(f"{head}.") for name in expected))
    shapes, read = _opened(path)
    found = {name: shape for name, shape in shapes.items() if not name.startswith(absent)}
    refuse_other_shapes(str(path), "the network that the config describes", expected, found)
    state = {name: read(name).to(device=device, dtype=torch.float32, copy=True) for name in expected}
    network.load_state_dict(state, assign=True)


def fill_random(network: nn.Module, seed: int, device: str) -> None:
    """Fill `network`, which may be on the meta device, with random float32 weights that follow from `seed` alone."""
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    state = {name: random_parameter(name, shape, seed).to(device) for name, shape in shapes.items()}
    network.load_state_dict(state, assign=True)


def random_parameter(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """The random parameter `name`: float32, uniform, of mean m and standard deviation s.

    Matrices and kernels: m 0, s 1/sqrt(fan-in). Gains (other vectors): m 1, s 0.1. Biases, tokens and embeddings:
    m 0, s 0.02.
    """
    matrix = len(shape) >= 2 and name.endswith(".weight")
    gain = len(shape) == 1 and not name.endswith(".bias")
    deviation = math.prod(shape[1:]) ** -0.5 if matrix else 0.1 if gain else 0.02
    key = int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:16], "little")
    size = math.prod(shape)
    words = np.random.PCG64(key).random_raw((size + 1) // 2).astype("<u8", copy=False).view("<i4")[:size]
    # The upper 24 bits are a whole number of at most 2^23 in magnitude, which float32 holds exactly.
    unit = (words >> 8).astype(np.float32)
    unit *= np.float32(math.sqrt(3.0) * deviation * 2.0**-23)
    if gain:
        unit += np.float32(1.0)
    return torch.from_numpy(unit.reshape(shape))


def _opened(path: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    """The shapes of a file's tensors by name, and a function that gives one; the file stays mapped while that lives."""
    try:
        if path.suffix == ".safetensors":
            file: Any = safe_open(path, framework="pt", device="cpu")
            names: list[str] = list(file.keys())
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}, file.get_tensor
        # A file in torch's old format (not a zip) cannot be mapped, only read as a whole.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (OSError, EOFError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise WeightsError(f"{path}: cannot be read as a checkpoint (safetensors or torch.save): {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: expected a state dict (tensor by parameter name), got something else")
    return {name: tuple(value.shape) for name, value in state.items()}, state.__getitem__
