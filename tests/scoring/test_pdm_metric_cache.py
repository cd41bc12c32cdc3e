"""Reading metric caches: what they hold, what is refused, and that nothing is run."""

from __future__ import annotations

import io
import lzma
import os
import pickle
import pickletools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from pickles.inert import ALLOWED, Array, Record, Wkb, load
from scoring import Layer
from scoring.devkit.metric_cache import cache_version
from shards_schema.errors import MissingFileError, SampleError, UnsafePickleError
from teachers.pdm import context_from_cache, find_caches, read_cache

DATA = Path(__file__).parents[1] / "data" / "pdm"
TOKEN = "74c2e34b6c4c219b"


@pytest.fixture(scope="module")
def caches() -> dict[str, dict[str, Path]]:
    return {v: find_caches(DATA / f"metric_cache_{v}") for v in ("v1", "v2")}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(lzma.compress(data))
    return path


def test_find_caches(caches: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    assert len(caches["v1"]) == 3
    assert len(caches["v2"]) == 5
    assert all(path.parent.name == token for token, path in caches["v2"].items())
    with pytest.raises(MissingFileError, match="no directory"):
        find_caches(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=r"no metric_cache\.pkl below"):
        find_caches(tmp_path)
    for log in ("a", "b"):
        (tmp_path / log / "unknown" / "0123").mkdir(parents=True)
        (tmp_path / log / "unknown" / "0123" / "metric_cache.pkl").touch()
    with pytest.raises(SampleError, match="0123 has two caches"):
        find_caches(tmp_path)


def test_the_devkit_is_not_needed(caches: dict[str, dict[str, Path]]) -> None:
    context_from_cache(caches["v1"][TOKEN], "v1")
    assert not {m.split(".")[0] for m in sys.modules} & {"navsim", "nuplan"}


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_what_a_context_holds(caches: dict[str, dict[str, Path]], version: Any) -> None:
    for token, path in caches[version].items():
        context = context_from_cache(path, version)
        assert context.token == token
        assert cache_version(read_cache(path)) == version
        assert (context.ego_state[:3] == 0).all()
        assert context.agents_valid.any(axis=1).all()
        assert (context.agents_size > 0).all()
        assert not context.agents_pose[~context.agents_valid].any()
        # Static objects stand; the map is around the ego, which is on it.
        assert (context.agents_stopped | context.agents_is_agent).all()
        assert np.abs(context.map_polygons.xy).max() < 1000
        assert set(context.map_layer) <= {int(layer) for layer in Layer}
        assert (context.map_on_route <= np.isin(context.map_layer, (Layer.LANE, Layer.LANE_CONNECTOR))).all()
        # PDM-Closed starts on one of its paths (on the centerline, or a metre beside it), and heads where that does.
        np.testing.assert_allclose(context.pdm_poses[0], 0, atol=1.01)
        np.testing.assert_allclose(context.pdm_poses[0, 2], 0, atol=0.05)
        assert np.hypot(*context.centerline.T).min() < 10
        if version == "v1":
            assert context.past_states.shape == (0, 11)
            assert context.human_poses.shape == (0, 3)
            assert len(context.light_polygons) == 0
        else:
            assert len(context.past_states) in (14, 15)  # 15 where the log's 1.5 s are some microseconds longer
            assert context.past_states[0, 0] <= context.past_states[-1, 0] + 1e-6 <= 1e-3
            assert not context.past_states[:, 7:].any()
            assert context.human_poses.shape == (8, 3)


def test_both_versions_describe_the_same_scene(caches: dict[str, dict[str, Path]]) -> None:
    """v1 has polygons of boxes and v2 has poses and sizes: what both know must agree."""
    for token, path in caches["v1"].items():
        one, two = context_from_cache(path, "v1"), context_from_cache(caches["v2"][token], "v2")
        np.testing.assert_allclose(one.ego_state, two.ego_state, atol=1e-9)
        np.testing.assert_allclose(one.centerline, two.centerline, atol=1e-9)
        np.testing.assert_allclose(one.map_polygons.xy, two.map_polygons.xy, atol=1e-9)
        assert one.map_layer.tolist() == two.map_layer.tolist()
        assert one.map_on_route.tolist() == two.map_on_route.tolist()
        matched = 0
        for n in range(len(two.agents_pose)):
            both = one.agents_valid[:, :41] & two.agents_valid[n]
            gap = np.abs(one.agents_pose[:, :41, :2] - two.agents_pose[n, :, :2]).max(axis=-1)
            same = [m for m in range(len(one.agents_pose)) if both[m].any() and gap[m][both[m]].max() < 1e-6]
            for m in same:
                np.testing.assert_allclose(one.agents_size[m], two.agents_size[n], atol=1e-9)
                turn = (one.agents_pose[m, :41, 2] - two.agents_pose[n, :, 2])[both[m]]
                np.testing.assert_allclose(np.sin(turn / 2), 0, atol=1e-8)
                assert one.agents_is_agent[m] == two.agents_is_agent[n]
            matched += len(same) == 1
        assert matched >= len(two.agents_pose) - 1 > 0


def test_red_lights_are_red_when_the_cache_says_so(caches: dict[str, dict[str, Path]]) -> None:
    found = [context_from_cache(path, "v2") for path in caches["v2"].values()]
    lit = [c for c in found if len(c.light_polygons)]
    assert lit
    for context in lit:
        assert context.light_active.any(axis=1).all()
        # Frames are held for half a second: a light changes only every fifth step.
        changes = np.flatnonzero((context.light_active[:, 1:] != context.light_active[:, :-1]).any(axis=0)) + 1
        assert (changes % 5 == 0).all()


def test_another_version_names_the_file_and_both(caches: dict[str, dict[str, Path]]) -> None:
    with pytest.raises(SampleError, match="a metric cache of v2, asked for v1") as caught:
        context_from_cache(caches["v2"][TOKEN], "v1")
    assert caught.value.code == "version_mismatch"
    assert TOKEN in caught.value.reason
    with pytest.raises(SampleError, match="a metric cache of v1, asked for v2"):
        context_from_cache(caches["v1"][TOKEN], "v2")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not lzma at all",
        lzma.compress(b""),
        lzma.compress(b"not a pickle"),
        lzma.compress(pickle.dumps([1])[:-3]),
    ],
    ids=["empty", "not lzma", "nothing inside", "not a pickle", "half a pickle"],
)
def test_what_is_no_cache_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "metric_cache.pkl"
    path.write_bytes(content)
    with pytest.raises(SampleError, match=str(path)) as caught:
        context_from_cache(path, "v2")
    assert caught.value.code == "cache_unreadable"


