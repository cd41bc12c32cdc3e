"""nuPlan: ``.db`` logs with their sensor blobs, as the scenes that the NAVSIM source makes of OpenScene's pickles.

Layout, under any URL that fsspec opens::

    <root>/splits/<split>/<log>.db                      SQLite; other files in the folder are passed over
    <root>/sensor_blobs/<log>/CAM_F0/<token>.jpg        images and point clouds, named by the logs
    <root>/SYNTHETIC.json                               there only when our own generator made the logs
    <maps_root>/<location>/<version>/map.gpkg           on a local disk, for the driving command

A log becomes frames as OpenScene makes them (`nuplan_log`): at 2 Hz, or at 10 Hz with the same windows, filter and
records, only that a step is then 0.1 s. A frame without one of its images, or without its sweep's file, is dropped,
and windows are cut from what is left, as NAVSIM does; but a window that would cross the place of a dropped frame, or a
jump in time, is not made. `Scan.skipped` counts those on the log's full grid of frames, by what is missing:
``missing_camera`` (no exposure within 50 ms), ``missing_image_file``, ``missing_lidar_file``, ``time_gap``. The other
reasons are as in `pipeline.sources.navsim`, and the rest of what `Scan` says as in `pipeline.sources.scan`.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from maps.folder import MapFolder
from maps.nuplan_map import load_map
from pipeline.sources import base, files
from pipeline.sources.base import Scan, Wanted
from pipeline.sources.navsim import MAP_NAMES
from pipeline.sources.navsim_frame import FrameReader
from pipeline.sources.nuplan_command import driving_command
from pipeline.sources.nuplan_db import open_log, unreadable
from pipeline.sources.nuplan_frame import Extrinsics, LogFrames
from pipeline.sources.nuplan_log import NuplanLog
from pipeline.sources.nuplan_windows import cut_windows, missing
from pipeline.sources.registry import Progress, parse_config
from pipeline.sources.scan import LogScan, LogsConfig, LogsSource, scan_logs, shown_url, wanted_logs
from pipeline.stores.places import LocalText, Place
from shards_schema.errors import ConfigError, SampleError
from shards_schema.plan import SceneRef
from shards_schema.records import CHANNELS, Frame, Scene


class NuplanConfig(LogsConfig):
    """Where the logs are, which of their scenes are wanted, and at what rate.

    The root holds ``splits`` and ``sensor_blobs`` (nuplan-v1.1). The filter's counts and intervals are in frames,
    whatever the rate.
    """

    logs_folder: ClassVar[str] = "splits"

    maps_root: LocalText = Field(min_length=1)
    """NUPLAN_MAPS_ROOT, a local folder."""
    sensor_root: Place | None = None
    """Where the files named by the logs lie, when not at ``<root>/sensor_blobs``."""
    rate: Literal[2, 10] = 2
    """Frames a second: 2, NAVSIM's, or 10, the cameras'."""
    channels: tuple[str, ...] = CHANNELS
    """The cameras that a frame must have, and all that it has."""
    lidar: bool = True
    """Whether a frame must have the file of its sweep, as in OpenScene; if not, it names none."""
    extrinsics: Extrinsics = "rig"
    """Where a camera is: "rig" gives its place on the car as calibrated, as OpenScene does. "exposure" moves it by how
    far the car went between the frame's pose and the exposure's own, so that what stands still projects exactly; the
    calibrations of a camera then differ from frame to frame."""

    @field_validator("channels")
    @classmethod
    def _channels_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value) or not set(value) <= set(CHANNELS):
            raise ValueError(f"channels must be distinct, of {', '.join(CHANNELS)}; got {value}")
        return value

    @property
    def blobs(self) -> str:
        """What the logs' file names are relative to."""
        return (self.sensor_root or f"{self.root.rstrip('/')}/sensor_blobs").rstrip("/")

    @property
    def maps(self) -> MapFolder:
        """The maps; one that is not there is a `ConfigError`."""
        return MapFolder(Path(self.maps_root), "source.maps_root", ConfigError)


