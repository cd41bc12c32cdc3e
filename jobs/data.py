"""Make the synthetic dataset: ``python -m jobs.data [CONFIG] [out=data/synthetic] [key=value ...]``.

The keys are those of `SyntheticConfig`: seed, splits, logs, frames, width, height, manoeuvres, traffic, lidar_points,
jpeg_quality, processes. Lists may be comma-separated: ``splits=mini,test``. Asking again for what is there costs
nothing.
"""

from __future__ import annotations

import time
from pathlib import Path

from jobs import config as job_config
from pipeline.sources.synthetic import MARKER, SyntheticConfig, generate


class DataConfig(SyntheticConfig):
    """What to make, and where.

    Attributes:
        out: the folder that becomes OPENSCENE_DATA_ROOT.
    """

    out: str = "data/synthetic"

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
    out = Path(config.out).expanduser()
    generate(config.synthetic(), out, lambda line: print(f"  {line}", flush=True))
    logs = config.logs * len(config.splits)
    images = logs * config.frames * 8
    print(
        f"{out}: {logs} logs of {config.frames} frames, {images} images of {config.width}x{config.height}, "
        f"in {time.perf_counter() - begin:.1f} s.\n"
        f"SYNTHETIC: a made-up world in NAVSIM's layout, not nuPlan data (see {out / MARKER}).\n"
        f"  OPENSCENE_DATA_ROOT={out.resolve()}\n"
        f"  NUPLAN_MAPS_ROOT={(out / 'maps').resolve()}"
    )


if __name__ == "__main__":
    job_config.run(main)
