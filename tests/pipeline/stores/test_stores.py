"""Volumes, tars and Zarr shards: whole or absent, the same bytes each time, readable by everybody's reader."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import webdataset
import zarr
from zarr.storage import LocalStore

from pipeline.stores.checksum import crc32c
from pipeline.stores.tar import TarWriter
from pipeline.stores.volume import Volume
from pipeline.stores.zarr import (
    ZarrShardWriter,
    array_documents,
    create_array,
    is_sharded,
    refuse_chunks,
    root_document,
)
from shards_schema import layout
from shards_schema.errors import ConfigError, MissingFileError
from shards_schema.specs import TEXT, TargetSpec


@pytest.fixture(params=["local", "memory"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Volume:
    return Volume(str(tmp_path / "v") if request.param == "local" else f"memory://{tmp_path}/v")


def test_put_read_list(volume: Volume) -> None:
    digest = volume.put("a/b/x.bin", b"hello")
    assert (digest.size, digest.sha256) == (5, hashlib.sha256(b"hello").hexdigest())
    assert volume.read("a/b/x.bin") == b"hello"
    assert volume.exists("a/b/x.bin")
    assert not volume.exists("a/b")
    assert volume.size("a/b/x.bin") == 5
    assert volume.names("a/b") == ["x.bin"]
    assert volume.folders("a") == ["b"]
    assert volume.names("nothing") == []
    assert [p for p in volume.walk() if not p.startswith(".tmp")] == ["a/b/x.bin"]
    with pytest.raises(MissingFileError, match="is not there"):
        volume.read("a/none")
    assert pickle.loads(pickle.dumps(volume)).read("a/b/x.bin") == b"hello"


@pytest.mark.parametrize("sizes", [[], [0], [1, 0, 3], [1 << 20, 5, (3 << 20) + 1], [100] * 3000])
def test_digest_of_any_writes(volume: Volume, sizes: list[int]) -> None:
    parts = [bytes([i % 251]) * n for i, n in enumerate(sizes)]
    with volume.create("f") as file:
        for i in range(0, len(parts), 2):
            file.write(*parts[i : i + 2])
    whole = b"".join(parts)
    assert volume.read("f") == whole
    assert file.finish().size == len(whole) == file.position
    assert file.finish().sha256 == hashlib.sha256(whole).hexdigest()


def broken_write(volume: Volume, data: bytes) -> None:
    with volume.create("f") as file:
        file.write(data)
        raise ZeroDivisionError


def test_a_file_that_raised_is_not_there(volume: Volume) -> None:
    with pytest.raises(ZeroDivisionError):
        broken_write(volume, b"x" * (3 << 20))
    assert not volume.exists("f")
    assert volume.walk() == []


def test_a_failed_rewrite_leaves_the_old_file(volume: Volume) -> None:
    volume.put("f", b"old")
    with pytest.raises(ZeroDivisionError):
        broken_write(volume, b"new")
    assert volume.read("f") == b"old"


def test_sweep_removes_what_a_killed_run_left(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pipeline.stores.volume import Volume\n"
        "with Volume(sys.argv[1]).create('f') as file:\n"
        "    file.write(b'x' * (2 << 20)); os._exit(9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[3], check=False)
    assert killed.returncode == 9
    volume = Volume(str(tmp_path))
    assert not volume.exists("f")
    assert len(volume.walk()) == 1
    assert volume.sweep() == 1
    assert volume.walk() == []


def test_crc32c_is_that_of_the_standard() -> None:
    """The test vectors of RFC 3720, appendix B.4, and the check value of the CRC catalogues."""
    for data, expected in (
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
        (b"", 0),
    ):
        for form in (data, memoryview(data), memoryview(bytearray(data))):
            assert crc32c(form) == expected


def test_tar_is_deterministic_and_plain(tmp_path: Path) -> None:
    volume = Volume(str(tmp_path))
    samples = [(f"{i:016x}", {"json": b'{"i": %d}' % i, "cam_f0.jpg": bytes(range(i, i + 200)) * 7}) for i in range(5)]
    places = {}
    for name in ("a.tar", "b.tar"):
        with volume.create(name) as file:
            tar = TarWriter(file)
            for token, members in samples:
                tar.add(token, members)
            tar.finish()
        places[name] = tar.members
    data = volume.read("a.tar")
    assert data == volume.read("b.tar")
    assert places["a.tar"] == places["b.tar"]
    for i, (_, members) in enumerate(samples):
        for extension, content in members.items():
            offset, size, checksum = places["a.tar"][extension][i]
            assert data[offset : offset + size] == content
            assert checksum == crc32c(content)
    with tarfile.open(tmp_path / "a.tar") as archive:
        assert {(m.mtime, m.uid, m.gid, m.mode, m.uname) for m in archive} == {(0, 0, 0, 0o644, "")}
    read = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False))
    assert [(s["__key__"], s["json"], s["cam_f0.jpg"]) for s in read] == [
        (t, m["json"], m["cam_f0.jpg"]) for t, m in samples
    ]


SPECS = (
    TargetSpec(name="grid", dims=("v", "c"), shape=(2, 2000), dtype="float16", unit="1", meaning="wide: sharded"),
    TargetSpec(name="pose", dims=("xyh",), shape=(3,), dtype="float64", unit="m, rad", meaning="small: one chunk"),
    TargetSpec(name="flag", dims=(), shape=(), dtype="uint8", unit="1", meaning="scalar"),
    TargetSpec(name="token", dims=(), shape=(), dtype=TEXT, unit="1", meaning="text"),
)
SHARDS, SIZE = 3, 4


def values(spec: TargetSpec, row: int) -> object:
    if spec.dtype == TEXT:
        return f"token-{row}"
    rng = np.random.default_rng(row)
    return (rng.standard_normal(spec.shape) * 100 + 1).astype(spec.dtype)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
@pytest.mark.parametrize("holes", [set(), {1, 6, 10, 11}], ids=["full", "holes"])
def test_zarr_files_are_those_of_zarr_python(tmp_path: Path, spec: TargetSpec, holes: set[int]) -> None:
    """Byte for byte: the same rows through zarr-python, whole shards at a time, give the same files."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    volume = Volume(str(ours))
    for path, document in {**root_document({}), **array_documents("c", (spec,), SHARDS, SIZE)}.items():
        volume.put(path, document)
    for shard in range(SHARDS):
        with volume.create(layout.zarr_chunk("c", spec.name, shard, 1 + len(spec.shape))) as file:
            writer = ZarrShardWriter(file, spec, SIZE)
            for slot in range(SIZE):
                if shard * SIZE + slot not in holes:
                    writer.add(slot, values(spec, shard * SIZE + slot))  # type: ignore[arg-type]
            writer.finish()
    group = zarr.create_group(LocalStore(theirs / layout.ZARR))
    array = create_array(group.create_group("c"), spec, SHARDS, SIZE)
    whole = array[:]
    for row in set(range(SHARDS * SIZE)) - holes:
        whole[row] = values(spec, row)
    for shard in range(SHARDS):
        array[shard * SIZE : (shard + 1) * SIZE] = whole[shard * SIZE : (shard + 1) * SIZE]

    def files(root: Path) -> dict[str, bytes]:
        return {
            str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and ".tmp" not in p.parts
        }

    found, expected = files(ours), files(theirs)
    assert found.keys() == expected.keys()
    assert found == expected


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_a_flipped_byte_is_found_by_crc32c(tmp_path: Path, spec: TargetSpec) -> None:
    volume = Volume(str(tmp_path))
    for path, document in {**root_document({}), **array_documents("c", (spec,), 1, SIZE)}.items():
        volume.put(path, document)
    name = layout.zarr_chunk("c", spec.name, 0, 1 + len(spec.shape))
    with volume.create(name) as file:
        writer = ZarrShardWriter(file, spec, SIZE)
        for slot in range(SIZE):
            writer.add(slot, values(spec, slot))  # type: ignore[arg-type]
        writer.finish()
    array = zarr.open_array(str(tmp_path / layout.zarr_array("c", spec.name)), mode="r")
    assert [np.array_equal(array[i], values(spec, i)) for i in range(SIZE)] == [True] * SIZE
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 3] ^= 4
    (tmp_path / name).write_bytes(bytes(data))
    with pytest.raises(Exception, match=r"(?i)checksum|crc32c"):
        array[:]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: s.name)
