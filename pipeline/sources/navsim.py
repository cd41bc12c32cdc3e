"""NAVSIM / OpenScene: log pickles of 2 Hz frames, windowed as NAVSIM's devkit does it.

Layout, under any URL that fsspec opens::

    <root>/navsim_logs/<split>/<log>.pkl           list of frames; other files in the folder are passed over
    <root>/sensor_blobs/<split>/<data_path>        images and point clouds, named by the frames
    <root>/<second_stage>/                         synthetic scenes of a two-stage split, see `second_stage`
    <root>/SYNTHETIC.json                          there only when our own generator made the dataset

Which windows are scenes stands in `navsim_windows`. A token that a log holds twice means its later window, as in the
devkit, and is counted (``repeated_token``). What holds for all logs together (their order, limits, tokens that two
hold, synthetic scenes) stands in `pipeline.sources.scan`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Final

from pydantic import field_validator

from pickles.unpickle import load_pickle
from pipeline.sources import files
from pipeline.sources.base import Scan, Wanted, missing
from pipeline.sources.navsim_frame import CameraFrame, FrameReader, token_and_time
from pipeline.sources.navsim_images import LogImages
from pipeline.sources.navsim_windows import PERIOD_US, Gaps, break_between, cut_windows
from pipeline.sources.registry import Progress, parse_config
from pipeline.sources.scan import LogScan, LogsConfig, LogsSource, scan_logs, wanted_logs
from pipeline.sources.second_stage import START, SecondStage, add_second_stage
from pipeline.sources.untrusted import shown, text
from shards_schema.errors import ConfigError, SampleError
from shards_schema.plan import SceneRef
from shards_schema.records import CHANNELS, Frame, Scene

MAP_NAMES: Final = ("sg-one-north", "us-ma-boston", "us-nv-las-vegas-strip", "us-pa-pittsburgh-hazelwood")
"""nuPlan's four locations."""


class NavsimConfig(LogsConfig):
    """Where the dataset is (its folder is OPENSCENE_DATA_ROOT), and which of its scenes are wanted."""

    logs_folder: ClassVar[str] = "navsim_logs"

    camera_frame: CameraFrame = "ego"
    """See `FrameReader`."""
    gaps: Gaps = "keep"
    """Whether windows may hold a gap in time within a scene: "keep" makes them, as NAVSIM does; "drop" does not."""
    second_stage: str | None = None
    """The folder below `root` of the synthetic scenes that the filter lists; by default the name of the filter's YAML
    file, where there is such a folder; "" reads none."""

    @field_validator("second_stage")
    @classmethod
    def _folder(cls, value: str | None) -> str | None:
        if value is not None and ("/" in value or value in (".", "..")):
            raise ValueError(f"expected the name of a folder such as navhard_two_stage, got {value!r}")
        return value


