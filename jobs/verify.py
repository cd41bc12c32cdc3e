"""`python -m jobs.verify out=DIR [threads=2]`: re-read every byte of a dataset and name each fault.

Exit code: 0 for a dataset that is finished and clean, 1 where there is a fault, 2 when the config cannot be, 3 for one
that is not finished (interrupted, or still being made) and has no fault in what is there.
"""

from __future__ import annotations

import time

from pydantic import Field

from jobs import config as job_config
from pipeline.reading.verify import verify
from pipeline.stores.places import Place
from reports.tables import bytes_text, table
from shards_schema.inputs.models import StrictModel

UNFINISHED = 3


class VerifyConfig(StrictModel):
    """What to check."""

    out: Place
    """The dataset: a path or an fsspec URL."""
    threads: int = Field(default=2, ge=1, le=1024)
    """Shards that are read at once."""


def main(arguments: list[str]) -> int:
    """Check a dataset; returns the exit code."""
    config = job_config.load(VerifyConfig, arguments)
    began = time.perf_counter()
    report = verify(config.out, threads=config.threads)
    rows = [
        [c, str(report.planned), str(report.written[c]), str(report.quarantined[c]), str(report.incomplete.get(c, 0))]
        for c in report.columns
    ]
    print(table(["column", "planned", "written", "quarantined", "shards missing"], rows))
    seconds = time.perf_counter() - began
    print(f"\n{report.files} files, {bytes_text(report.size)} read in {seconds:.1f} s")
    for fault in report.faults:
        print(f"FAULT {fault.path}: {fault.what}")
    if report.faults:
        more = f"; and not finished: {'; '.join(report.unfinished)}" if report.unfinished else ""
        print(f"\n{config.out}: {len(report.faults)} fault{'s' * (len(report.faults) > 1)}{more}")
        return 1
    if report.unfinished:
        print(f"\n{config.out}: not finished: {'; '.join(report.unfinished)}; nothing is wrong in what is there")
        print("The run goes on where the command that began it is given again.")
        return UNFINISHED
    print(f"\n{config.out}: clean")
    return 0


if __name__ == "__main__":
    job_config.run(main)
