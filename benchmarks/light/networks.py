"""What is timed: the teachers with random weights, on batches that lie ready, VGGT also by Meta's own implementation.

A row's call is one batch through ``stage``, ``launch`` and ``collect`` where a teacher has them (the next batch is
staged while the device is at work, as the worker does it), else through ``compute``: uint8 images on the host in, NumPy
targets out. The rows "tokens only" are VGGT without heads, the aggregator's share. A network whose package is not here
is named with the reason.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from benchmarks.light import Config, absent
from benchmarks.light.meter import Device, Readings, Row, matmuls
from shards_schema.errors import ConfigError
from teachers import flops, registry
from teachers.base import Teacher, TeacherInput
from teachers.testing import synthetic_scene
from teachers.vggt.checkpoint import fill_random
from teachers.vggt.geometry import PATCH
from teachers.vggt.network import VGGTNetwork

VIEWS = ("CAM_F0", "CAM_L0", "CAM_R0")
FUTURE = 8
_READY = 2
"""Different batches, taken by turns."""


def rows(plan: Config, device: Device, folder: Path) -> tuple[list[Row], dict[str, str]]:
    """Everything that can be timed here, the matrix products first; and why the rest cannot, by name.

    Args:
        plan: what is asked for.
        device: where.
        folder: for VGGT's weights (5 GB at the published size), until the rows have been made.
    """
    made, missing = matmuls(device), {}
    for name, make in _makers(plan, device, folder).items():
        print(f"building: {name}", file=sys.stderr, flush=True)
        try:
            made.append(make())
        except ModuleNotFoundError as error:
            missing[name] = absent(error)
        except ConfigError as error:  # Meta's package is not here
            missing[name] = str(error)
        except RuntimeError as error:  # out of memory; or a package that is there and fails to import
            missing[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if not plan.cosmos:
        missing["CV8x8x8"] = "cosmos=false"
    if not plan.predict:
        missing["Predict2"] = "predict=false"
    return made, missing


def teachers(plan: Config, readings: Sequence[Readings]) -> list[Teacher]:
    """Those of the job: VGGT and CV8x8x8, loaded, in the last of the batches; of two ways the one that was faster."""
    found: dict[str, Readings] = {}
    for reading in readings:
        if reading.row.scenes == plan.batches[-1] and reading.row.teacher is not None:
            best = found.get(reading.row.kind)
            if best is None or min(reading.wall) / reading.calls < min(best.wall) / best.calls:
                found[reading.row.kind] = reading
    kept = (found[kind].row.teacher for kind in ("vggt", "cosmos") if kind in found)
    return [teacher for teacher in kept if isinstance(teacher, Teacher)]


def ready(teacher: Teacher, seed: int, count: int) -> list[TeacherInput]:
    """Inputs of `count` scenes: noise, in the shape that the teacher's own `preprocess` gives."""
    draw = np.random.default_rng(seed)
    scene = synthetic_scene(history=5, future=FUTURE)
    one = teacher.preprocess(draw.integers(0, 256, (270, 480, 3), dtype=np.uint8))
    shape = (len(teacher.requests(scene)), *one.shape)
    return [TeacherInput(scene, draw.integers(0, 256, shape, dtype=np.uint8)) for _ in range(count)]


def loop(device: Device, work: Sequence[tuple[Teacher, Sequence[Sequence[TeacherInput]]]], calls: int) -> float:
    """`calls` batches through each teacher, with two under way at most; the device's seconds."""
    flying: deque[tuple[Any, Any]] = deque()
    busy = 0.0

    def land() -> float:
        teacher, flight = flying.popleft()
        teacher.collect(flight)
        return float(flight.seconds)

    for call in range(calls):
        for teacher, batches in work:
            batch = batches[call % len(batches)]
            phased: Any = teacher
            if hasattr(phased, "launch"):
                flying.append((phased, phased.launch(phased.stage(batch))))
                if len(flying) > 2:
                    busy += land()
            else:
                busy += _computed(device, teacher, batch)
    while flying:
        busy += land()
    return busy


def _computed(device: Device, teacher: Teacher, batch: Sequence[TeacherInput]) -> float:
    return device.timed(lambda: teacher.compute(batch))


