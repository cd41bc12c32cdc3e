"""The small world that the in-process faults and the soak run in: the tests' toy source and teacher, on a real disk.

Two columns (`samples` and a teacher with a sharded, a small and a ragged target), some shards, one image cut in half,
so that every kind of file that a dataset has is written, and every kind of record.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.stores.lease import hold
from pipeline.stores.volume import Volume
from pipeline.writing import run as runs
from pipeline.writing.samples import SamplesColumn, SamplesConfig
from pipeline.writing.task import ShardReceipt
from pipeline.writing.worker import ShardWorker, WorkerConfig
from shards_schema import layout
from shards_schema.plan import PlanConfig
from teachers.base import column_manifest
from tests.toys import F, H, ToySource, ToyTeacher, write_images


@dataclass(frozen=True, slots=True)
class World:
    """A source on disk.

    Attributes:
        source: `logs` logs of 5 scenes each; the image of one frame is cut.
        shard_size: scenes a shard.
    """

    source: ToySource
    shard_size: int

    @classmethod
    def make(cls, root: Path, *, logs: int, shard_size: int = 5, frames: int = 9) -> World:
        """Write the images."""
        write_images(root, logs=logs, frames=frames)
        cut = root / "log00" / "006.jpg"  # asked for by the teacher, not by the samples
        cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
        return cls(ToySource(str(root), logs=logs, frames=frames), shard_size)

    def begin(self, out: Path) -> runs.Run:
        """What a driver does first."""
        manifests = [self._samples().manifest({}), column_manifest(ToyTeacher())]
        return runs.begin(self.source, str(out), manifests, plan_config=PlanConfig(shard_size=self.shard_size))

    def build(self, run: runs.Run) -> ShardWorker:
        """A worker, not loaded."""
        return ShardWorker(
            source=self.source,
            volume=run.volume,
            teachers=[ToyTeacher()],
            samples=self._samples(),
            manifests=run.columns,
            dataset=run.dataset,
            shard_size=run.plan.config.shard_size,
            zarr=run.manifest.zarr,
            config=WorkerConfig(device="cpu", decode_threads=1),
        )

    @contextmanager
    def worker(self, run: runs.Run) -> Iterator[ShardWorker]:
        """A worker, loaded; its threads end with the block."""
        made = self.build(run)
        try:
            made.load()
            yield made
        finally:
            made.close()

    def job(self, out: Path, *, threads: int = 1) -> int:
        """The whole job as `jobs.teachers` does it, without Ray: lease, begin, work, receipts, close; shards done."""
        with hold(Volume(str(out))) as lease:
            run = self.begin(out)
            todo = run.todo()

            def received(receipt: ShardReceipt) -> None:
                lease.check()
                run.volume.put(layout.shard_log(receipt.shard), json.dumps(asdict(receipt)).encode())

            with self.worker(run) as worker, ThreadPoolExecutor(threads) as pool:
                for receipt in pool.map(worker.process, todo):
                    received(receipt)
            lease.check()
            runs.close(run)
        return len(todo)

    def _samples(self) -> SamplesColumn:
        return SamplesColumn(SamplesConfig(), num_history=H, num_future=F)


def digests(out: Path) -> dict[str, str]:
    """Path -> sha256 of every file of a dataset, hidden and half-written ones too; timings (``logs/``) left out."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.relative_to(out).parts[0] != layout.LOGS
    }


@dataclass(frozen=True, slots=True)
class Difference:
    """A dataset held against the undisturbed one.

    Attributes:
        lost: (column, token) that the undisturbed one has in its tars, and this one has not.
        duplicated: (column, token) that stand in this one's tars more than once.
        leftover: files that the undisturbed one has not, under way or swept aside; folders of that kind too.
        missing: files that the undisturbed one has, and this one has not.
        other: files with other bytes.
    """

    lost: int
    duplicated: int
    leftover: tuple[str, ...]
    missing: tuple[str, ...]
    other: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.lost or self.duplicated or self.leftover or self.missing or self.other)


def compare(
    out: Path, clean: Path, *, known: tuple[dict[str, str], Counter[tuple[str, str]]] | None = None
) -> Difference:
    """See `Difference`. Tars are read by `tarfile`, not by our code; `known` is `facts(clean)`, where it is at hand."""
    clean_digests, clean_samples = known or facts(clean)
    found, samples = facts(out)
    folders = [p.name + "/" for p in out.iterdir() if p.is_dir() and p.name == layout.TEMP]
    return Difference(
        lost=len(clean_samples.keys() - samples.keys()),
        duplicated=sum(n > 1 for n in samples.values()) + len(samples.keys() - clean_samples.keys()),
        leftover=(*sorted(found.keys() - clean_digests.keys()), *folders),
        missing=tuple(sorted(clean_digests.keys() - found.keys())),
        other=tuple(sorted(p for p in found.keys() & clean_digests.keys() if found[p] != clean_digests[p])),
    )


def facts(out: Path) -> tuple[dict[str, str], Counter[tuple[str, str]]]:
    """Digests of the files of a dataset, and how often each (column, token) stands in its tars."""
    samples: Counter[tuple[str, str]] = Counter()
    for tar in sorted(out.glob("*/*.tar")):
        with tarfile.open(tar) as archive:
            members = Counter(m.name.partition(".")[::2] for m in archive)
        most: dict[str, int] = {}
        for (token, _), n in members.items():
            most[token] = max(most.get(token, 0), n)
        for token, n in most.items():
            samples[tar.parent.name, token] += n
    return digests(out), samples
