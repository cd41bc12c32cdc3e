"""The same logs as `logs` writes, as nuPlan ``.db`` files: sweeps at 20 Hz, images at 10 Hz, poses at 100 Hz.

Every tenth sweep is a frame of the log's pickle: its token, its microsecond, its images and its point cloud, which lie
in the NAVSIM tree already and are not made again. Between them come sweeps of their own and, for the cameras asked for,
images at 10 Hz, each rendered at its own exposure, a few milliseconds before or after the sweep.
"""

from __future__ import annotations

import hashlib
import itertools
import pickle
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import simplejpeg

from shards_schema.records import CHANNELS
from synthetic.config import SyntheticConfig
from synthetic.drive import Drive
from synthetic.geometry import rng_of
from synthetic.lidar import pcd_bytes, sweep
from synthetic.logs import ANNOTATED, SIGNALS, LogSpec, drive_of, frame_records, track_token
from synthetic.nuplan_schema import TABLES, create_table, insert
from synthetic.render import Renderer
from synthetic.rig import quaternion, rig
from synthetic.world import LOCATIONS

SWEEPS_A_FRAME: Final = 10
SWEEP_US, EXPOSURE_US, POSE_US = 50_000, 100_000, 10_000
CATEGORIES: Final = (
    "vehicle",
    "bicycle",
    "pedestrian",
    "traffic_cone",
    "barrier",
    "czone_sign",
    "generic_object",
)
Rows = dict[str, list[tuple[Any, ...]]]


@dataclass(frozen=True, slots=True)
class _Moment:
    """A sweep or an exposure: microseconds, token, file relative to the sensor blobs."""

    stamp: int
    token: str
    file: str


def write_nuplan_log(
    config: SyntheticConfig, spec: LogSpec, blobs: Path, target: Path, between: Sequence[str] = CHANNELS
) -> None:
    """Make ``target`` (a ``.db``), and in `blobs` the images and sweeps that the pickle lacks, unless they are there.

    Args:
        config: of the dataset, whose NAVSIM files are there already.
        spec: the log.
        blobs: the folder that holds the log's folder of images; file names in the ``.db`` are relative to it.
        target: the file to write.
        between: the cameras that have images at 10 Hz; the others have them with the frames only.
    """
    drive = drive_of(config, spec)
    frames = frame_records(config, spec, drive)
    writer = _Writer(config, spec, drive, frames, between)
    writer.sensors(blobs)
    target.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(target)) as db:
        rows = writer.rows()
        for name in TABLES:
            db.execute(create_table(name))
            db.executemany(insert(name), rows[name])
        db.commit()