class _Built:
    """The networks, each built once and left on the device.

    All of VGGT's have the same weights, through a checkpoint: that is quicker than to draw a billion numbers for each,
    and the paths are the real ones.
    """

    def __init__(self, plan: Config, device: Device, folder: Path) -> None:
        low = "bfloat16" if device.cuda else "float32"
        rows, columns = round(plan.width * 9 / 16 / PATCH), plan.width // PATCH  # of the patches of a 16:9 image
        self.pools = {"grid": {"rows": min(10, rows), "cols": min(18, columns)}}
        self.plan, self.device, self.low = plan, device, low
        self._file = folder / "model.safetensors"
        self._teachers: dict[str, tuple[Teacher, int]] = {}

    def vggt(self, fields: Mapping[str, Any], batch: int) -> tuple[Teacher, int]:
        """A loaded teacher, and its bytes on the device; one that is not compiled takes any number of scenes."""
        if not self._file.exists():
            asked: Any = registry.build("vggt", self._fields({}) | {"weights": {"random": 0}, "batch_size": 1})
            network = VGGTNetwork(asked.config.built)
            fill_random(network, 0, "cpu")
            save_file({name: value.contiguous() for name, value in network.state_dict().items()}, self._file)
        fields = self._fields(fields) | {"weights": {"path": str(self._file)}}
        return self.teacher("vggt", fields | {"batch_size": batch if fields.get("compile") else self.plan.batches[-1]})

    def teacher(self, kind: str, fields: Mapping[str, Any]) -> tuple[Teacher, int]:
        """A loaded teacher, and its bytes on the device."""
        key = repr((kind, sorted(fields.items())))
        if key not in self._teachers:
            before = self.device.allocated()
            teacher = registry.build(kind, fields)
            teacher.load(str(self.device.torch))
            self._teachers[key] = teacher, self.device.allocated() - before
        return self._teachers[key]

    def _fields(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        plan = self.plan
        base = {"network": plan.network, "views": VIEWS, "width": plan.width, "dtype": self.low, "pools": self.pools}
        return {**base, **plan.vggt, **fields}


def _makers(plan: Config, device: Device, folder: Path) -> dict[str, Callable[[], Row]]:
    """By its name, what makes each row."""
    built, most = _Built(plan, device, folder), plan.batches[-1]
    made: dict[str, Callable[[], Row]] = {}

    def vggt(batch: int, way: str, fields: Mapping[str, Any], whose: str = "vggt") -> None:
        name = f"VGGT {plan.network}, batch {batch}{way}"
        kind = f"{whose} tokens" if "heads" in fields else whose
        made[name] = lambda: _taught(device, name, kind, built.vggt(fields, batch), batch)

    def clips(name: str, kind: str, column: str, fields: Mapping[str, Any]) -> None:
        size = (512, 288) if plan.full else (224, 128)
        whole = {"weights": {"random": 0}, "size": size, "dtype": built.low, "batch_size": most, **fields}
        made[name] = lambda: _taught(device, name, kind, built.teacher(column, whole), most)

    for batch in plan.batches:
        vggt(batch, "", {})
    vggt(most, ", tokens only", {"heads": []})
    if device.cuda:  # as torch would have it, and Meta's has it
        vggt(most, ", depth head in TF32", {"depth_precision": "tf32"})
    if plan.compile:
        vggt(most, ", compiled", {"compile": True})
        if device.cuda:
            vggt(most, ", compiled, depth head in TF32", {"compile": True, "depth_precision": "tf32"})
        vggt(most, ", compiled, tokens only", {"compile": True, "heads": []})
    vggt(1, ", Meta's own", {"implementation": "upstream"}, "upstream")
    vggt(1, ", Meta's own, tokens only", {"implementation": "upstream", "heads": []}, "upstream")
    if plan.cosmos:
        vae = "full" if plan.full else "tiny"
        name, fields = f"CV8x8x8 {vae}, 9 frames, batch {most}", {"network": vae, **plan.clip}
        clips(name, "cosmos", "cosmos", fields)
        if device.cuda:
            clips(f"{name}, channels last", "cosmos", "cosmos", {**fields, "channels_last": True})
    if plan.predict:
        block = {} if plan.predict_block is None else {"block": plan.predict_block}
        size = "2b" if plan.full else "tiny"
        clips(f"Predict2 {size}, batch {most}", "predict", "cosmos_predict", {"network": size, **block})
    return made


def _taught(device: Device, name: str, kind: str, loaded: tuple[Teacher, int], batch: int) -> Row:
    teacher, weights = loaded
    operations = flops.flops_of(teacher)
    assert operations is not None
    batches = [ready(teacher, seed, batch) for seed in range(_READY)]
    return Row(
        name=name,
        kind=kind,
        dtype=_short(teacher),
        scenes=batch,
        frames=len(teacher.requests(batches[0][0].scene)),
        flops=operations * batch,
        run=lambda calls: loop(device, [(teacher, batches)], calls),
        weights=weights,
        teacher=teacher,
    )


def _short(teacher: Any) -> str:
    return "bf16" if teacher.config.dtype == "bfloat16" else "fp32"
