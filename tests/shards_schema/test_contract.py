"""The contract: sealed documents, specs, records, poses, errors."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shards_schema import layout
from shards_schema.codecs import TAR_END, load_npy, npy_bytes, seal, tar_header, tar_padding, unseal
from shards_schema.commit import CommitRecord, FileDigest, Member, Quarantined
from shards_schema.errors import ConfigError, DatasetError, DigestError, MismatchError, SampleError, SpecError
from shards_schema.manifests import ColumnManifest, DatasetManifest
from shards_schema.poses import heading_from_quaternion, to_global, to_local
from shards_schema.specs import TargetSpec

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1).filter(lambda k: k != "sha256"), JSON, max_size=4), st.booleans())
@settings(max_examples=60, deadline=None)
def test_seal_round_trip(document: dict[str, object], compact: bool) -> None:
    try:
        data = seal(document, compact=compact)
    except UnicodeEncodeError:  # lone surrogates have no UTF-8
        return
    assert unseal(data, "here") == document
    assert json.loads(data)["sha256"]


@given(st.integers(0, 10_000), st.integers(1, 255))
@settings(max_examples=200, deadline=None)
def test_seal_finds_every_flipped_byte(where: int, flip: int) -> None:
    document = {"a": [1, 2.5, "x"], "b": {"c": None}}
    data = bytearray(seal(document, compact=True))
    data[where % len(data)] ^= flip
    try:
        assert unseal(bytes(data), "here") == document  # white space at the end may change; nothing else
    except DatasetError:
        return
    assert bytes(data).strip() == seal(document, compact=True).strip()


@given(hnp.arrays(dtype=st.sampled_from(["float16", "int64", "uint8", "float32"]), shape=hnp.array_shapes(min_dims=0)))
@settings(max_examples=60, deadline=None)
def test_npy_round_trip(array: np.ndarray) -> None:
    data = npy_bytes(array)
    assert np.array_equal(load_npy(data, "x"), array, equal_nan=array.dtype.kind == "f")
    assert np.array_equal(np.load(io.BytesIO(data)), array, equal_nan=array.dtype.kind == "f")
    with pytest.raises(DatasetError, match=r"x: (not a \.npy|expected)"):
        load_npy(data[:-1], "x")


@pytest.mark.parametrize(
    "array",  # a pickle, Fortran order, a structured dtype, a date
    [
        np.array([{}], dtype=object),
        np.asfortranarray(np.eye(3)[:, :2]),
        np.zeros(2, [("a", "f4")]),
        np.zeros(2, "M8[s]"),
    ],
)
def test_npy_refuses_what_the_format_has_not(array: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    with pytest.raises(DatasetError, match=r"x: not a \.npy"):
        load_npy(buffer.getvalue(), "x")


@given(st.binary(max_size=200), st.integers(0, 127), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_npy_damaged_is_an_array_or_a_dataset_error(junk: bytes, place: int, value: int) -> None:
    data = bytearray(npy_bytes(np.arange(6, dtype=np.float16).reshape(2, 3)))
    data[place] = value
    for damaged in (junk, bytes(data), b"\x93NUMPY" + junk):
        with contextlib.suppress(DatasetError):
            assert isinstance(load_npy(damaged, "x"), np.ndarray)


def test_npy_is_read_without_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """`ast.parse` is not safe among threads in CPython 3.11 (SystemError, seen in CI)."""

    def compiler(*_: object, **__: object) -> None:
        raise AssertionError("the compiler was asked")

    monkeypatch.setattr("ast.parse", compiler)
    array = np.arange(4321, dtype=np.int16)
    assert np.array_equal(load_npy(npy_bytes(array), "x"), array)


def test_tar_blocks_are_a_tar() -> None:
    data = b"hello"
    with tarfile.open(fileobj=io.BytesIO(tar_header("t.json", 5) + data + tar_padding(5) + TAR_END)) as archive:
        member = archive.getmembers()[0]
        assert (member.name, member.size, member.mtime, member.mode, member.uid) == ("t.json", 5, 0, 0o644, 0)
        file = archive.extractfile(member)
        assert file is not None
        assert file.read() == data


def spec(**changes: object) -> TargetSpec:
    base = {"name": "depth", "dims": ("row", "col"), "shape": (2, 3), "dtype": "float16", "unit": "m", "meaning": "x"}
    return TargetSpec(**{**base, **changes})  # type: ignore[arg-type]


def test_spec_checks() -> None:
    spec().check(np.zeros((2, 3), np.float16))
    with pytest.raises(SpecError, match="expected float16"):
        spec().check(np.zeros((2, 3), np.float32))
    with pytest.raises(SpecError):
        spec().check(np.zeros((2, 4), np.float16))
    with pytest.raises(SampleError) as error:
        spec().check(np.full((2, 3), np.nan, np.float16))
    assert error.value.code == "non_finite"
    spec(finite=False).check(np.full((2, 3), np.nan, np.float16))
    ragged = spec(shape=(None, 3))
    ragged.check(np.zeros((7, 3), np.float16))
    with pytest.raises(SpecError, match="ragged"):
        _ = ragged.fixed_shape
    assert TargetSpec.from_json(json.loads(json.dumps(ragged.to_json()))) == ragged


@pytest.mark.parametrize(
    "change", [{"name": "a.b"}, {"name": "A"}, {"dims": ("row",)}, {"dims": ("r", "r")}, {"dtype": "O"}]
)
def test_spec_refuses(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        spec(**change)


def record(**changes: object) -> CommitRecord:
    base = {
        "column": "vggt",
        "shard": 3,
        "dataset": "d",
        "fingerprint": "f",
        "planned": 3,
        "quarantined": (Quarantined("c", 26, "image_empty", "0 bytes"),),
        "files": {"vggt/000003.tar": FileDigest(10, "ab")},
        "tokens": ("a", "b"),
        "rows": (24, 25),
        "members": {"depth.npy": (Member(512, 4, 7), Member(1536, 4, 0))},
    }
    return CommitRecord(**{**base, **changes})  # type: ignore[arg-type]


def test_record_round_trip() -> None:
    assert CommitRecord.from_bytes(record().to_bytes(), "r") == record()


@pytest.mark.parametrize(
    "change",
    [
        {"planned": 4},
        {"tokens": ("a", "a")},
        {"tokens": ("a", "c")},
        {"rows": (1,)},
        {"members": {"x": ()}},
    ],
)
def test_record_must_close(change: dict[str, object]) -> None:
    with pytest.raises(DatasetError):
        record(**change).to_bytes()


def test_members_are_triples() -> None:
    document = unseal(record().to_bytes(), "r")
    assert document["members"] == {"depth.npy": [[512, 4, 7], [1536, 4, 0]]}
    document["members"]["depth.npy"][1] = [1536, 4]
    with pytest.raises(DatasetError, match=r"^r: not a commit record"):
        CommitRecord.from_bytes(seal(document), "r")


def test_record_of_another_version() -> None:
    document = unseal(record().to_bytes(), "r")
    for version in (2, 99, None, "1"):
        with pytest.raises(DatasetError, match=f"schema version {version}, this code reads 1"):
            CommitRecord.from_bytes(seal({**document, "schema_version": version}), "r")
    with pytest.raises(DigestError):
        CommitRecord.from_bytes(json.dumps({**document, "planned": 2}).encode(), "r")


def column(**changes: object) -> ColumnManifest:
    base = {
        "column": "vggt",
        "targets": (spec(),),
        "provenance": {"weights": {"seed": 0}, "width": 518},
        "random_weights": True,
        "config": {"weights": {"random": 0}},
        "environment": {"torch": "1"},
    }
    return ColumnManifest(**{**base, **changes})  # type: ignore[arg-type]


def test_column_refuses_another_teacher_by_value() -> None:
    assert ColumnManifest.from_bytes(column().to_bytes(), "c") == column()
    column().refuse_other(column(environment={"torch": "2"}), "c")
    with pytest.raises(MismatchError, match=r"provenance\.weights\.seed: 0 -> 1"):
        column(provenance={"weights": {"seed": 1}, "width": 518}).refuse_other(column(), "c")
    with pytest.raises(MismatchError):
        column(targets=(spec(dtype="float32"),)).refuse_other(column(), "c")


def test_a_manifest_that_lacks_a_field_is_named() -> None:
    document = unseal(column().to_bytes(), "c")
    del document["config"]
    with pytest.raises(DatasetError, match=r"c: not what this release writes .*'config'"):
        ColumnManifest.from_bytes(seal(document), "c")


def dataset(**changes: object) -> DatasetManifest:
    base = {
        "source": {"kind": "navsim"},
        "plan": {"digest": "p", "shard_size": 8, "seed": 0},
        "zarr": True,
        "synthetic": False,
        "notices": ("n",),
        "code_version": "0",
    }
    return DatasetManifest(**{**base, **changes})  # type: ignore[arg-type]


def test_a_column_whose_targets_are_told_in_other_words_is_the_same() -> None:
    reworded = column(targets=(spec(meaning="told better"),))
    assert reworded.fingerprint != column().fingerprint
    assert reworded.identity == column().identity
    reworded.refuse_other(column(), "c")


def test_dataset_refuses_another_plan_by_value() -> None:
    assert DatasetManifest.from_bytes(dataset().to_bytes(), "d") == dataset()
    for change in ({"plan": {"digest": "q", "shard_size": 8, "seed": 0}}, {"synthetic": True}, {"zarr": False}):
        with pytest.raises(MismatchError, match="on disk"):
            dataset(**change).refuse_other(dataset(), "d")
    with pytest.raises(DatasetError, match="not a last-shards dataset"):
        DatasetManifest.from_bytes(seal({"format": "other"}), "d")


def test_heading_has_the_minus_sign() -> None:
    # yaw 0.5, pitch 0.02, roll -0.03 in ZYX order
    cy, sy, cp, sp, cr, sr = (f(v / 2) for v in (0.5, 0.02, -0.03) for f in (np.cos, np.sin))
    q = [
        cr * cp * cy + sr * sp * sy,
        sr * cp * cy - cr * sp * sy,
        cr * sp * cy + sr * cp * sy,
        cr * cp * sy - sr * sp * cy,
    ]
    w, x, y, z = q
    assert heading_from_quaternion(q) == pytest.approx(
        np.arctan2(2 * (w * z - x * y), 1 - 2 * (y * y + z * z)), abs=1e-15
    )
    assert abs(heading_from_quaternion(q) - 0.5) > 1e-4  # the usual yaw is 0.5; NAVSIM's is not
    assert heading_from_quaternion([2 * v for v in q]) == pytest.approx(heading_from_quaternion(q), abs=1e-15)


@given(
    hnp.arrays(np.float64, (5, 3), elements=st.floats(-100, 100)), hnp.arrays(np.float64, 3, elements=st.floats(-3, 3))
)
@settings(max_examples=50, deadline=None)
def test_local_and_global_are_inverse(poses: np.ndarray, origin: np.ndarray) -> None:
    back = to_local(to_global(poses, origin), origin)
    assert np.allclose(back[:, :2], poses[:, :2], atol=1e-9)
    assert np.allclose(np.cos(back[:, 2] - poses[:, 2]), 1, atol=1e-12)


def test_layout_names() -> None:
    assert layout.tar("vggt", 7) == "vggt/000007.tar"
    assert layout.shard_of_record("000007.json") == 7
    assert layout.shard_of_record("1234567.json") == 1234567
    for name in ("column.json", "000007.tar", "7.json", "000007.json.tmp"):
        assert layout.shard_of_record(name) is None
    assert layout.zarr_chunk("vggt", "grid", 2, 4) == "targets.zarr/vggt/grid/c/2/0/0/0"


def test_errors_pickle() -> None:
    error = pickle.loads(pickle.dumps(SampleError("code", "why")))
    assert (type(error), error.code, str(error)) == (SampleError, "code", "why")
