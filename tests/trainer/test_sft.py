"""The supervised loop on a dataset that the real worker wrote: learning, resuming, controls, and what is refused."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.reading.reader import Dataset
from shards_schema import layout
from shards_schema.errors import ConfigError, DatasetError, MismatchError, MissingFileError
from tests.trainer.shard_toys import recipe
from tests.trainer.trainer_toys import CHANNELS, STILL, assert_same, batch_of, tiny_student, with_other
from trainer import baselines, checkpoint
from trainer.baselines import Scenes, constant_velocity, train_mlp
from trainer.batch import Example
from trainer.build import load_policy
from trainer.config import OptimiserConfig, StageConfig
from trainer.data import ExampleMaker
from trainer.evaluate import displacement, summary, zeroed_latents
from trainer.held import HeldOut
from trainer.latents import Statistics
from trainer.losses import LossWeights
from trainer.model import SFTModel
from trainer.optimiser import DivergedError, learning_rate, make_optimiser, set_rate
from trainer.segments import allow_table
from trainer.sft import SFT

CPU = torch.device("cpu")


def start(data: str, out: Path, **changes: Any) -> SFT:
    return SFT(recipe(data, out, **changes), CPU, log=lambda text: None)


@pytest.fixture(scope="module")
def whole(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from beginning to end."""
    out = tmp_path_factory.mktemp("whole")
    start(shards, out, keep=10).fit()
    return out


@pytest.mark.parametrize("killed", [1, 2, 3, 4, 5])
def test_resumed_after_a_kill_at_any_step_it_ends_with_the_same_bits(
    shards: str, whole: Path, tmp_path: Path, killed: int
) -> None:
    start(shards, tmp_path).fit(until=killed)
    again = start(shards, tmp_path)
    assert again.step == killed
    again.fit()
    assert_same(whole / "checkpoints" / "step_00000006", tmp_path / "checkpoints" / "step_00000006")
    assert_same(whole / "stage_2.pt", tmp_path / "stage_2.pt")


def test_steps_that_were_not_saved_are_done_again(shards: str, whole: Path, tmp_path: Path) -> None:
    start(shards, tmp_path, save_every=2).fit(until=5)
    again = start(shards, tmp_path, save_every=2)
    assert again.step == 4
    again.fit()
    assert_same(whole / "stage_2.pt", tmp_path / "stage_2.pt")


def test_an_epoch_that_ends_within_the_run_is_resumed_too(shards: str, tmp_path: Path) -> None:
    """15 training samples, batches of 4: an epoch has 3 steps, the last samples of it are left out."""
    stages = [{"stage": 1, "steps": 8, "lr": 1e-3}]
    start(shards, tmp_path / "a", stages=stages).fit()
    for until in (3, 4, 7):
        start(shards, tmp_path / "b", stages=stages).fit(until=until)
    last = start(shards, tmp_path / "b", stages=stages)
    last.fit()
    assert last.stream.epoch == 2
    assert_same(tmp_path / "a" / "stage_1.pt", tmp_path / "b" / "stage_1.pt")


def test_another_recipe_in_the_same_place_is_refused(shards: str, whole: Path) -> None:
    with pytest.raises(MismatchError, match="optimiser"):
        start(shards, whole, keep=10, optimiser={"clip": 0.5})
    assert start(shards, whole, keep=10, log_every=7).step == 6  # how often is logged may differ


def test_checkpoints_are_pruned_and_half_written_ones_are_not_seen(shards: str, tmp_path: Path) -> None:
    run = start(shards, tmp_path, keep=2)
    folder = tmp_path / "checkpoints"
    for half in (".step_00000002", ".step_00000009"):
        (folder / half).mkdir(parents=True)
        (folder / half / "shard-00007-model-00001-of-00001.safetensors").write_bytes(b"half")
    run.fit(until=4)
    assert sorted(p.name for p in folder.iterdir()) == ["step_00000003", "step_00000004"]
    for path in folder.iterdir():
        assert {p.name[:12] for p in path.iterdir()} == {"shard-00001-", "state.pt"}
    tensors = next((folder / "step_00000004").glob("*.safetensors"))
    tensors.write_bytes(tensors.read_bytes()[:-4])
    with pytest.raises(DatasetError, match=r"safetensors is not what was written; move step_00000004 away to go on"):
        start(shards, tmp_path, keep=2)
    (folder / "step_00000004" / "state.pt").write_bytes(b"damaged")
    with pytest.raises(DatasetError, match=r"not a checkpoint .* move step_00000004 away to go on"):
        start(shards, tmp_path, keep=2)
    with pytest.raises(MissingFileError):
        checkpoint.load(tmp_path / "nothing.pt")


