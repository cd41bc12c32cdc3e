"""The way of a batch through a device: pinned upload, launch without waiting, pinned download, busy time.

    any thread   stage     gather -> stack into pinned memory -> [upload stream] copy ........ event: uploaded
    the turn     launch    [compute stream] wait for uploaded; start; forward; end ........... event: done
                           [download stream] wait for done; copy into pinned memory .......... event: landed
    any thread   collect   wait for landed -> numpy -> scatter

A teacher gives three plain functions (`gather`, `forward`, `scatter`) and has `compute` and its three phases from
`PhasedCompute`. On the CPU the same functions run one after the other, on the arrays as they are, so that a target's
bits do not know that phases exist.

Why no memory is used twice: torch's allocators give a block away again when the streams that it was told of are past
it. `non_blocking` copies tell the pinned one; `record_stream` tells the device's. Every copy of a batch is its own
memory, so batches may be under way side by side.

The trade-off: two more streams and some pinned megabytes a batch, for a device that neither waits for a copy nor for
Python between batches. `forward` must then never ask the device for a value (``.item()``, ``.cpu()``, `torch.tensor` on
the device), or the launch waits for all that was queued before it.
"""

from __future__ import annotations

import functools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from shards_schema.errors import ShardsError
from teachers.base import Targets, TeacherInput

Notes = TypeVar("Notes")
"""What `gather` knows of a batch that the device need not: it goes to `scatter`."""

Rows = Sequence[NDArray[Any] | Sequence[NDArray[Any]]]
"""An array a scene; or the arrays that make it up along a first axis, which are then copied once, into the batch."""

Shape = ParamSpec("Shape")
Table = TypeVar("Table")


