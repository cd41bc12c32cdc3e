"""Phases on a device: the helper on the CPU, and that no network asks its device for a value while it is launched."""

from __future__ import annotations

import contextlib
import pickle
import tracemalloc
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from shards_schema.errors import ShardsError
from teachers.base import Launch, PhasedTeacher, TakenInput, Targets, Teacher, TeacherInput
from teachers.device import Lane, PhasedCompute, constant
from teachers.testing import synthetic_scene
from tests.teachers.network_toys import SMALL, inputs, same, small


class Brightness(PhasedCompute[list[str]]):
    """Mean of each scene's images, and its token's first letter; notes what `forward` saw."""

    def __init__(self, fixed: int | None = None) -> None:
        self.fixed = fixed
        self.seen: list[NDArray[Any]] = []

    @property
    def fixed_batch(self) -> int | None:
        return self.fixed

    def gather(self, batch: Sequence[TeacherInput]) -> tuple[dict[str, list[NDArray[Any]]], list[str]]:
        return {"images": [item.images for item in batch]}, [item.scene.token for item in batch]

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        assert torch.is_inference_mode_enabled()
        self.seen.append(inputs["images"].numpy().copy())
        return {"mean": inputs["images"].float().mean((1, 2, 3)).T.contiguous().T}  # [B, 3], not contiguous

    def scatter(self, arrays: Mapping[str, NDArray[Any]], notes: list[str]) -> list[Targets]:
        return [
            {"mean": arrays["mean"][i], "first": np.frombuffer(t[:1].encode(), np.uint8)} for i, t in enumerate(notes)
        ]


def scenes(count: int) -> list[TeacherInput]:
    draw = np.random.default_rng(0)
    return [TeacherInput(synthetic_scene(i), draw.integers(0, 255, (2, 4, 6, 3), np.uint8)) for i in range(count)]


def test_the_networks_have_phases_and_a_launch_is_a_launch() -> None:
    for name in SMALL:
        teacher = small(name)
        assert isinstance(teacher, PhasedTeacher)
        assert isinstance(teacher, Teacher)
    made = Brightness()
    made.use("cpu")
    launch: Launch = made.launch(made.stage(scenes(2)))
    launch.wait()
    assert 0 < launch.seconds < 10


@pytest.mark.parametrize("name", SMALL)
def test_images_are_copied_once_on_their_way_to_the_device(name: str) -> None:
    """From the decode threads' arrays into the batch: what staging asks of memory is the batch, and no stack before."""
    teacher = small(name)
    teacher.load("cpu")
    stacked = inputs(teacher, [0, 1, 2])
    taken = [TakenInput(item.scene, list(item.images)) for item in stacked]
    want = teacher.stage(stacked).upload.tensors
    tracemalloc.start()
    staged = teacher.stage(taken).upload.tensors
    asked = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert staged.keys() == want.keys()
    assert all(torch.equal(staged[key], want[key]) for key in want)
    images = staged["images"].numpy()
    assert asked < 20_000 + sum(t.nbytes for key, t in staged.items() if key != "images")
    assert all("images" not in item.__dict__ for item in taken), "somebody stacked them"
    assert not any(np.shares_memory(images, part) for item in taken for part in item.parts)


def test_an_input_of_parts_is_an_input() -> None:
    whole = scenes(1)[0]
    taken = TakenInput(whole.scene, list(whole.images))
    assert isinstance(taken, TeacherInput)
    assert np.array_equal(taken.images, whole.images)
    assert taken.images is taken.images
    assert [part.tolist() for part in whole.parts] == [part.tolist() for part in taken.parts]
    assert TakenInput(whole.scene, []).images.shape == (0,)
    with pytest.raises(ValueError, match="shape"):
        Lane("cpu").upload({"x": [list(whole.images), list(whole.images[:1])]})


def test_a_short_batch_is_filled_up_and_the_filling_dropped() -> None:
    free, fixed = Brightness(), Brightness(fixed=4)
    for made in (free, fixed):
        made.use("cpu")
    batch = scenes(3)
    assert same(fixed.compute(batch), free.compute(batch))
    assert same(fixed.compute(batch[:1]), free.compute(batch[:1]))
    assert [len(seen) for seen in free.seen] == [3, 1]
    assert [len(seen) for seen in fixed.seen] == [4, 4]
    assert np.array_equal(fixed.seen[0][3], batch[2].images), "the last scene again: no number that a network never saw"
    assert np.array_equal(fixed.seen[1], np.stack([batch[0].images] * 4))


