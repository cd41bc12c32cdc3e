"""The network teachers at their smallest, and scenes for them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from teachers import registry
from teachers.base import Targets, TeacherInput
from teachers.testing import synthetic_input

ROOT = Path(__file__).parents[2]

_POOLS = {"grid": {"rows": 3, "cols": 4}, "flat": {"rows": 2, "cols": 2, "flat": True}}

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "vggt": ("vggt", {"width": 126, "height": 70, "views": ["CAM_F0", "CAM_L0"], "pools": _POOLS}),
    "cosmos": ("cosmos", {"size": [96, 64], "pool": 2}),
    "wan": ("cosmos", {"size": [96, 64], "pool": 2, "model": "wan", "layout": "C"}),
    "predict": ("cosmos_predict", {"size": [96, 64], "pool": 2}),
    "vjepa2": ("vjepa2", {"size": [96, 64], "pools": {"grid": [2, 3]}}),
}


def small(name: str, **changes: Any) -> Any:
    """A teacher of `SMALL` with a batch of 3, not loaded."""
    kind, fields = SMALL[name]
    return registry.build(kind, {"weights": {"random": 0}, "network": "tiny", "batch_size": 3, **fields, **changes})


def inputs(teacher: Any, seeds: Sequence[int]) -> list[TeacherInput]:
    return [synthetic_input(teacher, seed) for seed in seeds]


COMPILED = """
import hashlib, sys
from tests.teachers.network_toys import inputs, small

teacher = small(sys.argv[1], dtype=sys.argv[2], compile=True)
teacher.load(sys.argv[3])
made = teacher.compute(inputs(teacher, [0, 1, 2]))
print(hashlib.sha256(b"".join(row[name].tobytes() for row in made for name in sorted(row))).hexdigest())
"""


def compiled_twice(name: str, dtype: str, device: str, folder: Path) -> list[str]:
    """Digests of one batch's targets by two fresh processes, each of which compiles for itself, in its own cache."""
    digests = []
    for process in ("one", "two"):
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(folder / process), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-W", "ignore", "-c", COMPILED, name, dtype, device]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        digests.append(done.stdout.split()[-1])
        assert any((folder / process).rglob("*.py")), "it compiled nothing"
    return digests


def same(got: list[Targets], want: list[Targets]) -> bool:
    return len(got) == len(want) and all(
        list(a) == list(b) and all(np.array_equal(a[k], b[k], equal_nan=a[k].dtype.kind == "f") for k in b)
        for a, b in zip(got, want, strict=True)
    )


def apart(got: list[Targets], want: list[Targets]) -> float:
    """The largest difference of any target, over its largest magnitude."""
    worst = 0.0
    for mine, other in zip(got, want, strict=True):
        for name, array in other.items():
            wide = array.astype(np.float64)
            worst = max(worst, float(np.abs(mine[name] - wide).max() / max(np.abs(wide).max(), 1e-9)))
    return worst
