"""The restricted unpickler: plain data comes out as `pickle.loads` has it, everything else is refused unrun."""

from __future__ import annotations

import _pickle
import collections
import contextlib
import copyreg
import gc
import io
import pickle
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pickles import unpickle
from pickles.unpickle import load_pickle
from shards_schema.errors import SampleError, UnsafePickleError

LOG = next((Path(__file__).parents[1] / "data" / "navsim").glob("*.pkl")).read_bytes()

PLAIN = [
    np.arange(3),
    np.zeros(0),
    np.zeros((0, 7)),
    np.eye(3, dtype=np.float32),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(12).reshape(3, 4)[:, ::2],
    np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    np.arange(3, dtype=">f4"),
    np.array(["vehicle", "pedestrian"]),
    np.array([b"a", b"bc"]),
    np.array(True),
    np.float64(1.5),
    np.int32(-7),
    np.bool_(True),
    np.str_("abc"),
    np.str_(""),
    np.complex64(1 + 2j),
    [1, 2**70, -1, 1.5, None, True, "a", b"b", b"", "", "é" * 300],
    {"a": (1, 2, 3, 4), "b": [{}], "c": ()},
]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def plain_loads(data: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # numpy.core is numpy._core now
        return pickle.loads(data)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("value", PLAIN, ids=lambda v: f"{type(v).__name__}-{getattr(v, 'dtype', '')}")
def test_plain_data_comes_out_as_pickle_has_it(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    assert same(plain_loads(data), load_pickle(data, "x"))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_log_comes_out_as_pickle_has_it(protocol: int) -> None:
    log = plain_loads(LOG)
    assert len(log) == 40
    assert same(log, load_pickle(io.BytesIO(pickle.dumps(log, protocol)), "x"))


def test_both_spellings_of_numpy_core() -> None:
    assert b"numpy.core.numeric" in LOG
    assert same(plain_loads(LOG), load_pickle(LOG, "x"))
    new = pickle.dumps(plain_loads(LOG)[0], 5)
    assert b"numpy._core.numeric" in new
    assert same(plain_loads(LOG)[0], load_pickle(new, "x"))


def test_sets_and_ordered_dicts() -> None:
    assert load_pickle(pickle.dumps({1, 2}, 4), "x") == {1, 2}
    assert load_pickle(pickle.dumps(frozenset({3}), 5), "x") == frozenset({3})
    for protocol in (2, 5):
        assert load_pickle(pickle.dumps(collections.OrderedDict(b=1, a=2), protocol), "x") == {"b": 1, "a": 2}


def test_arrays_leave_as_plain_arrays() -> None:
    array = load_pickle(pickle.dumps(np.arange(12).reshape(3, 4)[:, ::2], 5), "x")
    again = pickle.loads(pickle.dumps(array[1:], 5))
    assert type(again) is np.ndarray
    assert again.tolist() == [[4, 6], [8, 10]]


def test_the_garbage_collector_is_left_as_it_was() -> None:
    for data in (LOG, LOG[:100], b"cos\nsystem\n."):
        with contextlib.suppress(SampleError):
            load_pickle(data, "x")
        assert gc.isenabled()
    gc.disable()
    try:
        load_pickle(LOG, "x")
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_c_unpickler_runs_it() -> None:
    assert issubclass(unpickle._Unpickler, _pickle.Unpickler)


class Runs:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def stack_global(module: str, name: str) -> bytes:
    text = b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name))
    return b"\x80\x04" + text + b"\x93."


CALL = b"\x85R."
CORE = b"cnumpy._core.multiarray\n"
NUMERIC = b"cnumpy._core.numeric\n_frombuffer\n"
DTYPE = b"cnumpy\ndtype\n"


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_nothing_of_a_refused_class_is_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    data = pickle.dumps([1, Runs(open, str(mark), "w")], protocol)
    with pytest.raises(
        UnsafePickleError, match=r"my\.pkl asks for (_?io|builtins|__builtin__)\.open.*nothing of it"
    ) as caught:
        load_pickle(data, "my.pkl")
    assert caught.value.code == "unsafe_pickle"
    assert not mark.exists()
    pickle.loads(data)[1].close()
    assert mark.exists()  # so the pickle was a real one