def test_memory_goes_by_the_rows_that_are_there(tmp_path: Path, spec: TargetSpec) -> None:
    """One row of a million: the file has all of them, as its layout says, and nobody holds them."""
    volume, size = Volume(str(tmp_path)), 200_000
    for path, document in {**root_document({}), **array_documents("c", (spec,), 1, size)}.items():
        volume.put(path, document)
    with volume.create(layout.zarr_chunk("c", spec.name, 0, 1 + len(spec.shape))) as file:
        tracemalloc.start()
        writer = ZarrShardWriter(file, spec, size)
        writer.add(5, values(spec, 5))  # type: ignore[arg-type]
        writer.finish()
        file.finish()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert file.position > size
    assert peak < 10 << 20
    array = zarr.open_array(str(tmp_path / layout.zarr_array("c", spec.name)), mode="r")
    assert np.array_equal(array[5], values(spec, 5))  # type: ignore[arg-type]


def test_a_chunk_that_nobody_could_read_is_refused_with_a_size_that_would_do() -> None:
    small = TargetSpec(name="pose", dims=("x",), shape=(512,), dtype="float64", unit="1", meaning="4 KiB")
    refuse_chunks("c", (*SPECS, small), 1 << 18)
    with pytest.raises(ConfigError, match=r"a chunk of targets.zarr/c/pose has 4\.3 GB .*; at most 262144 rows"):
        refuse_chunks("c", (*SPECS, small), 1 << 20)


def test_absent_rows_read_as_nan_not_zero(tmp_path: Path) -> None:
    volume = Volume(str(tmp_path))
    for path, document in {**root_document({}), **array_documents("c", SPECS, SHARDS, SIZE)}.items():
        volume.put(path, document)
    group = zarr.open_group(str(tmp_path / layout.ZARR), mode="r")
    assert np.isnan(np.asarray(group["c/grid"][5])).all()  # type: ignore[index]
    assert np.isnan(np.asarray(group["c/pose"][5])).all()  # type: ignore[index]
    assert is_sharded(SPECS[0])
    assert not is_sharded(SPECS[1])


def test_documents_open_with_xarray(tmp_path: Path) -> None:
    import xarray

    volume = Volume(str(tmp_path))
    for path, document in {**root_document({}), **array_documents("c", SPECS, SHARDS, SIZE)}.items():
        volume.put(path, document)
    dataset = xarray.open_zarr(str(tmp_path / layout.ZARR), group="c", consolidated=False)
    assert dataset["grid"].dims == ("sample", "v", "c")
    assert dataset["pose"].attrs["units"] == "m, rad"
    assert io.StringIO(str(dataset)).read()
