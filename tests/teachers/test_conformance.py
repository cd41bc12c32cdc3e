"""The shipped suite: cosmos passes it (others: beside their own tests), and what is broken fails on the right check."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from shards_schema.errors import SampleError
from shards_schema.records import Image, Scene
from shards_schema.specs import TargetSpec
from teachers import registry
from teachers.base import ImageRequest, PhasedTeacher, Targets, Teacher, TeacherInput
from teachers.testing import TeacherConformance, synthetic_image, synthetic_scene

COSMOS: dict[str, Any] = {
    "weights": {"random": 0},
    "network": "tiny",
    "size": [64, 48],
    "pool": 2,
    "batch_size": 3,
}


class TestCosmosCv8(TeacherConformance):
    config = COSMOS

    def build(self, **changes: Any) -> Teacher:
        return registry.build("cosmos", {**self.config, **changes})

    def make(self) -> Teacher:
        return self.build()

    def make_other_weights(self) -> Teacher:
        return self.build(weights={"random": 1})

    def make_other_config(self) -> Teacher:
        return self.build(channel="CAM_L0")


class TestCosmosWan(TestCosmosCv8):
    config = COSMOS | {"model": "wan", "layout": "D"}


class TestCosmosCv4(TestCosmosCv8):
    config = COSMOS | {"model": "cv4x8x8", "layout": "B"}


# An honest teacher of a few lines, and ways to break it.


class Honest:
    """Means of image rows times a weight; correct in all that the suite asks."""

    name = "honest"
    specs: tuple[TargetSpec, ...] = (
        TargetSpec(name="rows", dims=("row",), shape=(8,), dtype="float32", unit="1", meaning="Row means."),
        TargetSpec(name="steps", dims=("frame",), shape=(1,), dtype="int16", unit="1", meaning="Step."),
    )
    batch_size = 3
    random_weights = True

    def __init__(self, seed: int = 0, channel: str = "CAM_F0") -> None:
        self.seed, self.channel = seed, channel
        self.weight: float | None = None

    def provenance(self) -> dict[str, Any]:
        return {"seed": self.seed, "channel": self.channel}

    def requests(self, scene: Scene) -> Sequence[ImageRequest]:
        scene.camera(0, self.channel)
        return [ImageRequest(0, self.channel)]

    def preprocess(self, image: Image) -> Image:
        return image[:8, :8].copy()

    def load(self, device: str) -> None:
        self.weight = 1.0 + self.seed

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        return [self.one(item) for item in batch]

    def one(self, item: TeacherInput) -> Targets:
        assert self.weight is not None
        rows = item.images[0].mean(axis=(1, 2), dtype=np.float64) * self.weight
        return {"rows": rows.astype(np.float32), "steps": np.zeros(1, np.int16)}


class Unnamed(Honest):
    name = "Not A Name"


class TwiceNamed(Honest):
    specs = Honest.specs + Honest.specs[:1]


class OutsideTheScene(Honest):
    def requests(self, scene: Scene) -> Sequence[ImageRequest]:
        return [ImageRequest(99, self.channel)]


class BadError(Honest):
    def requests(self, scene: Scene) -> Sequence[ImageRequest]:
        _ = scene.at(0).cameras[self.channel]
        return [ImageRequest(0, self.channel)]


class PreprocessWrites(Honest):
    def preprocess(self, image: Image) -> Image:
        image[0, 0] ^= 255
        return image[:8, :8].copy()


class PreprocessRemembers(Honest):
    seen = 0

    def preprocess(self, image: Image) -> Image:
        self.seen += 1
        return image[:8, :8] // np.uint8(self.seen)


class NeedsContiguous(Honest):
    def preprocess(self, image: Image) -> Image:
        flat = image.ravel(order="K")[: 8 * 8 * 3]
        return flat.reshape(8, 8, 3).copy()


class WrongDtype(Honest):
    def one(self, item: TeacherInput) -> Targets:
        return {name: array.astype(np.float64) for name, array in super().one(item).items()}


class WrongOrder(Honest):
    def one(self, item: TeacherInput) -> Targets:
        return dict(reversed(super().one(item).items()))


class NotFinite(Honest):
    def one(self, item: TeacherInput) -> Targets:
        targets = super().one(item)
        targets["rows"][3] = np.nan
        return targets


class Constant(Honest):
    def one(self, item: TeacherInput) -> Targets:
        return {"rows": np.zeros(8, np.float32), "steps": np.zeros(1, np.int16)}


class Drifts(Honest):
    def one(self, item: TeacherInput) -> Targets:
        assert self.weight is not None
        self.weight *= 1.0001
        return super().one(item)


class ReusesMemory(Honest):
    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.buffer = np.zeros(8, np.float32)

    def one(self, item: TeacherInput) -> Targets:
        targets = super().one(item)
        self.buffer[:] = targets["rows"]
        return targets | {"rows": self.buffer}

    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        targets = [self.one(item) for item in batch]
        return [{name: a if i == 0 else a.copy() for name, a in t.items()} for i, t in enumerate(targets)]


class LooksAtNeighbours(Honest):
    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        targets = super().compute(batch)
        for i, item in enumerate(targets):
            item["rows"] = item["rows"] + np.float32(0.1 * targets[i - 1]["rows"].mean())
        return targets


class CountsTheBatch(Honest):
    def compute(self, batch: Sequence[TeacherInput]) -> list[Targets]:
        return [t | {"steps": np.full(1, i, np.int16)} for i, t in enumerate(super().compute(batch))]


class FreshDraw(Honest):
    def load(self, device: str) -> None:
        self.weight = 1.0 + float(torch.rand(1))


class SameFingerprint(Honest):
    def provenance(self) -> dict[str, Any]:
        return {}


class FingerprintAtLoad(Honest):
    def provenance(self) -> dict[str, Any]:
        return super().provenance() | {"weight": self.weight}


class WeightsUnused(Honest):
    def load(self, device: str) -> None:
        self.weight = 1.0


class NamesAPath(Honest):
    def provenance(self) -> dict[str, Any]:
        return super().provenance() | {"file": "/data/weights.safetensors"}


class NotJson(Honest):
    def provenance(self) -> dict[str, Any]:
        return super().provenance() | {"size": (8, 8)}


class TurnsGradientsOff(Honest):
    def load(self, device: str) -> None:
        super().load(device)
        torch.set_grad_enabled(False)


class NotPicklable(Honest):
    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.rule = lambda image: image


class LoadsTwice(Honest):
    weight: float | None

    def load(self, device: str) -> None:
        self.weight = (self.weight or 0.0) + 1.0 + self.seed


class Now:
    """A launch that is done."""

    seconds = 0.0

    def __init__(self, targets: Sequence[Targets] = ()) -> None:
        self.targets = list(targets)

    def wait(self) -> None:
        return None


class Phased(Honest):
    """Honest, in phases."""

    def stage(self, batch: Sequence[TeacherInput]) -> list[TeacherInput]:
        return [TeacherInput(item.scene, item.images.copy()) for item in batch]

    def launch(self, staged: list[TeacherInput]) -> Now:
        return Now([self.one(item) for item in staged])

    def collect(self, launch: Now) -> list[Targets]:
        return launch.targets


class StagesViews(Phased):
    def stage(self, batch: Sequence[TeacherInput]) -> list[TeacherInput]:
        return list(batch)


class OneLaunchAtATime(Phased):
    def launch(self, staged: list[TeacherInput]) -> Now:
        self.last = super().launch(staged)
        return self.last

    def collect(self, launch: Now) -> list[Targets]:
        return self.last.targets


class LosesOne(Phased):
    def collect(self, launch: Now) -> list[Targets]:
        return launch.targets[:1]


class PhasesComputeOther(Phased):
    def launch(self, staged: list[TeacherInput]) -> Now:
        return Now([{**self.one(item), "rows": self.one(item)["rows"] * np.float32(1 + 1e-6)} for item in staged])


def suite_of(kind: type[Honest]) -> TeacherConformance:
    class Suite(TeacherConformance):
        image_size = (96, 54)

        def make(self) -> Teacher:
            return kind()

        def make_other_weights(self) -> Teacher:
            return kind(seed=1)

        def make_other_config(self) -> Teacher:
            return kind(channel="CAM_B0")

    return Suite()


def failures(kind: type[Honest]) -> dict[str, BaseException]:
    """The checks that `kind` fails, each run as pytest would."""
    suite = suite_of(kind)
    failed: dict[str, BaseException] = {}
    for name in sorted(dir(suite)):
        if name.startswith("test_"):
            grad = torch.is_grad_enabled()
            try:
                getattr(suite, name)()
            except pytest.skip.Exception:
                assert name == "test_phases_are_compute"
                assert not isinstance(suite.make(), PhasedTeacher)
            except Exception as error:
                failed[name.removeprefix("test_")] = error
            finally:
                torch.set_grad_enabled(grad)
    return failed


@pytest.mark.parametrize("kind", [Honest, Phased])
def test_an_honest_teacher_passes_every_check(kind: type[Honest]) -> None:
    assert failures(kind) == {}


NO_COLUMN = (
    "fingerprint_is_known_before_load",
    "other_config_is_another_teacher",
    "other_weights_are_another_teacher",
    "pickles",
)
"""What fails as well where there can be no column, and so no fingerprint."""


@pytest.mark.parametrize(
    ("kind", "check", "also"),
    [
        (Unnamed, "is_a_teacher", ()),
        (TwiceNamed, "specs", ("outputs_are_as_the_specs_say", *NO_COLUMN)),  # nobody may write it
        (BadError, "requests_of_a_bare_scene", ()),
        (PreprocessWrites, "preprocess_is_pure", None),
        (PreprocessRemembers, "preprocess_is_pure", None),
        (NeedsContiguous, "preprocess_takes_any_memory_layout", ()),
        (WrongDtype, "outputs_are_as_the_specs_say", ()),
        (WrongOrder, "outputs_are_as_the_specs_say", ()),
        (NotFinite, "outputs_are_as_the_specs_say", None),
        (Constant, "outputs_depend_on_the_scene", ("other_weights_are_another_teacher",)),
        (Drifts, "computes_the_same_twice", None),
        (ReusesMemory, "computes_the_same_twice", None),
        (LooksAtNeighbours, "batch_invariance", ()),
        (CountsTheBatch, "batch_invariance", ()),
        (FreshDraw, "a_fresh_teacher_computes_the_same", None),
        (FreshDraw, "leaves_global_state_alone", None),
        (SameFingerprint, "other_weights_are_another_teacher", ("other_config_is_another_teacher",)),
        (FingerprintAtLoad, "fingerprint_is_known_before_load", None),
        (WeightsUnused, "other_weights_are_another_teacher", ()),
        (NamesAPath, "provenance_is_json", ()),
        (NotJson, "provenance_is_json", ()),
        (TurnsGradientsOff, "leaves_global_state_alone", ()),
        (NotPicklable, "pickles", ()),
        (LoadsTwice, "load_is_idempotent", ()),
        (StagesViews, "phases_are_compute", ()),
        (OneLaunchAtATime, "phases_are_compute", ()),
        (LosesOne, "phases_are_compute", ()),
        (PhasesComputeOther, "phases_are_compute", ()),
    ],
)
def test_a_broken_teacher_fails_the_check_for_it(kind: type[Honest], check: str, also: tuple[str, ...] | None) -> None:
    """`also`: the other checks that must fail with it; None where the breakage shows in many."""
    failed = failures(kind)
    assert check in failed
    assert isinstance(failed[check], (AssertionError, TypeError, ValueError, KeyError, AttributeError))
    if also is not None:
        assert set(failed) == {check, *also}


def test_requests_outside_the_scene_fail() -> None:
    with pytest.raises(AssertionError, match="outside scene"):
        suite_of(OutsideTheScene).test_requests()


def test_the_suite_does_not_import_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    spec = importlib.util.find_spec("teachers.testing.conformance")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "pytest", None)  # importing it now raises
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert module.TeacherConformance


def test_synthetic_scenes_are_whole_and_deterministic() -> None:
    scene, again = synthetic_scene(3, before=1), synthetic_scene(3, before=1)
    assert (len(scene.frames), scene.num_history, scene.num_future, len(scene.before)) == (14, 4, 10, 1)
    assert [frame.token for frame in scene.frames] == [frame.token for frame in again.frames]
    assert len({frame.token for frame in scene.before + scene.frames}) == 15
    steps = np.diff([frame.timestamp for frame in scene.before + scene.frames])
    assert (steps == 500_000).all()
    assert len(scene.current.cameras) == 8
    assert scene.at(-4).token == scene.before[0].token
    with pytest.raises(SampleError):
        scene.at(-5)
    forward = scene.camera(0, "CAM_F0").sensor2ego_rotation @ np.array([0.0, 0.0, 1.0])
    left = scene.camera(0, "CAM_L1").sensor2ego_rotation @ np.array([0.0, 0.0, 1.0])
    np.testing.assert_allclose(forward, [1.0, 0.0, 0.0], atol=1e-12)
    assert left[1] > 0.99


def test_synthetic_images_are_smooth_and_move() -> None:
    scene = synthetic_scene(0)
    image = synthetic_image(scene, ImageRequest(0, "CAM_F0"), (192, 108))
    assert (image.shape, image.dtype) == ((108, 192, 3), np.uint8)
    assert np.abs(np.diff(image.astype(int), axis=1)).max() < 40
    assert image.std() > 20
    later = synthetic_image(scene, ImageRequest(1, "CAM_F0"), (192, 108))
    assert 0 < np.abs(image.astype(int) - later).mean() < 40
    digest = hashlib.sha256(synthetic_image(scene, ImageRequest(0, "CAM_F0"), (192, 108)).tobytes())
    assert digest.digest() == hashlib.sha256(image.tobytes()).digest()
