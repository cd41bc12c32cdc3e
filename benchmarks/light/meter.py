"""The device's clock, memory and matrix rate, and readings that are taken in turn.

A reading is a number of calls of one row, from an idle device to an idle device. Its wall time counts everything that
the row does; its busy time is the device's own, by CUDA events around each call's work, so that what lies between two
calls is idle time. (Gaps between the kernels of one call are inside its events: where Python is slower than the device,
busy time is an upper bound.) On the CPU the two are the same clock.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from benchmarks.measure import cpu

SIZES = {"cuda": (4096, 8192, 16384), "cpu": (512, 1024)}
"""Sides of the square matrices whose product is timed; the best of them is the device's rate."""

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


class Device:
    """One device: what it is called, and how time and memory are read on it."""

    def __init__(self, name: str) -> None:
        self.torch = torch.device(name)
        self.cuda = self.torch.type == "cuda"
        if self.cuda:
            torch.cuda.set_device(self.torch)

    @property
    def description(self) -> str:
        """In words, with what it computes by."""
        if self.cuda:
            facts = torch.cuda.get_device_properties(self.torch)
            return f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, torch {torch.__version__}"
        return f"{cpu()}, {torch.get_num_threads()} threads, torch {torch.__version__}"

    def wait(self) -> None:
        """Until nothing is queued."""
        if self.cuda:
            torch.cuda.synchronize(self.torch)

    def allocated(self) -> int:
        """Bytes that tensors hold; 0 on the CPU."""
        return torch.cuda.memory_allocated(self.torch) if self.cuda else 0

    def reset_peak(self) -> None:
        """Forget the highest mark of memory."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.torch)

    def peak(self) -> int:
        """Most bytes that tensors held since `reset_peak`; 0 on the CPU, which has no such mark."""
        return torch.cuda.max_memory_allocated(self.torch) if self.cuda else 0

    def timed(self, call: Callable[[], object]) -> float:
        """Seconds of the device between what `call` queues first and last (it may return before they are over)."""
        return self.mark(call)()

    def mark(self, call: Callable[[], object]) -> Callable[[], float]:
        """Run `call`; what it gives waits for the device and tells how many seconds that was at work."""
        if not self.cuda:
            began = time.perf_counter()
            call()
            seconds = time.perf_counter() - began
            return lambda: seconds
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        call()
        last.record()

        def seconds_of() -> float:
            last.synchronize()
            return float(first.elapsed_time(last)) / 1e3

        return seconds_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Something to be timed.

    Attributes:
        name: what it is.
        kind: its part in the comparison: matmul, vggt, vggt tokens, upstream, upstream tokens, cosmos, predict.
        dtype: bf16 or fp32: with which of the device's matrix rates it is compared.
        scenes: of one call; 0 where it has none.
        frames: of a scene.
        flops: of one call.
        run: makes a number of calls, and gives the device's seconds.
        weights: bytes on the device that are its own before it is called.
        teacher: a teacher that it runs, loaded.
    """

    name: str
    kind: str
    dtype: str
    flops: int
    run: Callable[[int], float]
    scenes: int = 0
    frames: int = 0
    weights: int = 0
    teacher: object = None


@dataclass(slots=True)
class Readings:
    """All readings of a row.

    Attributes:
        calls: of one reading.
        wall: seconds of each.
        busy: seconds of the device in each.
        peak: most bytes on the device in any, its weights among them, those of other rows not; 0 on the CPU.
    """

    row: Row
    calls: int
    wall: list[float] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    peak: int = 0

    def scene_rates(self) -> list[float]:
        """Scenes a second."""
        return [self.row.scenes * self.calls / seconds for seconds in self.wall]

    def flop_rates(self) -> list[float]:
        """FLOP a second of the wall's clock."""
        return [self.row.flops * self.calls / seconds for seconds in self.wall]

    def busy_shares(self) -> list[float]:
        """Of the wall's time, the device's."""
        return [busy / wall for busy, wall in zip(self.busy, self.wall, strict=True)]


def matmuls(device: Device) -> list[Row]:
    """Products of square random matrices: float32 (no TF32) and, on CUDA, bfloat16."""
    kinds = ("bf16", "fp32") if device.cuda else ("fp32",)
    sizes = SIZES[device.torch.type]
    if device.cuda:
        return [_matmul(device, kind, n) for kind in kinds for n in (sizes if kind == "bf16" else sizes[:2])]
    return [_matmul(device, kind, n) for kind in kinds for n in sizes]


def _matmul(device: Device, kind: str, size: int) -> Row:
    # Random data: a GPU multiplies zeros faster, since they take less power.
    left, right, out = (torch.randn(size, size, device=device.torch, dtype=DTYPES[kind]) for _ in range(3))

    def run(calls: int) -> float:
        def products() -> None:
            for _ in range(calls):
                torch.mm(left, right, out=out)

        return device.timed(products)

    return Row(name=f"matmul {size}, {kind}", kind="matmul", dtype=kind, flops=2 * size**3, run=run)


def in_turn(
    device: Device, rows: Sequence[Row], missing: dict[str, str], repeats: int, seconds: float
) -> list[Readings]:
    """Every row's readings; each round the other way round, so that a drift of the device favours none.

    A row is called twice before it counts, the first time to warm up (and to compile, where it does). One that fails
    then, for want of memory say, is left out, and `missing` is given its reason.
    """
    readings = []
    for row in rows:
        print(f"warming up: {row.name}", file=sys.stderr, flush=True)
        try:
            row.run(1)
            once, _ = _wall(device, row, 1)
        except RuntimeError as error:
            missing[row.name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        readings.append(Readings(row, calls=max(1, math.ceil(seconds / max(once, 1e-6)))))
    for repeat in range(repeats):
        print(f"round {repeat + 1} of {repeats}", file=sys.stderr, flush=True)
        for reading in readings[:: 1 if repeat % 2 else -1]:
            held = device.allocated()
            device.reset_peak()
            wall, busy = _wall(device, reading.row, reading.calls)
            reading.wall.append(wall)
            reading.busy.append(busy)
            reading.peak = max(reading.peak, device.peak() - held + reading.row.weights)
    return readings


def _wall(device: Device, row: Row, calls: int) -> tuple[float, float]:
    device.wait()
    began = time.perf_counter()
    busy = row.run(calls)
    device.wait()
    return time.perf_counter() - began, busy


def matrix_rate(readings: Sequence[Readings], dtype: str) -> tuple[float, str] | None:
    """The device's FLOP/s in `dtype`, and the row that had it: the size with the best median. None if not measured."""
    rates = [(median(r.flop_rates()), r.row.name) for r in readings if (r.row.kind, r.row.dtype) == ("matmul", dtype)]
    return max(rates, default=None)
