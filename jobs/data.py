"""Make the synthetic dataset: ``python -m jobs.data [CONFIG] [out=data/synthetic] [key=value ...]``.

The keys are those of `SyntheticConfig`: seed, splits, logs, frames, width, height, manoeuvres, traffic, lidar_points,
jpeg_quality, cameras, truth, processes; and ``nuplan=true``, which adds the same logs as nuPlan ``.db`` files. Lists
may be comma-separated: ``splits=mini,test``. Asking again for what is there costs nothing.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import field_validator

from jobs import config as job_config
from pipeline.stores.places import OutText
from reports.progress import lines
from synthetic import MARKER, SyntheticConfig, generate
from synthetic.nuplan_dataset import FOLDER, generate_nuplan


class DataConfig(SyntheticConfig):
    """What to make, and where."""

    out: OutText = "data/synthetic"
    """The folder that becomes OPENSCENE_DATA_ROOT."""
    nuplan: bool = False
    """Whether to write nuPlan's ``.db`` logs of the same world too, below ``<out>/nuplan-v1.1``."""
    nuplan_10hz: tuple[str, ...] = ("CAM_F0",)
    """The cameras that then have images at 10 Hz; the others have those of the 2 Hz frames."""

    @field_validator("nuplan_10hz", mode="before")
    @classmethod
    def _cameras_from_text(cls, value: Any) -> Any:
        return tuple(v.strip() for v in value.split(",") if v.strip()) if isinstance(value, str) else value

    def synthetic(self) -> SyntheticConfig:
        """What to make."""
        return SyntheticConfig(**{name: getattr(self, name) for name in SyntheticConfig.model_fields})


def main(arguments: list[str]) -> None:
    """Run the job.

    Raises:
        ConfigError: an argument is impossible.
        MismatchError: the folder holds something else.
    """
    begin = time.perf_counter()
    config = job_config.load(DataConfig, arguments)
    out = Path(config.out)
    if config.nuplan:
        generate_nuplan(config.synthetic(), out, config.nuplan_10hz, lines(_tell))
    else:
        generate(config.synthetic(), out, lines(_tell))
    logs = config.logs * len(config.splits)
    images = logs * config.frames * 8
    print(
        f"{out}: {logs} logs of {config.frames} frames, {images} images of {config.width}x{config.height}, "
        f"in {time.perf_counter() - begin:.1f} s.\n"
        f"SYNTHETIC: a made-up world in NAVSIM's layout, not nuPlan data (see {out / MARKER}).\n"
        f"  OPENSCENE_DATA_ROOT={out.resolve()}\n"
        f"  NUPLAN_MAPS_ROOT={(out / 'maps').resolve()}"
        + (f"\n  NUPLAN_DATA_ROOT={(out / FOLDER).resolve()}" if config.nuplan else "")
    )


def _tell(line: str) -> None:
    print(f"  {line}", flush=True)


if __name__ == "__main__":
    job_config.run(main)
