"""The conformance suite that every teacher passes: what `teachers.base.Teacher` promises, as tests.

Subclass `TeacherConformance` in a test file, make teachers in three methods, and pytest runs the inherited checks:

    class TestMine(TeacherConformance):
        def make(self): return build({"weights": {"random": 0}})
        def make_other_weights(self): return build({"weights": {"random": 1}})
        def make_other_config(self): return build({"weights": {"random": 0}, "size": (224, 128)})

The loaded teacher and its outputs are made once a class, so a check that needs a fresh one says so. pytest is imported
only where a check is skipped.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pickle
import random
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np

from shards_schema.errors import SampleError
from shards_schema.records import Image, Scene
from shards_schema.specs import NAME, TargetSpec
from teachers.base import ImageRequest, PhasedTeacher, Targets, Teacher, TeacherInput, fingerprint, needs_of
from teachers.testing.scenes import bare_scene, synthetic_image, synthetic_scene


class TeacherConformance(ABC):
    """What `teachers.base.Teacher` promises, as tests.

    Attributes:
        device: where the teacher is loaded.
        image_size: width and height of the original images [px].
        rtol: by floating dtype, how far a target may move with its neighbours in the batch, relative to the largest
            magnitude in it. Other dtypes must be equal.
    """

    device: str = "cpu"
    image_size: tuple[int, int] = (480, 270)
    rtol: ClassVar[dict[str, float]] = {"float16": 1e-3, "float32": 1e-4, "float64": 1e-10}

    _loaded: ClassVar[Teacher]
    _alone: ClassVar[list[Targets]]

    # What a subclass gives.

    @abstractmethod
    def make(self) -> Teacher:
        """A small teacher, not loaded; the same each time. Let its batch size be 2 or more."""

    @abstractmethod
    def make_other_weights(self) -> Teacher | None:
        """The same config with other weights; None for a teacher that has none."""

    @abstractmethod
    def make_other_config(self) -> Teacher:
        """The same weights under a config that gives other targets."""

    def scenes(self) -> Sequence[Scene]:
        """Three scenes or more that the teacher can teach, each different."""
        return [synthetic_scene(seed, before=seed % 2, size=self.image_size) for seed in range(3)]

    def image(self, scene: Scene, request: ImageRequest) -> Image:
        """The decoded image for a request."""
        return synthetic_image(scene, request, self.image_size)

    # Made once a class.

    @classmethod
    def teardown_class(cls) -> None:
        """Let go of the loaded teacher (pytest calls this)."""
        for name in ("_loaded", "_alone"):
            if name in cls.__dict__:
                delattr(cls, name)

    def loaded(self) -> Teacher:
        """A teacher on `device`, shared by the checks of this class."""
        cls = type(self)
        if "_loaded" not in cls.__dict__:
            cls._loaded = self.make()
            cls._loaded.load(self.device)
        return cls._loaded

    def alone(self) -> list[Targets]:
        """Each scene's targets, computed by itself."""
        cls = type(self)
        if "_alone" not in cls.__dict__:
            cls._alone = [self.run(self.loaded(), [scene])[0] for scene in self.scenes()]
        return cls._alone

    def inputs(self, teacher: Teacher, scenes: Sequence[Scene]) -> list[TeacherInput]:
        """What the pipeline would hand to `compute`."""
        inputs = []
        for scene in scenes:
            images = [teacher.preprocess(self.image(scene, request)) for request in teacher.requests(scene)]
            inputs.append(TeacherInput(scene, np.stack(images) if images else np.zeros((0, 0, 0, 3), np.uint8)))
        return inputs

    def run(self, teacher: Teacher, scenes: Sequence[Scene]) -> list[Targets]:
        """The targets of `scenes` as one batch."""
        return teacher.compute(self.inputs(teacher, scenes))

    def original_images(self) -> list[Image]:
        """Those that the teacher asks for in its first scene; where it asks for none, the check is skipped."""
        scene = self.scenes()[0]
        return [self.image(scene, request) for request in self.make().requests(scene)] or self._skip(
            "asks for no images"
        )

    # The checks: what it says of itself.

    def test_is_a_teacher(self) -> None:
        """Every attribute of the protocol, of the right type."""
        teacher = self.make()
        assert isinstance(teacher, Teacher), f"{type(teacher).__name__} lacks a member of teachers.base.Teacher"
        assert NAME.match(teacher.name), f"name must match [a-z][a-z0-9_]*, got {teacher.name!r}"
        assert type(teacher.batch_size) is int, f"batch_size must be an int, got {teacher.batch_size!r}"
        assert teacher.batch_size >= 1, f"batch_size must be positive, got {teacher.batch_size}"
        assert type(teacher.random_weights) is bool, f"random_weights must be a bool, got {teacher.random_weights!r}"

    def test_specs(self) -> None:
        """At least one target, each name once, no dim with two sizes, and JSON that reads back."""
        specs = self.make().specs
        assert isinstance(specs, tuple), f"specs must be a tuple, got {type(specs).__name__}"
        assert specs, "specs must not be empty"
        names = [spec.name for spec in specs]
        assert len(set(names)) == len(names), f"target names must differ, got {names}"
        sizes: dict[str, int | None] = {}
        for spec in specs:
            assert isinstance(spec, TargetSpec), f"specs must hold TargetSpec, got {type(spec).__name__}"
            back = TargetSpec.from_json(json.loads(json.dumps(spec.to_json())))
            assert back == spec, f"target {spec.name}: JSON gives back {back}"
            for dim, size in zip(spec.dims, spec.shape, strict=True):
                assert sizes.setdefault(dim, size) == size, f"dim {dim!r} has sizes {sizes[dim]} and {size}"
        assert self.make().specs == specs, "a second teacher of this config has other specs"

    def test_requests(self) -> None:
        """Images that the scene has, the same each time."""
        teacher = self.make()
        for scene in self.scenes():
            requests = list(teacher.requests(scene))
            for request in requests:
                assert isinstance(request, ImageRequest), f"expected ImageRequest, got {type(request).__name__}"
                assert scene.has_step(request.step), f"{request} is outside scene {scene.token}"
                assert request.channel in scene.at(request.step).cameras, f"{request}: no such camera"
            assert list(teacher.requests(scene)) == requests, "requests of one scene differ from call to call"
            if (needs := needs_of(teacher)) is not None:
                never = sorted(set(needs.images) - set(requests))
                assert not never, f"needs says that every scene must have {never}, which requests does not ask for"
                steps = [request.step for request in needs.images]
                assert needs.first <= min([0, *steps]), f"first is {needs.first}, the images begin at {min(steps)}"
                assert needs.last >= max([0, *steps]), f"last is {needs.last}, the images end at {max(steps)}"

    def test_requests_of_a_bare_scene(self) -> None:
        """A scene of one frame without cameras is taught, or refused by a SampleError."""
        with contextlib.suppress(SampleError):
            requests = list(self.make().requests(bare_scene(self.image_size)))
            assert not requests, f"the scene has no cameras, yet the teacher asks for {requests}"

    # The checks: preprocessing.

    def test_preprocess_is_pure(self) -> None:
        """The same output twice, uint8 [h, w, 3], not the input's memory; the input untouched, even if read-only."""
        image = self.original_images()[0]
        teacher, before = self.make(), image.copy()
        first = teacher.preprocess(image)
        assert np.array_equal(image, before), "preprocess wrote into its input"
        assert first.dtype == np.uint8, f"expected uint8, got {first.dtype}"
        assert first.ndim == 3, f"expected [h, w, 3], got {list(first.shape)}"
        assert first.shape[2] == 3, f"expected [h, w, 3], got {list(first.shape)}"
        teacher.preprocess(255 - image)
        assert np.array_equal(teacher.preprocess(image), first), "a second call gives another image"
        image.flags.writeable = False
        assert np.array_equal(teacher.preprocess(image), first), "read-only memory gives another image"

    def test_preprocess_takes_any_memory_layout(self) -> None:
        """Views, flips and padded rows give what a contiguous copy gives."""
        image = self.original_images()[0]
        teacher = self.make()
        want = teacher.preprocess(image)
        planar = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
        flipped = np.ascontiguousarray(image[::-1, :, ::-1])[::-1, :, ::-1]
        padded = np.pad(image, ((3, 2), (5, 1), (0, 1)))[3:-2, 5:-1, :-1]
        for what, view in (("planar", planar), ("flipped", flipped), ("padded", padded)):
            assert np.array_equal(view, image)
            assert np.array_equal(teacher.preprocess(view), want), f"{what} memory gives another image"

    def test_preprocess_from_four_threads(self) -> None:
        """What one thread gives."""
        teacher, images = self.make(), self.original_images()[:8]
        want = [teacher.preprocess(image) for image in images]
        with ThreadPoolExecutor(4) as pool:
            got = list(pool.map(teacher.preprocess, images * 4))
        for i, image in enumerate(got):
            assert np.array_equal(image, want[i % len(images)]), "preprocess is not safe to call from many threads"

    # The checks: outputs.

    def test_outputs_are_as_the_specs_say(self) -> None:
        """Names in order, dtypes, shapes, finite."""
        specs = self.loaded().specs
        for targets in self.alone():
            assert list(targets) == [spec.name for spec in specs], (
                f"expected {[s.name for s in specs]}: {list(targets)}"
            )
            for spec in specs:
                assert isinstance(targets[spec.name], np.ndarray), f"target {spec.name} is no numpy array"
                spec.check(targets[spec.name])

    def test_outputs_depend_on_the_scene(self) -> None:
        """Different scenes have different targets."""
        first, second = self.alone()[:2]
        assert any(not np.array_equal(first[name], second[name]) for name in first), "two scenes have equal targets"

    def test_computes_the_same_twice(self) -> None:
        """Bit for bit, without touching the inputs, and without reusing the memory of what it gave before."""
        teacher, scenes = self.loaded(), list(self.scenes())
        inputs = self.inputs(teacher, scenes[:1])
        before = inputs[0].images.copy()
        first = teacher.compute(inputs)[0]
        assert np.array_equal(inputs[0].images, before), "compute wrote into its input"
        kept = {name: array.copy() for name, array in first.items()}
        self.run(teacher, scenes[1:2])
        _assert_equal(first, kept, "compute reuses the arrays that it returned before")
        _assert_equal(teacher.compute(inputs)[0], kept, "a second compute differs")

    def test_a_fresh_teacher_computes_the_same(self) -> None:
        """Bit for bit, with the global generators in another state."""
        import torch

        scene, want = self.scenes()[0], self.alone()[0]
        with torch.random.fork_rng(devices=[]):
            torch.rand(3)
            teacher = self.make()
            teacher.load(self.device)
        _assert_equal(self.run(teacher, [scene])[0], want, "a fresh teacher computes something else")

    def test_empty_batch(self) -> None:
        """Nothing in, nothing out."""
        assert len(self.loaded().compute([])) == 0, "compute([]) must be empty"

    def test_batch_invariance(self) -> None:
        """A scene's targets do not depend on its neighbours, or its place among them, beyond `rtol`."""
        teacher, scenes = self.loaded(), list(self.scenes())
        size = min(teacher.batch_size, len(scenes))
        if size < 2:
            self._skip("batch_size is 1")
        for start in range(size):
            order = [(start + i) % len(scenes) for i in range(size)]
            results = self.run(teacher, [scenes[i] for i in order])
            assert len(results) == size, f"{size} scenes in, {len(results)} out"
            for place, i in enumerate(order):
                self._assert_close(results[place], self.alone()[i], f"scene {i} at place {place} of {order}")

    def _assert_close(self, got: Targets, want: Targets, where: str) -> None:
        for name, array in want.items():
            tolerance = self.rtol.get(array.dtype.name)
            if tolerance is None or array.size == 0:
                assert np.array_equal(got[name], array), f"target {name}: {where} differs from alone"
                continue
            wide = array.astype(np.float64)
            assert got[name].shape == array.shape, f"target {name}: {where} has another shape than alone"
            error, scale = float(np.abs(got[name] - wide).max()), float(np.abs(wide).max())
            assert error <= tolerance * scale, f"target {name}: {where} is {error:g} off alone, largest value {scale:g}"

    def test_phases_are_compute(self) -> None:
        """Two batches under way, staged and collected in other threads, give what `compute` gives, bit for bit."""
        teacher, scenes = self.loaded(), list(self.scenes())
        if not isinstance(teacher, PhasedTeacher):
            self._skip("has compute alone, which is enough")
        batches = [scenes[:1], scenes[1 : 1 + teacher.batch_size]]
        want = [self.run(teacher, batch) for batch in batches]
        with ThreadPoolExecutor(2) as threads:
            inputs = [self.inputs(teacher, batch) for batch in batches]
            staged = list(threads.map(teacher.stage, inputs))
            for item in itertools.chain.from_iterable(inputs):
                item.images.fill(0)  # the pipeline may have given their memory away by now
            launches = [teacher.launch(one) for one in staged]
            got = list(threads.map(teacher.collect, launches))
        for launch in launches:
            launch.wait()
            launch.wait()
            assert 0 <= launch.seconds < float("inf"), f"seconds: expected the device's, got {launch.seconds}"
        for i in range(2):
            assert len(got[i]) == len(want[i]), f"{len(batches[i])} scenes staged, {len(got[i])} collected"
            for mine, other in zip(got[i], want[i], strict=True):
                _assert_equal(mine, other, "collect(launch(stage(batch))) is not compute(batch)")

    # The checks: identity.

    def test_fingerprint_is_known_before_load(self) -> None:
        """Stable over objects and over load and compute."""
        teacher = self.make()
        before = fingerprint(teacher)
        assert fingerprint(teacher) == before, "the fingerprint changes from call to call"
        assert fingerprint(self.make()) == before, "a second teacher of this config has another fingerprint"
        assert fingerprint(self.loaded()) == before, "the fingerprint changes with load"
        self.alone()
        assert fingerprint(self.loaded()) == before, "the fingerprint changes with compute"

    def test_other_weights_are_another_teacher(self) -> None:
        """Another fingerprint, and other targets."""
        other = self.make_other_weights()
        if other is None:
            self._skip("has no weights")
        assert fingerprint(other) != fingerprint(self.make()), "other weights have the same fingerprint"
        other.load(self.device)
        targets, mine = self.run(other, [self.scenes()[0]])[0], self.alone()[0]
        assert any(not np.array_equal(targets[name], mine[name]) for name in mine), "other weights, equal targets"

    def test_other_config_is_another_teacher(self) -> None:
        """Another fingerprint."""
        assert fingerprint(self.make_other_config()) != fingerprint(self.make()), "other config, same fingerprint"

    def test_provenance_is_json(self) -> None:
        """It reads back as it was written, and names no place of this machine."""
        provenance = self.make().provenance()
        back = json.loads(json.dumps(provenance, allow_nan=False))
        assert back == provenance, f"JSON gives back {back} for {provenance}"
        places = {str(Path.cwd()), str(Path.home()), tempfile.gettempdir()} - {"/"}
        for text in re.findall(r'"((?:\\.|[^"\\])*)"', json.dumps(provenance, ensure_ascii=False)):
            local = os.path.isabs(text) or any(place in text for place in places)
            assert not local, f"provenance holds a path of this machine: {text!r}"

    # The checks: manners.

    def test_leaves_global_state_alone(self) -> None:
        """The global generators, dtype, grad mode and thread count are as they were after load and compute."""
        teacher = self.make()
        before = _global_state()
        inputs = self.inputs(teacher, self.scenes()[:1])
        assert _global_state() == before, "requests or preprocess changed global state"
        teacher.load(self.device)
        assert _global_state() == before, "load changed global state (torch, numpy or random)"
        teacher.compute(inputs)
        assert _global_state() == before, "compute changed global state (torch, numpy or random)"

    def test_pickles(self) -> None:
        """An unloaded teacher travels to a worker and is the same there."""
        teacher = self.make()
        copy: Teacher = pickle.loads(pickle.dumps(teacher))
        assert fingerprint(copy) == fingerprint(teacher), "a pickled teacher has another fingerprint"
        copy.load(self.device)
        _assert_equal(
            self.run(copy, [self.scenes()[0]])[0], self.alone()[0], "a pickled teacher computes another thing"
        )

    def test_load_is_idempotent(self) -> None:
        """A second load changes nothing."""
        teacher = self.make()
        teacher.load(self.device)
        teacher.load(self.device)
        _assert_equal(self.run(teacher, [self.scenes()[0]])[0], self.alone()[0], "a second load changes the targets")

    def _skip(self, reason: str) -> NoReturn:
        import pytest

        pytest.skip(f"{self.make().name}: {reason}")


def _assert_equal(got: Targets, want: Targets, message: str) -> None:
    assert list(got) == list(want), f"{message}: targets {list(got)} for {list(want)}"
    for name, array in want.items():
        same = got[name].dtype == array.dtype and np.array_equal(got[name], array, equal_nan=array.dtype.kind == "f")
        assert same, f"{message}: target {name}"


def _global_state() -> tuple[bytes, ...]:
    import torch

    backends: Any = torch.backends
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.zeros(0)
    flags = (
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        backends.cudnn.benchmark,
        backends.cudnn.deterministic,
        backends.cudnn.conv.fp32_precision,
        backends.cuda.matmul.fp32_precision,
    )
    numpy_state = np.random.get_state()  # noqa: NPY002
    values = (random.getstate(), [str(flag) for flag in flags], [np.asarray(part).tolist() for part in numpy_state])
    return (torch.get_rng_state().numpy().tobytes(), cuda.numpy().tobytes(), repr(values).encode())
