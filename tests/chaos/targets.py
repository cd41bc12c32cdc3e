"""What is fuzzed: each parser of bytes that somebody else may have written, with seeds that it reads.

    pickle    `pickles.unpickle.load_pickle`        log pickles, calibrations in nuPlan logs
    cache     `scoring.devkit.metric_cache.context_from_cache` the pickle within the lzma
    log       the NAVSIM source, from file to JSON and Zarr  values of a log's frames exchanged
    db        the nuPlan source, scan and scenes             bytes of the SQLite file
    jpeg      `pipeline.stores.decode.decode_jpeg`
    npy       `shards_schema.codecs.load_npy`
    document  dataset.json, column.json, commit records
    record    `pipeline.reading.reader.Dataset` and `verify`        a commit record with a valid seal and anything in it
    tar       `pipeline.reading.verify`                              a tar whose commit record vouches for it

Where bytes alone would not get past the first check (a seal, a pickle), the input is the seed of a generator that makes
damage behind that check.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import lzma
import pickle
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pickles.unpickle import load_pickle
from pipeline.reading.reader import Dataset
from pipeline.reading.verify import verify
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.sources.nuplan import NuplanConfig, NuplanSource
from pipeline.stores.decode import decode_jpeg, encode_jpeg
from pipeline.writing.samples import SamplesColumn, SamplesConfig, StoredImage
from scoring.devkit.metric_cache import context_from_cache
from shards_schema import layout
from shards_schema.codecs import canonical_json, load_npy, npy_bytes, seal
from shards_schema.commit import CommitRecord
from shards_schema.errors import ConfigError, DatasetError, SampleError, ShardsError
from shards_schema.manifests import ColumnManifest, DatasetManifest
from shards_schema.plan import SceneRef
from shards_schema.records import Scene
from synthetic import SyntheticConfig
from synthetic.nuplan_dataset import generate_nuplan
from tests.chaos import hostile
from tests.chaos.world import World

DATA = Path(__file__).parents[1] / "data"


class Target:
    """One parser: `seeds`, `run`, and the errors that `run` may raise."""

    expected: tuple[type[BaseException], ...] = (SampleError,)
    modules: tuple[str, ...] = ()
    """What atheris instruments."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.seeds: list[bytes] = [b""]
        self.prepare()

    def prepare(self) -> None:
        """Make the seeds."""

    def run(self, data: bytes) -> None:
        """Parse."""
        raise NotImplementedError

    def close(self) -> None:
        """Remove what lies on disk."""
        shutil.rmtree(self._folder, ignore_errors=True)


