"""The decoder in a sandbox: the same pixels and the same words as `decode_jpeg`, and images that end their process.

The fault is `tests/chaos/crash`: on PYTHONPATH and with its variable set, it ends whoever decodes a file with a mark,
the whole test process included; so what decodes in this process decodes without it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.stores.decode import decode_jpeg, encode_jpeg
from pipeline.writing import run as runs
from pipeline.writing.images import ShardImages
from pipeline.writing.sandbox import DecoderError, SandboxedDecoder
from shards_schema.errors import SampleError
from tests.chaos.processes import alive, descendants
from tests.chaos.world import World, compare, digests

SHIM = str(Path(__file__).parents[3] / "tests" / "chaos" / "crash")
CRASH, SPIN = b"chaos: crash", b"chaos: spin"


@pytest.fixture
def harmful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of this process meet the fault."""
    monkeypatch.setattr(sys, "path", [SHIM, *sys.path])
    monkeypatch.setenv("CHAOS_CRASH", "yes")


@pytest.fixture
def decoder() -> Iterator[SandboxedDecoder]:
    made = SandboxedDecoder(seconds=0.5)
    yield made
    made.close()


def jpeg(seed: int = 0, shape: tuple[int, int, int] = (40, 64, 3)) -> bytes:
    return encode_jpeg(np.random.default_rng(seed).integers(0, 255, shape, np.uint8), 90)


def test_the_same_pixels_and_the_same_words(decoder: SandboxedDecoder) -> None:
    for data in (jpeg(), jpeg(1, (1080, 1920, 3))):
        pixels = decoder.decode(data, "a.jpg")
        assert np.array_equal(pixels, decode_jpeg(data, "a.jpg"))
        assert pixels.dtype == np.uint8
        pixels[0] = 0  # as writable as the other's
    for data in (b"", b"GIF89a", jpeg()[:700]):
        with pytest.raises(SampleError) as there:
            decode_jpeg(data, "ä/\udcff.jpg")
        with pytest.raises(SampleError) as here:
            decoder.decode(data, "ä/\udcff.jpg")
        assert (here.value.code, here.value.reason) == (there.value.code, there.value.reason)
    child = decoder._child
    assert child is not None
    assert child.poll() is None
    decoder.close()
    assert child.returncode is not None


@pytest.mark.usefixtures("harmful")
def test_a_crash_is_charged_to_its_image_alone(decoder: SandboxedDecoder) -> None:
    good, bad = jpeg(), jpeg() + CRASH
    assert decode_jpeg(bad, "here, where there is no fault").shape == (40, 64, 3)
    with ThreadPoolExecutor(4) as threads:
        futures = {n: threads.submit(decoder.decode, bad if n == 5 else good, f"{n}.jpg") for n in range(12)}
        for n, future in futures.items():
            if n == 5:
                with pytest.raises(SampleError, match=r"^5\.jpg: the JPEG decoder crashes on these \d+ bytes") as error:
                    future.result()
                assert error.value.code == "decoder_crash"
            else:
                assert np.array_equal(future.result(), decode_jpeg(good, "good"))


@pytest.mark.usefixtures("harmful")
def test_an_image_that_never_ends_is_told_as_such_and_the_next_one_is_decoded(decoder: SandboxedDecoder) -> None:
    with pytest.raises(SampleError, match=r"not done with these \d+ bytes after 0\.5 s of processor time") as error:
        decoder.decode(jpeg() + SPIN, "a.jpg")
    assert error.value.code == "decoder_timeout"
    assert decoder.decode(jpeg(), "b.jpg").shape == (40, 64, 3)


