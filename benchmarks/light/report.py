"""The light meter's table, its headline, and the same as markdown for docs/results/benchmarks.md."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.light import Config
from benchmarks.light.meter import Device, Readings, matrix_rate
from benchmarks.measure import commit, spread
from reports.tables import table

if TYPE_CHECKING:
    from benchmarks.light.job import Outcome

NAVTRAIN = 103_288
"""Scenes of NAVSIM's split navtrain."""

PUBLISHED = (
    "CUDA, bf16: VGGT 1b in batches",
    "CUDA, bf16: VGGT 1b by Meta's package, 1 scene",
    "CUDA, bf16: CV8x8x8 full, 9 frames",
)
"""The rows that are the point of it, for where they cannot be measured."""

PREDICTED = {
    "VGGT 1b, batch 4": (27, 20, 34),
    "VGGT 1b, batch 8": (27, 20, 34),
    "VGGT 1b, batch 16": (27, 20, 34),
    "VGGT 1b, batch 16, tokens only": (45, 38, 52),
    "VGGT 1b, batch 16, depth head in TF32": (38, 32, 45),
    "VGGT 1b, batch 16, compiled": (37, 27, 46),
    "VGGT 1b, batch 16, compiled, depth head in TF32": (61, 50, 70),
    "VGGT 1b, batch 16, compiled, tokens only": (78, 65, 88),
    "VGGT 1b, batch 1, Meta's own": (29, 25, 33),
    "VGGT 1b, batch 1, Meta's own, tokens only": (35, 32, 38),
    "CV8x8x8 full, 9 frames, batch 16": (235, 150, 290),
    "CV8x8x8 full, 9 frames, batch 16, channels last": (310, 200, 390),
}
"""Scenes/s of an H200 by counted FLOPs, bytes and kernels, with their range (docs/results/benchmarks.md, "Light")."""

HEAD = ("", "scenes/s", "H200, predicted", "frames/s", "TFLOP/scene", "TFLOP/s", "/ matmul", "busy", "memory GB")


@dataclass(frozen=True, slots=True)
class Result:
    """One run: what it was asked for and where, what it read, and what it could not (name -> reason)."""

    plan: Config
    device: Device
    readings: Sequence[Readings]
    missing: Mapping[str, str]
    job: Outcome | None


def heading(plan: Config, device: Device) -> str:
    """Date, device, commit, sizes."""
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}, {device.description}, commit {commit()}; VGGT {plan.network}, "
        f"{plan.width} px across, 3 views; {plan.repeats} readings each, of {plan.seconds:g} s or more, in turn"
    )


def text(result: Result) -> str:
    """The table and all that follows from it, for a terminal."""
    return "\n".join(["", table(HEAD, _rows(result)), "", *_lines(result)])


def markdown(result: Result) -> str:
    """The same for a page."""
    lines = [f"Measured: {heading(result.plan, result.device)}.", ""]
    lines += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(row) + " |" for row in _rows(result)]
    return "\n".join([*lines, "", *(f"- {line}" for line in _lines(result))])


def _rows(result: Result) -> list[list[str]]:
    out = []
    for reading in result.readings:
        row = reading.row
        if not row.scenes:
            continue
        ceiling = matrix_rate(result.readings, row.dtype)
        share = "-" if ceiling is None else f"{median(reading.flop_rates()) / ceiling[0]:.2f} {row.dtype}"
        scenes = reading.scene_rates()
        out.append(
            [
                row.name,
                spread(scenes, _digits(median(scenes))),
                _predicted(row.name),
                f"{median(scenes) * row.frames:.3g}",
                f"{row.flops / row.scenes / 1e12:.3g}",
                f"{median(reading.flop_rates()) / 1e12:.3g}",
                share,
                f"{median(reading.busy_shares()):.0%}",
                f"{reading.peak / 1e9:.1f}" if reading.peak else "-",
            ]
        )
    if not (result.device.cuda and result.plan.full):
        out += [[name, "not measured", *["-"] * (len(HEAD) - 2)] for name in PUBLISHED]
    return out


def _predicted(name: str) -> str:
    return "{} ({} to {})".format(*PREDICTED[name]) if name in PREDICTED else "-"


def _lines(result: Result) -> list[str]:
    lines = []
    for dtype in ("bf16", "fp32"):
        rate = matrix_rate(result.readings, dtype)
        if rate is None:
            lines.append(f"matrix rate in {dtype}: not measured: {result.device.torch.type} runs float32 here")
        else:
            lines.append(f"matrix rate in {dtype}: {rate[0] / 1e12:.3g} TFLOP/s ({rate[1].split(',')[0]})")
    for whole, kind in (("VGGT", ""), ("VGGT, tokens only", " tokens")):
        ours, theirs = _best(result, f"vggt{kind}"), _best(result, f"upstream{kind}")
        if ours and theirs:
            lines.append(f"{whole}: {ours / theirs:.2f} times Meta's own, a scene at a time")
    if result.job is not None:
        lines.append(_job_line(result.job))
    lines.append(headline(result))
    return lines + [f"{name}: not measured: {reason}" for name, reason in result.missing.items()]


def _job_line(job: Outcome) -> str:
    ceiling = median(job.bare)
    return (
        f"job over bare loop: {spread([rate / ceiling for rate in job.job], 2)}: samples and {', '.join(job.columns)}, "
        f"{job.scenes} scenes, {median(job.job):.3g} against {ceiling:.3g} scenes/s, teachers busy "
        f"{median(job.busy):.0%}, {job.decodes:.2f} JPEG decodes a distinct image"
    )


def headline(result: Result) -> str:
    """Hours for navtrain, 3 views of VGGT and 9 frames of CV8x8x8, on this one device."""
    name = f"navtrain ({NAVTRAIN:,} scenes; 3 views of VGGT, 9 frames of CV8x8x8)"
    if not (result.device.cuda and result.plan.full):
        return f"{name}: not measured: it needs CUDA and full-size networks"
    vggt, cosmos = _best(result, "vggt"), _best(result, "cosmos")
    if vggt is None or cosmos is None:
        alone = "" if vggt is None else f"; VGGT alone takes {_hours(1 / vggt):.2f} h"
        return f"{name}: not measured: one of the networks was not{alone}"
    bare = _hours(1 / vggt + 1 / cosmos)
    said = f"{name}: {bare:.2f} h of teachers (VGGT {_hours(1 / vggt):.2f}, CV8x8x8 {_hours(1 / cosmos):.2f})"
    if result.job is None or len(result.job.columns) < 2:
        return said + " on this device"
    return f"{said}; {_hours(1 / median(result.job.job)):.2f} h at the job's rate, on this device"


def _hours(seconds: float) -> float:
    return NAVTRAIN * seconds / 3600


def _best(result: Result, kind: str) -> float | None:
    """The best median of scenes a second among the rows of a kind."""
    return max((median(r.scene_rates()) for r in result.readings if r.row.kind == kind), default=None)


def _digits(value: float) -> int:
    return 0 if value >= 100 else 1 if value >= 10 else 2