class Lane:
    """The streams of one teacher on one device.

    Args:
        device: "cpu", "cuda", "cuda:1".
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.asynchronous = self.device.type == "cuda"
        if self.asynchronous:
            if self.device.index is None:  # named, since another thread may have another current one
                self.device = torch.device("cuda", torch.cuda.current_device())
            self._up = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
            self._down = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]

    def upload(self, arrays: Mapping[str, Rows], batch: int | None = None) -> Upload:
        """Stack each name's arrays and begin to copy them to the device.

        Args:
            arrays: by name, an array a scene, all of one shape and dtype; see `Rows`.
            batch: scenes that the stack is to have; the last one is repeated until it has.
        """
        stacks = {name: _stacked(rows, batch, pinned=self.asynchronous) for name, rows in arrays.items()}
        if not self.asynchronous:
            return Upload(stacks)
        with torch.cuda.stream(self._up):
            tensors = {name: stack.to(self.device, non_blocking=True) for name, stack in stacks.items()}
            return Upload(tensors, _recorded(self._up))

    def launch(self, upload: Upload, forward: Any) -> Flight:
        """Queue ``forward(tensors) -> tensors by name`` behind what this thread has queued before, and the copy back.

        On CUDA this returns before the device has begun; on the CPU `forward` has run.
        """
        if not self.asynchronous:
            began = time.perf_counter()
            with torch.inference_mode():
                out = {name: tensor.contiguous() for name, tensor in forward(upload.tensors).items()}
            return Flight(out, seconds=time.perf_counter() - began)
        with torch.cuda.device(self.device), torch.inference_mode():
            compute = torch.cuda.current_stream(self.device)
            assert upload.event is not None
            compute.wait_event(upload.event)
            for tensor in upload.tensors.values():
                tensor.record_stream(compute)
            start = _recorded(compute, timed=True)
            out = {name: tensor.contiguous() for name, tensor in forward(upload.tensors).items()}
            done = _recorded(compute, timed=True)
            self._down.wait_event(done)
            landed = {}
            with torch.cuda.stream(self._down):
                for name, tensor in out.items():
                    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                    landed[name] = pinned.copy_(tensor, non_blocking=True)
                    tensor.record_stream(self._down)
                return Flight(landed, start=start, done=done, landed=_recorded(self._down))


@dataclass(slots=True)
class Upload:
    """A batch on its way to the device: [B, ...] by name, there when `event` has come."""

    tensors: dict[str, torch.Tensor]
    event: torch.cuda.Event | None = None


class Flight:
    """A batch that the device is at work on, or has done: a `teachers.base.Launch`."""

    def __init__(
        self,
        tensors: dict[str, torch.Tensor],
        *,
        seconds: float = 0.0,
        start: torch.cuda.Event | None = None,
        done: torch.cuda.Event | None = None,
        landed: torch.cuda.Event | None = None,
    ) -> None:
        self._tensors = tensors
        self._seconds, self._start, self._done, self._landed = seconds, start, done, landed

    def wait(self) -> None:
        """Until the forward is done; its results may still be on their way."""
        if self._done is not None:
            self._done.synchronize()

    @property
    def seconds(self) -> float:
        """From the forward's start on the device to its end there; copies are beside it. On the CPU, of the wall."""
        if self._start is None or self._done is None:
            return self._seconds
        self._done.synchronize()
        return float(self._start.elapsed_time(self._done)) / 1e3

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The results, [B, ...] by name, when they have landed; once, for they are not kept here."""
        if self._landed is not None:
            self._landed.synchronize()
        tensors, self._tensors = self._tensors, {}
        return {name: tensor.numpy() for name, tensor in tensors.items()}


@dataclass(frozen=True, slots=True)
class Staged(Generic[Notes]):
    """A batch that waits for its turn."""

    upload: Upload
    scenes: int
    notes: Notes


@dataclass(frozen=True, slots=True)
class Launched(Generic[Notes]):
    """A batch after its turn: a `teachers.base.Launch`."""

    flight: Flight
    scenes: int
    notes: Notes

    def wait(self) -> None:
        """See `Flight.wait`."""
        self.flight.wait()

    @property
    def seconds(self) -> float:
        """See `Flight.seconds`."""
        return self.flight.seconds


class PhasedCompute(ABC, Generic[Notes]):
    """`compute` and the phases of a `teachers.base.PhasedTeacher`, of three functions.

    A subclass calls `use` at the end of its `load`. Where the network wants one batch size always (`fixed_batch`), a
    shorter batch repeats its last scene, and the copies are dropped.
    """

    lane: Lane | None = None
    fixed_batch: int | None = None
    """Scenes of every batch that `forward` sees; None where it takes as many as there are."""

    def use(self, device: str) -> None:
        """From now on batches go to `device`."""
        self.lane = Lane(device)

    @abstractmethod
    def gather(self, batch: Sequence[TeacherInput]) -> tuple[Mapping[str, Rows], Notes]:
        """By name, an array a scene or its parts, for the device; and what `scatter` is to know. Any thread.

        Raises:
            ConfigError: inputs that `requests` and `preprocess` did not make.
        """

    @abstractmethod
    def forward(self, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """From [B, ...] on the device to [B, ...] on the device, as the targets have them.

        Runs under `torch.inference_mode`, in one thread at a time, and asks the device for no value.
        """

    def scatter(self, arrays: Mapping[str, NDArray[Any]], notes: Notes) -> list[Targets]:
        """Each scene's targets, of `forward`'s results on the host: a row of each, unless a subclass knows more.

        Any thread. Views are copied afterwards.
        """
        scenes = len(next(iter(arrays.values())))
        return [{name: array[i] for name, array in arrays.items()} for i in range(scenes)]

    def stage(self, batch: Sequence[TeacherInput]) -> Staged[Notes]:
        """See `teachers.base.PhasedTeacher`."""
        arrays, notes = self.gather(batch)
        return Staged(self._lane().upload(arrays, self.fixed_batch), len(batch), notes)

    def launch(self, staged: Staged[Notes]) -> Launched[Notes]:
        """See `teachers.base.PhasedTeacher`."""
        return Launched(self._lane().launch(staged.upload, self.forward), staged.scenes, staged.notes)

    def collect(self, launch: Launched[Notes]) -> list[Targets]:
        """See `teachers.base.PhasedTeacher`."""
        arrays = {name: array[: launch.scenes] for name, array in launch.flight.arrays().items()}
        made = self.scatter(arrays, launch.notes)
        # of their own: a view would keep the whole batch, pinned, until its last scene is written
        return [{name: array.copy() for name, array in targets.items()} for targets in made]

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        """See `teachers.base.Teacher`."""
        self._lane()
        return self.collect(self.launch(self.stage(batch))) if batch else []

    def _lane(self) -> Lane:
        if self.lane is None:
            raise ShardsError(f"{type(self).__name__}: call load(device) before compute or stage")
        return self.lane

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "lane": None}  # a copy elsewhere loads its own


def constant(values: Sequence[float], device: torch.device) -> torch.Tensor:
    """float32 [n] made on the device: `torch.tensor` would copy it there, and wait for all that is queued."""
    made = torch.empty(len(values), device=device)
    for i, value in enumerate(values):
        made[i].fill_(value)
    return made


def kept(make: Callable[Shape, Table]) -> Callable[Shape, Table]:
    """`make`, a function of shapes and a device alone, called once for each: the last 16 tables stay on their device.

    They are made outside inference mode, so that a network can be run with gradients too.
    """

    @functools.lru_cache(maxsize=16)
    def once(*args: Shape.args, **names: Shape.kwargs) -> Table:
        with torch.inference_mode(False), torch.no_grad():
            return make(*args, **names)

    return once  # type: ignore[return-value]


def _stacked(rows: Rows, batch: int | None, *, pinned: bool) -> torch.Tensor:
    """[B, ...] of memory of its own; the last row is repeated until there are `batch`."""
    padded: list[Any] = [*rows, *[rows[-1]] * (0 if batch is None else batch - len(rows))]
    whole = isinstance(rows[0], np.ndarray)
    one: NDArray[Any] = padded[0] if whole else padded[0][0]
    dtype = torch.from_numpy(np.empty(0, one.dtype)).dtype
    stack = torch.empty((len(padded), *(() if whole else (len(rows[0]),)), *one.shape), dtype=dtype, pin_memory=pinned)
    if whole:
        np.stack(padded, out=stack.numpy())
    else:
        for row, place in zip(padded, stack.numpy(), strict=True):
            np.stack(row, out=place)
    return stack


def _recorded(stream: torch.cuda.Stream, *, timed: bool = False) -> torch.cuda.Event:
    """An event now in `stream`; who waits for it sleeps, and does not spin."""
    event = torch.cuda.Event(enable_timing=timed, blocking=True)  # type: ignore[no-untyped-call]
    event.record(stream)
    return event
