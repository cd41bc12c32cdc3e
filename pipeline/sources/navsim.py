"""NAVSIM / OpenScene: log pickles of 2 Hz frames, windowed as NAVSIM's devkit does it (spec/navsim.md 1 and 2).

Layout, under any URL that fsspec opens::

    <root>/navsim_logs/<split>/<log>.pkl           list of frames; other files in the folder are passed over
    <root>/sensor_blobs/<split>/<data_path>        images and point clouds, named by the frames
    <root>/SYNTHETIC.json                          there only when our own generator made the dataset

The windows are the devkit's: starts 0, s, 2s, ...; H + F frames; no check for gaps in time. Where it is loose:

- Logs are read in the order of their names (the devkit: directory order), so `max_scenes` always means the same
  scenes; the log in which the limit falls is counted as a whole in `Scan.skipped`, later ones not at all.
- A token that a log holds twice means its later window, as in the devkit, and is counted (``repeated_token``).
  A token that two logs hold stops the scan: one of the scenes would be lost, and which one is not ours to choose.
- Second-stage synthetic scenes are not read; those that the filter lists are counted (``synthetic_scene``). A filter
  that wants them without listing them is refused, since what is left out could not be counted.
- `Scan.not_found` holds the tokens asked for of which no window of a readable log passed the filter; it is empty when
  `max_scenes` ended the scan, since the rest was not looked for.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import re
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline.sources.base import Scan, SceneRef
from pipeline.sources.navsim_frame import CameraFrame, FrameReader, route, token_and_time
from pipeline.sources.scene_filter import SceneFilter
from pipeline.sources.unpickle import load_pickle
from pipeline.sources.untrusted import shown, text
from pipeline.stores.remote import refuse_credentials
from pipeline.stores.volume import Volume
from shards_schema.errors import ConfigError, SampleError, StoreError
from shards_schema.records import Frame, Scene

MAP_NAMES: Final = ("sg-one-north", "us-ma-boston", "us-nv-las-vegas-strip", "us-pa-pittsburgh-hazelwood")
"""nuPlan's four locations."""

_PERIOD_US: Final = 500_000
_GAP_US: Final = 100_000
"""Frames follow each other without a gap when they are 0.5 s +- 0.1 s apart."""


class NavsimConfig(BaseModel):
    """Where the dataset is, and which of its scenes are wanted.

    Attributes:
        root: the dataset's folder (OPENSCENE_DATA_ROOT) or URL.
        split: the folder below navsim_logs and sensor_blobs; by default what the train_test_split file says.
        filter: a `SceneFilter`, its fields, or the path of one of the devkit's YAML files; None is its defaults.
        context_frames: how many frames before the window go into `Scene.before`, where the log has them without a gap.
        camera_frame: see `FrameReader`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: str = Field(min_length=1)
    split: str | None = None
    filter: SceneFilter = SceneFilter()
    context_frames: int = Field(1, ge=0)
    camera_frame: CameraFrame = "ego"

    @field_validator("root", mode="before")
    @classmethod
    def _root_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @field_validator("filter", mode="before")
    @classmethod
    def _filter_loaded(cls, value: Any) -> Any:
        if value is None:
            return SceneFilter()
        return SceneFilter.load(value) if isinstance(value, Mapping | str | Path) else value

    @model_validator(mode="after")
    def _complete(self) -> NavsimConfig:
        if not self.data_split or "/" in self.data_split or self.data_split in (".", ".."):
            raise ConfigError(
                f"split should be a folder of navsim_logs such as trainval, got {self.data_split!r}: set it, or give "
                "a train_test_split/*.yaml as filter"
            )
        if self.filter.include_synthetic_scenes and not self.filter.second_stage:
            raise ConfigError(
                "the filter wants synthetic scenes but lists none, and they cannot be read here: "
                "set include_synthetic_scenes: false"
            )
        return self

    @property
    def data_split(self) -> str:
        """The split's folder."""
        return self.split or self.filter.data_split or ""

    @property
    def shown_root(self) -> str:
        """`root` without what a URL may hold of credentials, for messages and records."""
        if "://" not in self.root:
            return self.root
        return re.sub(r"//[^/@]*@", "//", self.root.split("?")[0])


