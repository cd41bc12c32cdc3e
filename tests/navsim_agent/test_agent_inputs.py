"""The devkit's agent input becomes the very batch that the shards give; the agent answers as `jobs.evaluate` does.

The devkit is not in this suite. Its dataclasses are mirrored here, field by field, filled from the raw logs as its
loader fills them (poses by heading and rotation, images by Pillow), and so are the few names that the agent imports.
`docs/evaluation.md` says what was run against the real one.
"""

from __future__ import annotations

import inspect
import pickle
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from navsim_agent.inputs import InputMaker
from pipeline.reading.reader import Dataset
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.writing import run as runs
from pipeline.writing.samples import SamplesColumn, SamplesConfig
from pipeline.writing.worker import ShardWorker, WorkerConfig
from shards_schema.errors import ConfigError, SampleError
from shards_schema.plan import PlanConfig
from tests.trainer.reward_toys import grpo_recipe, sft_policy, write_reward_dataset
from trainer.batch import collate
from trainer.build import load_policy
from trainer.data import DataConfig, ExampleMaker
from trainer.drive import drive
from trainer.grpo import GRPO

ROOT = Path(__file__).parents[2]


@dataclass
class Camera:
    image: Any = None


@dataclass
class Cameras:
    cam_f0: Camera
    cam_l0: Camera = field(default_factory=Camera)


@dataclass
class EgoStatus:
    ego_pose: np.ndarray
    ego_velocity: np.ndarray
    ego_acceleration: np.ndarray
    driving_command: np.ndarray
    in_global_frame: bool = False


@dataclass
class AgentInput:
    ego_statuses: list[EgoStatus]
    cameras: list[Cameras]
    lidars: list[Any]


def heading(q: Any) -> float:
    w, x, y, z = (float(v) for v in q)
    return float(np.arctan2(2 * (w * z - x * y), 1 - 2 * (y * y + z * z)))


