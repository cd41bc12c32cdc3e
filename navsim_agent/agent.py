"""A checkpoint of ours as an agent of the NAVSIM devkit: the way to its own scripts, and to the leaderboard.

Written against ``navsim.agents.abstract_agent.AbstractAgent`` of tag v1.1 (PDMS) and of main (EPDMS), which differ in
its constructor alone. `last_shards_agent.yaml` beside this file is its hydra config; `jobs.evaluate` writes one filled
in for the checkpoint that it evaluated. The plan is the likeliest answer, as in `jobs.evaluate`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from navsim_agent.inputs import InputMaker
from shards_schema.errors import ConfigError, SampleError
from trainer.build import Policy, load_policy
from trainer.drive import drive

try:
    from navsim.agents.abstract_agent import AbstractAgent
    from navsim.common.dataclasses import AgentInput, SensorConfig, Trajectory
    from nuplan.planning.simulation.trajectory.trajectory_sampling import TrajectorySampling
except ImportError as error:
    raise ImportError(
        f"navsim_agent.agent runs inside NAVSIM's devkit, which cannot be imported here ({error}). Put the devkit and "
        "nuplan-devkit on PYTHONPATH (docs/evaluation.md); to score a checkpoint without them: python -m jobs.evaluate"
    ) from error

POSES = 8
CAMERAS = ("cam_f0", "cam_l0", "cam_l1", "cam_l2", "cam_r0", "cam_r1", "cam_r2", "cam_b0")
HISTORY_FRAMES = 4
"""Past frames of a NAVSIM agent input, now included; images are asked for of those that the policy sees."""


class LastShardsAgent(AbstractAgent):  # type: ignore[misc]
    """See the module.

    Args:
        checkpoint: ``stage_2.pt`` of a run, or what GRPO left.
        stored_size: (width, height) that the shards' images were made smaller to; None: they are the originals.
        stored_quality: of their JPEG then.
        device: None: cuda where there is one.
        history_frames: of the agent inputs (``num_history_frames`` of the scene filter).
    """

    def __init__(
        self,
        checkpoint: str,
        stored_size: Sequence[int] | None = None,
        stored_quality: int | None = None,
        device: str | None = None,
        history_frames: int = HISTORY_FRAMES,
    ) -> None:
        sampling = TrajectorySampling(time_horizon=4, interval_length=0.5)
        wants_sampling = "trajectory_sampling" in inspect.signature(AbstractAgent.__init__).parameters
        super().__init__(**({"trajectory_sampling": sampling} if wants_sampling else {}))
        self._sampling = sampling
        self._checkpoint = Path(checkpoint)
        self._stored = (None if stored_size is None else (int(stored_size[0]), int(stored_size[1])), stored_quality)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self._history_frames = history_frames
        self._loaded: tuple[Policy, InputMaker] | None = None

    def name(self) -> str:
        """For logs and submissions."""
        return f"last_shards_{self._checkpoint.stem}"

    def initialize(self) -> None:
        """Load the checkpoint. The devkit calls it once a worker."""
        self._ready()

    def get_sensor_config(self) -> SensorConfig:
        """The views that the policy was trained with, of the frames that it sees; no lidar."""
        _, maker = self._ready()
        seen = [*range(self._history_frames - 1 - maker.samples.history, self._history_frames)]
        return SensorConfig(
            **{camera: seen if camera in maker.samples.views else False for camera in CAMERAS}, lidar_pc=False
        )

    def compute_trajectory(self, agent_input: AgentInput) -> Trajectory:
        """Eight poses of 0.5 s, relative to the rear axle now.

        Raises:
            SampleError: code ``unparsed``: a text answer that is no plan. The devkit then marks the scene as not valid
                and leaves it out of its mean, where `jobs.evaluate` counts a 0: compare only where there are none.
        """
        policy, maker = self._ready()
        poses, parsed = drive(policy, maker(agent_input))
        if not bool(parsed[0]):
            raise SampleError("unparsed", f"{self.name()}: the answer is not a plan")
        return Trajectory(poses[0].numpy(), self._sampling)

    def _ready(self) -> tuple[Policy, InputMaker]:
        if self._loaded is None:
            policy = load_policy(self._checkpoint)
            if policy.config.samples.steps != POSES:
                raise ConfigError(
                    f"{self._checkpoint} plans {policy.config.samples.steps} poses; NAVSIM wants {POSES} (4 s)"
                )
            if policy.config.samples.history >= self._history_frames:
                raise ConfigError(
                    f"{self._checkpoint} sees {policy.config.samples.history} frames before now (samples.history); the "
                    f"agent inputs have {self._history_frames - 1} (history_frames)"
                )
            policy.student.to(self._device)
            maker = InputMaker(policy.config.samples, policy.history, *self._stored)
            self._loaded = (policy, maker)
        return self._loaded

    def get_feature_builders(self) -> list[Any]:
        """None: this agent is trained by `jobs.sft`, not by the devkit."""
        return []