def test_a_truncated_cache_is_refused(caches: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    whole = caches["v2"][TOKEN].read_bytes()
    path = tmp_path / "metric_cache.pkl"
    for size in (10, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(SampleError, match="truncated"):
            context_from_cache(path, "v2")


def test_a_flipped_byte_is_refused_or_harmless(caches: dict[str, dict[str, Path]], tmp_path: Path) -> None:
    whole = lzma.decompress(caches["v1"][TOKEN].read_bytes())
    rng = np.random.default_rng(0)
    outcomes = set()
    for place in rng.integers(0, len(whole), 60):
        damaged = bytearray(whole)
        damaged[place] ^= int(rng.integers(1, 256))
        try:
            context_from_cache(write(tmp_path / "metric_cache.pkl", bytes(damaged)), "v1")
            outcomes.add("read")
        except SampleError as error:
            outcomes.add(error.code)
    assert outcomes <= {"read", "cache_unreadable", "bad_context", "unsafe_pickle", "not_a_cache", "other_vehicle"}
    assert len(outcomes) > 1


def test_other_objects_are_not_a_cache(tmp_path: Path) -> None:
    path = write(tmp_path / "metric_cache.pkl", pickle.dumps({"ego_state": 1}))
    with pytest.raises(SampleError, match="found dict") as caught:
        context_from_cache(path, "v1")
    assert caught.value.code == "not_a_cache"
    with pytest.raises(MissingFileError, match="no metric cache at"):
        context_from_cache(tmp_path / "none.pkl", "v1")


def test_a_cache_with_parts_missing_says_which(tmp_path: Path) -> None:
    module = b"navsim.planning.metric_caching.metric_cache"
    data = b"c" + module + b"\nMetricCache\n)\x81}b."
    with pytest.raises(SampleError, match="has no attribute 'ego_state'") as caught:
        context_from_cache(write(tmp_path / "metric_cache.pkl", data), "v1")
    assert caught.value.code == "bad_context"


class Bomb:
    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    ("bomb", "name"),
    [
        (Bomb(os.system, "touch /tmp/never"), "system"),
        (Bomb(eval, "1"), "builtins.eval"),
        (Bomb(getattr, 1, "real"), "builtins.getattr"),
        (Bomb(np.load, "x"), "numpy"),
        (Bomb(shapely.from_wkt, "POINT (0 0)"), "shapely"),
        (io.StringIO(), "StringIO"),
    ],
)
def test_every_other_name_is_refused_before_it_is_run(tmp_path: Path, bomb: Any, name: str) -> None:
    path = write(tmp_path / "metric_cache.pkl", pickle.dumps(bomb))
    with pytest.raises(UnsafePickleError, match=name) as caught:
        context_from_cache(path, "v2")
    assert str(path) in caught.value.reason
    assert caught.value.code == "unsafe_pickle"


def test_an_allowed_class_of_a_wrong_module_is_refused() -> None:
    with pytest.raises(UnsafePickleError, match=r"evil\.Agent"):
        load(b"cevil\nAgent\n.")
    with pytest.raises(UnsafePickleError, match=r"numpy\.dtype\.__class__"):
        load(pickle.dumps(1, 4)[:2] + b"\x8c\x05numpy\x8c\x0fdtype.__class__\x93.")


def test_functions_take_no_state_and_records_no_methods() -> None:
    with pytest.raises(pickle.UnpicklingError, match="a state for the function"):
        load(b"cshapely.io\nfrom_wkb\n}(X\x05\x00\x00\x00helloK\x01ub.")
    module = "nuplan.common.actor_state.state_representation"
    record = load(f"c{module}\nStateSE2\n)".encode() + b"\x81}(X\x09\x00\x00\x00__class__K\x01ub.")
    assert isinstance(record, Record)
    assert record.kind == f"{module}.StateSE2"
    assert record.fields == {"__class__": 1}


def test_numpy_values_come_through() -> None:
    assert load(pickle.dumps(np.float32(1.5))) == 1.5
    assert load(pickle.dumps(np.int64(-7))) == -7
    assert load(pickle.dumps(np.bool_(True))) is True
    assert load(pickle.dumps(np.str_("vehicle"))) == "vehicle"
    for protocol in (2, 4, 5):
        array = np.arange(6, dtype=np.float32).reshape(2, 3).T
        if protocol > 2:
            found = load(pickle.dumps(array, protocol))
            assert isinstance(found, Array)
            np.testing.assert_array_equal(found.value, array)
    polygons = np.array([shapely.box(0, 0, 1, 1), shapely.Point(1, 2)], dtype=object)
    wkb = load(pickle.dumps(polygons)).value
    assert [type(w) for w in wkb] == [Wkb, Wkb]
    assert shapely.from_wkb([bytes(w) for w in wkb]).tolist() == polygons.tolist()
    with pytest.raises(UnsafePickleError, match="not a plain one"):
        load(pickle.dumps(np.zeros(2, dtype="datetime64[s]")))


def test_the_allow_list_names_no_more_than_a_cache_may_hold(caches: dict[str, dict[str, Path]]) -> None:
    """Whatever the caches name is listed; and no entry is a real class or function of the module that it names."""
    for files in caches.values():
        for path in files.values():
            for op, _, _ in pickletools.genops(lzma.decompress(path.read_bytes())):
                assert not op.name.startswith(("EXT", "PERSID", "BINPERSID", "NEXT_BUFFER"))
    for entry in ALLOWED.values():
        kind = entry if isinstance(entry, type) else type(entry)
        assert kind.__module__ == "pickles.inert"