def agent_input(frames: list[dict[str, Any]], blobs: Path) -> AgentInput:
    """Of four frames of a log, as the devkit's `AgentInput.from_scene_dict_list` has it."""
    poses = np.array([[*f["ego2global_translation"][:2], heading(f["ego2global_rotation"])] for f in frames])
    x, y, h = poses[-1]
    apart = poses[:, :2] - [x, y]
    turn = np.array([[np.cos(h), np.sin(h)], [-np.sin(h), np.cos(h)]])
    local = np.column_stack([apart @ turn.T, np.arctan2(np.sin(poses[:, 2] - h), np.cos(poses[:, 2] - h))])
    statuses = [
        EgoStatus(
            ego_pose=np.array(pose, dtype=np.float32),
            ego_velocity=np.array(f["ego_dynamic_state"][:2], dtype=np.float32),
            ego_acceleration=np.array(f["ego_dynamic_state"][2:], dtype=np.float32),
            driving_command=np.array(f["driving_command"]),
        )
        for pose, f in zip(local, frames, strict=True)
    ]
    cameras = [Cameras(Camera(np.array(Image.open(blobs / f["cams"]["CAM_F0"]["data_path"])))) for f in frames]
    return AgentInput(statuses, cameras, [None] * len(frames))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A NAVSIM dataset (``data``) and its shards with the originals (``out``), of three frames before now too."""
    made = tmp_path_factory.mktemp("navsim")
    write_reward_dataset(made, every=6, history=3)
    return made


@pytest.fixture(scope="module")
def inputs(root: Path) -> dict[str, AgentInput]:
    """Token -> agent input, of every planned scene."""
    out = {}
    tokens = set(Dataset(str(root / "out"), columns=["samples"]).tokens("samples"))
    for path in sorted((root / "data" / "navsim_logs" / "mini").glob("*.pkl")):
        frames = pickle.loads(path.read_bytes())
        for i in range(3, len(frames)):
            if frames[i]["token"] in tokens:
                out[frames[i]["token"]] = agent_input(frames[i - 3 : i + 1], root / "data" / "sensor_blobs" / "mini")
    assert set(out) == tokens
    return out


def smaller(root: Path, out: Path, size: tuple[int, int], quality: int) -> str:
    """The same scenes with images of another size, compressed once more."""
    source = NavsimSource(
        NavsimConfig(
            root=str(root / "data"),
            split="mini",
            filter={"frame_interval": 6, "num_history_frames": 4, "num_future_frames": 10},
        )
    )
    samples = SamplesColumn(SamplesConfig(size=size, quality=quality), num_history=4, num_future=10)
    run = runs.begin(source, str(out), [samples.manifest({})], plan_config=PlanConfig(shard_size=8), with_zarr=False)
    worker = ShardWorker(
        source=source,
        volume=run.volume,
        teachers=[],
        samples=samples,
        manifests=run.columns,
        dataset=run.dataset,
        shard_size=8,
        zarr=False,
        config=WorkerConfig(device="cpu", decode_threads=1),
    )
    worker.load()
    for shard in run.todo():
        worker.process(shard)
    worker.close()
    runs.close(run)
    return str(out)


def assert_equal_batches(maker: InputMaker, shards: ExampleMaker, inputs: dict[str, AgentInput]) -> None:
    for token, given in inputs.items():
        here, there = maker(given), collate([shards.read(token)])
        assert torch.equal(here.images, there.images)
        assert torch.allclose(here.status, there.status, atol=1e-6, rtol=1e-6)
        assert torch.equal(here.command, there.command)
        assert here.future.shape == there.future.shape


@pytest.mark.parametrize("image", [None, (40, 24)])
def test_original_images(root: Path, inputs: dict[str, AgentInput], image: tuple[int, int] | None) -> None:
    config = DataConfig(image=image)
    shards = ExampleMaker(Dataset(str(root / "out"), columns=["samples"]), config, {})
    assert_equal_batches(InputMaker(config, 4), shards, inputs)


@pytest.mark.parametrize("image", [None, (24, 12)])
def test_images_that_the_shards_made_smaller(
    root: Path, inputs: dict[str, AgentInput], image: tuple[int, int] | None, tmp_path: Path
) -> None:
    config = DataConfig(image=image)
    data = smaller(root, tmp_path / "out", (36, 20), 60)
    shards = ExampleMaker(Dataset(data, columns=["samples"]), config, {})
    assert_equal_batches(InputMaker(config, 4, (36, 20), 60), shards, inputs)
    without = InputMaker(config, 4)(next(iter(inputs.values())))
    seen = collate([shards.read(next(iter(inputs)))])
    assert without.images.shape != seen.images.shape or not torch.equal(without.images, seen.images)


def test_images_of_the_frames_before(root: Path, inputs: dict[str, AgentInput]) -> None:
    config = DataConfig(history=3)
    shards = ExampleMaker(Dataset(str(root / "out"), columns=["samples"]), config, {})
    maker = InputMaker(config, 4)
    assert_equal_batches(maker, shards, inputs)
    given = next(iter(inputs.values()))
    assert maker(given).images.shape[:2] == (1, 4)
    assert maker(given).frames == 4
    with pytest.raises(SampleError, match="no image of cam_f0 of 3 frames before now"):
        maker(replace(given, cameras=given.cameras[1:]))


def test_fewer_history_steps_are_the_last_ones(root: Path, inputs: dict[str, AgentInput]) -> None:
    given = next(iter(inputs.values()))
    assert torch.equal(InputMaker(DataConfig(), 2)(given).status, InputMaker(DataConfig(), 4)(given).status[:, -2:])


def test_what_cannot_be_an_input_is_told(inputs: dict[str, AgentInput]) -> None:
    given = next(iter(inputs.values()))
    with pytest.raises(SampleError, match="wants 6 past frames, the agent input has 4"):
        InputMaker(DataConfig(), 6)(given)
    with pytest.raises(SampleError, match="no image of cam_l0"):
        InputMaker(DataConfig(views=("cam_f0", "cam_l0")), 4)(given)
    moved = [replace(s, ego_pose=s.ego_pose + np.float32(100)) for s in given.ego_statuses]
    with pytest.raises(SampleError, match="relative to now"):
        InputMaker(DataConfig(), 4)(replace(given, ego_statuses=moved))
    with pytest.raises(ConfigError, match="belong together"):
        InputMaker(DataConfig(), 4, (36, 20), None)


def test_without_the_devkit_the_agent_says_what_is_missing() -> None:
    sys.modules.pop("navsim_agent.agent", None)
    with pytest.raises(ImportError, match=r"NAVSIM's devkit, which cannot be imported here.*python -m jobs\.evaluate"):
        import navsim_agent.agent  # noqa: F401


@dataclass
class TrajectorySampling:
    time_horizon: float
    interval_length: float


@dataclass
class Trajectory:
    poses: np.ndarray
    trajectory_sampling: TrajectorySampling


@dataclass
class SensorConfig:
    cam_f0: Any
    cam_l0: Any
    cam_l1: Any
    cam_l2: Any
    cam_r0: Any
    cam_r1: Any
    cam_r2: Any
    cam_b0: Any
    lidar_pc: Any


class AgentOfTag(torch.nn.Module):
    """The constructor of v1.1's AbstractAgent."""

    def __init__(self, requires_scene: bool = False) -> None:
        super().__init__()
        self.requires_scene = requires_scene


class AgentOfMain(torch.nn.Module):
    """That of main."""

    def __init__(self, trajectory_sampling: TrajectorySampling, requires_scene: bool = False) -> None:
        super().__init__()
        self.requires_scene = requires_scene
        self._trajectory_sampling = trajectory_sampling