def test_what_is_handed_out_is_the_callers_own() -> None:
    made = Brightness()
    made.use("cpu")
    launch = made.launch(made.stage(scenes(2)))
    first, second = made.collect(launch)
    assert first["mean"].base is None
    assert first["mean"].flags.writeable
    assert first["mean"].flags.c_contiguous
    first["mean"][:] = 0
    assert (second["mean"] > 0).all()


def test_an_empty_batch_and_one_too_early() -> None:
    made = Brightness()
    for call in (made.compute, made.stage):
        with pytest.raises(ShardsError, match=r"call load\(device\)"):
            call(scenes(1))
    with pytest.raises(ShardsError, match="call load"):
        made.compute([])
    made.use("cpu")
    assert made.compute([]) == []


def test_a_lane_stays_where_it_is() -> None:
    made = Brightness()
    made.use("cpu")
    copy = pickle.loads(pickle.dumps(made))
    assert made.lane is not None
    assert copy.lane is None


def test_a_loaded_network_travels_without_its_network() -> None:
    teacher = small("vggt")
    teacher.load("cpu")
    assert len(pickle.dumps(teacher)) < 20_000
    copy = pickle.loads(pickle.dumps(teacher))
    copy.load("cpu")
    batch = inputs(teacher, [0])
    assert same(copy.compute(batch), teacher.compute(batch))


def test_numpys_dtypes_travel() -> None:
    lane = Lane("cpu")
    for dtype in (np.uint8, np.int16, np.float16, np.float32, np.int64):
        rows = [np.arange(6, dtype=dtype).reshape(2, 3)[::-1]] * 2
        upload = lane.upload({"x": rows})
        flight = lane.launch(upload, lambda tensors: tensors)
        assert np.array_equal(flight.arrays()["x"], np.stack(rows))


def test_constants_are_torchs_own() -> None:
    values = (0.485, 0.456, 1 / 3, -0.0)
    assert constant(values, torch.device("cpu")).numpy().tobytes() == torch.tensor(values).numpy().tobytes()


class _Copies(TorchDispatchMode):
    """Notes each operation with tensors of two devices, and each that reads a value."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in ("_local_scalar", "nonzero")):
            self.found.append(str(func))
        out = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
        if len({tensor.device.type for tensor in tensors if tensor.dim()}) > 1:
            self.found.append(str(func))
        return out


class Asks(TorchFunctionMode):
    """Notes what would make the CPU wait for its device: a value read, numbers of Python's or a tensor sent there."""

    MADE_HERE = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._copies = _Copies(self.found)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in self.MADE_HERE and out.device.type == "meta":
            self.found.append(func.__name__)
        return out

    def __enter__(self) -> Any:
        self._copies.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._copies.__exit__(*error)


@pytest.mark.parametrize("name", SMALL)
def test_a_launch_asks_the_device_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device there are no values to be had, and a tensor that is made here and sent there shows itself."""
    teacher = small(name)
    teacher.load("cpu")
    arrays, _ = teacher.gather(inputs(teacher, [0, 1]))
    on_meta = {key: torch.from_numpy(np.stack(rows)).to("meta") for key, rows in arrays.items()}
    want = {
        key: (value.shape, value.dtype)
        for key, value in teacher.forward({k: torch.from_numpy(np.stack(v)) for k, v in arrays.items()}).items()
    }
    there = small(name)
    there.load("meta")  # itself: what it forgot to send stayed on the CPU, and is found below
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no meta device
    with Asks() as asks, torch.inference_mode():
        out = there.forward(on_meta)
    assert asks.found == []
    assert {value.device.type for value in out.values()} == {"meta"}
    assert {key: (value.shape, value.dtype) for key, value in out.items()} == want


def test_the_check_sees_what_would_wait() -> None:
    there = torch.empty(3, device="meta")
    for ask in (
        lambda: there.new_tensor([1.0, 2.0]),
        lambda: torch.tensor([1.0, 2.0], device="meta"),
        lambda: torch.zeros(3).to("meta"),
        lambda: there.copy_(torch.zeros(3)),
    ):
        with Asks() as asks:
            ask()
        assert asks.found, ask
    with Asks() as asks, pytest.raises((RuntimeError, NotImplementedError)):
        there.sum().item()
