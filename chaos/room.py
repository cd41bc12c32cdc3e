"""Where the scenarios of `chaos.jobs` run: a small job's config, its data, its undisturbed dataset, in one folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from chaos.processes import ROOT, Job, records
from chaos.world import facts
from pipeline.sources import registry as sources
from pipeline.verify import verify
from shards_schema.records import Scene


class Room:
    """The folders of a session: a config, its data, the undisturbed dataset, one temp folder and one of Ray's.

    Args:
        folder: a short path: Ray's sockets lie below it.
        logs: of the generated drive.
        data: a folder with that drive from an earlier session; None generates it.
        overrides: for every run, ``key=value``.
        poison: a room whose drive, `data`, is a copy of its own: two of its images end the process that decodes them,
            and the undisturbed run has known that from the first.
        patience: seconds that a stopped actor is given to be replaced.
        linger: seconds after a resumed run in which the last process must be gone.
    """

    def __init__(
        self,
        folder: Path,
        *,
        logs: int,
        data: Path | None = None,
        overrides: Sequence[str] = (),
        poison: bool = False,
        patience: float = 45,
        linger: float = 60,
    ) -> None:
        self.folder, self.overrides = folder, list(overrides)
        self.patience, self.linger = patience, linger
        self.data = data or folder / "data"
        self.temp, self.ray = folder / "tmp", folder / "ray"
        self.temp.mkdir()
        self.ray.mkdir()
        self.config = folder / "job.yaml"
        self._number = 0
        settings = _job(self.data, logs)
        self.environment = _poison(settings) if poison else {}
        self.config.write_text(yaml.safe_dump(settings, sort_keys=False))
        self.clean = folder / "clean"
        job = self.start(self.clean, *(["worker.careful=true"] if poison else []))
        if job.end(600) != 0:
            raise RuntimeError(f"the undisturbed run failed:\n{job.said()[-3000:]}")
        self.known = facts(self.clean)
        self.records = len(records(self.clean))
        if faults := verify(str(self.clean)).faults:
            raise RuntimeError(f"the undisturbed dataset is not clean: {faults[:3]}")

    def start(self, out: Path, *overrides: str, **environment: str) -> Job:
        """Start the job."""
        command = [sys.executable, "-m", "jobs.teachers", str(self.config), *self.overrides, *overrides]
        log = self.folder / f"log{self.number()}.txt"
        return Job(command, out, log, self.temp, self.ray, **self.environment, **environment)

    def number(self) -> int:
        """The next number."""
        self._number += 1
        return self._number


def _poison(settings: dict[str, Any]) -> dict[str, str]:
    """Mark an image of the first and of the last log (see `chaos/crash`); what the job needs to fall for them."""
    settings["max_quarantined"] = 1.0
    source = sources.build(settings["source"])
    refs = source.scan().refs
    for ref in (refs[len(refs) // 5], refs[-1]):
        (scene,) = source.scenes(ref.log, [ref])
        assert isinstance(scene, Scene)
        with open(scene.camera(0, "CAM_F0").image, "ab") as file:
            file.write(b"chaos: crash")
    return {"PYTHONPATH": shim("crash"), "CHAOS_CRASH": "yes"}


def shim(name: str) -> str:
    """A PYTHONPATH that begins with a folder of ours that holds a `sitecustomize`."""
    return os.pathsep.join([str(ROOT / "chaos" / name), *filter(None, [os.environ.get("PYTHONPATH")])])


def _job(data: Path, logs: int) -> dict[str, Any]:
    """The config of the job: small, and cheap to start."""
    return {
        "out": "unset",
        "source": {
            "kind": "synthetic",
            "root": str(data),
            "logs": logs,
            "frames": 18,
            "width": 96,
            "height": 54,
            "lidar_points": 50,
            "filter": {"frame_interval": 1},
        },
        "plan": {"shard_size": 1},
        "samples": {"size": [64, 36]},
        "teachers": {"vggt": {"weights": {"random": 0}, "network": "tiny", "width": 266, "batch_size": 2}},
        "worker": {"device": "cpu", "decode_threads": 1, "shards_in_flight": 1, "torch_threads": 1},
        "cluster": {"cpus": 2},
        "scan_processes": 1,
    }
