"""The path through a real GPU. Run it where there is one: ``python -m pytest -m gpu tests/teachers``.

Everything else about the phases is tested on the CPU; here stands what only CUDA can show: that a launch does not wait,
that two batches under way do not disturb each other, that time is the device's, and which kernels ran.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from shards_schema.errors import ConfigError
from teachers.execution import attention_context
from tests.teachers.network_toys import SMALL, apart, compiled_twice, inputs, same, small

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(600),
]

CYCLES = 500_000_000
"""Of a kernel that does nothing, a quarter of a second or more on every GPU there is."""


@pytest.fixture(autouse=True)
def _idle() -> Iterator[None]:
    torch.cuda.synchronize()
    yield
    torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


def on_gpu(name: str, **changes: Any) -> Any:
    teacher = small(name, **changes)
    teacher.load("cuda")
    return teacher


@pytest.mark.parametrize("name", SMALL)
def test_the_gpu_computes_what_the_cpu_does(name: str) -> None:
    here, there = small(name), on_gpu(name)
    here.load("cpu")
    batch = inputs(here, [0, 1, 2])
    assert apart(there.compute(batch), here.compute(batch)) < 5e-3
    assert same(there.compute(batch), there.compute(batch))


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_launch_does_not_wait(name: str, dtype: str) -> None:
    """torch itself reports each wait that it does; and behind a device that is busy, `launch` comes back at once."""
    teacher = on_gpu(name, dtype=dtype)
    batch = inputs(teacher, [0, 1, 2])
    want = teacher.compute(batch)  # what is made once is made: cuDNN's handles, pinned memory
    staged = teacher.stage(batch)
    torch.cuda.synchronize()
    torch.cuda._sleep(CYCLES)
    torch.cuda.set_sync_debug_mode("error")
    began = time.perf_counter()
    launch = teacher.launch(staged)
    returned = time.perf_counter() - began
    torch.cuda.set_sync_debug_mode("default")
    launch.wait()
    done = time.perf_counter() - began
    assert returned < 0.8 * done, f"launch took {returned:.3f} s of {done:.3f} s"
    assert same(teacher.collect(launch), want)
    assert 0 < launch.seconds < done - 0.05, "the sleep before it is not its work"


@pytest.mark.parametrize("name", SMALL)
def test_staging_waits_for_nobody(name: str) -> None:
    teacher = on_gpu(name)
    batch = inputs(teacher, [0, 1])
    teacher.compute(batch)
    held = [teacher.stage(batch) for _ in range(3)]  # the memory of three, at once, is asked of the driver here
    torch.cuda.synchronize()
    del held
    torch.cuda._sleep(CYCLES)
    began = time.perf_counter()
    staged = [teacher.stage(batch) for _ in range(3)]
    took = time.perf_counter() - began
    torch.cuda.synchronize()
    assert took < 0.8 * (time.perf_counter() - began)
    assert same(teacher.collect(teacher.launch(staged[2])), teacher.compute(batch))


@pytest.mark.parametrize("name", SMALL)
def test_many_batches_under_way_do_not_disturb_each_other(name: str) -> None:
    """Staged and collected by four threads, launched by one, forty times; each result is its own batch's."""
    teacher = on_gpu(name)
    batches = [inputs(teacher, [i, i + 1]) for i in range(4)]
    want = [teacher.compute(batch) for batch in batches]
    with ThreadPoolExecutor(4) as threads, ThreadPoolExecutor(1) as turn:

        def run(i: int) -> bool:
            staged = teacher.stage(batches[i % 4])
            junk = torch.full(
                (1 << 22,), 255, dtype=torch.uint8
            ).pin_memory()  # would take memory that is free too soon
            launch = turn.submit(teacher.launch, staged).result()
            del staged, junk
            return same(teacher.collect(launch), want[i % 4])

        assert all(threads.map(run, range(40)))


def test_seconds_are_the_devices() -> None:
    teacher = on_gpu("vggt")
    batch = inputs(teacher, [0, 1, 2])
    teacher.compute(batch)
    launches = [teacher.launch(teacher.stage(batch)) for _ in range(20)]
    torch.cuda.synchronize()
    began = time.perf_counter()
    launches += [teacher.launch(staged) for staged in [teacher.stage(batch) for _ in range(20)]]
    torch.cuda.synchronize()
    wall = time.perf_counter() - began
    busy = sum(launch.seconds for launch in launches[20:])
    assert 0 < busy <= wall, "one stream: what is counted never overlaps"


def test_the_second_gpu_is_as_good_as_the_first() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU here")
    for name in SMALL:
        first, second = on_gpu(name), small(name)
        second.load("cuda:1")
        batch = inputs(first, [0, 1])
        with ThreadPoolExecutor(1) as other:  # whose current device is the first
            assert apart(other.submit(second.compute, batch).result(), first.compute(batch)) < 1e-3


@pytest.mark.parametrize("name", ["vggt", "predict", "vjepa2"])
def test_bfloat16_attention_is_flash_and_no_other_is_taken_for_it(name: str) -> None:
    for attention in ("auto", "flash"):
        teacher = on_gpu(name, dtype="bfloat16", attention=attention)
        batch = inputs(teacher, [0, 1])
        teacher.compute(batch)
        with profile(activities=[ProfilerActivity.CPU]) as told:
            teacher.compute(batch)
        calls = {event.key: event.count for event in told.key_averages()}
        assert calls.get("aten::_scaled_dot_product_flash_attention", 0) > 0, calls
        assert not any("cudnn_attention" in key for key in calls)


def test_kernels_that_cannot_run_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"flash does not run torch\.float32 heads of 64"):
        attention_context("flash", "cuda", torch.float32, 64)
    with pytest.warns(UserWarning, match="flash does not run"):
        attention_context("auto", "cuda", torch.bfloat16, 1024)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vggt", "predict", "vjepa2"])
def test_compiled_blocks_compute_the_same(name: str) -> None:
    plain, fast = on_gpu(name, dtype="bfloat16"), on_gpu(name, dtype="bfloat16", compile=True)
    batch = inputs(plain, [0, 1, 2])
    got = fast.compute(batch)
    assert apart(got, plain.compute(batch)) < 3e-2
    assert same(fast.compute(batch[:1]), got[:1])
    staged = fast.stage(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    launch = fast.launch(staged)
    torch.cuda.set_sync_debug_mode("default")
    assert same(fast.collect(launch), got)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vggt", "vjepa2"])
def test_two_processes_compile_to_the_same_bytes(name: str, tmp_path: Path) -> None:
    """Two workers of one dataset: neither may choose its kernels by what was fastest in its own moment."""
    first, second = compiled_twice(name, "bfloat16", "cuda", tmp_path)
    assert first == second
