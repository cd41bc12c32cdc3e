"""JPEG decodes per distinct image over a whole run, where windows overlap and two teachers want the same frames.

Counted outside the worker's own accounting: every call of the decoder, by path, over all shards. A log that fits into
a shard costs one decode an image; one that must be cut costs the clip's overhang once more at each cut. Without
sharing it would be a decode for each frame of each clip of each teacher.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from unittest import mock

from pydantic import Field

from benchmarks.measure import temporary
from benchmarks.workload import CLIP, FUTURE, HISTORY, FixedTeacher, WindowSource, begin, write_logs
from pipeline.stores.decode import decode_jpeg
from pipeline.writing import images
from pipeline.writing.worker import WorkerConfig
from reports.tables import table
from shards_schema.inputs.models import StrictModel
from shards_schema.records import Image


class Config(StrictModel):
    """Knobs."""

    short: tuple[int, ...] = (40, 87, 87, 120, 140, 200)
    """Scenes of each log that fits into a shard (navtrain's have 87 on average)."""
    long: tuple[int, ...] = (700,)
    """Scenes of each log that must be cut."""
    shard_sizes: tuple[int, ...] = Field(default=(256, 64))
    """The default, and one that is too small for such clips."""


def run(config: Config) -> None:
    rows = []
    for name, scenes in [("logs that fit", config.short), ("and a long log", (*config.short, *config.long))]:
        for shard_size in config.shard_sizes:
            rows.append([name, str(shard_size), *_count(scenes, shard_size)])
    print(f"every window of a log is a scene; two teachers, one wants {CLIP} frames, one 4; the student wants 1\n")
    print(table(["", "shard size", "images", "decodes", "decodes/image", "unshared", "ceiling"], rows))


def _count(scenes: tuple[int, ...], shard_size: int) -> list[str]:
    decoded: Counter[str] = Counter()
    lock = Lock()

    def counted(data: bytes, where: str) -> Image:
        with lock:
            decoded[where] += 1
        return decode_jpeg(data, where)

    with temporary() as root, mock.patch.object(images, "decode_jpeg", counted):
        frames = tuple(n + HISTORY + FUTURE - 1 for n in scenes)
        write_logs(root / "data", frames, (96, 54))
        source = WindowSource(str(root / "data"), frames)
        teachers = [FixedTeacher(seconds=0), FixedTeacher(name="views", seconds=0, steps=(0, 1, 2, 3))]
        config = WorkerConfig(device="cpu", decode_threads=2)
        run, make = begin(source, root / "out", teachers, shard_size=shard_size, worker=config)
        worker = make()
        worker.load()
        with ThreadPoolExecutor(2) as pool:
            receipts = list(pool.map(worker.process, run.todo()))
        worker.close()
    assert sum(r.decodes for r in receipts) == decoded.total(), "the receipts miscount"
    distinct = sum(n + FUTURE for n in scenes)
    assert len(decoded) == distinct, "an image was never decoded"
    unshared = (CLIP + 4 + 1) * sum(scenes) / distinct
    return [str(distinct), str(decoded.total()), f"{decoded.total() / distinct:.3f}", f"{unshared:.1f}", "1"]