@pytest.fixture(params=[AgentOfTag, AgentOfMain])
def agent_module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`navsim_agent.agent`, with the names that it imports from the devkit."""
    names: dict[str, dict[str, Any]] = {
        "navsim.agents.abstract_agent": {"AbstractAgent": request.param},
        "navsim.common.dataclasses": {"AgentInput": AgentInput, "SensorConfig": SensorConfig, "Trajectory": Trajectory},
        "nuplan.planning.simulation.trajectory.trajectory_sampling": {"TrajectorySampling": TrajectorySampling},
    }
    for name, members in names.items():
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            module = types.ModuleType(".".join(parts[:i]))
            if i == len(parts):
                vars(module).update(members)
            monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules.pop("navsim_agent.agent", None)
    import navsim_agent.agent as module_of_agent

    yield module_of_agent
    sys.modules.pop("navsim_agent.agent", None)


@pytest.fixture(scope="module")
def policy(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return sft_policy(str(root / "out"), tmp_path_factory.mktemp("sft"))


def test_the_agent_answers_as_our_evaluation_does(
    agent_module: Any, root: Path, inputs: dict[str, AgentInput], policy: str
) -> None:
    agent = agent_module.LastShardsAgent(policy, device="cpu")
    assert isinstance(agent, torch.nn.Module)
    assert not agent.requires_scene
    sensors = agent.get_sensor_config()  # also before initialize: some scripts ask first
    agent.initialize()
    assert sensors.cam_f0 == [3]
    assert not any(v for k, v in vars(sensors).items() if k != "cam_f0")
    assert agent.name() == "last_shards_stage_2"
    loaded = load_policy(Path(policy))
    shards = ExampleMaker(Dataset(str(root / "out"), columns=["samples"]), loaded.config.samples, {})
    for token, given in inputs.items():
        answer = agent.compute_trajectory(given)
        expected, _ = drive(loaded, collate([shards.read(token)]))
        assert answer.poses.shape == (8, 3)
        assert answer.poses.dtype == np.float32
        assert np.allclose(answer.poses, expected[0].numpy(), atol=1e-4)
        assert (answer.trajectory_sampling.time_horizon, answer.trajectory_sampling.interval_length) == (4, 0.5)


@pytest.mark.parametrize("agent_module", [AgentOfMain], indirect=True)
def test_a_policy_that_sees_the_past_learns_by_reward_and_is_given_it(
    agent_module: Any, root: Path, inputs: dict[str, AgentInput], tmp_path: Path
) -> None:
    """SFT, a step of GRPO, the agent."""
    data, seen = str(root / "out"), {"image": [48, 32], "held_out": 0.25, "history": 2}
    stages = [{"stage": 1, "steps": 1, "lr": 1e-3}, {"stage": 2, "steps": 1, "lr": 1e-3}]
    sft = sft_policy(data, tmp_path / "sft", samples=seen, stages=stages)
    config = grpo_recipe(data, sft, tmp_path / "grpo", steps=1, evaluate_every=1)
    GRPO(config, torch.device("cpu"), log=lambda text: None).fit()
    policy = tmp_path / "grpo" / "policy.pt"
    agent = agent_module.LastShardsAgent(str(policy), device="cpu")
    assert agent.get_sensor_config().cam_f0 == [1, 2, 3]
    loaded = load_policy(policy)
    shards = ExampleMaker(Dataset(data, columns=["samples"]), loaded.config.samples, {})
    (token, given), *_ = inputs.items()
    expected, _ = drive(loaded, collate([shards.read(token)]))
    assert np.allclose(agent.compute_trajectory(given).poses, expected[0].numpy(), atol=1e-4)
    short = agent_module.LastShardsAgent(str(policy), device="cpu", history_frames=2)
    with pytest.raises(ConfigError, match=r"sees 2 frames before now .* the agent inputs have 1 \(history_frames\)"):
        short.initialize()


def test_an_answer_that_does_not_parse_is_an_error(
    agent_module: Any, root: Path, inputs: dict[str, AgentInput], tmp_path: Path
) -> None:
    stages = [{"stage": 1, "steps": 1, "lr": 1e-4}, {"stage": 2, "steps": 1, "lr": 1e-4}]
    policy = sft_policy(str(root / "out"), tmp_path, answers={"kind": "text"}, stages=stages)
    agent = agent_module.LastShardsAgent(policy, device="cpu")
    with pytest.raises(SampleError, match="the answer is not a plan"):
        agent.compute_trajectory(next(iter(inputs.values())))


def test_the_hydra_config_is_the_constructors(agent_module: Any) -> None:
    config = yaml.safe_load((ROOT / "navsim_agent" / "last_shards_agent.yaml").read_text())
    assert config.pop("_target_") == "navsim_agent.agent.LastShardsAgent"
    config.pop("_convert_")
    accepted = inspect.signature(agent_module.LastShardsAgent).parameters
    assert set(config) <= set(accepted)
    assert {k for k, p in accepted.items() if p.default is inspect.Parameter.empty} <= set(config)