@pytest.mark.parametrize(
    ("data", "asked"),
    {
        "a function by GLOBAL": (b"\x80\x02cos\nsystem\n\x8c\x02id" + CALL, "os.system"),
        "a function by STACK_GLOBAL": (stack_global("posix", "system"), "posix.system"),
        "a dotted name": (stack_global("numpy", "dtype.mro"), "numpy.dtype.mro"),
        "a dotted name within a list": (stack_global("numpy", "ndarray.__init__.__globals__"), "numpy.ndarray"),
        "another of numpy's": (stack_global("numpy", "load"), "numpy.load"),
        "a test helper of numpy's": (stack_global("numpy.testing._private.utils", "runstring"), "runstring"),
        "getattr": (b"\x80\x02cbuiltins\ngetattr\n.", "builtins.getattr"),
        "copyreg": (b"\x80\x02ccopyreg\n_reconstructor\n.", "copyreg._reconstructor"),
        "a numpy subclass": (b"\x80\x02cnumpy\nrecarray\n.", "numpy.recarray"),
        "a persistent id": (b"\x80\x02X\x01\x00\x00\x00aQ.", "BINPERSID"),
        "a text persistent id": (b"\x80\x02Pa\n.", "PERSID"),
        "the extension registry": (b"\x80\x02\x82\x01.", "EXT1"),
        "INST": (b"(ios\nsystem\n.", "INST"),
        "OBJ": (b"\x80\x02(" + DTYPE + b"o.", "OBJ"),
        "NEWOBJ": (b"\x80\x02" + DTYPE + b")\x81.", "NEWOBJ"),
        "a buffer from outside": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "text opcodes": (b"I1\n.", "INT"),
        "BUILD on dtype": (b"\x80\x02" + DTYPE + b"}\x8c\x01aK\x01sb.", "a change of DtypeMaker"),
        "BUILD on a function": (b"\x80\x02" + NUMERIC + b"N}\x8c\x0c__defaults__)s\x86b.", "a change of FromBuffer"),
        "an object dtype": (b"\x80\x02" + DTYPE + b"\x8c\x02O8" + CALL, "numpy dtype 'O8'"),
        "a record dtype": (b"\x80\x02" + DTYPE + b"\x8c\x02V8" + CALL, "numpy dtype 'V8'"),
        "a dtype by a class": (b"\x80\x02" + DTYPE + b"\x8c\x05f8,O8" + CALL, "numpy dtype"),
        "_reconstruct of what is no ndarray": (
            b"\x80\x02" + CORE + b"_reconstruct\n" + DTYPE + b"K\x00\x85C\x01b\x87R.",
            "another class than ndarray",
        ),
        "a codec that is not latin1": (b"\x80\x02c_codecs\nencode\n\x8c\x01a\x8c\x05rot13\x86R.", "rot13"),
        "a far memo place": (b"\x80\x02Nr" + struct.pack("<I", 0xFFFFFFFF) + b".", "memo place 4294967295"),
    }.values(),
)  # fmt: skip
def test_refused(data: bytes, asked: str) -> None:
    with pytest.raises(UnsafePickleError) as caught:
        load_pickle(data, "x")
    assert asked in caught.value.reason


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "value",
    [
        np.array(["a", None], dtype=object),
        np.array([(1, 2.0)], dtype="i4,f8"),
        np.datetime64("2026-11-22"),
        np.zeros(2, dtype="V4"),
        np.recarray(1, dtype=[("a", int)]),
        np.ma.masked_array([1]),
        np.float64,
        np.dtype("O"),
        Path("a"),
        range(3),
        1j,
        slice(1),
        Runs(bytearray, 1 << 40),
        Runs(bytes, 1 << 40),
    ],
    ids=lambda v: f"{type(v).__name__}-{getattr(v, 'dtype', '')}",
)
def test_what_is_not_plain_is_refused(value: Any, protocol: int) -> None:
    with pytest.raises(SampleError):
        load_pickle(pickle.dumps(value, protocol), "x")


def test_the_extension_registry_is_not_reached_through_its_cache() -> None:
    copyreg.add_extension("os", "system", 0xF0)
    try:
        data = b"\x80\x02\x82\xf0."
        pickle.loads(data)  # fills the cache that bypasses find_class
        with pytest.raises(UnsafePickleError, match="EXT1"):
            load_pickle(data, "x")
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


def test_a_dtype_cannot_be_changed_behind_an_array() -> None:
    dtype = DTYPE + b"\x8c\x02S2K\x00K\x01\x87R"
    grown = b"(K\x03\x8c\x01|NNNJ\x00\x00\x00\x40K\x01K\x00tb"
    with pytest.raises(UnsafePickleError, match="dtype with state"):
        load_pickle(b"\x80\x02" + dtype + grown + b".", "x")


def test_copies_are_bounded() -> None:
    text = b"\x8c\xc8" + b"a" * 200
    encode = b"c_codecs\nencode\n\x94" + text + b"\x8c\x06latin1\x86\x94"
    once = b"h\x00h\x01R"
    assert load_pickle(b"\x80\x04" + encode + b"0" + once + b".", "x") == b"a" * 200
    with pytest.raises(UnsafePickleError, match="in copies"):
        load_pickle(b"\x80\x04" + encode + b"(" + once * 200 + b"t.", "x")


@pytest.mark.parametrize("shape", [(0, 1 << 60), (1 << 60, 0)])
def test_empty_arrays_of_monstrous_shape(shape: tuple[int, ...]) -> None:
    data = pickle.dumps(np.empty(shape, np.int8), 5)
    with pytest.raises(UnsafePickleError, match="empty array"):
        load_pickle(data, "x")


@pytest.mark.parametrize("code", [b"\x8e", b"\x8d", b"\x96"])
def test_announced_lengths_are_checked_before_anything_is_allocated(code: bytes) -> None:
    with pytest.raises(SampleError, match="go on to byte") as caught:
        load_pickle(b"\x80\x05" + code + struct.pack("<Q", 1 << 62) + b"abc.", "x")
    assert caught.value.code == "log_unreadable"


def test_cut_short_anywhere() -> None:
    for size in [*range(0, 3000, 7), *range(3000, len(LOG), 4999), len(LOG) - 1]:
        with pytest.raises(SampleError, match="is not a whole pickle") as caught:
            load_pickle(LOG[:size], "x")
        assert caught.value.code == "log_unreadable"


@given(st.binary(max_size=200))
def test_garbage_is_a_sample_error_or_data(data: bytes) -> None:
    with contextlib.suppress(SampleError):
        load_pickle(data, "x")


SMALL = pickle.dumps({"a": np.eye(2), "b": np.array(["x", "y"]), "c": [1.5, (2, "d")], "e": np.eye(3)[:, ::2]}, 5)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_damage_is_a_sample_error_or_data(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL)
    for at, value in changes:
        data[at] = value
    with contextlib.suppress(SampleError):
        load_pickle(bytes(data), "x")
