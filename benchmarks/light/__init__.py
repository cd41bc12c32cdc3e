"""Teachers against light: model FLOP/s over the device's own matrix rate, beside Meta's own VGGT, and the job.

    python -m benchmarks light                  on whatever is here: CUDA where there is one, else small networks
    python -m benchmarks light device=cuda      an error where there is no CUDA
    python -m benchmarks light network=1b repeats=2 job=false out=light.md

One run measures, in turn, over `repeats`: the device's matrix rate; VGGT in batches; VGGT by Meta's package, a scene
at a time, where it is installed (extra `vggt`); the Cosmos encoder, and Predict where asked; then the shard worker
on synthetic logs over the same teachers' bare loop. From these it computes how long navtrain takes on this device.
Weights are random: speed does not know. What cannot be measured is said, with the reason. It needs torch, numpy,
pydantic, PyYAML, safetensors; diffusers for Cosmos; simplejpeg, zarr, fsspec, pyarrow, google-crc32c for the job; Ray
never.

    meter     the device: its clock, events, memory, matrix rate
    networks  the teachers, on batches that lie ready
    job       the shard worker
    report    table, headline, markdown
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from benchmarks.measure import temporary
from shards_schema.errors import ConfigError, ShardsError
from shards_schema.inputs.models import StrictModel


class Config(StrictModel):
    """Knobs; None is what suits the device (see `plan`)."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1."""
    network: Literal["auto", "1b", "small", "tiny"] = "auto"
    """Of VGGT; auto is the published size on CUDA, tiny on the CPU. Cosmos is full-size where VGGT is."""
    width: int | None = None
    """Pixels across of VGGT's images."""
    batches: tuple[int, ...] | None = Field(default=None, min_length=1)
    """Scenes a batch, each a row; the last is that of the other networks and of the job."""
    compile: bool | None = None
    """Whether VGGT is measured with compiled blocks as well; None does so on CUDA."""
    cosmos: bool = True
    """Whether CV8x8x8 is measured."""
    predict: bool = False
    """Whether Cosmos-Predict is (2B; tiny beside a tiny VGGT)."""
    predict_block: int | None = None
    """Which of its blocks is read."""
    job: bool = True
    """Whether the shard worker is measured."""
    seconds: float | None = Field(default=None, gt=0)
    """Least length of one reading."""
    repeats: int = Field(default=3, ge=1)
    """Readings of each row, taken in turn."""
    job_repeats: int = Field(default=2, ge=1)
    """Runs of the job and of its bare loop, taken in turn."""
    shards: int | None = Field(default=None, ge=1)
    """Of a run of the job."""
    shard_size: int | None = Field(default=None, ge=1)
    """Scenes of a shard."""
    image: tuple[int, int] | None = None
    """Width and height [px] of the JPEGs."""
    decode_threads: int | None = Field(default=None, ge=1)
    """Of the worker."""
    out: str | None = None
    """A file for the markdown block as well."""
    vggt: dict[str, Any] = Field(default={})
    """Fields of the VGGT teacher's config over those that are taken here."""
    clip: dict[str, Any] = Field(default={})
    """Fields of the Cosmos teacher's, likewise."""

    @property
    def full(self) -> bool:
        """Whether the networks are of the published size."""
        return self.network == "1b"

    def plan(self) -> Config:
        """With a device that is there, and a value for every None.

        Raises:
            ConfigError: CUDA is asked for and is not there.
        """
        import torch

        there = torch.cuda.is_available()
        device = ("cuda" if there else "cpu") if self.device == "auto" else self.device
        cuda = device.startswith("cuda")
        if cuda and not there:
            raise ConfigError(f"device {device}: torch {torch.__version__} sees no CUDA; device=cpu runs anywhere")
        suits = {
            "device": device,
            "network": "1b" if cuda else "tiny",
            "width": 518 if cuda else 266,
            "batches": (4, 16) if cuda else (1, 2),
            "compile": cuda,
            "seconds": 1.0 if cuda else 0.2,
            "shards": 6 if cuda else 3,
            "shard_size": 128 if cuda else 8,
            "image": (1920, 1080) if cuda else (480, 270),
            "decode_threads": 12 if cuda else 2,
        }
        return self.model_copy(update={k: v for k, v in suits.items() if getattr(self, k) in (None, "auto")})


def run(config: Config) -> None:
    """Measure and print."""
    plan = config.plan()
    meter, networks, report = (import_module(f"{__name__}.{name}") for name in ("meter", "networks", "report"))
    device = meter.Device(plan.device)
    print(report.heading(plan, device), flush=True)
    with temporary() as folder:
        rows, missing = networks.rows(plan, device, folder)
    readings = meter.in_turn(device, rows, missing, config.repeats, plan.seconds)
    outcome, reason = None, "no teacher was measured" if config.job else "job=false"
    if config.job:
        print("the job ...", file=sys.stderr, flush=True)
        try:
            job = import_module(f"{__name__}.job")
            outcome = job.measure(plan, device, networks.teachers(plan, readings))
        except ModuleNotFoundError as error:
            reason = absent(error)
        except (RuntimeError, OSError, ShardsError) as error:  # what was read before is still to be printed
            reason = f"{type(error).__name__}: {error}"
    if outcome is None:
        missing["job over bare loop"] = reason
    result = report.Result(plan, device, readings, missing, outcome)
    print(report.text(result), flush=True)
    block = report.markdown(result)
    print(f"\n{block}", flush=True)
    if config.out is not None:
        Path(config.out).write_text(block + "\n")


def absent(error: ModuleNotFoundError) -> str:
    """Which package is not installed; where it is one of this project's own, that is no reason but a fault: raised."""
    package = (error.name or "").partition(".")[0]
    if (Path(__file__).parents[2] / package).is_dir():
        raise error
    return f"{package} is not installed"
