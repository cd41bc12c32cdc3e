"""The VGGT teacher: targets as its specs say, identity, determinism, independence of a batch's scenes."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import teachers.vggt
from shards_schema.errors import ConfigError, SampleError, ShardsError, WeightsError
from shards_schema.records import CHANNELS, Scene
from shards_schema.specs import TargetSpec
from shards_schema.storage import decode, encode, stored_specs
from teachers.base import ImageRequest, Targets, Teacher, TeacherInput, fingerprint
from teachers.testing import synthetic_scene
from teachers.vggt.checkpoint import fill_random
from teachers.vggt.geometry import PRESETS
from teachers.vggt.network import VGGTNetwork, VGGTOutput
from teachers.vggt.targets import target_specs, to_tensors
from teachers.vggt.teacher import VGGTTeacher

VIEWS = ("CAM_F0", "CAM_L0", "CAM_R0")
BASE: dict[str, Any] = {
    "weights": {"random": 3},
    "network": "tiny",
    "width": 126,
    "pools": {"grid": {"rows": 3, "cols": 5}, "tok12": {"rows": 3, "cols": 4, "flat": True}},
}


def scene(seed: int = 0, channels: Sequence[str] = CHANNELS) -> Scene:
    """Two frames after now; each with these cameras."""
    whole = synthetic_scene(seed, history=4, future=2)
    frames = (replace(f, cameras={c: f.cameras[c] for c in channels}) for f in whole.frames)
    return replace(whole, frames=tuple(frames))


def photo(seed: int) -> np.ndarray:
    """A 480 x 270 image with structure at all scales."""
    random = np.random.RandomState(seed)
    coarse = np.kron(random.randint(0, 200, (9, 16, 3)), np.ones((30, 30, 1)))
    return (coarse + random.randint(0, 56, (270, 480, 3))).astype(np.uint8)


def item(teacher: VGGTTeacher, seed: int, order: Sequence[int] | None = None) -> TeacherInput:
    count = len(teacher.requests(scene()))
    images = [teacher.preprocess(photo(100 * seed + i)) for i in (order or range(count))]
    return TeacherInput(scene(seed), np.stack(images))


def build(**changes: Any) -> VGGTTeacher:
    return teachers.vggt.build(BASE | changes)


def loaded(**changes: Any) -> VGGTTeacher:
    teacher = build(**changes)
    teacher.load("cpu")
    return teacher


@pytest.fixture(scope="module")
def teacher() -> VGGTTeacher:
    return loaded()


def equal(a: Targets, b: Targets) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


# Targets


def test_default_targets_are_those_of_the_spec() -> None:
    built = teachers.vggt.build({"weights": {"random": 0}})
    assert isinstance(built, Teacher)
    assert {s.name: (s.shape, s.dtype) for s in built.specs} == {
        "l23_grid": ((3, 10, 18, 2048), "float16"),
        "l23_tok12": ((3, 12, 2048), "float16"),
        "l23_special": ((3, 5, 2048), "float32"),
        "pose_enc": ((3, 9), "float32"),
        "depth": ((3, 42, 74), "float16"),
        "depth_conf": ((3, 42, 74), "float16"),
    }
    assert built.requests(scene()) == [ImageRequest(0, view) for view in VIEWS]
    assert built.preprocess(photo(0)).shape == (294, 518, 3)
    assert all(s.dims[0] == "view" and "CAM_F0" in s.meaning for s in built.specs)


def test_axes_of_one_name_have_one_length() -> None:
    lengths: dict[str, int | None] = {}
    for spec in build(layers=[1, -1]).specs:
        for dim, size in zip(spec.dims, spec.shape, strict=True):
            assert lengths.setdefault(dim, size) == size


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"layers": (0, 2, -1), "views": ("CAM_F0",)},
        {"window": (-2, 0), "batch_size": 1},
        {"heads": ("camera",)},
        {"heads": ("depth",), "depth_cell": 1, "pools": {}},
        {"heads": (), "dtype": "bfloat16"},
        {"heads": (), "pool_dtype": "float32"},
    ],
)
def test_targets_are_as_the_specs_say(changes: dict[str, Any]) -> None:
    teacher = loaded(**changes)
    results = teacher.compute([item(teacher, seed) for seed in range(2)])
    assert len(results) == 2
    for targets in results:
        assert list(targets) == [spec.name for spec in teacher.specs]
        for spec in teacher.specs:
            spec.check(targets[spec.name])
    assert not equal(*results)


def test_targets_are_the_networks_outputs_reduced(teacher: VGGTTeacher) -> None:
    given = item(teacher, 1)
    targets = teacher.compute([given])[0]
    with torch.device("meta"):
        network = VGGTNetwork(PRESETS["tiny"])
    fill_random(network, 3, "cpu")
    out = network(torch.from_numpy(given.images).permute(0, 3, 1, 2)[None] / 255, layers=(3,))
    tokens = out.tokens[3][0].numpy()
    np.testing.assert_allclose(targets["l3_special"], tokens[:, :5], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(targets["pose_enc"], out.pose_enc[0].numpy(), rtol=1e-5, atol=1e-5)
    # 5 x 9 patches to 3 rows [0:2, 1:4, 3:5] and 5 columns [0:2, 1:4, 3:6, 5:8, 7:9]: adaptive cells overlap.
    patches = tokens[:, 5:].reshape(3, 5, 9, 128).astype(np.float64)
    rows, cols = ((0, 2), (1, 4), (3, 5)), ((0, 2), (1, 4), (3, 6), (5, 8), (7, 9))
    grid = [[patches[:, a:b, c:d].mean((1, 2)) for c, d in cols] for a, b in rows]
    np.testing.assert_allclose(targets["l3_grid"], np.transpose(grid, (2, 0, 1, 3)), rtol=2e-3, atol=2e-3)
    assert targets["l3_tok12"].shape == (3, 12, 128)
    np.testing.assert_allclose(targets["l3_tok12"][:, 0], patches[:, :2, :3].mean((1, 2)), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(targets["l3_tok12"][:, 11], patches[:, 3:, 6:].mean((1, 2)), rtol=2e-3, atol=2e-3)
    depth = np.log(out.depth[0].numpy())
    assert targets["depth"][1, 2, 3] == pytest.approx(np.median(depth[1, 14:21, 21:28]), rel=1e-3)
    conf = np.log(out.depth_conf[0].numpy() - 1)
    assert targets["depth_conf"][2, 9, 17] == pytest.approx(np.median(conf[2, 63:70, 119:126]), rel=1e-3)


def targets_of(teacher: VGGTTeacher, out: VGGTOutput) -> list[Targets]:
    """As the teacher makes them of what a network gave."""
    return teacher.scatter({name: tensor.numpy() for name, tensor in to_tensors(teacher.config, out).items()}, None)


def output(teacher: VGGTTeacher, **changes: torch.Tensor) -> VGGTOutput:
    fields = {
        "tokens": torch.zeros(1, 3, 50, 128),
        "pose_enc": torch.zeros(1, 3, 9),
        "depth": torch.ones(1, 3, 70, 126),
        "depth_conf": torch.full((1, 3, 70, 126), 2.0),
    } | changes
    return VGGTOutput({3: fields["tokens"]}, 5, fields["pose_enc"], fields["depth"], fields["depth_conf"])


def spec_of(teacher: VGGTTeacher, name: str) -> TargetSpec:
    return next(spec for spec in target_specs(teacher.config) if spec.name == name)


def test_what_float16_cannot_hold_is_quarantined(teacher: VGGTTeacher) -> None:
    tokens = torch.zeros(1, 3, 50, 128)
    tokens[0, 0, 5:, 7] = 1e5
    targets = targets_of(teacher, output(teacher, tokens=tokens))[0]
    with pytest.raises(SampleError, match="infinite"):
        spec_of(teacher, "l3_grid").check(targets["l3_grid"])
    tokens = torch.zeros(1, 3, 50, 128)
    tokens[0, 0, :5, 7] = 1e5
    special = targets_of(teacher, output(teacher, tokens=tokens))[0]["l3_special"]
    spec_of(teacher, "l3_special").check(special)
    assert special.max() == np.float32(1e5)


def test_float32_pools_leave_the_choice_to_storage(teacher: VGGTTeacher) -> None:
    wide = build(pool_dtype="float32")
    tokens = torch.rand(1, 3, 50, 128)
    tokens[0, 0, 5:, 7] = 1e5
    targets = targets_of(wide, output(wide, tokens=tokens))[0]
    half = targets_of(teacher, output(teacher, tokens=tokens))[0]
    for spec in wide.specs[:2]:
        spec.check(targets[spec.name])
        with np.errstate(over="ignore"):
            assert np.array_equal(targets[spec.name].astype(np.float16), half[spec.name])
    specs = {spec.name: spec for spec in stored_specs(wide.specs, {"l3_grid": "bfloat16", "l3_tok12": "float16"})}
    grid = specs["l3_grid"]
    read = decode(grid, encode(grid, targets["l3_grid"]))
    assert read.max() == pytest.approx(1e5, rel=2**-8)
    with pytest.raises(SampleError, match="beyond what float16 holds"):
        encode(specs["l3_tok12"], targets["l3_tok12"])
    with pytest.raises(ConfigError, match="storage only narrows"):
        stored_specs(teacher.specs, {"l3_grid": "bfloat16"})
    assert fingerprint(wide) != fingerprint(teacher)
    assert wide.provenance() == teacher.provenance()  # told by the specs alone, or columns of before it were refused


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_maps_stay_so(teacher: VGGTTeacher, bad: float) -> None:
    cell = torch.ones(1, 3, 70, 126)
    cell[0, 0, :7, :7] = bad
    targets = targets_of(teacher, output(teacher, depth=cell, depth_conf=cell + 1))[0]
    for name in ("depth", "depth_conf"):
        assert not np.isfinite(targets[name][0, 0, 0])
        assert np.isfinite(targets[name][1]).all()


def test_confidence_of_one_is_stored_at_the_floor(teacher: VGGTTeacher) -> None:
    targets = targets_of(teacher, output(teacher, depth_conf=torch.ones(1, 3, 70, 126)))[0]
    assert np.all(targets["depth_conf"] == np.float16(np.log(2.0**-23)))


# Determinism


def test_two_teachers_of_one_config_agree_bit_for_bit(teacher: VGGTTeacher) -> None:
    torch.manual_seed(99)
    again = loaded()
    again.load("cpu")
    batch = [item(teacher, seed) for seed in range(2)]
    for a, b in zip(teacher.compute(batch), again.compute(batch), strict=True):
        assert equal(a, b)
    assert not equal(teacher.compute(batch[:1])[0], loaded(weights={"random": 4}).compute(batch[:1])[0])


def test_targets_do_not_depend_on_the_batch(teacher: VGGTTeacher) -> None:
    batch = [item(teacher, seed) for seed in range(4)]
    together = teacher.compute(batch)
    for i, given in enumerate(batch):
        alone = teacher.compute([given])[0]
        for name, value in alone.items():
            np.testing.assert_allclose(together[i][name], value, rtol=2e-3, atol=2e-3, err_msg=name)
    assert teacher.compute([]) == []


def test_the_order_of_views_matters(teacher: VGGTTeacher) -> None:
    given, swapped = teacher.compute([item(teacher, 1), item(teacher, 1, order=(1, 0, 2))])
    assert np.abs(given["l3_special"][0] - swapped["l3_special"][1]).max() > 1e-2
    rest = teacher.compute([item(teacher, 1, order=(0, 2, 1))])[0]
    np.testing.assert_allclose(rest["l3_special"][[0, 2, 1]], given["l3_special"], rtol=1e-3, atol=1e-3)


def test_windows_are_ordered_by_step_then_view() -> None:
    teacher = build(window=(-1, 0), views=("CAM_F0", "CAM_B0"))
    assert teacher.requests(scene(channels=("CAM_F0", "CAM_B0"))) == [
        ImageRequest(-1, "CAM_F0"),
        ImageRequest(-1, "CAM_B0"),
        ImageRequest(0, "CAM_F0"),
        ImageRequest(0, "CAM_B0"),
    ]
    assert teacher.provenance()["reference"] == {"step": -1, "view": "CAM_F0"}


# Identity


def test_provenance_is_json_and_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VGGTNetwork, "__init__", lambda *_: pytest.fail("provenance built the network"))
    teacher = teachers.vggt.build({"weights": {"random": 3}})
    record = teacher.provenance()
    assert json.loads(json.dumps(record)) == record
    assert record["implementation"] == "ours"
    assert record["layers"] == [23]
    assert record["weights"] == {"random": True, "seed": 3}
    assert teacher.random_weights
    assert teacher.name == "vggt"
    assert build(name="vggt_rear").name == "vggt_rear"


def test_the_same_meaning_has_the_same_fingerprint() -> None:
    assert fingerprint(build()) == fingerprint(build(layers=[3], height=70, network=PRESETS["tiny"].model_dump()))


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": {"random": 4}},
        {"network": "small"},
        {"views": ("CAM_L0", "CAM_F0", "CAM_R0")},
        {"window": (-1,)},
        {"width": 140},
        {"height": 56},
        {"layers": (2,)},
        {"pools": {"grid": {"rows": 3, "cols": 4}}},
        {"heads": ("camera",)},
        {"depth_cell": 1},
        {"batch_size": 2},
        {"dtype": "bfloat16"},
    ],
)
def test_every_setting_changes_the_fingerprint(changes: dict[str, Any]) -> None:
    assert build().provenance() != build(**changes).provenance()
    assert fingerprint(build()) != fingerprint(build(**changes))


def checkpoint(path: Path, seed: int) -> Path:
    with torch.device("meta"):
        network = VGGTNetwork(PRESETS["tiny"])
    fill_random(network, seed, "cpu")
    save_file(network.state_dict() | {"track_head.x": torch.ones(1)}, path)
    return path


def test_weights_from_a_file_are_named_by_their_digest(tmp_path: Path, teacher: VGGTTeacher) -> None:
    path = checkpoint(tmp_path / "model.safetensors", 3)
    by_directory, by_file = build(weights={"path": str(tmp_path)}), loaded(weights={"path": str(path)})
    assert fingerprint(by_directory) == fingerprint(by_file) != fingerprint(teacher)
    assert not by_file.random_weights
    given = item(teacher, 0)
    assert equal(by_file.compute([given])[0], teacher.compute([given])[0])


def test_weights_that_change_after_they_were_recorded_are_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model.safetensors", 3)
    teacher = build(weights={"path": str(tmp_path)})
    teacher.provenance()
    checkpoint(tmp_path / "model.safetensors", 4)
    with pytest.raises(WeightsError, match="changed"):
        teacher.load("cpu")


def test_absent_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        build(weights={"path": str(tmp_path)}).provenance()


# Refusals


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": "huge"}, "expected one of"),
        ({"views": ()}, "views"),
        ({"views": ("CAM_X",)}, "CAM_X"),
        ({"views": ("CAM_F0", "CAM_F0")}, "at most once"),
        ({"window": (0, 0)}, "at most once"),
        ({"width": 500}, "multiples of 14"),
        ({"width": 14}, "multiples of 14|cells of only"),
        ({"height": 140}, "height at most width"),
        ({"layers": (4,)}, r"-4\.\.3"),
        ({"layers": (3, -1)}, "different ones"),
        ({"pools": {"grid": {"rows": 10, "cols": 18}}}, "cells of only 5 x 9"),
        ({"pools": {"a.b": {"rows": 1, "cols": 1}}}, "target name"),
        ({"pools": {"special": {"rows": 1, "cols": 1}}}, "special"),
        ({"heads": ("track",)}, "heads"),
        ({"depth_cell": 2}, "depth_cell"),
        ({"batch_size": 0}, "batch_size"),
        ({"dtype": "float16"}, "dtype"),
        ({"colour": "red"}, "colour"),
        ({"weights": {}}, "exactly one"),
        ({"network": PRESETS["tiny"].model_dump() | {"camera": None}}, "camera is asked for"),
    ],
)
def test_impossible_configs_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(**changes)


@pytest.mark.skipif(importlib.util.find_spec("vggt") is not None, reason="the package is installed here")
def test_upstream_without_its_package_says_how_to_get_it() -> None:
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[vggt\]'"):
        build(implementation="upstream")


def test_scenes_without_a_frame_or_camera_are_refused_alone() -> None:
    with pytest.raises(SampleError) as caught:
        build().requests(scene(channels=("CAM_F0",)))
    assert caught.value.code == "missing_camera"
    with pytest.raises(SampleError) as caught:
        build(window=(0, 4)).requests(scene())
    assert caught.value.code == "missing_frame"


def test_images_of_another_aspect_are_refused(teacher: VGGTTeacher) -> None:
    with pytest.raises(SampleError, match="config `height`") as caught:
        teacher.preprocess(np.zeros((480, 480, 3), np.uint8))
    assert caught.value.code == "image_shape"


def test_compute_refuses_what_it_did_not_ask_for(teacher: VGGTTeacher) -> None:
    given = item(teacher, 0)
    with pytest.raises(ConfigError, match=r"expected uint8 images \[3, 70, 126, 3\]"):
        teacher.compute([TeacherInput(given.scene, given.images[:2])])
    with pytest.raises(ShardsError, match="call load"):
        build().compute([given])


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, teachers.vggt; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