def test_held_out_is_whole_logs_and_nothing_is_in_both(shards: str, whole: Path) -> None:
    run = start(shards, whole, keep=10)
    logs = dict(
        zip(run.dataset.plan.table["token"].to_pylist(), run.dataset.plan.table["log"].to_pylist(), strict=True)
    )
    train, held = {logs[t] for t in run.train_tokens}, {logs[t] for t in run.held_tokens}
    assert len(held) == 1
    assert not train & held
    assert len(run.train_tokens) + len(run.held_tokens) == 20


def test_notices_of_random_and_synthetic_data_are_in_every_file(whole: Path) -> None:
    for path in (whole / "stage_1.pt", whole / "checkpoints" / "step_00000006"):
        said = " ".join(checkpoint.load(path)["notices"])
        assert "synthetic" in said
        assert "RANDOM WEIGHTS" in said


def test_statistics_are_those_of_the_training_split(shards: str, whole: Path) -> None:
    run = start(shards, whole, keep=10)
    rows = torch.stack([torch.from_numpy(row["geo"]) for row in run.reader.targets(run.train_tokens)])
    stored = checkpoint.load(whole / "stage_2.pt")["statistics"]["geo"]
    torch.testing.assert_close(stored["mean"], rows.mean((0, 1)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stored["std"], rows.std((0, 1), correction=0), rtol=1e-4, atol=1e-5)


def test_statistics_of_the_column_need_no_pass(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = start(shards, tmp_path / "a")
    monkeypatch.setattr(ExampleMaker, "targets", lambda *_: pytest.fail("the training split was read"))
    run = start(shards, tmp_path / "b", statistics="column")
    dataset = Dataset(shards)
    grids = np.stack([dataset.read(t)["toy"]["grid"] for t in dataset.tokens("toy")]).astype(np.float64)
    for kind, stats in run.model.statistics.items():
        np.testing.assert_allclose(stats.mean, grids.mean((0, 1, 2, 3)), rtol=1e-6)
        np.testing.assert_allclose(stats.std, grids.std((0, 1, 2, 3)), rtol=1e-6)
        assert (split.model.statistics[kind].std < 0.8 * stats.std).all()  # averages vary less than their cells
    run.fit(until=2)
    again = start(shards, tmp_path / "b", statistics="column")
    assert again.step == 2
    assert torch.equal(again.model.statistics["wm"].std, run.model.statistics["wm"].std)
    with pytest.raises(MismatchError, match="statistics: column -> split"):
        start(shards, tmp_path / "b")


def test_a_column_without_statistics_says_what_to_do(shards: str, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(shards, tmp_path / "data"))
    (bare / layout.statistics("toy")).unlink()
    with pytest.raises(ConfigError, match=r"toy has no statistics .* take statistics: split"):
        start(str(bare), tmp_path / "out", statistics="column")
    grid = {"column": "toy", "target": "grid", "channel": "row", "grid": {"step": 1, "col": 1, "channel": 2}}
    targets = recipe(shards, tmp_path).model_dump()["targets"] | {"wm": grid}
    with pytest.raises(ConfigError, match="not along 'row'"):
        start(shards, tmp_path / "out", statistics="column", targets=targets)
    start(shards, tmp_path / "out", targets=targets)  # whatever the features are, a split has statistics of them


def test_a_run_of_before_a_field_of_the_recipe_goes_on(shards: str, whole: Path, tmp_path: Path) -> None:
    theirs = whole / "checkpoints" / "step_00000004"
    recorded = json.loads(checkpoint.load(theirs)["config"])
    del recorded["statistics"]
    with_other(theirs, tmp_path / "checkpoints" / "step_00000004", config=json.dumps(recorded))
    assert start(shards, tmp_path, keep=10).step == 4
    with pytest.raises(MismatchError, match="statistics"):
        start(shards, tmp_path, keep=10, statistics="column")


def test_a_policy_needs_no_adapters(shards: str, whole: Path, tmp_path: Path) -> None:
    content = checkpoint.load(whole / "stage_2.pt")
    assert content["adapters"]
    assert not any("adapter" in k for k in content["student"])
    del content["adapters"]
    checkpoint.save(tmp_path / "bare.pt", content)
    run = start(shards, whole, keep=10)
    batch = run.held_batches()[0]
    table = allow_table(2)
    trained = run.model.student.eval().sample(batch, table, temperature=0)
    for path in (whole / "stage_2.pt", tmp_path / "bare.pt"):
        policy = load_policy(path)
        assert policy.notices == tuple(run.notices)
        assert policy.table_stage == 2
        loaded = policy.student.sample(batch, table, temperature=0)
        assert torch.equal(loaded.tokens, trained.tokens)
        assert torch.equal(loaded.logp, trained.logp)


def test_a_checkpoint_of_another_student_is_refused(whole: Path) -> None:
    weights = checkpoint.load(whole / "stage_2.pt")["student"]
    with pytest.raises(DatasetError, match="another student"):
        checkpoint.load_weights(tiny_student(depth=3), weights)


def test_accumulated_batches_are_one_batch(shards: str, tmp_path: Path) -> None:
    common = {"stages": [{"stage": 1, "steps": 2, "lr": 1e-3}]}
    student = {
        "kind": "tiny",
        "width": 16,
        "depth": 2,
        "heads": 2,
        "image": [48, 32],
        "dropout": 0.0,
        "answer_dropout": 0.0,
        **STILL,
    }
    small = start(
        shards, tmp_path / "a", student=student, stream={"batch_size": 2, "threads": 1},
        optimiser={"accumulate": 2}, **common,
    )  # fmt: skip
    large = start(shards, tmp_path / "b", student=student, **common)
    assert small.step_samples == large.step_samples == 4
    for run in (small, large):  # Adam would blow up the rounding of gradients that are zero but for it
        run._optimiser = torch.optim.SGD([{"params": list(run.model.parameters()), "scale": 100.0}])  # type: ignore[assignment]
        run.fit()
    for name, value in large.model.state_dict().items():
        torch.testing.assert_close(small.model.state_dict()[name], value, atol=1e-6, rtol=0, msg=name)


def test_shuffled_teachers_are_those_of_another_sample_in_training_only(shards: str, tmp_path: Path) -> None:
    honest = start(shards, tmp_path / "a")
    control = start(shards, tmp_path / "b", controls={"shuffle_teachers": True})
    own = {t: honest.reader.read(t) for t in honest.train_tokens}
    seen = {}
    for batch in control.stream.batches(collate=lambda examples: list(examples)):
        seen |= {e.token: e for e in batch}
    assert seen.keys() == own.keys()
    for token, example in seen.items():
        assert (example.future == own[token].future).all()
        assert (example.images == own[token].images).all()
        assert (example.targets["geo"] != own[token].targets["geo"]).any()
        assert any((example.targets["geo"] == other.targets["geo"]).all() for other in own.values())
    a, b = honest.held_batches(), control.held_batches()
    assert torch.equal(a[0].targets["wm"], b[0].targets["wm"])


def test_hidden_images_are_grey_in_training_and_in_evaluation(shards: str, tmp_path: Path) -> None:
    run = start(shards, tmp_path / "a", controls={"hide_images": True})
    (first,) = next(iter(run.stream.batches(collate=lambda examples: list(examples))))[:1]
    assert (first.images == 128).all()
    assert (run.held_batches()[0].images == 128).all()
    seeing = start(shards, tmp_path / "b").reader.read(first.token)
    assert seeing.images.std() > 0
    assert (seeing.status == first.status).all()


def test_held_out_samples_are_read_when_they_are_due(shards: str, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = start(shards, whole, keep=10)
    read, own = list[str](), run.reader.read

    def noted(token: str) -> Example:
        read.append(token)
        return own(token)

    monkeypatch.setattr(run.reader, "read", noted)
    assert len(run.held_batches()) == 1
    held = HeldOut(run.reader, run.held_tokens, 2)
    blind = held.blind()
    assert not read
    found = run.evaluate(held)
    assert sorted(read) == sorted(run.held_tokens)
    kept = list(held)
    assert run.evaluate(kept) == found
    assert [b.tokens for b in kept] == [b.tokens for b in held[:]] == [b.tokens for b in blind]
    for seen, unseen in zip(kept, blind, strict=True):
        assert all(torch.equal(getattr(seen, name), getattr(unseen, name)) for name in ("status", "command", "future"))
        assert unseen.images.numel() == len(unseen.targets) == 0
    assert run.oracle(blind) == run.oracle(kept)


def test_zeroed_latents_change_what_is_said_and_only_while_asked(shards: str, whole: Path) -> None:
    run = start(shards, whole, keep=10)
    held = run.held_batches()
    before = run.evaluate(held)
    with zeroed_latents(run.model.student):
        student, batch = run.model.student.eval(), held[0]
        out = student(batch, run.answers.encode(batch.future, batch.status), allow_table(2))
        changed = run.evaluate(held)
    assert changed["answer"] != before["answer"]
    assert out.latents["wm"].std(0).abs().max() < 1e-6  # the same for every scene: nothing of the image is left in them
    assert run.evaluate(held) == before


@pytest.mark.parametrize("parse", [0, 1])
def test_errors_are_means_over_answers_that_parse_or_nothing(
    shards: str, whole: Path, monkeypatch: pytest.MonkeyPatch, parse: int
) -> None:
    """The true drives as answers, of which the first `parse` of each batch count; no other has a say."""
    run = start(shards, whole, keep=10)
    held = run.held_batches()

    def answer(batch: Any, table: Any) -> tuple[torch.Tensor, torch.Tensor]:
        told = torch.arange(len(batch)) < parse
        return torch.where(told[:, None, None], batch.future.float(), 1e3), told

    monkeypatch.setattr(run.model.student, "answer", answer)
    found = run.evaluate(held)
    errors = {k: v for k, v in found.items() if k.startswith(("ade_", "fde_"))}
    assert found["unparsed"] == 1 - parse * len(held) / found["samples"]
    assert set(errors.values()) == ({0.0} if parse else set())
    assert all(math.isfinite(v) for v in found.values())
    assert ("ADE 0.000" in summary(found)) == bool(parse)
    assert "did not parse" in summary(found)
    assert baselines.scores(torch.zeros(0, 8, 3), torch.zeros(0, 8, 3)) == {}


def test_no_mask_is_a_switch(shards: str, tmp_path: Path) -> None:
    run = start(shards, tmp_path, stages=[{"stage": 1, "steps": 2, "mask": 2}])
    assert run.config.stages[0].table_stage == 2
    run.check_mask(run.held_batches()[0])
    run.fit()
    assert checkpoint.load(tmp_path / "stage_1.pt")["table_stage"] == 2


def test_bfloat16_trains(shards: str, tmp_path: Path) -> None:
    """Passes in autocast, gradients outside it: what is multiplied there has the dtype that the pass gave it."""
    run, within = start(shards, tmp_path, dtype="bfloat16"), set[bool]()
    for parameter in run.model.parameters():
        parameter.register_hook(lambda gradient: within.add(torch.is_autocast_enabled("cpu")))
    run.fit()
    assert within == {False}
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert math.isfinite(run.evaluate(run.held_batches())["answer"])


def test_a_step_that_is_not_finite_stops_the_run(shards: str, tmp_path: Path) -> None:
    run = start(shards, tmp_path)
    run.fit(until=2)
    with torch.no_grad():
        run.model.student.latents.inputs.fill_(torch.nan)
    with pytest.raises(DivergedError, match=r"step 2.*step_00000002"):
        run.fit()


def test_targets_that_are_not_there_are_named(shards: str, tmp_path: Path) -> None:
    targets = {
        "wm": {"column": "toy", "target": "nothing", "grid": {"row": 1}},
        "geo": {"column": "toy", "target": "grid", "grid": {"row": 1}},
    }
    with pytest.raises(ConfigError, match=r"no 'nothing'; it has grid, mean, path"):
        start(shards, tmp_path, targets=targets)
    with pytest.raises(ConfigError, match=r"data\.steps is 8, the samples hold 3"):
        start(shards, tmp_path, samples={"steps": 8})
    with pytest.raises(ConfigError, match=r"a step takes 16 .*there is no whole one"):
        start(shards, tmp_path, stream={"batch_size": 16})


def test_numbers_are_reported_apart(shards: str, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    def note(step: int, numbers: Mapping[str, float]) -> None:
        seen.append({"step": step, **numbers})

    start(shards, tmp_path).fit(on_numbers=note)
    train = [n for n in seen if "train/loss" in n]
    held = [n for n in seen if "held/answer" in n]
    parts = {"answer", "wm_cosine", "wm_smooth_l1", "geo_cosine", "geo_smooth_l1", "gradient", "lr", "samples_per_s"}
    assert {f"train/{p}" for p in parts} <= train[0].keys()
    assert {"held/cosine_wm", "held/cosine_geo", "held/ade_1", "held/fde_1", "held/unparsed"} <= held[0].keys()
    assert [n["step"] for n in train] == [1, 2, 3, 4, 5, 6]
    json.dumps(seen)


def test_an_optimiser_of_before_goes_on_fused() -> None:
    """A step of one kernel a group differs by rounding, and takes up the moments of one that was not fused."""
    models, config = [tiny_student(), tiny_student()], OptimiserConfig()
    ours, plain = (make_optimiser(model, config) for model in models)
    assert all(group["fused"] for group in ours.param_groups)
    for group in plain.param_groups:
        group["fused"] = False
    for step in range(4):
        if step == 2:
            state = copy.deepcopy(plain.state_dict()["state"])
            ours.load_state_dict({"state": state, "param_groups": ours.state_dict()["param_groups"]})
        for model, optimiser in zip(models, (ours, plain), strict=True):
            torch.manual_seed(step)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            set_rate(optimiser, 1e-2)
            optimiser.step()
        for one, other in zip(*(model.parameters() for model in models), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_learning_rate_warms_up_and_ends_at_its_floor() -> None:
    stage = StageConfig(stage=1, steps=100, lr=2.0, warmup=0.1, min_lr=0.25)
    rates = [learning_rate(stage, k) for k in range(100)]
    assert rates[0] == pytest.approx(2 / 11)
    assert rates[10] == max(rates) == 2.0
    assert rates == [*sorted(rates[:10]), *sorted(rates[10:], reverse=True)]
    assert rates[-1] == pytest.approx(0.5, abs=0.01)


def test_eight_samples_are_learnt_by_heart() -> None:
    """CE below .01 and cosines above .99, under the stage-1 mask."""
    statistics = {k: Statistics(torch.zeros(c), torch.ones(c)) for k, c in CHANNELS.items()}
    student = tiny_student(width=64)
    model, batch = SFTModel(student, CHANNELS, 128, statistics), batch_of(8)
    weights = LossWeights(wm=1, geo=1, answer=1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    steps = 200
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps)
    for _ in range(steps):
        loss, parts = model(batch, 1, weights)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    assert parts["answer"] < 0.01
    assert parts["wm_cosine"] < 0.01
    assert parts["geo_cosine"] < 0.01
    sampled = student.sample(batch, allow_table(1), temperature=0)
    assert torch.equal(sampled.tokens, student.answers.encode(batch.future, batch.status))


def test_baselines() -> None:
    status = torch.zeros(2, 4, 7)
    status[:, -1, 3] = torch.tensor([4.0, 0.0])
    line = constant_velocity(status, 4)
    torch.testing.assert_close(line[0, :, 0], torch.tensor([2.0, 4.0, 6.0, 8.0]))
    assert (line[1] == 0).all()
    assert (line[..., 1:] == 0).all()
    generator = torch.Generator().manual_seed(0)
    status = torch.randn(200, 4, 7, generator=generator)
    future = status[:, -1, 3:4, None] * torch.arange(1, 5).view(1, 4, 1) * torch.tensor([1.0, 0, 0])
    scenes = Scenes(status, torch.zeros(200, dtype=torch.long), future)
    for inputs in (0, 4):
        mlp = train_mlp(scenes, inputs=inputs, steps=300, batch=32, seed=0)
        with torch.no_grad():
            assert displacement(mlp(status, scenes.command), future)["ade_2"].mean() < 0.6
    before = torch.get_rng_state()
    train_mlp(scenes, inputs=0, steps=2, batch=4, seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_displacement_is_at_half_second_steps() -> None:
    future = torch.zeros(1, 8, 3)
    predicted = future.clone()
    predicted[0, :, 0] = torch.arange(1, 9)
    predicted[0, :, 2] = 9.0
    found = displacement(predicted, future)
    assert {k: v.item() for k, v in found.items()} == {
        "ade_1": 1.5, "fde_1": 2.0, "ade_2": 2.5, "fde_2": 4.0, "ade_3": 3.5, "fde_3": 6.0, "ade_4": 4.5, "fde_4": 8.0
    }  # fmt: skip
