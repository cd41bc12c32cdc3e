"""Ranks: plain torchrun. DDP by default, FSDP2 (`fully_shard` a decoder layer) for what does not fit one device.

Without `WORLD_SIZE` in the environment there is one process and nothing of torch.distributed is touched. Losses are
means over samples and every rank has batches of one size, so averaged gradients are those of the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from shards_schema.errors import ConfigError, DatasetError, StoreError
from shards_schema.inputs.models import StrictModel

Item = TypeVar("Item")
Result = TypeVar("Result")


class ParallelConfig(StrictModel):
    """How ranks share the work: ``ddp`` (a copy each) or ``fsdp`` (parameters, gradients, optimiser in parts)."""

    mode: Literal["ddp", "fsdp"] = "ddp"


def rank() -> int:
    """Of this process; 0 without torch.distributed."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Processes; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def session(device: str | None) -> Iterator[torch.device]:
    """Join the group that torchrun made, if it did; gives this rank's device, and leaves the group at the end."""
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    chosen = torch.device(name)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        if chosen.type == "cuda" and chosen.index is not None:
            torch.cuda.set_device(chosen)  # whose RNG a checkpoint keeps
        yield chosen
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        dist.destroy_process_group()


def patient_group() -> dist.ProcessGroup | None:
    """A group that waits for disks, over the CPU: hours, where NCCL would give up after ten minutes; None of one."""
    return dist.new_group(backend="gloo", timeout=timedelta(hours=4)) if dist.is_initialized() else None


def sharded(config: ParallelConfig) -> bool:
    """Whether `shard` will: it is asked for, and there are ranks."""
    return config.mode == "fsdp" and dist.is_initialized()


def shard(
    student: nn.Module,
    blocks: Sequence[nn.Module],
    others: Iterable[nn.Module],
    config: ParallelConfig,
    device: torch.device,
    dtype: torch.dtype,
    weights: Iterable[tuple[str, Tensor]] = (),
) -> None:
    """Shard a student (FSDP2, in place), a decoder layer a unit, and each of `others` by itself, if asked for.

    Each can then be called without the module around them; before the optimiser is made.

    Args:
        student: on the CPU; what is on the meta device has memory for this rank's part afterwards.
        blocks: its decoder layers.
        others: adapters; none for a reference.
        config: whether.
        device: of this rank.
        dtype: that decoder layers are gathered in.
        weights: what that memory is filled with, see `fill`.

    Raises:
        ConfigError: weights of two dtypes are trained outside the decoder layers, which FSDP2 cannot reduce together.
    """
    if config.mode != "fsdp":
        return
    within = {id(p) for block in blocks for p in block.parameters()}
    dtypes = {p.dtype for p in student.parameters() if p.requires_grad and id(p) not in within}
    if len(dtypes) > 1:
        raise ConfigError(
            f"parallel.mode fsdp: weights of {' and '.join(sorted(map(str, dtypes)))} are trained together; take "
            "student.dtype float32 (dtype: bfloat16 gathers layers in half the bytes), or student.lora"
        )
    if not sharded(config):
        return
    mesh = init_device_mesh(device.type, (world_size(),))
    stored = next(blocks[0].parameters()).dtype
    whole = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    # decoder layers, nearly all of the weights, are gathered in the low precision; what is around them keeps its own
    low = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, output_dtype=stored)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=whole if stored is dtype else low)
    for unit in (student, *others):
        fully_shard(unit, mesh=mesh, mp_policy=whole)
    for method in ("sample", "logp"):
        register_fsdp_forward_method(student, method)
    made: dict[nn.Parameter, nn.Parameter] = {}  # what several modules share stays one, as `to_empty` would not keep it
    for module in student.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if p.is_meta:
                made.setdefault(p, nn.Parameter(torch.empty_like(p, device=device), p.requires_grad))
                setattr(module, name, made[p])
    fill(student.to(device), weights)


