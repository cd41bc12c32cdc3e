"""`jobs.evaluate`: the numbers are the scorer's, every scene is accounted for, and files read as NAVSIM's own."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from jobs import evaluate
from jobs.evaluate import named
from pipeline.reading.reader import Dataset
from reports.evaluation.drivers import Answers, checked
from reports.evaluation.results import interval
from scoring import extended_comfort
from scoring.aggregate import epdms
from shards_schema.errors import AbsentError, ConfigError, SampleError
from tests.trainer.reward_toys import sft_policy, sft_recipe, write_reward_dataset
from trainer import checkpoint
from trainer.baselines import Scenes, train_mlp
from trainer.batch import collate
from trainer.build import load_policy
from trainer.data import DataConfig, ExampleMaker
from trainer.drive import drive
from trainer.reward import Reward
from trainer.splits import split

OFF_MAP = 3

V1 = ["no_at_fault_collisions", "drivable_area_compliance", "ego_progress", "time_to_collision_within_bound"]
V1 += ["comfort", "driving_direction_compliance", "score"]
V2 = ["no_at_fault_collisions", "drivable_area_compliance", "driving_direction_compliance", "traffic_light_compliance"]
V2 += ["ego_progress", "time_to_collision_within_bound", "lane_keeping", "history_comfort"]
V2 += ["two_frame_extended_comfort", "score"]
"""The headers that the devkit's scripts wrote (tag v1.1, main), copied from their output."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_reward_dataset(tmp_path_factory.mktemp("reward"), every=1, off_map=OFF_MAP)