@dataclass(frozen=True, slots=True)
class NavsimSource(LogsSource):
    """A NAVSIM dataset under a scene filter; satisfies `pipeline.sources.base.Source`."""

    config: NavsimConfig

    def describe(self) -> dict[str, Any]:
        """See `Source.describe`; long lists of the filter as their count and the sha256 of their sorted members."""
        return {
            "kind": "navsim",
            "root": self.config.shown_root,
            "split": self.config.data_split,
            "filter": self.config.filter_summary,
            "context_frames": self.config.context_frames,
            "camera_frame": self.config.camera_frame,
            "gaps": self.config.gaps,
            "synthetic": self.synthetic,
            **({"second_stage": stage.folder} if (stage := self._second_stage) else {}),
        }

    @property
    def rate(self) -> int:
        """NAVSIM's 2 Hz."""
        return round(1e6 / PERIOD_US)

    @property
    def channels(self) -> frozenset[str]:
        """All eight."""
        return frozenset(CHANNELS)

    @property
    def blobs(self) -> str:
        """See `LookingSource`."""
        return f"{self.config.root.rstrip('/')}/sensor_blobs/{self.config.data_split}"

    def look(self, wanted: Wanted, *, processes: int = 1) -> Scan:
        """See `LookingSource.look`."""
        config = self.config
        entries = files.names(self.config.folder)  # a folder of such a name is a log that cannot be read
        logs, unreadable = wanted_logs(config, entries, ".pkl")
        first = scan_logs(config, logs, unreadable, partial(_scan_log, self, wanted), processes=processes, chunk=16)
        if (stage := self._second_stage) is not None:
            return add_second_stage(first, stage, config.filter, wanted, processes)
        if config.filter.second_stage and config.second_stage is None:
            folder = config.filter.name or "<the split's name>"
            note = (
                f"the filter's {len(config.filter.second_stage)} synthetic scenes are left out, for "
                f"{config.shown_root}/{folder} holds no pickles (source.second_stage "
                "names another folder): half of the benchmark"
            )
            return replace(first, notes=(*first.notes, note))
        return first

    @property
    def _second_stage(self) -> SecondStage | None:
        """The synthetic scenes, where the filter wants them and they are there.

        Raises:
            ConfigError: `second_stage` names a folder without pickles.
        """
        config = self.config
        folder = config.filter.name if config.second_stage is None else config.second_stage
        if not folder or not config.filter.second_stage:
            return None
        stage = SecondStage(config.root, folder, self.num_history, self.num_future)
        if stage.names():
            return stage
        if config.second_stage is None:
            return None
        raise ConfigError(
            f"source.second_stage: {config.shown_root}/{stage.pickles} should hold <token>.pkl, found none"
        )

    def scenes(self, log: str, refs: Sequence[SceneRef]) -> list[Scene | SampleError]:
        """See `Source.scenes`. A scene's code is ``log_changed``, ``bad_timestamps`` or one of `navsim_frame`'s."""
        second = [ref for ref in refs if ref.start == START]
        if not second:
            return self._of_log(log, refs)
        stage = self._second_stage
        found: dict[str, Scene | SampleError] = {}
        for ref in second:
            gone = SampleError("log_changed", f"synthetic scene {ref.token}: its folder is gone; plan again")
            found[ref.token] = gone if stage is None else stage.scene(ref, MAP_NAMES)
        if first := [ref for ref in refs if ref.start != START]:
            found |= zip((ref.token for ref in first), self._of_log(log, first), strict=True)
        return [found[ref.token] for ref in refs]

    def _of_log(self, log: str, refs: Sequence[SceneRef]) -> list[Scene | SampleError]:
        raw = self._read_log(log)
        reader = FrameReader(raw, self.blobs, self.config.camera_frame)
        images = self._images(raw)
        return [self._scene(raw, reader, images, log, ref) for ref in refs]

    def _images(self, raw: list[dict[str, Any]]) -> LogImages:
        return LogImages(raw, self.blobs, self.num_history)

    def _scene(
        self, raw: list[dict[str, Any]], reader: FrameReader, images: LogImages, log: str, ref: SceneRef
    ) -> Scene | SampleError:
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
            before = self._before(raw, reader, ref.start)
            return Scene(
                log=log,
                scene_token=text(scene_token, "bad_frame", "scene_token"),
                map_name=str(map_name),
                frames=frames,
                num_history=history,
                before=before,
                absent=images.absent(before),
            )
        except SampleError as error:
            return SampleError(error.code, f"scene {ref.token} of log {log}: {error.reason}")

    def _before(self, raw: list[dict[str, Any]], reader: FrameReader, start: int) -> tuple[Frame, ...]:
        """Up to `context_frames` frames before index `start`, as far back as there is no gap and no bad frame."""
        frames: list[Frame] = []
        for index in range(start - 1, max(-1, start - 1 - self.config.context_frames), -1):
            try:
                frame = reader.frame(index)
            except SampleError:
                break
            if break_between(raw[index], raw[index + 1]):
                break
            frames.append(frame)
        return tuple(reversed(frames))

    def _read_log(self, log: str) -> list[dict[str, Any]]:
        where = f"{self.config.shown_folder}/{log}.pkl"
        data = files.read_log(f"{self.config.folder}/{log}.pkl", where)
        frames = load_pickle(data, where)
        if not isinstance(frames, list) or (frames and not any(isinstance(frame, dict) for frame in frames)):
            raise SampleError("log_unreadable", f"{where} should hold a list of frames (dicts), got {shown(frames)}")
        return frames


def build(config: Mapping[str, Any], progress: Progress) -> NavsimSource:
    """The source of a config, see `pipeline.sources.registry`.

    Raises:
        ConfigError: an unknown key, or a value that is refused.
    """
    return NavsimSource(parse_config(NavsimConfig, config))


def _scan_log(source: NavsimSource, wanted: Wanted, tokens: frozenset[str] | None, log: str) -> LogScan | str:
    """The windows of one log that pass the filter, or why it cannot be read."""
    config = source.config
    try:
        frames = source._read_log(log)
        found = cut_windows(frames, log, config.filter, tokens, config.gaps)
        return replace(found, missing=missing(found.refs, wanted, source._images(frames).has)) if wanted else found
    except SampleError as error:
        return error.reason
