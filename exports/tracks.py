"""What moved around the frames of a dataset: from its logs where they are there, else from its own scenes.

A sample has labels of its own frame alone. The logs have those of every frame. Without them a dataset whose windows
begin at every frame knows them too: the frames of a window are themselves samples.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.reading.reader import Dataset
from pipeline.sources import registry
from pipeline.sources.base import Source
from pipeline.sources.files import local_path
from pipeline.stores.remote import is_local
from questions.making.motion import Moment, Motion
from shards_schema import layout
from shards_schema.errors import ConfigError, SampleError, StoreError
from shards_schema.plan import SceneRef
from shards_schema.records import Frame

_SAME = ("kind", "root", "split", "sensor_root", "rate", "channels", "lidar", "extrinsics", "camera_frame", "gaps")
"""Of what a source says of itself, the keys that build it again, beside its counts of frames."""
_COUNTS = ("num_history_frames", "num_future_frames")


class Tracks:
    """Token -> `Motion`, log by log.

    Args:
        dataset: open with `samples`.
        moved: keys of the source in the place of those that the dataset names (`root`, of nuPlan `maps_root`).

    Attributes:
        note: why it is not the logs that are read; None: they are.

    Raises:
        ConfigError, SampleError, StoreError: `moved` is given, and the logs cannot be read there.
    """

    def __init__(self, dataset: Dataset, moved: Mapping[str, Any]) -> None:
        self._dataset = dataset
        table = dataset.plan.table.select(["log", "timestamp", "token", "start"]).to_pylist()
        self._log_of = {row["token"]: row["log"] for row in table}
        self._refs: dict[str, list[SceneRef]] = defaultdict(list)
        for row in table:
            self._refs[row["log"]].append(SceneRef(**row))
        self._log: str | None = None
        self._motions: dict[str, Motion] = {}
        self.note: str | None = None
        self._source: Source | None = None
        try:
            self._source = self._built(moved)
            self._source.scenes(table[0]["log"], [])
        except (ConfigError, SampleError, StoreError) as error:
            if moved:
                raise
            self._source = None
            self.note = f"the logs cannot be read ({error}), so motion is told by the dataset's own scenes"

    def _built(self, moved: Mapping[str, Any]) -> Source:
        said = self._dataset.manifest.source
        counts = {key: said.get("filter", {}).get(key) for key in _COUNTS}
        config = {**{k: said[k] for k in _SAME if k in said}, "filter": counts, **moved}
        root = str(config.get("root", ""))
        if is_local(root) and not Path(local_path(root)).is_dir():  # a source would wait for it to come back
            raise ConfigError(f"source.root: there is no folder {root!r}; name that of the logs")
        return registry.build(config)

    def of(self, token: str) -> Motion | None:
        """The motion around a scene; None where its log cannot be read, or not as it was planned.

        Raises:
            StoreError: the disk or the store refused.
        """
        log = self._log_of[token]
        if log != self._log:
            self._log, refs = log, self._refs[log]
            self._motions = self._of_scenes(refs) if self._source is None else self._of_log(self._source, log, refs)
        return self._motions.get(token)

    def _of_log(self, source: Source, log: str, refs: Sequence[SceneRef]) -> dict[str, Motion]:
        moments: dict[str, Moment] = {}
        out = {}
        try:
            scenes = source.scenes(log, refs)
        except SampleError:
            return {}
        for ref, scene in zip(refs, scenes, strict=True):
            if isinstance(scene, SampleError):
                continue
            frames = [*scene.before, *scene.frames[: None if scene.driven else scene.num_history]]
            for frame in frames:
                if frame.token not in moments:
                    moments[frame.token] = _of_frame(frame)
            out[ref.token] = self._motion([moments[frame.token] for frame in frames], ref)
        return out

    def _of_scenes(self, refs: Sequence[SceneRef]) -> dict[str, Motion]:
        written = set(self._dataset.tokens(layout.SAMPLES))
        documents = {
            ref.token: self._dataset.read(ref.token, {layout.SAMPLES: ["json"]})[layout.SAMPLES]["json"]
            for ref in refs
            if ref.token in written
        }
        moments = {token: _of_document(document) for token, document in documents.items()}
        return {
            ref.token: self._motion(
                [moments[f["token"]] for f in documents[ref.token]["frames"] if f["token"] in moments], ref
            )
            for ref in refs
            if ref.token in documents
        }

    def _motion(self, moments: Sequence[Moment], ref: SceneRef) -> Motion:
        return Motion(moments, ref.timestamp, exact=self._dataset.manifest.synthetic)


def _of_frame(frame: Frame) -> Moment:
    labels = frame.annotations
    boxes = None if labels is None else dict(zip(labels.track_tokens, labels.boxes, strict=True))
    return Moment(frame.timestamp, frame.ego_pose, math.hypot(*frame.velocity.tolist()), boxes)


def _of_document(document: Mapping[str, Any]) -> Moment:
    labels, ego = document["annotations"], document["ego"]
    boxes = None if labels is None else dict(zip(labels["track_tokens"], np.array(labels["boxes"]), strict=True))
    return Moment(document["timestamp"], np.array(ego["pose"]), math.hypot(*ego["velocity"]), boxes)
