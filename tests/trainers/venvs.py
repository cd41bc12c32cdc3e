"""A virtual environment for each library, under .venv-trainers/ (ignored by git), with the versions of versions.txt."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
VENVS = ROOT / ".venv-trainers"
VERSIONS = Path(__file__).with_name("versions.txt")

_TORCHVISION = """import torch as _torch
_without_kernels = _torch.library.Library("torchvision", "DEF")  # a CPU's torch has no compiled torchvision
for _name in ("nms", "qnms"):
    _without_kernels.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def versions() -> dict[str, list[str]]:
    """Venv -> what is installed into it."""
    found: dict[str, list[str]] = {}
    for line in VERSIONS.read_text().splitlines():
        if line.endswith(":"):
            name = line.removesuffix(":")
            found[name] = []
        elif line and not line.startswith("#"):
            found[name].append(line)
    common = found.pop("*")
    return {name: [*common, *wanted] for name, wanted in found.items()}


def ready(name: str) -> Path:
    """The folder of a venv, made where it is not there or was made of other versions (minutes)."""
    venv, wanted = VENVS / name, versions()[name]
    mark, text = venv / ".made-of", "\n".join(wanted)
    if mark.is_file() and mark.read_text() == text:
        return venv
    subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
    pip = [venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    torch = next(one for one in wanted if one.startswith("torch=="))
    constraint = VENVS / f"torch-{hashlib.sha256(torch.encode()).hexdigest()[:8]}.txt"
    constraint.write_text(torch + "\n")
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "-c", constraint, *wanted], check=True)
    _without_kernels(venv)
    mark.write_text(text)
    return venv


def _without_kernels(venv: Path) -> None:
    """torchvision and torchaudio whose compiled halves are for another torch: transforms stay, sound goes."""
    packages = next((venv / "lib").glob("python*/site-packages"))
    vision, audio = packages / "torchvision" / "__init__.py", packages / "torchaudio"
    if vision.exists():
        vision.write_text(_TORCHVISION + vision.read_text())
    if audio.exists():
        for path in sorted(audio.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (audio / "__init__.py").write_text('__version__ = "0"\n')


def run(name: str, command: list[str], folder: Path, **environment: str) -> str:
    """What a command of a venv printed; its faults are the test's."""
    venv = ready(name)
    path = os.pathsep.join([str(venv / "bin"), os.environ["PATH"]])
    clean = {k: v for k, v in os.environ.items() if not k.startswith("LAST_SHARDS")}
    offline = {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "offline",
    }
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
        env={**clean, **offline, "PYTHONPATH": str(ROOT), "PATH": path, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout
