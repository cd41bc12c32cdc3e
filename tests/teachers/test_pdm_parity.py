"""Contexts made of log and map against what the devkit cached for the same scenes: field by field, score by score.

`LAST_SHARDS_PDM_REFERENCE` names a folder with ``navsim_mini``, ``metric_cache_v1``, ``metric_cache_v2`` and
``pdms_golden`` for the slow test of all scenes.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from maps.folder import MapFolder
from maps.nuplan_map import NuplanMap, load_map
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from scoring import collate, complete, score
from scoring.context import Polygons, RewardContext, Version
from shards_schema.errors import WeightsError
from shards_schema.plan import SceneRef
from shards_schema.records import Scene
from teachers.pdm import context_from_cache, find_caches
from teachers.pdm.scene_context import prepare
from teachers.pdm.teacher import reward_contexts

DATA = Path(__file__).parents[1] / "data" / "pdm"
LOCATION = "us-ma-boston"
VERSIONS: tuple[Version, Version] = ("v1", "v2")
ARRAYS = (
    "ego_state",
    "past_states",
    "agents_pose",
    "agents_valid",
    "agents_size",
    "agents_is_agent",
    "agents_stopped",
    "map_layer",
    "map_on_route",
    "light_active",
    "centerline",
    "pdm_poses",
    "human_poses",
    "human_zero",
)
FLAT_M = 1e-8
"""v1 caches hold boxes as corners, v2 caches the human's path as products of matrices: so much is lost there."""


def scenes_of(root: Path, tokens: set[str]) -> list[Scene]:
    source = NavsimSource(NavsimConfig(root=str(root), split="mini", filter={"frame_interval": 1}))
    refs: dict[str, list[SceneRef]] = {}
    for ref in source.scan().refs:
        if ref.token in tokens:
            refs.setdefault(ref.log, []).append(ref)
    found = [scene for log, wanted in refs.items() for scene in source.scenes(log, wanted)]
    assert all(isinstance(scene, Scene) for scene in found), found
    return [scene for scene in found if isinstance(scene, Scene)]


def unpacked(root: Path, folder: str) -> Path:
    logs = root / "navsim_logs" / "mini"
    logs.mkdir(parents=True)
    for packed in (DATA / folder).glob("*.pkl.gz"):
        (logs / packed.name.removesuffix(".gz")).write_bytes(gzip.decompress(packed.read_bytes()))
    return root


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> NuplanMap:
    maps = tmp_path_factory.mktemp("maps")
    (maps / LOCATION / "1").mkdir(parents=True)
    packed = (DATA / "maps" / "two_logs.gpkg.gz").read_bytes()
    (maps / LOCATION / "1" / "map.gpkg").write_bytes(gzip.decompress(packed))
    return load_map(maps / LOCATION / "1" / "map.gpkg")


def close(mine: NDArray[Any], theirs: NDArray[Any], what: str, tolerance: float = FLAT_M) -> None:
    assert mine.shape == theirs.shape, what
    if mine.dtype.kind != "f":
        assert np.array_equal(mine, theirs), what
        return
    difference = np.abs(mine - theirs)
    if "pose" in what:
        turn = np.abs(mine[..., 2] - theirs[..., 2])
        difference[..., 2] = np.minimum(turn, np.abs(2 * np.pi - turn))
    assert difference.max(initial=0.0) <= tolerance, what


def assert_same_context(mine: RewardContext, theirs: RewardContext) -> None:
    where = f"{mine.token} {mine.version}"
    assert (mine.token, mine.version, mine.timestamp_us) == (theirs.token, theirs.version, theirs.timestamp_us)
    for name in ARRAYS:
        close(getattr(mine, name), getattr(theirs, name), f"{where} {name}")
    for name in ("map_polygons", "light_polygons"):
        ours, other = getattr(mine, name), getattr(theirs, name)
        assert isinstance(ours, Polygons)
        close(ours.xy, other.xy, f"{where} {name}")
        assert np.array_equal(ours.rings, other.rings), where
        assert np.array_equal(ours.polygons, other.polygons), where
    assert mine.pdm_progress == pytest.approx(theirs.pdm_progress, abs=1e-9), where


