"""`python -m jobs.signal data=DIR [columns=[...]] [reference=DIR] [page=PATH]`: is a column worth training on?

Linear probes, with whole logs held out, from each target to what the logs know anyway, beside controls: ego status
alone, features of other scenes, random weights. And checks of how the column was made. Prints a table and what follows
from it; the page has every figure.
"""

from __future__ import annotations

import time

from pydantic import Field

from jobs import config as job_config
from pipeline.reading.reader import Dataset
from pipeline.stores.disk import write_bytes
from pipeline.stores.places import OutPath, Place
from reports import pages
from reports.signal import report
from reports.signal.measure import measure
from shards_schema.inputs.models import StrictModel


class SignalConfig(StrictModel):
    """What to probe."""

    data: Place
    """The dataset: a path or an fsspec URL."""
    columns: tuple[str, ...] | None = None
    """To probe; None is every column with features."""
    samples: int = Field(default=10_000, ge=1)
    """At most so many scenes, spread over the dataset."""
    dims: int = Field(default=256, ge=1, le=4096)
    """Numbers of each target that are probed: its principal directions."""
    reference: Place | None = None
    """A dataset that is known to be good, with columns of the same names, of other logs: are the channels alike?"""
    page: OutPath | None = None
    """Where the page goes; None is ``<data>-signal.html`` beside a local dataset, ``<name>-signal.html`` in the working
    directory for any other."""
    seed: int = Field(default=0, ge=0)
    """Of the parts that are held out, and of the shuffled control."""


def main(arguments: list[str]) -> int:
    """Probe, print, write the page; returns the exit code.

    Raises:
        ConfigError: a column that is not there; the page would lie inside the dataset.
        DatasetError: nothing to probe, fewer than three logs, or damage.
    """
    config, began = job_config.load(SignalConfig, arguments), time.perf_counter()
    signal = measure(
        Dataset(config.data),
        config.columns,
        samples=config.samples,
        dims=config.dims,
        seed=config.seed,
        reference=None if config.reference is None else Dataset(config.reference),
        say=lambda text: print(f"{text} ...", flush=True),
    )
    print(f"\n{report.text(signal)}")
    for notice in signal.notices:
        print(f"NOTE: {notice}")
    place = config.page or pages.beside(config.data, "signal")
    write_bytes(place, report.page(signal).encode("utf-8"))
    print(f"\n{time.perf_counter() - began:.0f} s; page: {place.resolve()}")
    return 0


if __name__ == "__main__":
    job_config.run(main)