@pytest.fixture(scope="module")
def policy(data: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return sft_policy(data, tmp_path_factory.mktemp("sft"))


def run(data: str, out: Path, *more: str) -> pd.DataFrame:
    more = more if any(key.startswith("worst=") for key in more) else (*more, "worst=0")
    code = evaluate.main([f"data={data}", f"out={out}", "device=cpu", *more])
    assert code == 0
    return pd.read_parquet(out / "scores.parquet")


def of(table: pd.DataFrame, policy: str) -> pd.DataFrame:
    return table[table["policy"] == policy].set_index("token")


def poses_of(rows: pd.DataFrame) -> torch.Tensor:
    return torch.tensor(np.array([np.stack(t) for t in rows["trajectory"]]), dtype=torch.float32)


def test_the_numbers_are_the_scorers(
    data: str, policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = run(data, tmp_path, f"policy={policy}", "chunk=5", "batch=3")
    assert set(table["policy"]) == {"stage_2", "human", "constant_velocity"}
    reward, loaded = Reward(data, version="v1"), load_policy(Path(policy))
    maker = ExampleMaker(reward_samples(data), loaded.config.samples, {})
    for name in set(table["policy"]):
        rows = of(table, name)
        scored = reward.score(list(rows.index), poses_of(rows).unsqueeze(1))
        assert rows["score"].tolist() == pytest.approx(scored.score[:, 0].tolist(), abs=1e-12)
        for column in V1[:-1]:
            assert rows[column].tolist() == pytest.approx(scored.subscores[column][:, 0].tolist(), abs=1e-12)
    rows = of(table, "stage_2")
    alone = torch.cat([drive(loaded, collate([maker.read(t)]))[0] for t in rows.index])
    assert torch.allclose(poses_of(rows), alone, atol=1e-4)
    batch = collate([maker.read(t) for t in rows.index])
    human = of(table, "human")
    assert torch.equal(poses_of(human), batch.future)
    assert human["ade_4"].max() == 0
    away = (alone - batch.future)[..., :2].norm(dim=-1)
    assert rows["fde_4"].tolist() == pytest.approx(away[:, -1].tolist(), abs=1e-3)
    text = capsys.readouterr().out
    assert f"held_out of {data}: planned {len(rows)} = scored {len(rows)} + without context 0" in text
    assert text.count("WARNING: Made with RANDOM WEIGHTS: toy") == 2  # before and after
    mean = f"{rows['score'].mean():.4f}"
    assert any(line.startswith("stage_2") and mean in line for line in text.splitlines())


def reward_samples(data: str) -> Dataset:
    return Dataset(data, columns=["samples"])


def test_held_out_is_what_training_held_out(data: str, policy: str, tmp_path: Path) -> None:
    table = run(data, tmp_path, f"policy={policy}", "baselines=[]")
    config = load_policy(Path(policy)).config
    dataset = Dataset(data, columns=["samples", "toy"])
    train, held = split(dataset, dataset.tokens("samples", "toy"), config.samples)
    planned = dataset.plan.table["token"].to_pylist()
    ready = Dataset(data, columns=["pdm"]).tokens("pdm")
    assert list(table["token"]) == [t for t in planned if t in held and t in ready]
    assert not set(table["token"]) & set(train)


def test_every_scene_is_accounted_for(data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = Dataset(data, columns=["samples"]).plan.table["token"].to_pylist()
    table = run(data, tmp_path / "all", "split=all", "baselines=[stop]")
    assert len(table) == len(planned) - OFF_MAP
    text = capsys.readouterr().out
    assert f"planned {len(planned)} = scored {len(table)} + without context {OFF_MAP}\n" in text
    assert f"{OFF_MAP} x pdm: route_not_on_map, e.g. " in text
    lost = next(iter(Dataset(data, columns=["pdm"]).quarantined("pdm")))
    names = tmp_path / "tokens.txt"
    names.write_text("\n".join([planned[-1], lost, planned[-1], "f" * 16]))
    arguments = [f"data={data}", f"out={tmp_path / 'some'}", f"split={names}", "baselines=[stop]", "worst=0"]
    assert evaluate.main(arguments) == 1
    text = capsys.readouterr().out
    assert "planned 3 = scored 1 + without context 1 + NOT ACCOUNTED FOR 1" in text
    assert "ffffffffffffffff is in no plan of this dataset" in text
    assert list(pd.read_parquet(tmp_path / "some" / "scores.parquet")["token"]) == [planned[-1]]
    filter_file = tmp_path / "navtest.yaml"
    filter_file.write_text(yaml.safe_dump({"_target_": "x", "num_history_frames": 4, "tokens": planned[-2:]}))
    table = run(data, tmp_path / "filter", f"split={filter_file}", "baselines=[stop]")
    assert list(table["token"]) == planned[-2:]


def test_nothing_scored_is_no_success(data: str, tmp_path: Path) -> None:
    lost = next(iter(Dataset(data, columns=["pdm"]).quarantined("pdm")))
    names = tmp_path / "tokens.txt"
    names.write_text(lost)
    assert evaluate.main([f"data={data}", f"out={tmp_path}", f"split={names}", "baselines=[stop]"]) == 1


@pytest.mark.parametrize(("version", "columns", "closing"), [("v1", V1, "average"), ("v2", V2, "average_all_frames")])
def test_the_csv_is_navsims(
    data: str, tmp_path: Path, version: str, columns: list[str], closing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table = of(run(data, tmp_path, f"version={version}", "baselines=[constant_velocity]"), "constant_velocity")
    with open(tmp_path / "constant_velocity.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["", "token", "valid", *columns]
    assert [r[0] for r in rows[1:]] == [str(i) for i in range(len(table) + 1)]
    assert rows[-1][1:3] == [closing, "True"]
    read = pd.read_csv(tmp_path / "constant_velocity.csv", index_col=0).set_index("token")
    body = read.iloc[:-1]
    assert list(body.index) == list(table.index)
    for column in columns:
        assert body[column].equals(table[column].rename(column)) or np.array_equal(
            body[column].to_numpy(), table[column].to_numpy(), equal_nan=True
        )
        assert read.loc[closing, column] == pytest.approx(body[column].mean(skipna=True))


def test_extended_comfort_stands_where_there_is_a_frame_before(data: str, tmp_path: Path) -> None:
    table = of(run(data, tmp_path, "version=v2", "split=all", "baselines=[stop]"), "stop")
    documents = {t: reward_samples(data).read(t, {"samples": ["json"]})["samples"]["json"] for t in table.index}
    scored = Reward(data, version="v2").score(list(table.index), poses_of(table).unsqueeze(1))
    place = {t: i for i, t in enumerate(table.index)}
    seen = 0
    for token, document in documents.items():
        earlier, apart = None, 0.0
        for other, d in documents.items():  # the logs' clocks jitter
            since = (document["timestamp"] - d["timestamp"]) * 1e-6
            if d["log"] == document["log"] and 0.4 < since < 0.55:
                earlier, apart = other, since
        value = table.loc[token, "two_frame_extended_comfort"]
        subscores = {k: v[place[token], 0] for k, v in scored.subscores.items()}
        if earlier is None:
            assert np.isnan(value)
            assert table.loc[token, "score"] == pytest.approx(float(epdms(subscores)), abs=1e-12)
            continue
        seen += 1
        expected = extended_comfort(scored.states[place[token], 0], scored.states[place[earlier], 0], apart)
        assert value == float(expected)
        assert table.loc[token, "score"] == pytest.approx(float(epdms(subscores, expected)), abs=1e-12)
    assert 20 < seen < len(table)


def test_best_of_n_is_the_best_by_the_score(data: str, policy: str, tmp_path: Path) -> None:
    more = [f"policy={policy}", "baselines=[best_of_n]", "samples=5", "temperature=2.0", "limit=4"]
    first = run(data, tmp_path / "a", *more, "seed=3")
    again = run(data, tmp_path / "b", *more, "seed=3", "chunk=1")
    name = "stage_2_best_of_5"
    assert of(first, name)["score"].tolist() == of(again, name)["score"].tolist()
    loaded, reward = load_policy(Path(policy)), Reward(data, version="v1")
    maker = ExampleMaker(reward_samples(data), loaded.config.samples, {})
    generator = torch.Generator().manual_seed(3)
    for token, row in of(first, name).iterrows():
        batch = collate([maker.read(str(token))])
        poses, _ = drive(loaded, batch, temperature=2.0, group=5, generator=generator)
        assert row["score"] == float(reward(str(token), poses).max())
    other = run(data, tmp_path / "c", *more, "seed=4")
    assert poses_of(of(other, name)).ne(poses_of(of(first, name))).any()


def test_the_mlp_learns_from_the_other_logs(data: str, policy: str, tmp_path: Path) -> None:
    table = run(data, tmp_path, f"policy={policy}", "baselines=[ego_status_mlp]", "limit=3")
    config = load_policy(Path(policy)).config
    dataset = Dataset(data, columns=["samples", "toy"])
    train, _ = split(dataset, dataset.tokens("samples", "toy"), config.samples)
    maker = ExampleMaker(dataset, config.samples, {})
    scenes = Scenes.of([collate([maker.read(t) for t in train])])
    mlp = train_mlp(scenes, inputs=0, steps=config.total_steps, batch=config.stream.batch_size, seed=config.seed)
    rows = of(table, "ego_status_mlp")
    test = collate([maker.read(t) for t in rows.index])
    with torch.no_grad():
        assert torch.allclose(poses_of(rows), mlp(test.status, test.command), atol=1e-5)


def test_answers_that_do_not_parse_score_zero_and_are_counted(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A student that was hardly trained writes no waypoints."""
    stages = [{"stage": 1, "steps": 1, "lr": 1e-4}, {"stage": 2, "steps": 1, "lr": 1e-4}]
    policy = sft_policy(data, tmp_path / "sft", answers={"kind": "text"}, stages=stages)
    out = tmp_path / "out"
    table = run(data, out, f"policy={policy}", "version=v2", "limit=3", "baselines=[]", "worst=2")
    assert not table["parsed"].any()
    assert table["score"].tolist() == [0.0] * 3
    assert table[V2[:-1]].isna().all(axis=None)
    text = capsys.readouterr().out
    assert "answers that did not parse, scored 0: stage_2 3 of 3" in text
    closing = (out / "stage_2.csv").read_text().splitlines()[-1].split(",")
    assert closing[2] == "False"
    assert closing[-1] == "0.0"
    assert "the answer did not parse: score 0" in (out / "worst.html").read_text()


def test_both_versions_have_a_folder_each(data: str, tmp_path: Path) -> None:
    arguments = [f"data={data}", f"out={tmp_path}", "version=both", "worst=2", "limit=4", "baselines=[human, stop]"]
    assert evaluate.main(arguments) == 0
    for version in ("v1", "v2"):
        names = {p.name for p in (tmp_path / version).iterdir()}
        assert names == {"scores.parquet", "human.csv", "stop.csv", "worst.html"}


def test_the_human_filter_and_its_switches(data: str, tmp_path: Path) -> None:
    options = ["version=v2", "split=all", "baselines=[stop]"]
    on = of(run(data, tmp_path / "on", *options), "stop")
    off = of(run(data, tmp_path / "off", *options, "use_human_filter=false"), "stop")
    consistent = of(run(data, tmp_path / "c", *options, "consistent=true"), "stop")
    filtered = V2[:-2]
    for name in filtered:
        assert on[f"unfiltered_{name}"].equals(off[name].rename(f"unfiltered_{name}"))
    assert on["pdm_score"].tolist() == off["pdm_score"].tolist()
    changed = (on[filtered].to_numpy() != off[filtered].to_numpy()).any(axis=1)
    assert (consistent["pdm_score"].to_numpy() != on["pdm_score"].to_numpy())[~changed].sum() == 0


def test_agent_yaml_is_the_agents(data: str, policy: str, tmp_path: Path) -> None:
    run(data, tmp_path, f"policy={policy}", "baselines=[]", "limit=1")
    written = yaml.safe_load((tmp_path / "agent.yaml").read_text())
    template = yaml.safe_load(
        (Path(evaluate.__file__).parents[1] / "navsim_agent" / "last_shards_agent.yaml").read_text()
    )
    assert written.keys() == template.keys()
    assert written["_target_"] == template["_target_"]
    assert written["checkpoint"] == str(Path(policy).resolve())
    assert (written["stored_size"], written["stored_quality"]) == ([48, 32], 90)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["baselines=[best_of_n]"], "best_of_n asks the policy"),
        (["baselines=[]"], "nothing to evaluate"),
        (["baselines=[teleport]"], r"baselines.0"),
        (["version=v3"], "version"),
        (["baselines=[stop, stop]"], "distinct"),
    ],
)
def test_a_config_that_cannot_be(data: str, tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate.main([f"data={data}", f"out={tmp_path}", *arguments])


def test_what_cannot_be_evaluated_is_named(data: str, policy: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.txt.*expected held_out, all, or a file"):
        evaluate.main([f"data={data}", f"out={tmp_path}", f"split={tmp_path / 'none.txt'}"])
    with pytest.raises(ConfigError, match="distinct files"):
        evaluate.main([f"data={data}", f"out={tmp_path}", f"policy=[{policy}, {policy}]"])
    short = sft_policy(data, tmp_path / "short", samples={"image": [48, 32], "held_out": 0.25, "steps": 6})
    with pytest.raises(ConfigError, match="stage_2 plans 6 poses"):
        evaluate.main([f"data={data}", f"out={tmp_path}", f"policy={short}"])
    with pytest.raises(AbsentError, match=r"no column 'reward' to score with.*jobs\.teachers"):
        evaluate.main([f"data={data}", f"out={tmp_path}", "column=reward"])
    only_v1 = write_reward_dataset(tmp_path / "v1", every=9, versions=("v1",))
    with pytest.raises(AbsentError, match="cannot be scored as v2"):
        evaluate.main([f"data={only_v1}", f"out={tmp_path}", "version=v2", "split=all"])


def test_notes_say_when_a_policy_may_have_seen_the_scenes(
    data: str, policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(data, tmp_path, f"policy={policy}", "baselines=[]", "limit=1")
    assert "NOTE" not in capsys.readouterr().out
    run(data, tmp_path, f"policy={policy}", "baselines=[]", "limit=40", "split_seed=1")
    assert "NOTE: stage_2 was trained with another split" in capsys.readouterr().out
    # the same split by its numbers, but of a dataset that had fewer logs when the policy was trained
    content = checkpoint.load(Path(policy))
    earlier = tmp_path / "earlier.pt"
    other = next(t for t in Dataset(data, columns=["samples"]).tokens("samples") if t not in content["held_out"])
    torch.save(content | {"held_out": [other]}, earlier)
    run(data, tmp_path, f"policy=[{policy}, {earlier}]", "baselines=[]", "limit=40")
    said = capsys.readouterr().out
    assert "NOTE: earlier was trained with another split: it may have learnt from these logs." in said
    assert "NOTE: stage_2 was" not in said
    run(data, tmp_path, f"policy={policy}", "baselines=[]", "limit=4", "split=all")
    assert "NOTE: stage_2 may have learnt from some of these scenes" in capsys.readouterr().out


def test_a_plan_that_is_not_finite_names_driver_and_token() -> None:
    poses = torch.zeros(3, 2, 8, 3)
    fine = Answers(poses, torch.ones(3, 2, dtype=torch.bool))
    assert checked("x", ["a", "b", "c"], fine) is fine
    poses[1, 1, 4, 0] = float("nan")
    with pytest.raises(SampleError, match=r"x: token b: poses that are not finite \(1 of 3 scenes\)"):
        checked("x", ["a", "b", "c"], fine)


def test_names_are_told_apart() -> None:
    paths = [Path("/a/sft/stage_2.pt"), Path("/a/grpo/stage_2.pt")]
    assert list(named(paths)) == ["sft_stage_2", "grpo_stage_2"]
    assert list(named(paths[:1])) == ["stage_2"]
    assert named([]) == {}


def test_the_interval_draws_logs_not_scenes() -> None:
    logs = [f"log{i}" for i in range(10) for _ in range(50)]
    each_log = np.repeat(np.arange(10) / 10, 50)  # scenes of a log are all alike
    low, high = interval(each_log, logs) or (0, 0)
    assert 0.2 < low < 0.36 < 0.54 < high < 0.7  # 10 independent values, not 500
    assert interval(each_log[:100], logs[:100]) is None
    assert sft_recipe("x", "y").samples.steps == DataConfig().steps == 8