def mismatches(mine: RewardContext, golden: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of rows whose devkit sub-scores or score differ."""
    names = list(golden)
    poses = torch.tensor([golden[name]["poses"] for name in names], dtype=torch.float64)[None]
    result = score(collate([mine]), poses)
    bad = []
    for n, name in enumerate(names):
        if mine.version == "v1":
            pairs = [(result.subscores, golden[name]), ({"score": result.score}, golden[name])]
        else:
            plain = {**result.unfiltered, "pdm_score": result.pdm_score}
            pairs = [(plain, golden[name]["nofilter"]), (result.subscores, golden[name]["filtered"])]
        shared = [(key, values[key], row[key]) for values, row in pairs for key in values if key in row]
        assert len(shared) >= 6, f"the golden rows have other names: {list(golden[name])}"
        for key, ours, theirs in shared:
            smooth = key in ("ego_progress", "score", "pdm_score")
            if abs(float(ours[0, n]) - float(theirs)) > (1e-5 if smooth else 0.0):
                bad.append(f"{mine.token} {mine.version} {name} {key}: {float(ours[0, n])}, devkit {theirs}")
    return bad


def compare(contexts: Sequence[Sequence[RewardContext]], caches: Path, golden: Path) -> tuple[int, list[str]]:
    """Rows compared, and what differs; fields that differ raise."""
    rows, bad = 0, []
    for version in VERSIONS:
        files = find_caches(caches / f"metric_cache_{version}")
        known = json.loads((golden / f"{'golden_' if golden == DATA else ''}{version}.json").read_text())
        mine = [c for each in contexts for c in each if c.version == version and c.token in files]
        assert len(mine) == len(files), f"{len(files)} caches of {version}, but {len(mine)} contexts"
        for context, theirs in zip(
            mine, complete([context_from_cache(files[c.token], version) for c in mine]), strict=True
        ):
            assert_same_context(context, theirs)
            for stored in (context, context.astype("float32")):
                bad += mismatches(stored, known[context.token]["rows"])
            rows += len(known[context.token]["rows"])
    return rows, bad


def test_against_caches_and_golden_scores(tmp_path: Path, world: NuplanMap) -> None:
    tokens = set(find_caches(DATA / "metric_cache_v2")) | set(find_caches(DATA / "metric_cache_v1"))
    scenes = scenes_of(unpacked(tmp_path, "logs"), tokens)
    rows, bad = compare(reward_contexts([prepare(s, world, VERSIONS) for s in scenes]), DATA, DATA)
    assert rows == 8 * 13
    assert not bad


def test_against_the_devkit_on_made_up_traffic(tmp_path: Path, world: NuplanMap) -> None:
    """Ego off its lane, routes with gaps or begun elsewhere, dozens of crossing objects, every light red."""
    with np.load(DATA / "made_up" / "devkit.npz") as file:
        known = dict(file)
    tokens = {key.split("/")[0] for key in known}
    scenes = scenes_of(unpacked(tmp_path, "made_up"), tokens)
    assert len(scenes) == len(tokens) == 6
    contexts = reward_contexts([prepare(scene, world, VERSIONS) for scene in scenes])
    compared = 0
    for context in (c for each in contexts for c in each):
        for key, theirs in known.items():
            token, version, name = key.split("/")
            if (token, version) == (context.token, context.version):
                compared += 1
                tolerance = 1e-5 if name == "agents_pose" else FLAT_M  # kept in single precision
                close(getattr(context, name).astype(np.result_type(theirs, np.int8)), theirs, key, tolerance)
    assert compared == len(known)


@pytest.mark.slow
def test_all_reference_scenes() -> None:
    folder = os.environ.get("LAST_SHARDS_PDM_REFERENCE")
    if not folder:
        pytest.skip("set LAST_SHARDS_PDM_REFERENCE to the folder of the reference data")
    root = Path(folder)
    tokens = set(find_caches(root / "metric_cache_v2"))
    scenes = scenes_of(root / "navsim_mini", tokens)
    maps = MapFolder(root / "navsim_mini" / "maps", "maps", WeightsError)
    prepared = [prepare(scene, load_map(maps.file(scene.map_name)), VERSIONS) for scene in scenes]
    rows, bad = compare(reward_contexts(prepared), root, root / "pdms_golden")
    assert rows == len(tokens) * 13 * 2
    assert len(bad) <= 0.01 * rows, bad[:20]
    assert not bad, bad[:20]
