"""The truth behind the pixels: against the ground, the lidar, the boxes, the next camera; and what is written of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from pipeline.sources.navsim import NavsimConfig, NavsimSource
from shards_schema.poses import Float64
from synthetic import SyntheticConfig, drive_of, generate, log_specs
from synthetic.geometry import rectangle
from synthetic.lidar import sweep
from synthetic.pixels import CLASSES, Truth, truth
from synthetic.render import Renderer
from synthetic.rig import ego_position, ego_rotation
from tests.blocks import block

CONFIG = SyntheticConfig(logs=2)
T = 6.0
BOXES = CLASSES.index("vehicle")


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(drive_of(CONFIG, log_specs(CONFIG)[1]), 480, 270)


@pytest.fixture(scope="module", params=["CAM_F0", "CAM_L1", "CAM_B0"])
def found(renderer: Renderer, request: pytest.FixtureRequest) -> Truth:
    return truth(renderer, T, request.param)


def lifted(found: Truth) -> Float64:
    """[h, w, 3] what each pixel sees, in the town's frame."""
    h, w = found.depth.shape
    u, v = np.meshgrid(np.arange(w), np.arange(h))
    rays = np.stack((u, v, np.ones_like(u)), axis=-1) @ np.linalg.inv(found.intrinsics).T
    depth = np.where(np.isfinite(found.depth), found.depth, 0).astype(np.float64)
    return np.asarray(rays * depth[..., None] @ found.pose[:3, :3].T + found.pose[:3, 3])


def projected(found: Truth, points: Float64) -> tuple[Float64, Float64]:
    """Pixels [N, 2] and depths [N] of points of the town."""
    local = (points - found.pose[:3, 3]) @ found.pose[:3, :3]
    uvz = local @ found.intrinsics.T
    return uvz[:, :2] / uvz[:, 2:], local[:, 2]