@torch.no_grad()
def fill(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Copy whole tensors into a model, by name; of a sharded one each rank takes its rows, and reads no others.

    Raises:
        DatasetError: a shape differs; the weight is named.
    """
    places = model.state_dict()
    for name, whole in weights:
        place = places[name]
        if place.shape != whole.shape:
            raise DatasetError(f"weight {name} has shape {list(whole.shape)}, the student's has {list(place.shape)}")
        if isinstance(place, DTensor):
            rows = whole.chunk(world_size())  # as `fully_shard` cuts; the last ranks may have none
            whole = rows[rank()] if rank() < len(rows) else whole[:0]
            place = place.to_local()
        place.copy_(whole)


def wrap(model: nn.Module, config: ParallelConfig, device: torch.device, *, unused: bool = False) -> nn.Module:
    """DDP around a model where several ranks hold copies; else the model. `unused`: passes leave some weights out."""
    if config.mode != "ddp" or not dist.is_initialized():
        return model
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=devices, find_unused_parameters=unused)


@contextmanager
def no_sync(model: nn.Module, last: bool) -> Iterator[None]:
    """Gradients of all but the `last` accumulated batch stay on their rank."""
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            unit.set_requires_gradient_sync(last, recurse=False)
    with model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext():
        yield


def reshard(model: nn.Module) -> None:
    """Let go of gathered weights: after a pass without gradients FSDP shows those of outer modules as parameters."""
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()


def summed(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each value, summed over ranks, in float64."""
    if not dist.is_initialized():
        return dict(values)
    packed = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(packed)
    return dict(zip(values, packed.tolist(), strict=True))


def anywhere(flag: Tensor, model: nn.Module) -> bool:
    """Whether a bool scalar is true; where the model is sharded, on any rank, since each of its passes needs all."""
    if not isinstance(model, FSDPModule):
        return bool(flag)
    total = flag.int()
    dist.all_reduce(total)
    return bool(total > 0)


def each_rank(values: Sequence[float], device: torch.device) -> list[list[float]]:
    """Numbers of every rank, in order of ranks; as many on each."""
    if not dist.is_initialized():
        return [[float(value) for value in values]]
    rows = [[0.0] * len(values) for _ in range(world_size())]
    rows[rank()] = list(values)
    every = torch.tensor(rows, dtype=torch.float64, device=device)
    dist.all_reduce(every)
    found: list[list[float]] = every.tolist()
    return found


def gathered(value: Any) -> list[Any]:
    """A picklable value of every rank, in order of ranks."""
    if not dist.is_initialized():
        return [value]
    out: list[Any] = [None] * world_size()
    dist.all_gather_object(out, value)
    return out


def in_blocks(items: Sequence[Item], do: Callable[[Sequence[Item]], Result], size: int = 4096) -> list[Result]:
    """`do` of each block of so many items, in order, on every rank; the ranks share the blocks.

    The blocks are the same however many ranks there are, and so is what is made of their results in order.
    """
    starts = range(0, len(items), size)
    every = gathered([do(items[start : start + size]) for start in starts[rank() :: world_size()]])
    return [every[i % world_size()][i // world_size()] for i in range(len(starts))]


def by_rank_0(act: Callable[[], None], group: dist.ProcessGroup | None = None) -> None:
    """Do something on rank 0 while the others wait; every rank calls, and where it fails every rank does.

    Raises:
        StoreError: on the other ranks, with the error of rank 0, which raises its own.
    """
    failed: Exception | None = None
    if rank() == 0:
        try:
            act()
        except Exception as error:
            failed = error
    if dist.is_initialized():
        told = [None if failed is None else f"{type(failed).__name__}: {failed}"]
        dist.broadcast_object_list(told, src=0, group=group)
        if failed is None and told[0] is not None:
            raise StoreError(f"rank 0 failed, and so all ranks stop: {told[0]}")
    if failed is not None:
        raise failed


def refuse_ranks(job: str, instead: str) -> None:
    """For a job of one process.

    Args:
        job: its command.
        instead: what many ranks can do for it.

    Raises:
        ConfigError: torchrun started several.
    """
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks > 1:
        raise ConfigError(f"{job} is one process, and WORLD_SIZE is {ranks}: run it without torchrun; {instead}")
