"""A committed dataset with a real reward column: two logs with their map, the teacher `pdm`, and the toy teacher.

The images are noise.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch

from maps.folder import INDEX
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from teachers.pdm import build
from tests.committed import commit
from tests.toys import ToyTeacher
from tests.trainer.shard_toys import recipe
from trainer.config import SFTConfig
from trainer.grpo_config import GRPOConfig
from trainer.sft import SFT

REFERENCE = Path(__file__).parents[1] / "data" / "pdm"
LOCATION = "us-ma-boston"


def write_reward_dataset(
    root: Path, *, every: int = 4, versions: tuple[str, ...] = ("v1", "v2"), off_map: int = 0, history: int = 0
) -> str:
    """Every so many scenes of the two committed logs, 4 history and 10 future steps; columns `toy` and `pdm`.

    `off_map`: so many scenes of the first log have a route that is not on the map.
    """
    logs, maps = root / "data" / "navsim_logs" / "mini", root / "data" / "maps"
    logs.mkdir(parents=True)
    (maps / LOCATION / "1").mkdir(parents=True)
    (maps / LOCATION / "1" / "map.gpkg").write_bytes(
        gzip.decompress((REFERENCE / "maps" / "two_logs.gpkg.gz").read_bytes())
    )
    (maps / INDEX).write_text(json.dumps({LOCATION: {"version": "1"}}))
    for number, packed in enumerate(sorted((REFERENCE / "logs").glob("*.pkl.gz"))):
        frames = pickle.loads(gzip.decompress(packed.read_bytes()))
        if number == 0:
            for frame in frames[3 : 3 + every * off_map : every]:
                frame["roadblock_ids"] = ["999999"]
        _add_images(frames, root / "data" / "sensor_blobs" / "mini", packed.name.split(".pkl")[0])
        (logs / packed.name.removesuffix(".gz")).write_bytes(pickle.dumps(frames))
    window = {"frame_interval": every, "num_history_frames": 4, "num_future_frames": 10}
    with contextlib.chdir(root):  # a dataset's seal has its source's path, and samples stand in an order by the seal
        source = NavsimSource(NavsimConfig(root="data", split="mini", filter=window))
        toy = ToyTeacher(random_weights=True, width=8)
        pdm = build({"maps_root": str(maps), "versions": list(versions)})
        commit(source, root / "out", [toy, pdm], shard_size=8, size=(48, 32), zarr=False, history=history)
    return str(root / "out")


def _add_images(frames: list[dict[str, Any]], blobs: Path, log: str) -> None:
    """A front camera with a small image of its own for every frame of a log (the committed ones have none)."""
    rng = np.random.default_rng(0)
    (blobs / log / "CAM_F0").mkdir(parents=True)
    for i, frame in enumerate(frames):
        path = f"{log}/CAM_F0/{i:03d}.jpg"
        coarse = rng.integers(0, 255, (4, 6, 3), dtype=np.uint8)
        (blobs / path).write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(coarse.repeat(8, 0).repeat(8, 1))))
        frame["cams"]["CAM_F0"] = {
            "data_path": path,
            "cam_intrinsic": np.array([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]]),
            "distortion": np.zeros(5),
            "sensor2lidar_rotation": np.eye(3),
            "sensor2lidar_translation": np.zeros(3),
        }


def sft_recipe(data: str, out: Path | str, **changes: Any) -> SFTConfig:
    """A few steps of both stages, just enough that a policy has something to choose from."""
    values = {
        "samples": {"image": [48, 32], "held_out": 0.25},
        "answers": {"kind": "motion", "size": 12},
        "stages": [{"stage": 1, "steps": 3, "lr": 3e-3}, {"stage": 2, "steps": 20, "lr": 3e-3}],
        "evaluate_every": 1000,
        "save_every": 1000,
    }
    return recipe(data, out, **(values | changes))


def sft_policy(data: str, out: Path | str, **changes: Any) -> str:
    """The path of a policy that SFT left."""
    config = sft_recipe(data, out, **changes)
    SFT(config, torch.device("cpu"), log=lambda text: None).fit()
    return str(Path(out) / f"stage_{len(config.stages)}.pt")


def grpo_values(data: str, policy: str, out: Path | str, **changes: Any) -> dict[str, Any]:
    """Six steps of three scenes with four answers each; everything logged and saved often."""
    return {
        "policy": policy,
        "data": data,
        "out": str(out),
        "steps": 6,
        "stream": {"batch_size": 3, "threads": 1},
        "group": 4,
        "lr": 1e-3,
        "evaluate_every": 3,
        "evaluate_samples": 2,
        "save_every": 1,
        "log_every": 1,
        "device": "cpu",
        **changes,
    }


def grpo_recipe(data: str, policy: str, out: Path | str, **changes: Any) -> GRPOConfig:
    """The same, checked."""
    return GRPOConfig.model_validate(grpo_values(data, policy, out, **changes))
