"""Checkpoints: one is whole or it is not there, and what is in it is enough to go on as if nothing had happened.

    <out>/checkpoints/step_00000400/    student, adapters and optimiser as safetensors: each rank writes its part
                        state.pt        all else: recipe, RNG of each rank, stream cursor
    <out>/stage_2.pt                    what a stage ended with: student and adapters, each under its own key, with
                                        what is needed to use them (config, answers, statistics, notices)

A file is written to a temporary name, fsynced, renamed, its folder fsynced; and so is the folder of a checkpoint, by
rank 0 when all ranks have written. That is done in the background, of a copy. Whatever number of ranks reads it again:
each takes its own part (torch.distributed.checkpoint). No pickled code is run: `weights_only=True`, and safetensors.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping, Set
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors
from torch.distributed.checkpoint.state_dict_saver import async_save

from pipeline.stores.disk import fsync, replace_file
from shards_schema.errors import DatasetError, MissingFileError, StoreError
from trainer import distributed

VERSION = 1
_TRAINED = StateDictOptions(ignore_frozen_params=True)
"""What is frozen comes from the pretrained weights again, and is not written into every checkpoint."""
_WHOLE = StateDictOptions(ignore_frozen_params=True, full_state_dict=True, cpu_offload=True)
warnings.filterwarnings("ignore", "torch.distributed is disabled")  # which is right in one process
_NAME = re.compile(r"step_(\d{8})\Z")
_STATE = "state.pt"
_TENSORS = 256
"""Tensors of a rank in one file; a file is made in memory before it is written."""


def save(path: Path, content: Mapping[str, Any], group: dist.ProcessGroup | None = None) -> None:
    """Write `content` (tensors and plain values) into a file, atomically; rank 0 writes, the others wait.

    Raises:
        StoreError: it could not be written; on every rank.
    """
    distributed.by_rank_0(lambda: _write(path, content), group)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    def write(draft: Path) -> None:
        with open(draft, "wb") as file:
            torch.save({"version": VERSION, **content}, file)

    try:
        replace_file(path, write)
    except (StoreError, RuntimeError) as error:  # torch's own writer says RuntimeError where a disk is full
        raise _unwritten(path, error.__cause__ or error) from error


def _unwritten(path: Path, error: BaseException) -> StoreError:
    return StoreError(
        f"{path}: cannot be written ({error}); make room or mend the disk, then run the same command again: it goes on "
        "from the checkpoint before"
    )


def load(path: Path) -> dict[str, Any]:
    """The content of a file, or of a checkpoint's folder all but its tensors; tensors are mapped, not read.

    Raises:
        MissingFileError: there is none.
        StoreError: it cannot be read.
        DatasetError: damaged, or of another version.
    """
    path = path / _STATE if (path / _STATE).is_file() else path
    if path.is_dir():
        there = ", ".join(sorted(file.name for file in path.glob("*.pt"))[-3:]) or "none"
        raise DatasetError(f"{path}: a folder, and a checkpoint is a file that `make sft` writes; *.pt in it: {there}")
    try:
        _refuse_packed(path)
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
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
    step = path.parent if path.name == _STATE else path
    if _NAME.match(step.name) and any(other < step for other in _steps(step.parent)):
        return f"; move {step.name} away to go on from the one before"
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
    return max(_steps(folder), default=None)


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*") if _NAME.match(path.name))


class Checkpoints:
    """Those of a run, one of which at a time is being written in the background.

    As a context: when it is left, nothing is in the air.

    Args:
        folder: where they lie.
        keep: the newest so many stay.

    Attributes:
        group: of the ranks, for what waits for a disk and not beside a save.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep
        self.group = distributed.patient_group()
        self._pending: tuple[Path, Future[Any]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def save(self, step: int, model: nn.Module, optimiser: torch.optim.Optimizer, rest: Mapping[str, Any]) -> None:
        """Begin to write the checkpoint of a step, when the one before is written; every rank calls.

        All may change when this returns. Old checkpoints go when the new one is there.

        Raises:
            StoreError: the one before could not be written; on every rank.
        """
        self.wait()
        tensors = _tensors(model, optimiser)
        content = {**rest, "rng": distributed.gathered(_rng()), "tensors": list(tensors)}
        path = self._path(step)
        future: Any = async_save(
            _by_part(tensors),
            storage_writer=_Writer(path, content, self._keep),
            process_group=self.group,
            no_dist=self.group is None,
        )
        self._pending = path, future

    def wait(self) -> None:
        """Until what was begun is written; every rank calls.

        Raises:
            StoreError: it could not be; on every rank.
        """
        if self._pending is None:
            return
        (path, future), self._pending = self._pending, None
        try:
            future.result()
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            if distributed.rank() == 0:
                shutil.rmtree(_draft(path), ignore_errors=True)
            raise (cause if isinstance(cause, StoreError) else _unwritten(path, cause)) from error

    def restore(
        self, step: int, content: Mapping[str, Any], model: nn.Module, optimiser: torch.optim.Optimizer, seed: int
    ) -> None:
        """Stand where a checkpoint stood: weights, optimiser, RNG of this rank; every rank calls.

        Args:
            step: of the checkpoint.
            content: what `load` says of it.
            model: of the same student, on any number of ranks.
            optimiser: new, of that model.
            seed: of this rank's RNG, where the checkpoint is of another number of ranks.

        Raises:
            DatasetError: it is of another student, or damaged.
        """
        path, recorded = self._path(step), set(content["tensors"])
        tensors = _tensors(model, optimiser)  # makes the optimiser's
        of_model = {name for name in tensors if name.startswith("model.")}
        _refuse_other(of_model, {name for name in recorded if name.startswith("model.")}, of_model)
        for name, parameter in model.named_parameters():
            if f"optimiser.{name}.step" not in recorded:  # it has had no gradient yet
                optimiser.state.pop(parameter, None)
            elif f"optimiser.{name}.master" not in recorded:  # it had none; it is what the weight will be
                optimiser.state[parameter].pop("master", None)
        changed = [name for name, size in content["files"].items() if _size(path / name) != size]
        if changed:
            raise DatasetError(f"{path}: {changed[0]} is not what was written{_instead(path)}")
        try:
            load_tensors(
                _by_part({name: value for name, value in tensors.items() if name in recorded}),
                storage_reader=HuggingFaceStorageReader(str(path)),
                process_group=self.group,
                no_dist=self.group is None,
            )  # into the tensors themselves
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            raise DatasetError(f"{path}: not a checkpoint ({cause}){_instead(path)}") from error
        states = content["rng"]
        if len(states) == distributed.world_size():
            _set_rng(states[distributed.rank()])
        else:
            torch.manual_seed(seed)

    def _path(self, step: int) -> Path:
        return self._folder / f"step_{step:08d}"


class _Writer(HuggingFaceStorageWriter):
    """Drafts a checkpoint beside its place. Rank 0 puts it there when all have written, and deletes old ones.

    Args:
        path: its place.
        content: what is no tensor of model and optimiser; that of rank 0 counts.
        keep: the newest so many stay.
    """

    def __init__(self, path: Path, content: Mapping[str, Any], keep: int) -> None:
        files = {name: i // _TENSORS + 1 for i, name in enumerate(content["tensors"])}
        super().__init__(str(_draft(path)), files, save_distributed=True)
        self._place, self._content, self._keep = path, content, keep

    def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
        """On rank 0, before any rank writes: what a process that was killed left is not of this checkpoint."""
        shutil.rmtree(self.path)
        os.mkdir(self.path)
        return super().prepare_global_plan(plans)

    def finish(self, metadata: Any, results: Any) -> None:
        """On rank 0, when all ranks have written."""
        draft, folder = _draft(self._place), self._place.parent
        sizes = {path.name: path.stat().st_size for path in draft.iterdir()}
        _write(draft / _STATE, {**self._content, "files": sizes})
        os.replace(draft, self._place)
        fsync(folder)
        for old in _steps(folder)[: -self._keep]:
            os.replace(old, _draft(old))  # a name that nobody reads, before the first of its files goes
        for left in folder.glob(".step_*"):
            shutil.rmtree(left)


def _draft(path: Path) -> Path:
    return path.with_name(f".{path.name}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _tensors(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Trained weights, buffers and the optimiser's, by name: the tensors themselves, of which a rank has its part."""
    weights: Any = get_model_state_dict(model, options=_TRAINED)
    states: Any = get_optimizer_state_dict(model, optimiser, options=_TRAINED)["state"]
    moments = {f"optimiser.{name}.{key}": value for name, state in states.items() for key, value in state.items()}
    return {f"model.{name}": value for name, value in weights.items()} | moments


def _by_part(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The same in two mappings: what is saved takes time for each key of the outer one."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    return parts


def load_weights(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Put whole weights into a model; of a sharded one each rank takes its part.

    Raises:
        DatasetError: a weight that is trained is missing, or one has no place; the names are given.
    """
    # the buffers that a model registers as not persistent are in no state dict on either side
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    _refuse_other(trained, weights.keys(), model.state_dict().keys())
    distributed.fill(model, weights.items())


def _refuse_other(wanted: Set[str], found: Set[str], places: Set[str]) -> None:
    missing, foreign = sorted(wanted - found), sorted(found - places)
    if missing or foreign:
        raise DatasetError(f"checkpoint: missing {missing[:4]}, no place for {foreign[:4]}: it is of another student")


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