@pytest.mark.usefixtures("harmful")
def test_who_ends_the_child_from_outside_costs_no_image() -> None:
    decoder = SandboxedDecoder(seconds=1000)
    decoder.decode(jpeg(), "a.jpg")
    child = decoder._child
    assert child is not None
    os.kill(child.pid, signal.SIGKILL)
    assert decoder.decode(jpeg(), "a.jpg").shape == (40, 64, 3)
    assert decoder._child is not child

    ended: set[int] = set()
    with ThreadPoolExecutor(1) as threads:  # what decodes is ended, each time
        future = threads.submit(decoder.decode, jpeg() + SPIN, "never.jpg")
        while not future.done():
            child = decoder._child  # None for a moment: with a process that was ended its server goes
            for pid in descendants(child.pid) if child is not None else ():
                if pid not in ended:
                    os.kill(pid, signal.SIGTERM)
                    ended.add(pid)
            time.sleep(0.02)
    with pytest.raises(DecoderError, match=r"5 processes .* \(5 x SIGTERM\), which no image does"):
        future.result()
    decoder.close()


@pytest.mark.usefixtures("harmful")
def test_closing_ends_what_is_being_decoded() -> None:
    decoder = SandboxedDecoder(seconds=1000)
    decoder.decode(jpeg(), "a.jpg")
    child = decoder._child
    assert child is not None
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(decoder.decode, jpeg() + SPIN, "never.jpg")
        while not (below := descendants(child.pid)):
            time.sleep(0.01)
        decoder.close()
        with pytest.raises(DecoderError, match="closed"):
            future.result()
    assert gone([child.pid, *below])
    with pytest.raises(DecoderError, match="closed"):
        decoder.decode(jpeg(), "a.jpg")


def test_the_child_ends_with_its_parent() -> None:
    """Killed, as a worker is: nobody closes anything."""
    code = (
        "from pipeline.writing.sandbox import SandboxedDecoder\nfrom tests.pipeline.writing.test_sandbox import jpeg\n"
        "import os, signal\ndecoder = SandboxedDecoder()\ndecoder.decode(jpeg(), 'a')\n"
        "print(decoder._child.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    assert gone([int(done.stdout)])


def test_images_decode_in_a_sandbox_where_they_are_told_to_and_leave_nothing() -> None:
    before = set(descendants(os.getpid()))
    images = ShardImages(lambda path: jpeg(), {"a": lambda data, image: image.copy()}, sandbox=True)
    images.want("a", "x.jpg")
    threads = threading.active_count()
    with ThreadPoolExecutor(2) as pool:
        images.start(pool)
        assert np.array_equal(images.take("a", "x.jpg"), decode_jpeg(jpeg(), "x.jpg"))
        assert set(descendants(os.getpid())) - before
        images.drop()
    assert set(descendants(os.getpid())) == before
    assert threading.active_count() == threads


@pytest.mark.usefixtures("harmful")
def test_a_dataset_made_in_a_sandbox_is_the_same_bytes_but_for_the_bad_image(tmp_path: Path) -> None:
    """All shards twice: as ever, and in a sandbox; then with an image that ends its decoder."""
    world = World.make(tmp_path / "world", logs=2)
    world.job(tmp_path / "fast")

    def sandboxed(out: Path) -> runs.Run:
        run = world.begin(out)
        with world.worker(run) as worker:
            for task in run.todo():
                worker.process(replace(task, sandbox=True))
        runs.close(run)
        return run

    sandboxed(tmp_path / "sandboxed")
    assert not compare(tmp_path / "sandboxed", tmp_path / "fast")

    bad = tmp_path / "world" / "log01" / "005.jpg"
    bad.write_bytes(bad.read_bytes() + CRASH)
    totals = {t.column: t for t in runs.close(sandboxed(tmp_path / "bad"))}
    assert totals["samples"].quarantined["decoder_crash"] == 1
    assert totals["samples"].written + 1 == totals["samples"].planned
    sandboxed(tmp_path / "again")
    assert digests(tmp_path / "again") == digests(tmp_path / "bad")
    record = next(p for p in (tmp_path / "bad" / "samples").glob("0*.json") if b"decoder_crash" in p.read_bytes())
    assert b"log01/005.jpg: the JPEG decoder crashes on these" in record.read_bytes()


def gone(pids: list[int]) -> bool:
    """Whether they end; who never does is told by pytest's own timeout."""
    while any(map(alive, pids)):
        time.sleep(0.02)
    return True