@dataclass(frozen=True, slots=True)
class NuplanSource(LogsSource):
    """nuPlan's logs under a scene filter; satisfies `pipeline.sources.base.Source`."""

    config: NuplanConfig

    def describe(self) -> dict[str, Any]:
        """See `Source.describe`; long lists of the filter as their count and digest."""
        config = self.config
        return {
            "kind": "nuplan",
            "root": config.shown_root,
            "split": config.data_split,
            "sensor_root": shown_url(config.blobs),
            "filter": config.filter_summary,
            "rate": config.rate,
            "channels": list(config.channels),
            "lidar": config.lidar,
            "extrinsics": config.extrinsics,
            "context_frames": config.context_frames,
            "synthetic": self.synthetic,
        }

    @property
    def rate(self) -> int:
        """As configured."""
        return self.config.rate

    @property
    def channels(self) -> frozenset[str]:
        """As configured."""
        return frozenset(self.config.channels)

    @property
    def blobs(self) -> str:
        """See `LookingSource`."""
        return self.config.blobs

    def look(self, wanted: Wanted, *, processes: int = 1) -> Scan:
        """See `LookingSource.look`; a window that is made has its images, so only frames before it may lack some."""
        logs, bad = wanted_logs(self.config, files.names(self.config.folder), ".db")
        return scan_logs(self.config, logs, bad, functools.partial(_scan_log, self, wanted), processes=processes)

    def scenes(self, log: str, refs: Sequence[SceneRef]) -> list[Scene | SampleError]:
        """See `Source.scenes`. A scene's code is ``log_changed``, ``time_gap`` or one of `navsim_frame`'s.

        Raises:
            ConfigError: no map of the log's location.
        """
        config, length = self.config, self.num_history + self.num_future
        with self._open(log) as found:
            step = found.step
            windows = [[ref.start + step * i for i in range(-config.context_frames, length)] for ref in refs]
            indices = {i for window in windows for i in window if i in found.frames_at}
            commander = functools.partial(driving_command, load_map(config.maps.file(found.map_name)).roads)
            frames = LogFrames(found, indices, commander, config.extrinsics, config.lidar)
        reader = FrameReader(frames, config.blobs)
        return [self._scene(found, reader, log, ref) for ref in refs]

    def _scene(self, found: NuplanLog, reader: FrameReader, log: str, ref: SceneRef) -> Scene | SampleError:
        step, length = found.step, self.num_history + self.num_future
        window = [ref.start + step * i for i in range(length)]
        current = window[self.num_history - 1]
        try:
            if not all(i in found.frames_at for i in window) or (
                (found.token(current), found.sweeps[current].timestamp) != (ref.token, ref.timestamp)
            ):
                raise SampleError(
                    "log_changed",
                    f"sweep {current} should be {ref.token} at {ref.timestamp} us, and it is not, in a log of "
                    f"{len(found.sweeps)} sweeps: it changed since the plan was made; plan again",
                )
            made = tuple(reader.frame(i) for i in window)
            for a, b in pairwise(made):
                if not found.follows(a.timestamp, b.timestamp):
                    raise SampleError("time_gap", f"{b.token} follows {a.token} after {b.timestamp - a.timestamp} us")
            for frame in made:
                if lost := [channel for channel in self.config.channels if channel not in frame.cameras]:
                    raise SampleError("missing_camera", f"frame {frame.token} has no image of {', '.join(lost)}")
            return Scene(
                log=log,
                scene_token=found.scene(current),
                map_name=found.map_name,
                frames=made,
                num_history=self.num_history,
                before=self._before(found, reader, window[0], made[0]),
            )
        except SampleError as error:
            return SampleError(error.code, f"scene {ref.token} of log {log}: {error.reason}")

    def _before(self, found: NuplanLog, reader: FrameReader, start: int, first: Frame) -> tuple[Frame, ...]:
        """Up to `context_frames` frames before sweep `start`, as far back as there is no gap and no bad frame."""
        frames = [first]
        for n in range(1, self.config.context_frames + 1):
            index = start - n * found.step
            if index not in found.frames_at or not found.follows(found.sweeps[index].timestamp, frames[-1].timestamp):
                break
            try:
                frame = reader.frame(index)
            except SampleError:
                break
            if len(frame.cameras) < len(self.config.channels) or not _exist(frame):
                break
            frames.append(frame)
        return tuple(reversed(frames[1:]))

    @contextmanager
    def _open(self, log: str) -> Generator[NuplanLog, None, None]:
        where = f"{self.config.shown_folder}/{log}.db"
        with open_log(f"{self.config.folder}/{log}.db", where) as db:
            found = NuplanLog(db, self.config.channels, self.config.rate)
            if found.map_name not in MAP_NAMES:
                raise unreadable(where, f"log.map_version should be one of {MAP_NAMES}, found {found.map_name!r:.40}")
            yield found


def build(config: Mapping[str, Any], progress: Progress) -> NuplanSource:
    """The source of a config, see `pipeline.sources.registry`.

    Raises:
        ConfigError: an unknown key, or a value that is refused.
    """
    return NuplanSource(parse_config(NuplanConfig, config))


def _scan_log(source: NuplanSource, wanted: Wanted, tokens: frozenset[str] | None, log: str) -> LogScan | str:
    """The windows of one log that pass the filter, or why it cannot be read.

    Raises:
        ConfigError: no map of its location.
    """
    config = source.config
    try:
        with source._open(log) as found:
            lacks = functools.partial(missing, found, files.Listing(config.blobs), lidar=config.lidar)
            windows = cut_windows(found, log, config.filter, tokens, lacks)
            config.maps.file(found.map_name)

            def has(ref: SceneRef, step: int, channel: str) -> bool:
                back = max(0, -step - source.num_history + 1)  # before the window; what is in it has everything
                frames = [ref.start - n * found.step for n in range(back + 1)]
                return channel in config.channels and all(
                    i in found.frames_at and found.follows(*found.stamps[[i, late]].tolist()) and lacks(i) is None
                    for late, i in pairwise(frames)
                )

            return replace(windows, missing=base.missing(windows.refs, wanted, has))
    except SampleError as error:
        return error.reason


def _exist(frame: Frame) -> bool:
    """Whether a frame has all its files."""
    paths = [camera.image for camera in frame.cameras.values()] + ([frame.lidar] if frame.lidar else [])
    return all(map(files.exists, paths))