class _Writer:
    def __init__(
        self,
        config: SyntheticConfig,
        spec: LogSpec,
        drive: Drive,
        frames: list[dict[str, Any]],
        between: Sequence[str],
    ) -> None:
        self._config, self._spec, self._drive, self._frames = config, spec, drive, frames
        self._log = frames[0]["log_token"]
        self._origin = drive.town.origin
        self._sweeps = self._all_sweeps()
        self._exposures = {channel: self._all_exposures(channel, channel in between) for channel in CHANNELS}
        self._poses: dict[int, str] = {}

    def token(self, *parts: object) -> str:
        """16 hex characters, those of no other row."""
        text = "/".join(map(str, ("nuplan", self._config.seed, self._spec.key, *parts)))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _seconds(self, stamp: int) -> float:
        return (stamp - self._spec.start) / 1e6

    def _all_sweeps(self) -> list[_Moment]:
        """20 Hz. Those between the frames are up to 6 us early, so that the sweep after a frame is within 50 ms of the
        frame's images: OpenScene's conversion looks there, and stops where it finds none.
        """
        count = len(self._frames) * SWEEPS_A_FRAME
        early = rng_of(self._config.seed, self._spec.key, "sweeps").integers(0, 7, count)
        out = []
        for i in range(count):
            if i % SWEEPS_A_FRAME == 0:
                frame = self._frames[i // SWEEPS_A_FRAME]
                out.append(_Moment(frame["timestamp"], frame["token"], frame["lidar_path"]))
            else:
                token = self.token("sweep", i)
                stamp = self._spec.start + SWEEP_US * i - int(early[i])
                out.append(_Moment(stamp, token, f"{self._spec.name}/MergedPointCloud/{token}.pcd"))
        return out

    def _all_exposures(self, channel: str, fast: bool) -> list[_Moment]:
        """10 Hz: with the frames at their very instant, between them up to 4 ms off, all cameras alike."""
        steps = SWEEPS_A_FRAME * SWEEP_US // EXPOSURE_US
        count = len(self._frames) * steps
        off = rng_of(self._config.seed, self._spec.key, "exposures").integers(-4_000, 4_001, count)
        out = []
        for i in range(count):
            if i % steps == 0:
                frame = self._frames[i // steps]
                file = frame["cams"][channel]["data_path"]
                out.append(_Moment(frame["timestamp"], Path(file).stem, file))
            elif fast:
                token = self.token(channel, i)
                stamp = self._spec.start + EXPOSURE_US * i + int(off[i])
                out.append(_Moment(stamp, token, f"{self._spec.name}/{channel}/{token}.jpg"))
        return out

    def sensors(self, blobs: Path) -> None:
        """Images between the frames, and every second sweep's point cloud: what a 10 Hz clip wants."""
        config = self._config
        wanted: defaultdict[int, dict[str, Path]] = defaultdict(dict)
        for channel, exposures in self._exposures.items():
            for moment in exposures:
                if not (blobs / moment.file).exists():
                    wanted[moment.stamp][channel] = blobs / moment.file
        if wanted:
            renderer = Renderer(self._drive, config.width, config.height)
            blank = np.full((config.height, config.width, 3), 128, dtype=np.uint8)
            for stamp, files in wanted.items():
                seen = renderer.frame(self._seconds(stamp), [c for c in config.cameras if c in files])
                for channel, file in files.items():
                    image = seen.get(channel, blank)
                    file.write_bytes(
                        simplejpeg.encode_jpeg(
                            image, quality=config.jpeg_quality, colorspace="RGB", colorsubsampling="420"
                        )
                    )
        for moment in self._sweeps[::2]:
            if not (blobs / moment.file).exists():
                seed = int(moment.token[:7], 16)
                points = sweep(self._drive, self._seconds(moment.stamp), config.lidar_points, seed)
                (blobs / moment.file).write_bytes(pcd_bytes(points))

    def rows(self) -> Rows:
        """Every row of every table."""
        rows: Rows = {name: [] for name in TABLES}
        self._fixed_rows(rows)
        lidar = self.token("lidar")
        for i, moment in enumerate(self._sweeps):
            pose, scene = self._pose(moment.stamp), self._frames[i // SWEEPS_A_FRAME]["scene_token"]
            tokens = _blobs(moment.token, *_around(self._sweeps, i), pose, lidar, scene)
            rows["lidar_pc"].append((*tokens, moment.file, moment.stamp))
            rows["traffic_light_status"] += self._lights(i, moment)
        rows["lidar_box"], rows["track"] = self._boxes()
        for channel, exposures in self._exposures.items():
            camera = self.token("camera", channel)
            for i, moment in enumerate(exposures):
                tokens = _blobs(moment.token, *_around(exposures, i), self._pose(moment.stamp), camera)
                rows["image"].append((*tokens, moment.file, moment.stamp))
        rows["scene"] = list(self._scenes())
        tag, first = _blobs(self.token("tag"), self._sweeps[0].token)
        rows["scenario_tag"] = [(tag, first, f"synthetic_{self._spec.manoeuvre}", None)]
        for stamp in range(self._sweeps[0].stamp, self._sweeps[-1].stamp, POSE_US):
            self._pose(stamp)
        rows["ego_pose"] = [self._pose_row(stamp) for stamp in sorted(self._poses)]
        return rows

    def _fixed_rows(self, rows: Rows) -> None:
        spec, frame = self._spec, self._frames[0]
        rows["category"] = [(*_blobs(self.token("category", name)), name, "") for name in CATEGORIES]
        date = "-".join(spec.name.split(".")[:3])
        rows["log"] = [
            (*_blobs(self._log), frame["vehicle_name"], date, spec.start, spec.name, spec.location, spec.location)
        ]
        for channel, camera in rig(self._config.width, self._config.height).items():
            blobs = (
                camera.translation.tolist(),
                camera.quaternion.tolist(),
                camera.intrinsics.tolist(),
                frame["cams"][channel]["distortion"].tolist(),
            )
            token, log = _blobs(self.token("camera", channel), self._log)
            size = self._config.width, self._config.height
            rows["camera"].append((token, log, channel, "synthetic pinhole", *map(pickle.dumps, blobs), *size))
        at = (frame["lidar2ego_translation"].tolist(), frame["lidar2ego_rotation"])
        rows["lidar"] = [
            (*_blobs(self.token("lidar"), self._log), "MergedPointCloud", "synthetic", *map(pickle.dumps, at))
        ]

    def _scenes(self) -> Iterator[tuple[Any, ...]]:
        last = {frame["scene_token"]: i for i, frame in enumerate(self._frames)}
        for token, i in last.items():
            goal = self._pose(self._sweeps[(i + 1) * SWEEPS_A_FRAME - 1].stamp)
            frame = self._frames[i]
            scene, log, end = _blobs(token, self._log, goal)
            yield scene, log, frame["scene_name"].rpartition("-scene-")[2], end, " ".join(frame["roadblock_ids"])

    def _pose(self, stamp: int) -> str:
        """The token of the ego pose at that microsecond, which is then written."""
        return self._poses.setdefault(stamp, self.token("pose", stamp))

    def _pose_row(self, stamp: int) -> tuple[Any, ...]:
        ego = self._drive.ego(self._seconds(stamp))
        q = quaternion(ego.yaw, ego.pitch, ego.roll).tolist()
        token, log = _blobs(self._poses[stamp], self._log)
        place = (float(ego.x + self._origin[0]), float(ego.y + self._origin[1]), 0.0)
        motion = (float(ego.v), 0.0, 0.0, float(ego.a), float(ego.a_left), 0.0, 0.0, 0.0, float(ego.yaw_rate))
        return (token, stamp, *place, *q, *motion, LOCATIONS[self._spec.location][1], log)

    def _lights(self, index: int, moment: _Moment) -> Iterator[tuple[Any, ...]]:
        t = self._seconds(moment.stamp)
        ego, nodes = self._drive.ego(t), self._drive.town.nodes
        near = {n for n, x in enumerate(nodes) if np.hypot(x.xy[0] - ego.x, x.xy[1] - ego.y) < SIGNALS}
        for c in self._drive.town.connectors.values():
            if c.node in near:
                state = self._drive.lights.state(c.node, c.leg, t)
                yield (*_blobs(self.token("light", index, c.id), moment.token), c.id, state)

    def _boxes(self) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """Rows of ``lidar_box``, chained along each track, and of ``track``."""
        found: list[tuple[str, str, str, tuple[float, ...]]] = []
        tracks: dict[str, tuple[Any, ...]] = {}
        for index, moment in enumerate(self._sweeps):
            t = self._seconds(moment.stamp)
            ego = self._drive.ego(t)
            named = iter(self._frames[index // SWEEPS_A_FRAME]["anns"]["instance_tokens"])
            for actor in self._drive.actors(t):
                if np.hypot(actor.x - ego.x, actor.y - ego.y) >= ANNOTATED:
                    continue
                track = track_token(self._config, self._spec, actor)
                box = self.token("box", index, actor.track) if index % SWEEPS_A_FRAME else next(named)
                length, width, height = (float(x) for x in actor.size)
                place = (float(actor.x + self._origin[0]), float(actor.y + self._origin[1]), height / 2)
                values = (*place, width, length, height, float(actor.vx), float(actor.vy), 0.0, float(actor.heading))
                found.append((box, moment.token, track, (*values, 1.0)))
                category = self.token("category", actor.name)
                tracks.setdefault(track, (*_blobs(track, category), width, length, height))
        chains: defaultdict[str, list[str]] = defaultdict(list)
        for box, _, track, _ in found:
            chains[track].append(box)
        before = {b: a for chain in chains.values() for a, b in itertools.pairwise(chain)}
        after = {a: b for b, a in before.items()}
        rows = [
            _blobs(box, sweep_token, track, after.get(box), before.get(box)) + values
            for box, sweep_token, track, values in found
        ]
        return rows, list(tracks.values())


def _around(moments: Sequence[_Moment], i: int) -> tuple[str | None, str | None]:
    """Tokens of the next one and the one before."""
    return moments[i + 1].token if i + 1 < len(moments) else None, moments[i - 1].token if i else None


def _blobs(*tokens: str | None) -> tuple[bytes | None, ...]:
    return tuple(None if token is None else bytes.fromhex(token) for token in tokens)
