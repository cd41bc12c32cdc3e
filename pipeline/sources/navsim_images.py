"""Which images of a NAVSIM log are there, before anything is read of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.sources.files import Listing
from pipeline.sources.navsim_frame import lies_within
from pipeline.sources.navsim_windows import break_between
from shards_schema.plan import SceneRef
from shards_schema.records import Frame


class LogImages:
    """The images of one log's frames.

    Args:
        frames: of the log, as they are in its pickle; nothing of them has been checked.
        blobs: the folder or URL that image paths are relative to.
        history: H of its scenes.
    """

    def __init__(self, frames: Sequence[Any], blobs: str, history: int) -> None:
        self._frames, self._history = frames, history
        self._blobs = blobs
        self._listing = Listing(blobs)
        self._there: dict[tuple[int, str], bool] = {}

    def has(self, ref: SceneRef, step: int, channel: str) -> bool:
        """Whether a scene has the image of a step, within its window or in the frames right before it."""
        index = ref.start + self._history - 1 + step
        if index < 0 or any(break_between(*self._frames[i : i + 2]) for i in range(index, ref.start)):
            return False
        if (index, channel) not in self._there:
            self._there[index, channel] = self._exists(index, channel)
        return self._there[index, channel]

    def _exists(self, index: int, channel: str) -> bool:
        frame = self._frames[index] if index < len(self._frames) else None
        cameras = frame.get("cams") if isinstance(frame, Mapping) else None
        camera = cameras.get(channel) if isinstance(cameras, Mapping) else None
        path = camera.get("data_path") if isinstance(camera, Mapping) else None
        return isinstance(path, str) and path.isprintable() and lies_within(path) and path in self._listing

    def absent(self, frames: Sequence[Frame]) -> frozenset[str]:
        """The images of records that are not there, while their folder is: of one that is away, nothing is known."""
        images = [camera.image for frame in frames for camera in frame.cameras.values()]
        return frozenset(image for image in images if self._is_absent(image.removeprefix(f"{self._blobs}/")))

    def _is_absent(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        found = self._listing.names(folder) if path.isprintable() else frozenset[str]()
        return bool(found) and name not in found
