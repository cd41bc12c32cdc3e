"""navhard's two stages: our numbers beside the devkit's own run, cell by cell, and what is said of half of it."""

from __future__ import annotations

import csv
import json
import lzma
import shutil
from pathlib import Path

import pytest

from jobs import evaluate, export, teachers
from jobs.score import main as score
from pipeline.reading.reader import Dataset
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from shards_schema.errors import AbsentError, ConfigError
from teachers.pdm import build
from tests.committed import commit
from tests.inline_job import run_inline
from tests.pipeline.sources.two_stage_toys import FOLDER, split_yaml, two_stage
from trainer.reward import Reward

GOLDEN = Path(__file__).parents[1] / "data" / "two_stage"
DRIVERS = ("human", "constant_velocity")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_stage(tmp_path_factory)


def dataset(root: Path, out: Path, maps: Path, **fields: str) -> str:
    source = NavsimSource(NavsimConfig(root=str(root), filter=str(split_yaml(root)), **fields))  # type: ignore[arg-type]
    commit(source, out, [build({"maps_root": str(maps), "versions": ["v2"]})])
    return str(out)


@pytest.fixture(scope="module")
def data(root: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the recipe makes of both stages, reactive traffic included."""
    out = tmp_path_factory.mktemp("both") / "out"
    with pytest.MonkeyPatch.context() as patch:
        run_inline(patch)
        patch.setenv("OPENSCENE_DATA_ROOT", str(root))
        keys = [f"out={out}", f"source.filter={split_yaml(root)}", "scan_processes=1"]
        teachers.main([str(Path(__file__).parents[2] / "configs" / "navhard.yaml"), *keys])
    return str(out)


def run(data: str, out: Path, split: Path, *more: str, worst: int = 0) -> int:
    keys = [f"data={data}", f"out={out}", f"split={split}", f"worst={worst}", "version=v2", "device=cpu"]
    return evaluate.main([*keys, *more])


def cells(path: Path) -> dict[tuple[str, str], str]:
    head, *rows = csv.reader(path.open())
    return {(row[1], name): cell for row in rows for name, cell in zip(head[2:], row[2:], strict=True)}


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize(("traffic", "name"), [("replay", "log_replay"), ("auto", "reactive")])
def test_each_cell_is_the_devkits(
    root: Path, data: str, driver: str, traffic: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path, split_yaml(root), f"baselines=[{driver}]", f"traffic={traffic}", worst=1) == 0
    golden = GOLDEN / f"{'replay' if traffic == 'replay' else 'reactive'}_{driver}.csv"
    ours, theirs = cells(tmp_path / f"{driver}.two_stage.{name}.csv"), cells(golden)
    assert ours.keys() == theirs.keys()
    for place, cell in theirs.items():
        if place[1] == "valid" or not cell:
            assert ours[place] == cell, place
        else:
            assert float(ours[place]) == pytest.approx(float(cell), abs=1e-5), place
    text = capsys.readouterr().out
    assert "planned 12 = scored 12" in text
    assert ("LOG REPLAY" in text, "not the leaderboard's" in text) == (traffic == "replay",) * 2
    assert ("traffic: reactive (IDM)" in text) == (traffic == "auto")


def test_half_of_the_benchmark_has_no_score(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = dataset(root, tmp_path / "half", root / "maps", second_stage="")
    assert run(half, tmp_path / "out", split_yaml(root)) == 1
    text = capsys.readouterr().out
    assert "the second stage is missing" in text
    assert "none of its 8 synthetic scenes" in text
    assert "NOT ACCOUNTED FOR 8" in text
    assert "two-stage EPDMS" not in text
    assert not list((tmp_path / "out").glob("*two_stage*"))
    with pytest.raises(AbsentError, match="write it with `reactive: true`"):
        run(half, tmp_path / "out", split_yaml(root), "traffic=reactive")


def test_a_part_and_a_filter_without_mapping_have_none_either(
    root: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, tmp_path, split_yaml(root), "limit=7", "traffic=replay") == 1
    assert "5 of 12 scenes of the mappings are not scored" in capsys.readouterr().out
    assert run(data, tmp_path, split_yaml(root).parent / "scene_filter" / f"{FOLDER}.yaml", "traffic=replay") == 1
    assert "no reactive_all_mapping" in capsys.readouterr().out
    assert run(data, tmp_path, Path("all")) == 0
    text = capsys.readouterr().out
    assert "of a two-stage split of NAVSIM, and this is no score of that" in text
    assert "extended comfort is in the score of 2 of 12 scenes" in text  # no follow-up is a frame of its log


def test_a_mapping_of_another_form_is_refused(root: Path, data: str, tmp_path: Path) -> None:
    shutil.copytree(split_yaml(root).parent, tmp_path / "filters")
    file = tmp_path / "filters" / f"{FOLDER}.yaml"
    file.write_text(file.read_text().split("reactive_all_mapping")[0] + "reactive_all_mapping: [[a, b]]\n")
    with pytest.raises(ConfigError, match=r"reactive_all_mapping should list \[token, token before"):
        run(data, tmp_path, file)


def test_follow_ups_are_paired_by_the_mapping_alone(
    root: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reward = Reward(data, version="v2")
    speeds = {t: float(reward.contexts([t])[0].ego_state[3]) for t in reward.tokens}
    plans = {t: {"straight": [[0.5 * k * v, 0.0, 0.0] for k in range(1, 9)]} for t, v in speeds.items()}
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    arguments = ["--data", data, "--trajectories", str(tmp_path / "plans.json"), "--version", "v2"]
    arguments += ["--extended-comfort", "--out", str(tmp_path / "rows.json")]

    def comfort() -> dict[str, float | None]:
        rows = json.loads((tmp_path / "rows.json").read_text())
        return {t: rows[t]["straight"]["filtered"]["two_frame_extended_comfort"] for t in rows}

    assert score(arguments) == 0
    text = capsys.readouterr().out
    assert "8 follow-ups have no extended comfort" in text
    assert "Traffic is replayed from the log here" in text
    alone = comfort()
    follow_ups = {t for t in alone if len(t) == 17}
    assert {t for t, value in alone.items() if value is None} >= follow_ups
    assert score([*arguments, "--mapping", str(split_yaml(root))]) == 0
    golden = cells(GOLDEN / "replay_constant_velocity.csv")
    for token, value in comfort().items():
        stage = "two" if token in follow_ups else "one"
        assert value == float(golden[token, f"two_frame_extended_comfort_stage_{stage}"]), token


def test_where_nobody_drove_on_the_human_has_no_score(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreseen = next(GOLDEN.glob("*.pkl.xz"))
    for folder in ("navsim_logs", "sensor_blobs", FOLDER):
        shutil.copytree(root / folder, tmp_path / "data" / folder)
    pickles = tmp_path / "data" / FOLDER / "synthetic_scene_pickles"
    token = foreseen.name.split(".")[0]
    (pickles / f"{token}.pkl").write_bytes(lzma.decompress(foreseen.read_bytes()))
    data = dataset(tmp_path / "data", tmp_path / "out", root / "maps")
    document = Dataset(data, columns=["samples"]).read(token, {"samples": ["json"]})["samples"]["json"]
    assert document["future"]["trajectory"] == []
    assert document["original"]
    with pytest.raises(ConfigError, match=f"{token} is a synthetic scene in which nobody drove on"):
        export.messages(document, export.ExportConfig(out=data, to=tmp_path / "x.jsonl"), 0)
    assert run(data, tmp_path / "evaluation", split_yaml(root)) == 0
    text = capsys.readouterr().out
    assert "human: no two-stage score: in 1 synthetic scenes nobody drove on" in text
    golden = cells(GOLDEN / "replay_constant_velocity.csv")  # the score of a driver does not ask what a human did there
    ours = cells(tmp_path / "evaluation" / "constant_velocity.two_stage.log_replay.csv")
    for place in (("extended_pdm_score_combined", "score"), (token, "score")):
        assert float(ours[place]) == pytest.approx(float(golden[place]), abs=1e-5)
