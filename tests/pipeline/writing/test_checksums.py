"""A bit that changes after the commit: refused on every read by default, with the member named."""

from __future__ import annotations

import copy
import pickle
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.reading.reader import Dataset
from pipeline.reading.verify import verify
from pipeline.stores.cache import CacheConfig
from pipeline.stores.records import read_record
from pipeline.stores.volume import Volume
from pipeline.stream import ShardStream, StreamConfig
from shards_schema import layout
from shards_schema.codecs import seal, unseal
from shards_schema.commit import Member
from shards_schema.errors import DigestError
from tests.committed import commit, flip
from tests.toys import ToySource, ToyTeacher, write_images

STORED = {"toy": {"grid": "int8", "mean": "bfloat16"}}
SHARD = 1
KINDS = {  # a member, and the target that it is read as
    "grid.npy": "grid",  # int8 codes
    "grid_scale.npy": "grid",
    "mean.npy": "mean",  # the high halves of float32
    "path.npy": "path",  # as it was computed
    "json": "json",
    "cam_f0.jpg": "cam_f0.jpg",
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ToySource:
    root = tmp_path_factory.mktemp("checksums-source")
    write_images(root, logs=2, frames=9)
    return ToySource(str(root), logs=2)


@pytest.fixture(scope="module")
def made(source: ToySource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("checksums") / "out"
    commit(source, out, [ToyTeacher()], storage=STORED)
    return out


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def column_of(member: str) -> str:
    return layout.SAMPLES if member in ("json", "cam_f0.jpg") else "toy"


def place(out: Path, member: str) -> tuple[str, Member]:
    """The middle sample of a shard: its token, and where a member of it lies."""
    record = read_record(Volume(str(out)), column_of(member), SHARD)
    return record.tokens[2], record.members[member][2]


def tar(out: Path, member: str) -> Path:
    return out / layout.tar(column_of(member), SHARD)


@pytest.mark.parametrize("member", KINDS)
@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_a_flipped_bit_in_any_kind_of_member(out: Path, member: str, where: str) -> None:
    token, (offset, size, _) = place(out, member)
    wanted = {column_of(member): [KINDS[member]]}
    dataset = Dataset(str(out))
    clean = dataset.read(token, wanted)
    flip(tar(out, member), offset + {"first": 0, "middle": size // 2, "last": size - 1}[where], bit=3)
    said = rf"shard {SHARD}, {tar(out, member)}: {token}\.{member}: CRC-32C [0-9a-f]{{8}}, its commit record says"
    for reader in (dataset, Dataset(str(out)), copy.copy(dataset), pickle.loads(pickle.dumps(dataset))):
        for raw in (False, True):
            if raw and KINDS[member] == "grid" and member != "grid.npy":
                continue  # raw gives the codes without their scale
            with pytest.raises(DigestError, match=said):
                reader.read(token, wanted, raw=raw)
    other = dataset.tokens("samples")[0]
    assert other != token
    dataset.read(other)  # a fault of one sample is not one of the others
    (fault,) = verify(str(out)).faults
    assert fault.path == layout.tar(column_of(member), SHARD)
    assert fault.what.endswith(f"; changed in {token}.{member}")
    flip(tar(out, member), offset + {"first": 0, "middle": size // 2, "last": size - 1}[where], bit=3)
    assert repr(dataset.read(token, wanted)) == repr(clean)


def test_swapped_members_of_one_size(out: Path) -> None:
    """Nothing is malformed: each is another sample's."""
    record = read_record(Volume(str(out)), "toy", SHARD)
    a, b = record.members["mean.npy"][:2]
    data = bytearray(tar(out, "mean.npy").read_bytes())
    assert a.size == b.size
    here, there = slice(a.offset, a.offset + a.size), slice(b.offset, b.offset + b.size)
    data[here], data[there] = data[there], data[here]
    tar(out, "mean.npy").write_bytes(data)
    with pytest.raises(DigestError, match=rf"{record.tokens[0]}\.mean\.npy"):
        Dataset(str(out)).read(record.tokens[0])


def test_what_no_reader_touches_needs_the_digest_of_the_file(out: Path) -> None:
    token, (offset, _, _) = place(out, "mean.npy")
    flip(tar(out, "mean.npy"), offset - 512)  # the member's name in the tar
    flip(tar(out, "mean.npy"), tar(out, "mean.npy").stat().st_size - 1)  # the end of the archive
    Dataset(str(out)).read(token)
    with pytest.raises(DigestError, match="sha256"):
        Dataset(str(out), check_digests=True).read(token)
    (fault,) = verify(str(out)).faults
    assert "changed in" not in fault.what


def test_it_can_be_left_out(out: Path) -> None:
    token, (offset, size, _) = place(out, "mean.npy")
    clean = Dataset(str(out)).read(token)["toy"]["mean"].copy()
    flip(tar(out, "mean.npy"), offset + size - 1)
    unchecked = Dataset(str(out), check_members=False)
    for reader in (unchecked, copy.copy(unchecked), pickle.loads(pickle.dumps(unchecked))):
        assert not np.array_equal(reader.read(token)["toy"]["mean"], clean)


@pytest.mark.parametrize("threads", [0, 2])
def test_an_epoch_stops_at_the_sample(out: Path, threads: int) -> None:
    token, (offset, size, _) = place(out, "grid.npy")
    flip(tar(out, "grid.npy"), offset + size // 2)
    config = StreamConfig(batch_size=2, shuffle="none", threads=threads)
    stream = ShardStream(Dataset(str(out)), {"samples": ["json"], "toy": ["grid"]}, config)
    seen: list[str] = []
    with pytest.raises(DigestError, match=rf"{token}\.grid\.npy") as caught:
        seen.extend(sample["token"] for sample in stream)
    assert seen == list(stream.tokens[: stream.tokens.index(token)])
    assert f"token {token}" in caught.value.__notes__[0]


def test_a_store_and_a_cache(out: Path, tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    fs.put(str(out), "/checksums", recursive=True)
    url, cache = "memory://checksums", CacheConfig(folder=str(tmp_path / "cache"), max_bytes=1 << 24)
    token, (offset, size, _) = place(out, "mean.npy")
    name = layout.tar("toy", SHARD)
    try:
        cached = Dataset(url, cache=cache)
        clean = cached.read(token)["toy"]["mean"].copy()
        copy = tmp_path / "cache" / read_record(Volume(url), "toy", SHARD).files[name].sha256
        flip(copy, offset + size - 1)
        with pytest.raises(DigestError, match=rf"{token}\.mean\.npy: CRC-32C .* only the copy {copy} that was"):
            cached.read(token)
        copy.unlink()
        assert np.array_equal(cached.read(token)["toy"]["mean"], clean)
        flip(out / name, offset + size - 1)
        fs.put(str(out / name), f"/checksums/{name}")
        with pytest.raises(DigestError, match=rf"/checksums/{name}: {token}\.mean\.npy: CRC-32C"):
            Dataset(url).read(token)
    finally:
        fs.rm("/checksums", recursive=True)


def test_an_index_that_lacks_checksums_is_a_fault(out: Path) -> None:
    index = pq.read_table(out / layout.INDEX)
    pq.write_table(index.drop_columns(["crc32c"]), out / layout.INDEX)
    (fault,) = verify(str(out)).faults
    assert fault.path == layout.INDEX


def test_a_record_that_vouches_for_another_checksum(out: Path) -> None:
    """With a good seal and the right sha256: of two digests that contradict each other, neither is believed."""
    path = out / layout.record("toy", SHARD)
    document: dict[str, Any] = unseal(path.read_bytes(), "")
    document["members"]["mean.npy"][2][2] ^= 1
    path.write_bytes(seal(document, compact=True))
    token = document["tokens"][2]
    with pytest.raises(DigestError, match=rf"{token}\.mean\.npy: CRC-32C"):
        Dataset(str(out)).read(token)
    faults = {(f.path, f.what) for f in verify(str(out)).faults}
    told = f"{token}.mean.npy: has another CRC-32C than its commit record says"
    assert (layout.tar("toy", SHARD), told) in faults
