"""`python -m jobs.score`: the numbers, the table, and what it says when it cannot."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.score import main
from pipeline.reading.reader import Dataset
from reports.evaluation.frames import comfort_between_frames
from shards_schema.errors import AbsentError, ConfigError, MissingFileError, SampleError
from tests.trainer.reward_toys import write_reward_dataset

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data" / "pdm"
TOKEN = "74c2e34b6c4c219b"
STRAIGHT = [[2.0 * k, 0.0, 0.0] for k in range(1, 9)]


def arguments(version: str, trajectories: Path, *more: str) -> list[str]:
    cache = str(DATA / f"metric_cache_{version}")
    return ["--metric-cache", cache, "--trajectories", str(trajectories), "--version", version, *more]


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_scores_the_golden_rows(version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = DATA / f"golden_{version}.json"
    assert main(arguments(version, golden, "--out", str(tmp_path / "out.json"))) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    for token, scene in json.loads(golden.read_text()).items():
        assert list(found[token]) == list(scene["rows"])
        for name, row in scene["rows"].items():
            for group in ("",) if version == "v1" else ("nofilter", "filtered"):
                expected, got = (
                    (row, found[token][name]) if version == "v1" else (row[group], found[token][name][group])
                )
                for column in set(expected) - {"poses", "_weighted"}:
                    assert got[column] == pytest.approx(expected[column], abs=1e-5), (token, name, group, column)
    filtered = [r["filtered"] for s in found.values() for r in s.values()] if version == "v2" else []
    assert version == "v1" or any(r["pdm_score"] == 0 and r["score"] > 0 for r in filtered)
    text = capsys.readouterr().out
    assert all(word in text for word in ("human", "all", "NC", "EP", "score"))
    assert list(tmp_path.iterdir()) == [tmp_path / "out.json"]


def test_names_may_differ_from_scene_to_scene(tmp_path: Path) -> None:
    tokens = sorted(json.loads((DATA / "golden_v2.json").read_text()))
    slow = [[0.5 * x, y, h] for x, y, h in STRAIGHT]
    wanted = {tokens[0]: {"a": STRAIGHT}, tokens[1]: {"b": slow, "a": STRAIGHT}}
    out = tmp_path / "out.json"
    assert main(arguments("v2", write(tmp_path / "t.json", wanted), "--out", str(out))) == 0
    found = json.loads(out.read_text())
    assert {t: list(rows) for t, rows in found.items()} == {tokens[0]: ["a"], tokens[1]: ["b", "a"]}
    alone = write(tmp_path / "alone.json", {tokens[1]: {"a": STRAIGHT}})
    assert main(arguments("v2", alone, "--out", str(out))) == 0
    assert json.loads(out.read_text())[tokens[1]]["a"] == found[tokens[1]]["a"]


def test_consistent_changes_only_the_forgotten_column(tmp_path: Path) -> None:
    both = []
    for flags in ((), ("--consistent",)):
        main(arguments("v2", DATA / "golden_v2.json", "--out", str(tmp_path / "o.json"), *flags))
        both.append(json.loads((tmp_path / "o.json").read_text()))
    changed = {
        (group, column)
        for token in both[0]
        for name in both[0][token]
        for group in ("nofilter", "filtered")
        for column, value in both[0][token][name][group].items()
        if value != both[1][token][name][group][column]
    }
    assert changed == {("filtered", "pdm_score")}


def test_extended_comfort_needs_the_frame_before(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    main(arguments("v2", DATA / "golden_v2.json", "--out", str(out), "--extended-comfort"))
    rows = [r for s in json.loads(out.read_text()).values() for r in s.values()]
    # No two of the golden scenes are half a second apart.
    assert {r["filtered"]["two_frame_extended_comfort"] for r in rows} == {None}


def test_the_frame_before_is_found_by_log_time_and_name() -> None:
    keys = [("a", "x"), ("b", "x"), ("b", "y"), ("c", "x"), ("d", "x"), ("e", "x")]
    frames = {
        "a": ("log", 0),
        "b": ("log", 500_000),
        "c": ("log", 2_000_000),
        "d": ("other", 0),
        "e": ("log", 1_000_000),
    }
    states = torch.zeros((6, 41, 11), dtype=torch.float64)
    states[0, :, 5] = 3.0  # what a/x does is not what b/x does
    nan = math.nan
    assert comfort_between_frames(keys, states, frames).tolist() == pytest.approx(
        [nan, 0.0, nan, nan, nan, 1.0], nan_ok=True
    )


@pytest.mark.parametrize(
    ("poses", "message"),
    [
        (STRAIGHT[:7], "expected 8 poses, found list of 7"),
        ([*STRAIGHT, STRAIGHT[0]], "expected 8 poses, found list of 9"),
        ([*STRAIGHT[:7], [1.0, math.nan, 0.0]], "pose 7 is not finite"),
        ([*STRAIGHT[:7], [1.0, 2.0]], r"pose 7 is \[1.0, 2.0\], expected \[x, y, heading\]"),
        ([*STRAIGHT[:7], [1.0, "a", 0.0]], "pose 7 is"),
        (None, "expected 8 poses, found None"),
    ],
)
def test_a_bad_trajectory_names_file_token_and_name(tmp_path: Path, poses: Any, message: str) -> None:
    path = write(tmp_path / "t.json", {TOKEN: {"good": STRAIGHT, "bad": poses}})
    with pytest.raises(SampleError, match=f"{path}: token {TOKEN}: trajectory 'bad': {message}"):
        main(arguments("v2", path))


def test_unknown_tokens_and_files(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", {TOKEN: {"a": STRAIGHT}, "ffffffffffffffff": {"a": STRAIGHT}})
    with pytest.raises(SampleError, match=r"token ffffffffffffffff has no metric cache .*1 of 2") as caught:
        main(arguments("v2", path))
    assert caught.value.code == "unknown_token"
    with pytest.raises(MissingFileError, match="no trajectories at"):
        main(arguments("v2", tmp_path / "none.json"))
    (tmp_path / "text.json").write_text("{")
    with pytest.raises(SampleError, match="not JSON"):
        main(arguments("v2", tmp_path / "text.json"))
    for value in ([], {}, {TOKEN: []}, {TOKEN: {}}):
        with pytest.raises(SampleError, match=r"expected \{"):
            main(arguments("v2", write(tmp_path / "t.json", value)))
    with pytest.raises(ConfigError, match="there is no directory"):
        main(arguments("v2", DATA / "golden_v2.json", "--out", str(tmp_path / "no" / "o.json")))


def test_the_command_exits_non_zero_with_token_and_file(tmp_path: Path) -> None:
    path = write(tmp_path / "t.json", {TOKEN: {"a": STRAIGHT}})
    wrong = ["--metric-cache", str(DATA / "metric_cache_v1"), "--trajectories", str(path), "--version", "v2"]
    command = [sys.executable, "-m", "jobs.score", *wrong, "--out", str(tmp_path / "out.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "asked for v2" in done.stderr
    assert TOKEN in done.stderr
    assert "metric_cache.pkl" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.json").exists()


def test_a_damaged_cache_stops_the_job_by_name(tmp_path: Path) -> None:
    root = tmp_path / "caches"
    shutil.copytree(DATA / "metric_cache_v2", root)
    cache = next(root.rglob(f"{TOKEN}/metric_cache.pkl"))
    cache.write_bytes(cache.read_bytes()[:1000])
    path = write(tmp_path / "t.json", {TOKEN: {"a": STRAIGHT}})
    with pytest.raises(SampleError, match=f"{cache}: the lzma stream ends early"):
        main(["--metric-cache", str(root), "--trajectories", str(path), "--version", "v2"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The logs of the golden scenes with their reward column; the first scene has a route that is not on the map."""
    return write_reward_dataset(tmp_path_factory.mktemp("reward"), every=1, off_map=1)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_column_gives_the_golden_rows(data: str, version: str, tmp_path: Path) -> None:
    golden = DATA / f"golden_{version}.json"
    known = {t: s for t, s in json.loads(golden.read_text()).items() if t in Dataset(data, columns=["pdm"]).tokens()}
    assert known
    some, out = write(tmp_path / "t.json", known), tmp_path / "out.json"
    assert main(["--data", data, "--trajectories", str(some), "--version", version, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    for token, scene in known.items():
        for name, row in scene["rows"].items():
            for group in ("",) if version == "v1" else ("nofilter", "filtered"):
                expected, got = (row.get(group, row), found[token][name].get(group, found[token][name]))
                for column in set(got) & set(expected):
                    assert got[column] == pytest.approx(expected[column], abs=1e-5), (token, name, group, column)


def test_extended_comfort_of_a_column_is_that_of_neighbouring_scenes(data: str, tmp_path: Path) -> None:
    tokens = Dataset(data, columns=["pdm"]).tokens("pdm")
    path, out = write(tmp_path / "t.json", {t: {"a": STRAIGHT} for t in tokens}), tmp_path / "out.json"
    arguments = ["--data", data, "--trajectories", str(path), "--version", "v2", "--extended-comfort"]
    assert main([*arguments, "--out", str(out)]) == 0
    values = [r["a"]["filtered"]["two_frame_extended_comfort"] for r in json.loads(out.read_text()).values()]
    assert values.count(None) == 2  # the first of each log
    assert {0.0, 1.0} >= {v for v in values if v is not None}


def test_a_scene_of_a_dataset_without_context_is_named(data: str, tmp_path: Path) -> None:
    lost = next(iter(Dataset(data, columns=["pdm"]).quarantined("pdm")))
    path = write(tmp_path / "t.json", {lost: {"a": STRAIGHT}})
    with pytest.raises(SampleError, match=rf"{path}: token {lost} has no context: .*{data} as route_not_on_map"):
        main(["--data", data, "--trajectories", str(path), "--version", "v1"])
    path = write(tmp_path / "t.json", {"f" * 16: {"a": STRAIGHT}})
    with pytest.raises(SampleError, match=rf"{path}: token f* has no context: {data}.*is in no plan") as caught:
        main(["--data", data, "--trajectories", str(path), "--version", "v1"])
    assert caught.value.code == "unknown_token"
    with pytest.raises(AbsentError, match=rf"{data}: no column 'reward'.*jobs\.teachers"):
        main(["--data", data, "--column", "reward", "--trajectories", str(path), "--version", "v1"])


def test_a_column_of_another_version_is_refused(tmp_path: Path) -> None:
    only_v1 = write_reward_dataset(tmp_path, every=9, versions=("v1",))
    path = write(tmp_path / "t.json", {Dataset(only_v1, columns=["pdm"]).tokens("pdm")[0]: {"a": STRAIGHT}})
    with pytest.raises(AbsentError, match=rf"{only_v1}: column pdm cannot be scored as v2"):
        main(["--data", only_v1, "--trajectories", str(path), "--version", "v2"])


def test_a_bad_trajectory_for_a_column_names_file_and_token(data: str, tmp_path: Path) -> None:
    token = Dataset(data, columns=["pdm"]).tokens("pdm")[0]
    far = [[x * 1e300, y, h] for x, y, h in STRAIGHT]
    path = write(tmp_path / "t.json", {token: {"far": far}})
    with pytest.raises(SampleError, match=rf"{token}: candidate 0 cannot be driven"):
        main(["--data", data, "--trajectories", str(path), "--version", "v1"])


def test_one_source_and_only_one(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "t.json", {TOKEN: {"a": STRAIGHT}})
    rest = ["--trajectories", str(path), "--version", "v1"]
    for arguments in (rest, [*rest, "--data", data, "--metric-cache", str(DATA)]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
    assert "not allowed with argument" in capsys.readouterr().err