def inside(pixels: Float64, found: Truth) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which pixels are in the image, and their columns and rows."""
    h, w = found.depth.shape
    at = np.round(pixels)
    ok = (at >= 0).all(1) & (at[:, 0] < w) & (at[:, 1] < h)
    return ok, at[ok, 0].astype(int), at[ok, 1].astype(int)


def test_the_ground_is_at_height_zero(found: Truth) -> None:
    ground = found.kind == CLASSES.index("ground")
    assert ground.mean() > 0.2
    z = lifted(found)[ground][:, 2]
    assert np.abs(z / found.depth[ground]).max() < 1e-5
    assert np.isinf(found.depth[found.kind == 0]).all()
    assert np.isfinite(found.depth[found.kind != 0]).all()


def test_what_the_lidar_meets_is_as_far_as_the_camera_says(renderer: Renderer, found: Truth) -> None:
    """Of walls and the ground near by; its noise is 2 cm along the beam, and it sees boxes where we see cars."""
    ego = renderer.drive.ego(T)
    points = sweep(renderer.drive, T, 20_000, seed=1)
    local = np.stack([points[name] for name in "xyz"], axis=1).astype(np.float64)
    town = local @ ego_rotation(ego).T + ego_position(ego)
    pixels, depth = projected(found, town)
    near = (depth > 1) & (depth < 40)
    ok, u, v = inside(pixels[near], found)
    seen, depth = found.kind[v, u], depth[near][ok]
    same = (seen == CLASSES.index("building")) & (points["intensity"][near][ok] == 40)
    same |= (seen == CLASSES.index("ground")) & (points["intensity"][near][ok] == 18) & (depth < 15)
    assert same.sum() > 200
    error = np.abs(found.depth[v, u] - depth)[same] / depth[same]
    assert np.median(error) < 0.005, "noise, and half a pixel of a slanted plane"
    assert (error < 0.05).mean() > 0.98


def test_depth_lands_on_the_next_cameras_pixels(renderer: Renderer) -> None:
    """Every surface that CAM_F0 shows and CAM_L0 can see, CAM_L0 has where and as far as it should be."""
    front, left = truth(renderer, T, "CAM_F0"), truth(renderer, T, "CAM_L0")
    near = front.depth < 30  # farther off, half a pixel of the ground is more than what is asked for
    points = lifted(front)[near]
    pixels, depth = projected(left, points)
    ok, u, v = inside(pixels, left)
    ok &= depth > 0.5
    ok, u, v = inside(np.where(ok[:, None], pixels, -9), left)
    assert ok.sum() > 2000
    error = left.depth[v, u] / depth[ok] - 1
    assert (np.abs(error) < 0.02).mean() > 0.97
    kinds = front.kind[near][ok]
    assert (left.kind[v, u] == kinds)[np.abs(error) < 0.02].mean() > 0.98


def test_instances_lie_within_their_boxes_and_have_their_class(found: Truth) -> None:
    assert ((found.instance >= 0) == (found.kind >= BOXES)).all()
    for number, seen in enumerate(found.objects):
        own = found.instance == number
        assert own.sum() == seen.pixels
        if not seen.pixels:
            continue
        assert set(found.kind[own]) == {CLASSES.index(seen.actor.name)}
        a = seen.actor
        points = lifted(found)[own]
        c, s = np.cos(a.heading), np.sin(a.heading)
        d = points[:, :2] - (a.x, a.y)
        along, across = d @ (c, s), d @ (-s, c)
        slack = 0.05 + 0.01 * found.depth[own].astype(np.float64)  # pixels of an edge
        assert (np.abs(along) < a.size[0] / 2 + slack).mean() > 0.9
        assert (np.abs(across) < a.size[1] / 2 + slack).mean() > 0.9
        assert (points[:, 2] < a.size[2] + slack).mean() > 0.9


def test_what_stands_before_an_object_takes_its_share() -> None:
    """A car behind a house has none; the nearest of a row has all of it."""
    renderer = Renderer(drive_of(CONFIG, log_specs(CONFIG)[1]), 480, 270)
    found = truth(renderer, T, "CAM_F0")
    shares = [o.share for o in found.objects]
    assert 0.0 in shares
    assert 1.0 in shares
    assert any(0 < share < 1 for share in shares)
    eye = found.pose[:3, 3]
    near = min((o for o in found.objects if o.pixels), key=lambda o: np.hypot(o.actor.x - eye[0], o.actor.y - eye[1]))
    assert near.share == 1.0
    for seen in found.objects:  # where no corner projects into the image there is nothing to see
        ring = rectangle(seen.actor.x, seen.actor.y, seen.actor.heading, *seen.actor.size[:2])
        _, depth = projected(found, np.concatenate((ring, np.zeros((4, 1))), axis=1))
        assert (depth > 0).any()


def test_it_is_written_only_where_it_is_asked_for(tmp_path: Path) -> None:
    small = SyntheticConfig(
        logs=1, frames=14, width=96, height=54, lidar_points=0, cameras=("CAM_F0", "CAM_L0"), processes=1
    )
    plain = generate(small, tmp_path / "plain")
    assert not (plain / "truth.zarr").exists()
    assert "truth" not in small.identity()
    root = generate(small.model_copy(update={"truth": True}), tmp_path / "truth")
    for path in sorted(plain.rglob("*.jpg")):  # it changes nothing else
        assert path.read_bytes() == (root / path.relative_to(plain)).read_bytes()
    (spec,) = log_specs(small)
    group: Any = zarr.open_group(root / "truth.zarr", mode="r")[spec.name]
    assert group["depth"].shape == (14, 2, 54, 96)
    source = NavsimSource(NavsimConfig(root=str(root), split="mini"))
    scene = source.scenes(spec.name, source.scan().refs)[0]
    frame = scene.frames[scene.num_history - 1]
    now = group.attrs["tokens"].index(scene.token)
    again = truth(Renderer(drive_of(small, spec), 96, 54), (frame.timestamp - spec.start) / 1e6, "CAM_L0")
    for name in ("depth", "kind", "instance", "pose", "intrinsics"):
        np.testing.assert_array_equal(group[name][now, 1], getattr(again, name))
    page: dict[str, Any] = {}
    exec(block("sources", "truth").replace("data/synthetic", str(root)), page)
    assert page["depth"].shape == (54, 96)
    table = page["objects"]
    assert frame.annotations is not None
    names = dict(zip(frame.annotations.track_tokens, frame.annotations.names, strict=True))
    seen = table[(table.token == scene.token) & (table.channel == "CAM_F0")]
    told = seen[seen.track_token.isin(list(names))]  # the camera sees farther than the records' 100 m
    assert len(told) >= 5
    assert list(told.name) == [names[token] for token in told.track_token]
    assert seen.visible_share.between(0, 1).all()
