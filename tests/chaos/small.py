"""The small job: a config that is cheap to start, and the real job (`python -m jobs.teachers`) started with it.

Shared by the scenarios here and by the tests of the real job. `settings` with nothing changed is 10 scenes of 2 logs in
10 shards, 20 commit records, by a tiny VGGT on one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from tests.chaos.processes import Job

SCENES_A_LOG = 5
VGGT: Mapping[str, Any] = {"weights": {"random": 0}, "network": "tiny", "width": 266, "batch_size": 2}
COSMOS: Mapping[str, Any] = {"weights": {"random": 0}, "network": "tiny", "size": [128, 64], "batch_size": 2}


def source(data: Path, *, logs: int = 2) -> dict[str, Any]:
    """A generated drive at `data`, made when it is not there; `SCENES_A_LOG` scenes a log."""
    return {
        "kind": "synthetic",
        "root": str(data),
        "logs": logs,
        "frames": 18,
        "width": 96,
        "height": 54,
        "lidar_points": 50,
        "processes": 1,
        "filter": {"frame_interval": 1},
    }


def settings(
    data: Path, *, logs: int = 2, shard_size: int = 1, teachers: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The config of the job; `out` is the command line's, and `teachers` is a tiny VGGT where nothing else is said."""
    return {
        "out": "unset",
        "source": source(data, logs=logs),
        "plan": {"shard_size": shard_size},
        "samples": {"size": [64, 36]},
        "teachers": {name: dict(fields) for name, fields in (teachers or {"vggt": VGGT}).items()},
        "worker": {"device": "cpu", "decode_threads": 1, "shards_in_flight": 1, "torch_threads": 1},
        "cluster": {"cpus": 2},
        "scan_processes": 1,
    }


class SmallJob:
    """A config in a folder, and the jobs that are started with it, each in a session of its own.

    As a context manager it leaves no process behind: what was started and still runs is killed.

    Args:
        folder: gets the config, the logs, a temp folder and Ray's; a short path: Ray's sockets lie below it.
        config: see `settings`.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.temp, self.ray = folder / "tmp", folder / "ray"
        self.temp.mkdir()
        self.ray.mkdir()
        self.config = folder / "job.yaml"
        self.config.write_text(yaml.safe_dump(dict(config), sort_keys=False))
        self._started: list[Job] = []
        self._number = 0

    def start(self, out: Path, *overrides: str, **environment: str) -> Job:
        """Start the job; `overrides` are ``key=value``, the environment goes on top of this process's."""
        command = [sys.executable, "-m", "jobs.teachers", str(self.config), *overrides]
        log = self.folder / f"log{self.number()}.txt"
        job = Job(command, out, log, self.temp, self.ray, **environment)
        self._started.append(job)
        return job

    def run(self, out: Path, *overrides: str, **environment: str) -> tuple[int | None, str]:
        """Start the job and wait; its exit code (None: it hung and was killed), and what it printed."""
        job = self.start(out, *overrides, **environment)
        return job.end(), job.said()

    def number(self) -> int:
        """The next number."""
        self._number += 1
        return self._number

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for job in self._started:
            if job.process.poll() is None:
                job.kill()
