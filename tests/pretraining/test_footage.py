"""What is trained on: towns of its own, truth behind each pixel, poses that lead from one camera to the next."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from pretraining.footage import CLIP, HEIGHT, HELD_OUT, RIG, TRAINED, VIEWS, WIDTH, Footage
from pretraining.steps import Recipe
from pretraining.windows import FAR, Batch, Frames, batch, motions, quaternion, rigs
from synthetic import SyntheticConfig
from synthetic.rig import euler

ROOT = Path(__file__).parents[2]


def test_no_recipe_drives_in_these_towns() -> None:
    recipe = Recipe()
    assert TRAINED + recipe.drives // 4 < HELD_OUT
    for path in (ROOT / "configs").glob("*.yaml"):
        source = yaml.safe_load(path.read_text()).get("source", {})
        assert source.get("seed", SyntheticConfig().seed) < TRAINED, path


def test_a_drive_is_a_clip_and_frames(footage: tuple[Footage, Footage]) -> None:
    for drive in footage:
        assert drive.video.shape == (CLIP, 144, 256, 3)
        assert drive.images.shape == (CLIP + 2 * len(RIG), HEIGHT, WIDTH, 3)
        assert drive.depth.shape == drive.images.shape[:3]
        assert [len(rigs(drive)), len(motions(drive))] == [len(RIG), CLIP - 2]
        assert [drive.frames[i][1] for i in rigs(drive)[1]] == list(VIEWS)
        assert {drive.frames[i][1] for w in motions(drive) for i in w} == {VIEWS[0]}
        assert 0.3 < (drive.depth < FAR).mean() < 1.0
        ground = drive.depth[:, -1]  # under the car's nose
        assert 1.0 < np.median(ground) < 6.0
    assert not np.array_equal(footage[0].video, footage[1].video)


def reprojected(seen: Batch, frame: int) -> tuple[Tensor, Tensor]:
    """Depth of the pixels of `frame`, seen from the reference by the encoded pose alone, and what is there."""
    x, y, z, w = seen.pose[0, frame, 3:7].double()
    turn = torch.stack(
        [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)]),
            torch.stack([2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)]),
            torch.stack([2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]),
        ]
    )
    half_v, half_h = (seen.pose[0, 0, 7:9].double() / 2).tan()
    v, u = torch.meshgrid(torch.arange(HEIGHT).double(), torch.arange(WIDTH).double(), indexing="ij")
    # The principal point is that of the rig, 560 of 1080 down; the encoding has none.
    rays = torch.stack(((u / (WIDTH / 2) - 1) * half_h, (v - HEIGHT * 56 / 108) / (HEIGHT / 2) * half_v, u * 0 + 1), -1)
    points = rays[seen.counts[0, frame]] * seen.depth[0, frame][seen.counts[0, frame]].double()[:, None]
    there = (points - seen.pose[0, frame, :3].double()) @ turn  # p = R p0 + t, so p0 = R^T (p - t)
    there = there[there[:, 2] > 1e-3]
    column = ((there[:, 0] / there[:, 2] / half_h + 1) * WIDTH / 2).round().long()
    row = (there[:, 1] / there[:, 2] / half_v * HEIGHT / 2 + HEIGHT * 56 / 108).round().long()
    inside = (column >= 0) & (column < WIDTH) & (row >= 0) & (row < HEIGHT)
    return there[inside, 2], seen.depth[0, 0][row[inside], column[inside]].double()


def test_encoded_poses_lead_from_one_camera_to_the_next(footage: tuple[Footage, Footage]) -> None:
    def off(frames: Frames, frame: int) -> float:
        mine, there = reprojected(batch([(footage[0], frames)]), frame)
        assert len(mine) > 100
        return float((mine / there - 1).abs().median())

    assert off(motions(footage[0])[2], 1) < 0.03
    assert off(motions(footage[0])[2], 2) < 0.03
    assert off(rigs(footage[0])[0], 1) < 0.05  # the left camera sees the front camera's edge


def test_a_window_has_the_unit_that_the_paper_gives_it(footage: tuple[Footage, Footage]) -> None:
    """The mean distance of its points from the first camera is one; what is far does not count, and is told as far."""
    seen = batch([(footage[0], motions(footage[0])[0][:1]), (footage[1], motions(footage[1])[0][:1])])
    half_v, half_h = (seen.pose[0, 0, 7:9] / 2).tan()
    v, u = torch.meshgrid(torch.arange(HEIGHT).float(), torch.arange(WIDTH).float(), indexing="ij")
    length = torch.stack(((u / 126 - 1) * half_h, (v - HEIGHT * 56 / 108) / 70 * half_v, u * 0 + 1)).norm(dim=0)
    for i in range(2):
        assert float((seen.depth[i, 0] * length)[seen.counts[i, 0]].mean()) == pytest.approx(1.0, abs=1e-3)
        assert float(seen.depth[i].max() * seen.scale[i]) == pytest.approx(FAR)
    np.testing.assert_allclose(seen.pose[:, 0, :7].numpy(), [[0, 0, 0, 0, 0, 0, 1]] * 2, atol=1e-6)


def test_quaternions_are_those_of_their_rotations() -> None:
    for yaw, pitch, roll in ((0.0, 0.0, 0.0), (1.9, 0.2, -0.1), (-2.5, 0.0, 0.4)):
        m = euler(yaw, pitch, roll)
        x, y, z, w = quaternion(m)
        v = np.array([0.3, -1.2, 0.7])
        q = np.array([x, y, z])
        np.testing.assert_allclose(v + 2 * np.cross(q, np.cross(q, v) + w * v), m @ v, atol=1e-12)
        assert w > 0
