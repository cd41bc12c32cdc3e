"""`python -m benchmarks.gpu [device=cpu] [out=DIR]` (`make bench-gpu`): a GPU's first ten minutes, in one command.

Parts in the order in which they are likeliest to fail, each a process with a time limit of its own; the limits come to
under ten minutes. What a part prints is written to ``out/N_part.txt`` as it comes, so that its result is kept when a
later one dies, and when it dies itself. The table at the end says how each part ended; exit code 1 where one failed.

    facts     the device, its driver, cuDNN, and which packages are not here
    parity    each network on the device against the CPU: float32, bfloat16, equal batches
    tests     pytest -m "gpu and not slow": launches that do not wait, kernels, memory, the scorer
    scoring   NAVSIM scores on the device, milliseconds a trajectory
    light     matrix rate, FLOP/s of the teachers, hours for navtrain, the job over the bare loop
    compiled  pytest -m "gpu and slow": compiled blocks, equal bytes from two processes

``device=cpu`` runs the same to the last line with tiny networks; the tests are then collected, and not run.
"""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch

from benchmarks.measure import ROOT, commit
from jobs import config as job_config
from pipeline.stores.places import OutPath
from reports.tables import table
from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel

PACKAGES = {
    "pydantic": "pydantic",
    "yaml": "PyYAML",
    "safetensors": "safetensors",
    "diffusers": "diffusers",
    "simplejpeg": "simplejpeg",
    "fsspec": "fsspec",
    "pyarrow": "pyarrow",
    "google_crc32c": "google-crc32c",
    "zarr": "zarr",
    "shapely": "shapely",
    "pytest": "pytest",
    "pytest_timeout": "pytest-timeout",
}
"""What the parts import beside torch and numpy: the module, and what to install for it. Ray is not among them."""

TESTS = ("tests/teachers", "tests/scoring", "tests/benchmarks/test_light.py")
"""Where the tests are that need CUDA and no Ray."""


class GpuConfig(StrictModel):
    """Knobs."""

    device: str = "cuda"
    """cuda, cuda:1; or cpu, to see that the script runs."""
    out: OutPath = Path("out/gpu")
    """A folder for what each part prints."""
    light: tuple[str, ...] = ()
    """Further words for `python -m benchmarks light`, as ``batches=[8,16]``."""


def parts(config: GpuConfig) -> dict[str, tuple[int, list[str]]]:
    """Each part's limit [s] and its command."""
    cuda, device = config.device.startswith("cuda"), f"device={config.device}"
    python = [sys.executable, "-m"]
    tests = [*python, "pytest", "-q", "-p", "no:cacheprovider", *([] if cuda else ["--collect-only"]), *TESTS]
    return {
        "facts": (30, [*python, "benchmarks.gpu", "facts"]),
        "parity": (120, [*python, "benchmarks", "parity", device]),
        "tests": (100, [*tests, "-m", "gpu and not slow"]),
        "scoring": (40, [*python, "benchmarks", "scoring", "repeats=1", "scenes=16"]),
        "light": (220, [*python, "benchmarks", "light", device, "repeats=2", *config.light]),
        "compiled": (80, [*tests, "-m", "gpu and slow"]),
    }


def facts() -> str:
    """The device and its libraries, and what to install for the parts that would fail."""
    lines = [f"commit {commit()}; python {sys.version.split()[0]}, torch {torch.__version__}"]
    lines.append(f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}")
    for index in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(index)
        lines.append(f"cuda:{index}: {one.name}, {one.total_memory / 2**30:.0f} GiB, {one.multi_processor_count} SMs")
    missing = [package for module, package in PACKAGES.items() if find_spec(module) is None]
    if missing:
        lines.append(f"not here: pip install {' '.join(missing)}")
    return "\n".join(lines)


def run(config: GpuConfig) -> int:
    """Run the parts, print how each ended; the exit code."""
    if config.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {config.device}: torch {torch.__version__} sees no CUDA; device=cpu runs anywhere")
    config.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (name, (limit, command)) in enumerate(parts(config).items(), 1):
        path = config.out / f"{number}_{name}.txt"
        print(f"\n== {name}, {limit} s at most: {path}", flush=True)
        began = time.perf_counter()
        ended = _run(command, limit, path)
        print(path.read_text(errors="replace"), flush=True)
        rows.append([name, ended, f"{time.perf_counter() - began:.0f} of {limit}", str(path)])
    said = table(["part", "ended", "seconds", "what it printed"], rows)
    (config.out / "summary.txt").write_text(said + "\n")
    print(f"\n{said}")
    return int(any(row[1] != "well" for row in rows))


def _run(command: list[str], limit: int, path: Path) -> str:
    with open(path, "w") as out:
        try:
            code = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, timeout=limit, cwd=ROOT, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            return "stopped at its limit"
    return "well" if code == 0 else f"exit code {code}"


def main(arguments: list[str]) -> int:
    """Run the script, or its part `facts`."""
    if arguments == ["facts"]:
        print(facts())
        return 0
    return run(job_config.load(GpuConfig, arguments))


if __name__ == "__main__":
    job_config.run(main)
