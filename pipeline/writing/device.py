"""The device that a worker's config names: what it is on this machine, and whether this machine has it."""

from __future__ import annotations

import functools
import socket

import torch

from shards_schema.errors import ConfigError


def resolved(device: str) -> str:
    """A `WorkerConfig.device`, with ``auto`` as this machine has it."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def refuse_absent(device: str) -> None:
    """Refuse a device that this process cannot have, before a network is built for it.

    Args:
        device: a `WorkerConfig.device`; ``auto`` is never refused.

    Raises:
        ConfigError: torch knows no such kind, or sees no such GPU here.
    """
    if device == "auto":
        return
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"worker.device: expected auto, cpu, cuda or cuda:N, got {device!r}") from error
    there = torch.cuda.device_count() if wanted.type == "cuda" else 0
    if wanted.type != "cuda" or (wanted.index or 0) < there:
        return
    built = torch.version.cuda
    if built is None:
        remedy = "install a torch that is built with CUDA, or set worker.device: cpu"
    elif there:
        remedy = "a worker sees only the GPUs that Ray reserved for it, numbered from 0: set worker.device: cuda"
    else:
        remedy = (
            "does nvidia-smi show one there, and is its driver new enough? Under Ray, cluster.gpus_per_worker: 1 gives "
            "each worker one; or set worker.device: cpu"
        )
    raise ConfigError(
        f"worker.device is {device}, and on {socket.gethostname()} torch {torch.__version__} "
        f"(CUDA {built or 'not built in'}) sees {there} GPUs: {remedy}"
    )


@functools.cache
def device_name(device: str) -> str:
    """Of a torch device: its maker's, for a GPU."""
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device
