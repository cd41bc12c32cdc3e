"""Checkpoints: a file is whole or it is not there, and what is in it is enough to go on as if nothing had happened.

    <out>/checkpoints/step_00000400.pt     everything: student, adapters, optimiser, RNG of each rank, stream cursor
    <out>/stage_2.pt                       what a stage ended with: student and adapters, each under its own key, with
                                           what is needed to use them (config, answers, statistics, notices)

Written to a temporary name, fsynced, renamed, folder fsynced. Read with `weights_only=True`: no pickled code is run.
State dicts are whole (gathered from FSDP, without DDP's prefix), so that a run can resume with other ranks.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from pipeline.stores.disk import replace_file
from shards_schema.errors import DatasetError, MissingFileError, StoreError
from trainer import distributed

VERSION = 1
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True, strict=False)
"""What is frozen comes from the pretrained weights again, and is not written into every checkpoint."""
_NAME = re.compile(r"step_(\d{8})\.pt\Z")


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` (tensors and plain values) atomically; rank 0 writes, the others wait.

    Raises:
        StoreError: it could not be written; on every rank.
    """
    distributed.by_rank_0(lambda: _write(path, content))


def _write(path: Path, content: Mapping[str, Any]) -> None:
    def write(draft: Path) -> None:
        with open(draft, "wb") as file:
            torch.save({"version": VERSION, **content}, file)

    try:
        replace_file(path, write)
    except (StoreError, RuntimeError) as error:  # torch's own writer says RuntimeError where a disk is full
        raise StoreError(
            f"{path}: cannot be written ({error.__cause__ or error}); make room or mend the disk, then run the same "
            "command again: it goes on from the checkpoint before"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises:
        MissingFileError: there is none.
        StoreError: it cannot be read.
        DatasetError: damaged, or of another version.
    """
    if path.is_dir():
        there = ", ".join(sorted(file.name for file in path.glob("*.pt"))[-3:]) or "none"
        raise DatasetError(f"{path}: a folder, and a checkpoint is a file that `make sft` writes; *.pt in it: {there}")
    try:
        _refuse_packed(path)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MissingFileError(f"{path}: no such checkpoint; `make sft` writes them") from error
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror or error}); mend that, and try again") from error
    except Exception as error:
        raise DatasetError(f"{path}: not a checkpoint ({error}){_instead(path)}") from error
    if content.get("version") != VERSION:
        raise DatasetError(f"{path}: checkpoint version {content.get('version')}, this code reads {VERSION}")
    return content


def _instead(path: Path) -> str:
    """What to do without a checkpoint that is damaged: to go on from the one before is possible where there is one."""
    if _NAME.match(path.name) and any(p < path for p in path.parent.glob("step_*.pt") if _NAME.match(p.name)):
        return "; move it away to go on from the one before"
    return "; give a file that `make sft` or `make grpo` wrote"


def digest(path: Path) -> str:
    """SHA-256 of a file, in hex: by which a run knows the policy that it was begun from."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refuse_packed(path: Path) -> None:
    """`torch.save` packs nothing, so a zip whose entries unpack to more than the file holds is a bomb."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if (size := sum(entry.file_size for entry in archive.infolist())) > path.stat().st_size:
                raise ValueError(f"its entries unpack to {size} bytes, the file has {path.stat().st_size}")


def latest(folder: Path) -> Path | None:
    """The checkpoint of the highest step, or None."""
    found = [p for p in folder.glob("step_*.pt") if _NAME.match(p.name)]
    return max(found, default=None)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what an interrupted write left; rank 0 does.

    Raises:
        StoreError: it could not; on every rank.
    """
    distributed.by_rank_0(lambda: _delete(folder, keep))


def _delete(folder: Path, keep: int) -> None:
    try:
        for old in sorted(p for p in folder.glob("step_*.pt") if _NAME.match(p.name))[:-keep]:
            old.unlink()
        for left in folder.glob(".step_*"):
            left.unlink()
    except OSError as error:
        raise StoreError(f"{folder}: an old checkpoint cannot be deleted ({error}); mend that, then go on") from error


def training_state(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and optimiser, whole; every rank calls, rank 0 has them."""
    return {
        "model": weights_of(model),
        "optimiser": get_optimizer_state_dict(model, optimiser, options=_WHOLE),
        "rng": distributed.gathered(_rng()),
    }


def restore(model: nn.Module, optimiser: torch.optim.Optimizer, content: Mapping[str, Any], seed: int) -> None:
    """The inverse of `training_state`; with another number of ranks the RNG of this one starts from `seed`."""
    load_weights(model, content["model"])
    set_optimizer_state_dict(model, optimiser, content["optimiser"], options=_WHOLE)
    states = content["rng"]
    if len(states) == distributed.world_size():
        _set_rng(states[distributed.rank()])
    else:
        torch.manual_seed(seed)


def load_weights(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Put weights into a model.

    Raises:
        DatasetError: a weight that is trained is missing, or one has no place; the names are given.
    """
    # the buffers that a model registers as not persistent are in no state dict on either side
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    missing, foreign = sorted(trained - weights.keys()), sorted(weights.keys() - model.state_dict().keys())
    if missing or foreign:
        raise DatasetError(f"checkpoint: missing {missing[:4]}, no place for {foreign[:4]}: it is of another student")
    set_model_state_dict(model, dict(weights), options=_WHOLE)


def weights_of(model: nn.Module) -> dict[str, Any]:
    """The trained weights and buffers of a model, whole; every rank calls, rank 0 has them."""
    return get_model_state_dict(model, options=_WHOLE)


def parts_of(weights: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The weights of an `SFTModel` as a policy file has them: ``student`` and ``adapters``, apart."""
    return {
        part: {k.removeprefix(f"{part}."): v for k, v in weights.items() if k.startswith(f"{part}.")}
        for part in ("student", "adapters")
    }


def _rng() -> dict[str, Any]:
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None}


def _set_rng(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