@dataclass(frozen=True, slots=True)
class NavsimSource:
    """A NAVSIM dataset under a scene filter; satisfies `pipeline.sources.base.Source`.

    Raises:
        ConfigError: the root is a URL that holds credentials, which would stand in records and reasons.
        StoreError: (any method) a remote root refused a request or failed too often; no log is given up for that.
    """

    config: NavsimConfig

    def __post_init__(self) -> None:
        refuse_credentials(self.config.root)  # here, since pydantic's errors repeat what they refuse

    @property
    def num_history(self) -> int:
        """H, with the current frame."""
        return self.config.filter.num_history_frames

    @property
    def num_future(self) -> int:
        """F."""
        return self.config.filter.num_future_frames

    @property
    def synthetic(self) -> bool:
        """Whether the root holds ``SYNTHETIC.json``."""
        return Volume(self.config.root).exists("SYNTHETIC.json")

    def describe(self) -> dict[str, Any]:
        """See `Source.describe`; long lists of the filter as their count and the sha256 of their sorted members."""
        return {
            "kind": "navsim",
            "root": self.config.shown_root,
            "split": self.config.data_split,
            "filter": {name: _summary(value) for name, value in self.config.filter},
            "context_frames": self.config.context_frames,
            "camera_frame": self.config.camera_frame,
            "synthetic": self.synthetic,
        }

    def scan(self, *, processes: int = 1) -> Scan:
        """See `Source.scan`; the result does not depend on `processes`.

        Raises:
            ConfigError: no log folder, a folder without logs, or a token that two logs hold.
        """
        filter_ = self.config.filter
        logs, unreadable = self._wanted_logs()
        owners: dict[str, SceneRef] = {}
        clashes: list[str] = []
        skipped: Counter[str] = Counter()
        if second := filter_.second_stage:
            skipped["synthetic_scene"] = len(second)
        full = False
        with closing(self._scan_logs(logs, processes)) as results:
            for log, found in zip(logs, results, strict=False):
                if isinstance(found, str):
                    unreadable[log] = found
                    continue
                skipped.update(found.skipped)
                for ref in found.refs:
                    if ref.token in owners:
                        clashes.append(f"{ref.token} in {owners[ref.token].log} and {log}")
                    owners[ref.token] = ref
                    if full := len(owners) == filter_.max_scenes:
                        break
                if full:
                    break
        if clashes:
            raise ConfigError(
                f"{self._shown_folder}: {len(clashes)} tokens are held by two logs, so one scene of each pair would be "
                f"lost: {'; '.join(clashes[:3])}. Remove one of the logs, or leave it out of log_names"
            )
        not_found = () if full or filter_.tokens is None else tuple(sorted(set(filter_.tokens) - owners.keys()))
        return Scan(tuple(sorted(owners.values())), dict(sorted(unreadable.items())), not_found, dict(skipped))

    def scenes(self, log: str, refs: Sequence[SceneRef]) -> list[Scene | SampleError]:
        """See `Source.scenes`. A scene's code is ``log_changed``, ``bad_timestamps`` or one of `navsim_frame`'s."""
        raw = self._read_log(log)
        blobs = f"{self.config.root.rstrip('/')}/sensor_blobs/{self.config.data_split}"
        reader = FrameReader(raw, blobs, self.config.camera_frame)
        return [self._scene(raw, reader, log, ref) for ref in refs]

    def _scene(self, raw: list[dict[str, Any]], reader: FrameReader, log: str, ref: SceneRef) -> Scene | SampleError:
        history, length = self.num_history, self.num_history + self.num_future
        try:
            window = raw[ref.start : ref.start + length] if ref.start >= 0 else []
            found = token_and_time(window[history - 1]) if len(window) == length else ("none", 0)
            if found != (ref.token, ref.timestamp):
                raise SampleError(
                    "log_changed",
                    f"frame {ref.start + history - 1} should be {ref.token} at {ref.timestamp} us, found {found[0]} at "
                    f"{found[1]} us in a log of {len(raw)} frames: it changed since the plan was made; plan again",
                )
            frames = tuple(reader.frame(index) for index in range(ref.start, ref.start + length))
            for a, b in pairwise(frames):
                if a.timestamp >= b.timestamp:
                    raise SampleError(
                        "bad_timestamps",
                        f"time should go on from frame to frame: {b.token} at {b.timestamp} us follows {a.token} at "
                        f"{a.timestamp} us",
                    )
            current = window[history - 1]
            scene_token, map_name = current.get("scene_token"), current.get("map_location")
            if not isinstance(scene_token, str) or not isinstance(map_name, str) or map_name not in MAP_NAMES:
                raise SampleError(
                    "bad_frame",
                    f"expected a scene_token and a map_location of {', '.join(MAP_NAMES)}, got "
                    f"{shown(scene_token, 40)} and {shown(map_name, 40)}",
                )
            return Scene(
                log=log,
                scene_token=text(scene_token, "bad_frame", "scene_token"),
                map_name=str(map_name),
                frames=frames,
                num_history=history,
                before=self._before(reader, ref.start, frames[0]),
            )
        except SampleError as error:
            return SampleError(error.code, f"scene {ref.token} of log {log}: {error.reason}")

    def _before(self, reader: FrameReader, start: int, first: Frame) -> tuple[Frame, ...]:
        """Up to `context_frames` frames before index `start`, as far back as there is no gap and no bad frame."""
        frames = [first]
        for index in range(start - 1, max(-1, start - 1 - self.config.context_frames), -1):
            try:
                frame = reader.frame(index)
            except SampleError:
                break
            if abs(frames[-1].timestamp - frame.timestamp - _PERIOD_US) > _GAP_US:
                break
            frames.append(frame)
        return tuple(reversed(frames[1:]))

    @property
    def _shown_folder(self) -> str:
        return f"{self.config.shown_root.rstrip('/')}/navsim_logs/{self.config.data_split}"

    def _wanted_logs(self) -> tuple[list[str], dict[str, str]]:
        """The sorted names of the logs to read, and a reason for each one that was asked for and is not there."""
        root, folder = Volume(self.config.root), f"navsim_logs/{self.config.data_split}"
        entries = [*root.names(folder), *root.folders(folder)]  # a folder of that name is a log that cannot be read
        there = {name.removesuffix(".pkl") for name in entries if name.endswith(".pkl")}
        strange = {name for name in there if not name.isprintable()}  # bytes that are no UTF-8, or control characters
        if not there:
            raise ConfigError(f"{self._shown_folder} should hold <log>.pkl files, found none: check root and split")
        names = self.config.filter.log_names
        wanted = there if names is None else set(names)
        unreadable = dict.fromkeys(wanted - there, f"no such log file in {self._shown_folder}")
        unreadable |= {shown(name): "its name is no printable text; rename it" for name in strange & wanted}
        return sorted((there & wanted) - strange), unreadable

    def _read_log(self, log: str) -> list[dict[str, Any]]:
        where = f"{self._shown_folder}/{log}.pkl"
        try:
            data = Volume(self.config.root).read(f"navsim_logs/{self.config.data_split}/{log}.pkl")
        except StoreError:
            raise
        except FileNotFoundError:
            raise SampleError("log_unreadable", f"{where}: FileNotFoundError: no such file") from None
        except OSError as error:
            raise SampleError("log_unreadable", f"{where}: {type(error).__name__}: {error.strerror}") from None
        frames = load_pickle(data, where)
        if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames):
            raise SampleError("log_unreadable", f"{where} should hold a list of frames (dicts), got {shown(frames)}")
        return frames

    def _scan_logs(self, logs: Sequence[str], processes: int) -> Generator[_LogScan | str, None, None]:
        """What each of `logs` holds, in order; a reason in the place of one that cannot be read."""
        tokens = frozenset(self.config.filter.tokens) if self.config.filter.tokens is not None else None
        if processes <= 1 or len(logs) <= 1:
            for log in logs:
                yield _scan_log(self, tokens, log)
            return
        chunk = 1 if self.config.filter.max_scenes is not None else max(1, min(16, len(logs) // (4 * processes)))
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(min(processes, len(logs)), context, _begin_worker, (self, tokens)) as pool:
            try:
                yield from pool.map(_scan_in_worker, logs, chunksize=chunk)
            finally:  # when max_scenes ended the scan, do not read the rest
                pool.shutdown(cancel_futures=True)


@dataclass(frozen=True, slots=True)
class _LogScan:
    refs: tuple[SceneRef, ...]
    skipped: Counter[str]


def _scan_log(source: NavsimSource, tokens: frozenset[str] | None, log: str) -> _LogScan | str:
    """The windows of one log that pass the filter (spec/navsim.md 2.2), or why it cannot be read."""
    filter_ = source.config.filter
    refs: dict[str, SceneRef] = {}
    skipped: Counter[str] = Counter()
    try:
        frames = source._read_log(log)
        for start in range(0, len(frames), filter_.stride):
            if start + filter_.num_frames > len(frames):
                skipped["too_short"] += 1
                continue
            current = frames[start + filter_.num_history_frames - 1]
            token, timestamp = token_and_time(current)
            if filter_.has_route and not route(current):
                skipped["no_route"] += 1
            elif tokens is not None and token not in tokens:
                skipped["not_in_tokens"] += 1
            else:
                skipped["repeated_token"] += token in refs
                refs[token] = SceneRef(log, timestamp, token, start)
    except SampleError as error:
        return error.reason
    return _LogScan(tuple(refs.values()), +skipped)


_worker: list[tuple[NavsimSource, frozenset[str] | None]] = []
"""What a worker process needs for each of its logs; sent once, since navtrain's tokens are 2 MB."""


def _begin_worker(source: NavsimSource, tokens: frozenset[str] | None) -> None:
    _worker[:] = [(source, tokens)]


def _scan_in_worker(log: str) -> _LogScan | str:
    return _scan_log(*_worker[0], log)


def _summary(value: Any) -> Any:
    """A short list, number or string as it is; a long list or a mapping as its size and digest."""
    if isinstance(value, tuple):
        value = sorted(set(value))
    if isinstance(value, list | dict) and len(value) > 8:
        text = json.dumps(value, sort_keys=True, default=str)
        return {"count": len(value), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    return value
