"""What the devkit hands to an agent, as the batch that the policy saw in training, number for number.

The shards hold a scene's images as `pipeline.writing.samples` stored them (perhaps smaller, and then compressed once
more), and `trainer.data` resizes them once more for the student. The same two steps are done here, with the same code,
so that the policy sees on the leaderboard what it saw in training. Read by attribute names alone (those of
``AgentInput``, ``EgoStatus`` and ``Cameras``, the same in v1.1 and main), so that nothing of the devkit is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.stores.decode import decode_jpeg
from pipeline.writing.samples import SamplesColumn, SamplesConfig
from shards_schema import layout
from shards_schema.errors import ConfigError, SampleError
from trainer.batch import Batch, Example, collate
from trainer.data import DataConfig, as_seen


class EgoStatus(Protocol):
    """As the devkit's: `ego_pose` [3] relative to now, velocity and acceleration [2], `driving_command` one-hot [4]."""

    @property
    def ego_pose(self) -> NDArray[Any]: ...  # noqa: D102
    @property
    def ego_velocity(self) -> NDArray[Any]: ...  # noqa: D102
    @property
    def ego_acceleration(self) -> NDArray[Any]: ...  # noqa: D102
    @property
    def driving_command(self) -> NDArray[Any]: ...  # noqa: D102


class AgentInput(Protocol):
    """As the devkit's: status and cameras of the past frames, the last is now; ``cameras[-1].cam_f0.image``."""

    @property
    def ego_statuses(self) -> Sequence[EgoStatus]: ...  # noqa: D102
    @property
    def cameras(self) -> Sequence[Any]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class InputMaker:
    """Makes batches of one.

    Attributes:
        samples: views, image size and steps that the policy was trained with.
        history: H, status frames that it was trained with.
        stored_size: (width, height) of the images in the shards; None: the originals.
        stored_quality: of their JPEG, where they were made smaller.
    """

    samples: DataConfig
    history: int
    stored_size: tuple[int, int] | None = None
    stored_quality: int | None = None

    def __post_init__(self) -> None:
        if (self.stored_size is None) != (self.stored_quality is None):
            raise ConfigError(
                "stored_size and stored_quality belong together: give both as samples/column.json of the shards has "
                f"them, or neither; got {self.stored_size} and {self.stored_quality}"
            )

    def __call__(self, agent_input: AgentInput) -> Batch:
        """The batch [1] of a scene; its future is zeros and it has no targets.

        Raises:
            SampleError: fewer past frames than the policy wants, poses that are not relative to now, no image.
        """
        images = np.stack([self._image(agent_input.cameras, *layout.camera_of(n)) for n in self.samples.pictures])
        return collate(
            [
                Example(
                    token="",
                    images=images,
                    status=self._status(agent_input.ego_statuses),
                    command=int(np.argmax(np.asarray(agent_input.ego_statuses[-1].driving_command))),
                    future=np.zeros((self.samples.steps, 3), dtype=np.float32),
                    targets={},
                    frames=1 + self.samples.history,
                )
            ]
        )

    def _status(self, statuses: Sequence[EgoStatus]) -> NDArray[np.float32]:
        """[H, 7], see `Example.status`."""
        if len(statuses) < self.history:
            raise SampleError(
                "missing_frame", f"the policy wants {self.history} past frames, the agent input has {len(statuses)}"
            )
        rows = [
            np.concatenate([np.asarray(v, np.float64) for v in (s.ego_pose, s.ego_velocity, s.ego_acceleration)])
            for s in statuses[-self.history :]
        ]
        status = np.stack(rows).astype(np.float32)
        if np.abs(status[-1, :3]).max() > 1e-3:
            raise SampleError(
                "global_poses", f"ego poses must be relative to now (AgentInput's are); the last is {status[-1, :3]}"
            )
        return status

    def _image(self, frames: Sequence[Any], view: str, back: int) -> NDArray[np.uint8]:
        """uint8 [3, h, w], of so many frames before now."""
        cameras = frames[-1 - back] if back < len(frames) else None
        pixels = getattr(getattr(cameras, view, None), "image", None)
        if pixels is None:
            of = f"{view} of {back} frames before now" if back else view
            raise SampleError("missing_camera", f"the agent input has no image of {of}; see get_sensor_config")
        pixels = np.ascontiguousarray(pixels, dtype=np.uint8)
        if self.stored_size is not None and self.stored_quality is not None:
            config = SamplesConfig(size=self.stored_size, quality=self.stored_quality)
            stored = SamplesColumn(config, num_history=self.history, num_future=self.samples.steps).make(b"", pixels)
            pixels = decode_jpeg(stored.data, view) if stored.data else pixels  # nothing: it had that size already
        return as_seen(pixels, self.samples.image)