class _Pickle(Target):
    """Everything that a pickle may say."""

    modules = ("pickles.unpickle",)

    def prepare(self) -> None:
        frames = load_pickle(_log().read_bytes(), "seed")[:1]
        values: list[Any] = [[1, "a", (2.5, None)], {"x": {1, 2}}, np.eye(3), np.float64(2), frames]
        self.seeds = [pickle.dumps(value, protocol) for value in values for protocol in (2, 4, 5)]
        self.seeds += [b"cos\nsystem\n(S'true'\ntR.", b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."]

    def run(self, data: bytes) -> None:
        load_pickle(data, "fuzz")


class _Cache(Target):
    """Metric caches, beneath the compression."""

    modules = ("pickles.inert", "scoring.devkit.metric_cache")

    def prepare(self) -> None:
        found = sorted((DATA / "pdm").glob("metric_cache_v*/**/metric_cache.pkl"))
        self.seeds = [lzma.decompress(path.read_bytes()) for path in found[:1] + found[-1:]]
        self._path = self._folder / "metric_cache.pkl"

    def run(self, data: bytes) -> None:
        self._path.write_bytes(lzma.compress(data, preset=0))
        context_from_cache(self._path, "v2")


class _Log(Target):
    """A NAVSIM log whose values were exchanged, through the source and into a sample's document and rows."""

    expected = (SampleError,)
    modules = ("pipeline.sources.navsim", "pipeline.sources.navsim_frame", "pipeline.sources.untrusted")

    def prepare(self) -> None:
        self._frames = load_pickle(_log().read_bytes(), "seed")[:4]
        for frame in self._frames:
            frame["anns"] = {key: value[:2] for key, value in frame["anns"].items()}
        logs = self._folder / "navsim_logs" / "mini"
        logs.mkdir(parents=True)
        self._path = logs / "a.pkl"
        window = {"num_history_frames": 2, "num_future_frames": 1, "frame_interval": 1}
        self._source = NavsimSource(NavsimConfig(root=str(self._folder), split="mini", filter=window))
        self._samples = SamplesColumn(SamplesConfig(), num_history=2, num_future=1)
        self.seeds = [n.to_bytes(2, "little") for n in range(256)]

    def run(self, data: bytes) -> None:
        rng = random.Random(data)
        frames = hostile.spoil(copy.deepcopy(self._frames), rng, hostile.LOG_VALUES, rng.randrange(1, 4))
        try:
            self._path.write_bytes(pickle.dumps(frames, 5))
        except (RecursionError, UnicodeEncodeError):
            return
        scan = self._source.scan()
        for reason in scan.unreadable.values():
            canonical_json(reason)
        refs = scan.refs or (SceneRef("a", 0, "b", 0),)
        for scene in self._source.scenes("a", refs):
            if isinstance(scene, SampleError):
                canonical_json([scene.code, scene.reason])  # as it goes into a commit record
            else:
                self._write(scene)

    def _write(self, scene: Scene) -> None:
        """A good scene can be written, and what is written can be read."""
        if "CAM_F0" in scene.current.cameras:
            image = StoredImage(b"", (8, 8), (8, 8))
            json.loads(self._samples.members(scene, {"CAM_F0": image})["json"])
        for name, value in self._samples.arrays(scene).items():
            if not isinstance(value, str) and not np.isfinite(value).all():
                raise AssertionError(f"{name} of a good scene is not finite")


class _Database(Target):
    """A nuPlan log's SQLite file."""

    expected = (SampleError, ConfigError)
    modules = ("pipeline.sources.nuplan_db", "pipeline.sources.nuplan_log", "pipeline.sources.nuplan_frame")

    def prepare(self) -> None:
        config = SyntheticConfig(
            logs=1, frames=6, width=32, height=18, lidar_points=0, traffic=0.1, manoeuvres=("follow",), cameras=(),
            processes=1,
        )  # fmt: skip
        generate_nuplan(config, self._folder / "data", ())
        (self._path,) = (self._folder / "data").glob("**/*.db")
        with sqlite3.connect(self._path) as db:
            db.execute("VACUUM")
        db.close()
        self.seeds = [self._path.read_bytes()]
        root = self._path.parents[2]
        maps = next((self._folder / "data").glob("**/nuplan-maps-v1.0.json")).parent
        window = {"num_history_frames": 2, "num_future_frames": 1, "frame_interval": 1}
        self._source = NuplanSource(
            NuplanConfig(root=str(root), maps_root=str(maps), split=self._path.parent.name, filter=window)
        )
        self._refs = self._source.scan().refs

    def run(self, data: bytes) -> None:
        self._path.write_bytes(data)
        scan = self._source.scan()
        for ref in (scan.refs or self._refs)[:2]:
            for scene in self._source.scenes(ref.log, [ref]):
                if isinstance(scene, SampleError):
                    canonical_json([scene.code, scene.reason])


class _Jpeg(Target):
    """Images."""

    modules = ("pipeline.stores.decode",)

    def prepare(self) -> None:
        rng = np.random.default_rng(0)
        image = rng.integers(0, 255, (24, 40, 3), np.uint8)
        self.seeds = [encode_jpeg(image, 80), encode_jpeg(image[:1, :1], 5)]
        for mode, options in (("RGB", {"progressive": True}), ("L", {}), ("CMYK", {}), ("RGB", {"optimize": True})):
            out = io.BytesIO()
            Image.fromarray(image).convert(mode).save(out, "JPEG", **options)
            self.seeds.append(out.getvalue())

    def run(self, data: bytes) -> None:
        image = decode_jpeg(data, "fuzz")
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3


class _Npy(Target):
    """Arrays."""

    expected = (DatasetError,)
    modules = ("shards_schema.codecs",)

    def prepare(self) -> None:
        arrays = [np.eye(3), np.zeros((2, 0), "i2"), np.array(1.5, "f4"), np.array(["ab"]), np.ones(7, "?")]
        self.seeds = [npy_bytes(array) for array in arrays]

    def run(self, data: bytes) -> None:
        load_npy(data, "fuzz")


class _Document(Target):
    """Sealed JSON: half of the inputs are bytes, half are values beneath a valid seal."""

    expected = (ShardsError,)
    modules = ("shards_schema.codecs", "shards_schema.manifests", "shards_schema.commit", "shards_schema.specs")

    def prepare(self) -> None:
        out = _dataset(self._folder)
        names = (layout.DATASET, layout.column_json("toy"), layout.record("toy", 0))
        self._good = [json.loads((out / name).read_bytes()) for name in names]
        self.seeds = [(out / name).read_bytes() for name in names] + [n.to_bytes(2, "little") for n in range(200)]

    def run(self, data: bytes) -> None:
        parsers: Sequence[Callable[[bytes, str], Any]] = (
            DatasetManifest.from_bytes,
            ColumnManifest.from_bytes,
            CommitRecord.from_bytes,
        )
        if len(data) > 40:
            for parse in parsers:
                _either(parse, data)
            return
        rng = random.Random(data)
        which = rng.randrange(3)
        parsers[which](_resealed(self._good[which], rng), "fuzz")


class _Record(Target):
    """A commit record that says what it likes, with a valid seal: the reader, and `verify`."""

    expected = (ShardsError,)
    modules = (
        "pipeline.reading.members",
        "pipeline.reading.reader",
        "pipeline.stores.records",
        "pipeline.reading.values",
        "pipeline.reading.verify",
        "shards_schema.commit",
    )

    def prepare(self) -> None:
        self._out = _dataset(self._folder)
        self._places = [self._out / layout.record(c, s) for c in ("toy", "samples") for s in (0, 1)]
        self._bytes = [path.read_bytes() for path in self._places]
        self.seeds = [n.to_bytes(2, "little") for n in range(100)]

    def run(self, data: bytes) -> None:
        rng = random.Random(data)
        which = rng.randrange(len(self._places))
        self._places[which].write_bytes(_resealed(json.loads(self._bytes[which]), rng))
        try:
            if rng.random() < 0.3 and not verify(str(self._out), threads=1).faults:
                raise AssertionError("verify finds no fault in a commit record that was changed")
            _read_all(self._out)
        finally:
            self._places[which].write_bytes(self._bytes[which])


class _Tar(Target):
    """A tar that was changed, and a commit record that vouches for it: `verify` reads it with a tar reader."""

    expected = (ShardsError,)
    modules = ("pipeline.reading.verify", "shards_schema.codecs")

    def prepare(self) -> None:
        self._out = _dataset(self._folder)
        self._tar, self._record = self._out / layout.tar("toy", 0), self._out / layout.record("toy", 0)
        self._good, self._document = self._tar.read_bytes(), json.loads(self._record.read_bytes())
        self.seeds = [self._good]

    def run(self, data: bytes) -> None:
        document = copy.deepcopy(self._document)
        document["files"][layout.tar("toy", 0)] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        document.pop("sha256")
        self._tar.write_bytes(data)
        self._record.write_bytes(seal(document, compact=True))
        if verify(str(self._out), threads=1).faults:
            _either(lambda out, _: _read_all(out), self._out)
        elif data != self._good:
            # what a tar may say in two ways (its numbers, its owner), and what follows its end, is no fault
            dataset = Dataset(str(self._out), columns=["toy"])
            for token in dataset.tokens("toy"):
                dataset.read(token)


def _either(parse: Callable[[Any, str], Any], data: Any) -> None:
    try:
        parse(data, "fuzz")
    except ShardsError:
        return


def _read_all(out: Path) -> None:
    dataset = Dataset(str(out))
    for column in dataset.columns:
        for token in dataset.tokens(column):
            dataset.read(token, {column: None})


def _resealed(document: dict[str, Any], rng: random.Random) -> bytes:
    """The document with one to three of its values exchanged, and a seal that fits."""
    changed = copy.deepcopy(document)
    changed.pop("sha256")
    before = copy.deepcopy(changed)
    while True:
        changed = hostile.spoil(copy.deepcopy(before), rng, hostile.JSON_VALUES, rng.randrange(1, 4))
        try:
            if isinstance(changed, dict) and changed != before:
                return seal(changed, compact=True)
        except (ValueError, RecursionError):
            continue


def _log() -> Path:
    return next((DATA / "navsim").glob("*.pkl"))


def _dataset(folder: Path) -> Path:
    out = folder / "out"
    World.make(folder / "world", logs=2).job(out)
    return out


TARGETS: dict[str, type[Target]] = {
    "pickle": _Pickle,
    "cache": _Cache,
    "log": _Log,
    "db": _Database,
    "jpeg": _Jpeg,
    "npy": _Npy,
    "document": _Document,
    "record": _Record,
    "tar": _Tar,
}
