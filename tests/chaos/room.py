"""Where the scenarios of `tests.chaos.jobs` run: a small job's config, data and undisturbed dataset in one folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.reading.verify import verify
from pipeline.sources import registry as sources
from shards_schema.records import Scene
from tests.chaos.processes import ROOT, Job, records
from tests.chaos.small import SmallJob, settings
from tests.chaos.world import facts


class Room(SmallJob):
    """The folders of a session: a config, its data, the undisturbed dataset, one temp folder and one of Ray's.

    Args:
        folder: a short path: Ray's sockets lie below it.
        logs: of the generated drive.
        data: a folder with that drive from an earlier session; None generates it.
        clean: the undisturbed dataset of that drive, where it is there; None makes it, by the job itself.
        overrides: for every run, ``key=value``.
        poison: a room whose drive, `data`, is a copy of its own: two of its images end the process that decodes them,
            and the undisturbed run has known that from the first.
        timeout: seconds that a stopped actor is given to be replaced.
        linger: seconds after a resumed run in which the last process must be gone.
    """

    def __init__(
        self,
        folder: Path,
        *,
        logs: int,
        data: Path | None = None,
        clean: Path | None = None,
        overrides: Sequence[str] = (),
        poison: bool = False,
        timeout: float = 45,
        linger: float = 60,
    ) -> None:
        self.overrides = list(overrides)
        self.timeout, self.linger = timeout, linger
        self.data = data or folder / "data"
        config = settings(self.data, logs=logs)
        self.environment = _poison(config) if poison else {}
        super().__init__(folder, config)
        self.clean = clean or self._undisturbed(["worker.sandbox=true"] if poison else [])
        self.known = facts(self.clean)
        self.records = len(records(self.clean))
        if faults := verify(str(self.clean)).faults:
            raise RuntimeError(f"the undisturbed dataset is not clean: {faults[:3]}")

    def _undisturbed(self, overrides: Sequence[str]) -> Path:
        out = self.folder / "clean"
        job = self.start(out, *overrides)
        if job.end(600) != 0:
            raise RuntimeError(f"the undisturbed run failed:\n{job.said()[-3000:]}")
        return out

    def start(self, out: Path, *overrides: str, **environment: str) -> Job:
        """Start the job as the room has it."""
        return super().start(out, *self.overrides, *overrides, **self.environment, **environment)


def _poison(config: dict[str, Any]) -> dict[str, str]:
    """Mark an image of the first and of the last log (see `tests/chaos/crash`); what the job needs to fall for them."""
    config["max_quarantined"] = 1.0
    source = sources.build(config["source"])
    refs = source.scan().refs
    for ref in (refs[len(refs) // 5], refs[-1]):
        (scene,) = source.scenes(ref.log, [ref])
        assert isinstance(scene, Scene)
        with open(scene.camera(0, "CAM_F0").image, "ab") as file:
            file.write(b"chaos: crash")
    return {"PYTHONPATH": shim("crash"), "CHAOS_CRASH": "yes"}


def shim(name: str) -> str:
    """A PYTHONPATH that begins with a folder of ours that holds a `sitecustomize`."""
    return os.pathsep.join([str(ROOT / "tests" / "chaos" / name), *filter(None, [os.environ.get("PYTHONPATH")])])
