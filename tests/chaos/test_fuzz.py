"""The fuzzer finds what it should, and a short seeded run of each target finds nothing."""

from __future__ import annotations

import os
import resource
from itertools import islice
from pathlib import Path

import pytest

from pickles.unpickle import load_pickle
from pipeline.stores.decode import decode_jpeg
from shards_schema.errors import SampleError
from tests.chaos import fuzz
from tests.chaos.targets import TARGETS, Target

INPUTS = {
    "pickle": 1500,
    "cache": 15,
    "log": 60,
    "db": 25,
    "jpeg": 3000,
    "npy": 3000,
    "document": 200,
    "record": 25,
    "tar": 6,
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_finds_nothing(name: str) -> None:
    target = TARGETS[name]()
    try:
        inputs = fuzz.mutations(target.seeds, 11)
        found = fuzz.fuzz(target, target.seeds[:5], inputs, stop=lambda f: f.inputs >= INPUTS[name])
    finally:
        target.close()
    assert found.found == []
    assert found.inputs == INPUTS[name]
    assert found.accepted > 0


class Bad(Target):
    """Fails in the three ways that are findings."""

    def run(self, data: bytes) -> None:
        if data == b"raise":
            raise RecursionError("deep")
        if data == b"run":
            os.system("true")
        if data == b"refuse":
            raise SampleError("code", "as it may")


def test_it_finds_what_it_is_for() -> None:
    target = Bad()
    assert fuzz.once(target, b"fine") == (True, None)
    assert fuzz.once(target, b"refuse") == (False, None)
    assert "RecursionError: deep at test_fuzz.py" in (fuzz.once(target, b"raise")[1] or "")
    assert "caused os.system" in (fuzz.once(target, b"run")[1] or "")
    target.close()


def test_the_same_seed_gives_the_same_inputs() -> None:
    seeds = [b"abcdefgh" * 4, b"01234567"]
    first = list(islice(fuzz.mutations(seeds, 5), 200))
    assert first == list(islice(fuzz.mutations(seeds, 5), 200))
    assert len(set(first)) > 150


def test_the_walk_never_goes_back() -> None:
    """Found by fuzzing: the name of a class without its newline was looked for again from the beginning, for ever."""
    with pytest.raises(SampleError, match="ends within the name"):
        load_pickle(b"\x80\x04\x8c\x05posix\x8c\x06\x01X\x01\x00\x00m\x93\x8c\x04tru\ncx", "x")


FOUND = Path(__file__).parents[1] / "data" / "fuzz"


def test_a_colour_space_without_a_name() -> None:
    """Found by fuzzing: simplejpeg raises KeyError for it, which ended the run."""
    with pytest.raises(SampleError) as caught:
        decode_jpeg((FOUND / "colour-space.jpg").read_bytes(), "x")
    assert caught.value.code == "image_damaged"


def test_a_frame_within_a_frame() -> None:
    """Found by fuzzing: the unpickler ran other bytes than the walk had seen, and asked for gigabytes for 402 bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    used = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (used + (1 << 30), hard))
    try:
        assert load_pickle((FOUND / "frame-in-a-frame.pkl").read_bytes(), "x").shape == (3, 3)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
