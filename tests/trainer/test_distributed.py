"""Two processes with gloo: DDP and FSDP2 give the gradients, and train to the weights, of one process.

A run may resume with other ranks; what fails on one rank fails on all.
"""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import experiments, grpo_experiments
from shards_schema.errors import ConfigError, MismatchError, StoreError
from tests.trainer import trainer_toys
from tests.trainer.shard_toys import recipe
from tests.trainer.trainer_toys import CHANNELS, STILL, batch_of, tensors_of, tiny_student
from trainer import build, checkpoint, distributed
from trainer.answers.text import TextAnswers
from trainer.config import SFTConfig
from trainer.distributed import ParallelConfig
from trainer.held import shared
from trainer.latents import Statistics
from trainer.losses import LossWeights
from trainer.model import SFTModel
from trainer.run import Batches
from trainer.segments import allow_table
from trainer.sft import SFT
from trainer.students.base import Sampled

WEIGHTS = LossWeights(wm=1, geo=1, answer=0.5)
CPU = torch.device("cpu")
MODES = ("ddp", "fsdp")


def make() -> SFTModel:
    """The same weights in every process."""
    statistics = {k: Statistics(torch.zeros(c), torch.ones(c)) for k, c in CHANNELS.items()}
    return SFTModel(tiny_student(), CHANNELS, 16, statistics)


def gradients(model: SFTModel) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        gradient: Any = parameter.grad
        found[name] = gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient
    return found


def plain_recipe(shards: str, out: Path, batch: int, **changes: Any) -> Any:
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
    stages = [{"stage": 1, "steps": 4, "lr": 1e-3}]
    stream = {"batch_size": batch, "threads": 1}
    return recipe(shards, out, student=student, stages=stages, stream=stream, optimiser={"clip": 1e9}, **changes)


def said_by(rank: int, *, sharded: bool) -> Sampled:
    """One text of a rank, drawn; those of two ranks do not end together."""
    student, device = tiny_student(TextAnswers(2, 0)), torch.device("cpu")
    if sharded:
        distributed.shard(student, student.blocks, (), ParallelConfig(mode="fsdp"), device, torch.float32)
    generator = torch.Generator().manual_seed(rank)
    return student.sample(batch_of(2)[rank : rank + 1], allow_table(2), generator=generator)


def start_student(content: dict[str, Any]) -> torch.nn.Module:
    """The student of a checkpoint, untrained."""
    config = SFTConfig.model_validate_json(content["config"])
    answers = build.restore_answers(content["answers"], config.student)
    return build.make_student(config.student, answers, config.counts, views=1, history=content["history"])


def train(config: Any, until: int | None = None) -> SFT:
    """By SGD: Adam would blow up the rounding of gradients that are zero but for it."""
    run = SFT(config, CPU, log=lambda text: None)
    run._optimiser = torch.optim.SGD([{"params": list(run.model.parameters()), "scale": 10.0}])  # type: ignore[assignment]
    run.fit(until=until)
    return run


class Noted(SFT):
    """Notes the samples of each step, of this rank."""

    seen: list[list[str]]

    def _advance(self, batches: Batches) -> None:
        self.seen = [*getattr(self, "seen", []), []]

        def noted() -> Batches:
            for batch in batches:
                self.seen[-1] += batch.tokens
                yield batch

        super()._advance(noted())


def elastic_recipe(shards: str, out: Path, batch: int, accumulate: int = 1, **stream: Any) -> SFTConfig:
    """Twelve steps of four samples; fifteen samples are three such steps, and three that are left out."""
    stages = [{"stage": 1, "steps": 12, "lr": 1e-3}]
    stream = {"batch_size": batch, "threads": 1, **stream}
    quiet = {"evaluate_every": 99, "save_every": 5}
    return recipe(shards, out, stages=stages, stream=stream, optimiser={"accumulate": accumulate}, **quiet)


def written_to_a_full_disk(path: Path) -> str:
    """What a rank says of it; rank 0 may write one page."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        checkpoint.save(path, {"weights": torch.zeros(10_000)})
    except StoreError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return ""


def worker(rank: int, root: str, shards: str) -> None:
    with trainer_toys.joined(rank, root) as device:
        batch = batch_of(4)[2 * rank : 2 * rank + 2]
        for mode in MODES:
            config, model = ParallelConfig(mode=mode), make()
            distributed.shard(
                model.student, model.student.blocks, model.adapters.values(), config, device, torch.float32
            )
            wrapped = distributed.wrap(model, config, device)
            for i, part in enumerate((batch[0:1], batch[1:2])):
                with distributed.no_sync(wrapped, last=i == 1):
                    loss, _ = wrapped(part, 1, WEIGHTS)
                    (loss / 2).backward()
            own = gradients(model)  # before FSDP gathers the weights again
            sampled = model.student.sample(batch, allow_table(1), temperature=0)
            found = {"gradients": own, "tokens": sampled.tokens, "logp": sampled.logp}
            torch.save(found, Path(root, f"{mode}_{rank}.pt"))
            if mode == "fsdp":
                drawn = said_by(rank, sharded=True)
                torch.save({"tokens": drawn.tokens, "logp": drawn.logp}, Path(root, f"text_{rank}.pt"))
            run = train(plain_recipe(shards, Path(root, f"run_{mode}"), 2, parallel={"mode": mode}), until=3)
            torch.save(run.evaluate(run.held_batches()), Path(root, f"held_{mode}_{rank}.pt"))
        run = Noted(elastic_recipe(shards, Path(root, "elastic"), 2), CPU, log=lambda text: None)
        run.fit(until=5)
        Path(root, f"seen_{rank}.json").write_text(json.dumps(run.seen))
        Path(root, f"blocks_{rank}.json").write_text(json.dumps(distributed.in_blocks(range(10), list, size=3)))
        places = [(place, counts) for place, _, counts in shared([batch] * 3, make().student)]
        Path(root, f"shared_{rank}.json").write_text(json.dumps(places))
        Path(root, f"full_{rank}.txt").write_text(written_to_a_full_disk(Path(root, "full", "step_00000001.pt")))
        both = {"batch_size": 2, "threads": 1}
        half = recipe(shards, Path(root, "half"), stream=both, parallel={"mode": "fsdp"}, dtype="bfloat16")
        SFT(half, CPU, log=lambda text: None).fit(until=5)
        SFT(half, CPU, log=lambda text: None).fit()


@pytest.fixture(scope="module")
def two_ranks(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    return trainer_toys.two_ranks(worker, tmp_path_factory.mktemp("ranks"), shards)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_two_ranks_are_those_of_one_process(two_ranks: Path, mode: str) -> None:
    """With accumulation: four samples, two a rank, one at a time."""
    model = make()
    loss, _ = model(batch_of(4), 1, WEIGHTS)
    loss.backward()
    alone = gradients(model)
    for rank in range(2):
        found = torch.load(two_ranks / f"{mode}_{rank}.pt", weights_only=True)["gradients"]
        assert found.keys() == alone.keys()
        for name, gradient in alone.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=0, msg=name)


def test_ranks_share_blocks_and_batches(two_ranks: Path) -> None:
    for rank in range(2):
        blocks = json.loads((two_ranks / f"blocks_{rank}.json").read_text())
        assert blocks == distributed.in_blocks(range(10), list, size=3) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    first, second = (json.loads((two_ranks / f"shared_{rank}.json").read_text()) for rank in range(2))
    assert (first, second) == ([[0, True], [2, True]], [[1, True], [3, False]])


@pytest.mark.parametrize("mode", MODES)
def test_answers_are_sampled_from_sharded_weights(two_ranks: Path, mode: str) -> None:
    student = make().student
    for rank in range(2):
        found = torch.load(two_ranks / f"{mode}_{rank}.pt", weights_only=True)
        alone = student.sample(batch_of(4)[2 * rank : 2 * rank + 2], allow_table(1), temperature=0)
        assert torch.equal(found["tokens"], alone.tokens)
        torch.testing.assert_close(found["logp"], alone.logp, atol=1e-5, rtol=0)


def test_a_rank_whose_answers_have_ended_goes_on_for_the_others(two_ranks: Path) -> None:
    """Each step of a sharded student needs every rank."""
    lengths = []
    for rank in range(2):
        found, alone = torch.load(two_ranks / f"text_{rank}.pt", weights_only=True), said_by(rank, sharded=False)
        assert torch.equal(found["tokens"], alone.tokens)
        torch.testing.assert_close(found["logp"], alone.logp, atol=1e-5, rtol=0)
        lengths.append(int((alone.tokens >= 0).sum()))
    assert lengths[0] != lengths[1]


@pytest.mark.parametrize("mode", MODES)
def test_a_run_on_two_ranks_is_the_run_on_one(two_ranks: Path, shards: str, tmp_path: Path, mode: str) -> None:
    """Loop, stream, evaluation and checkpoint: same samples a step, same weights, the same cursor."""
    alone = train(plain_recipe(shards, tmp_path, 4), until=3)
    last = Path("checkpoints", "step_00000003")
    theirs, own = tensors_of(two_ranks / f"run_{mode}" / last), tensors_of(tmp_path / last)
    assert theirs.keys() == own.keys()
    for name, value in own.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=0, msg=name)
    for folder in (two_ranks / f"run_{mode}", tmp_path):
        assert checkpoint.load(folder / last)["stream"]["position"] == 12
    expected = alone.evaluate(alone.held_batches())
    for rank in range(2):
        held = torch.load(two_ranks / f"held_{mode}_{rank}.pt", weights_only=True)
        assert held.keys() == expected.keys()
        for key, value in held.items():
            assert value == pytest.approx(expected[key], abs=1e-4), key


def test_both_stages_resumed_in_bfloat16_shards_are_saved_as_float32(two_ranks: Path) -> None:
    """Evaluation, a second stage with an optimiser of its own, and a resume in the middle of it."""
    last = two_ranks / "half" / "checkpoints" / "step_00000006"
    content, weights = checkpoint.load(last), tensors_of(last)
    first = checkpoint.load(two_ranks / "half" / "stage_1.pt")["student"]
    moved = [name for name, value in first.items() if not torch.equal(weights[f"model.student.{name}"], value)]
    trained = [n for n in first if n in dict(start_student(content).named_parameters())]
    assert set(trained) <= {*moved}
    assert {v.dtype for v in weights.values() if v.is_floating_point()} == {torch.float32}
    assert all(v.isfinite().all() for v in weights.values())


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 1), (2, 2), (1, 4)])
def test_a_run_goes_on_with_other_ranks_in_the_same_steps(
    two_ranks: Path, shards: str, tmp_path: Path, batch: int, accumulate: int
) -> None:
    """Five steps on two ranks and seven on one, over the ends of epochs: each takes the samples that it would have."""
    alone = Noted(elastic_recipe(shards, tmp_path / "alone", 4), CPU, log=lambda text: None)
    alone.fit()
    shutil.copytree(two_ranks / "elastic", tmp_path / "elastic")
    config = elastic_recipe(shards, tmp_path / "elastic", batch, accumulate, threads=2, prefetch=3)
    run = Noted(config, CPU, log=lambda text: None)
    assert run.step == 5
    run.fit()
    ranks = [json.loads((two_ranks / f"seen_{rank}.json").read_text()) for rank in range(2)]
    steps = [sorted(a + b) for a, b in zip(*ranks, strict=True)] + [sorted(seen) for seen in run.seen]
    assert steps == [sorted(seen) for seen in alone.seen]
    assert {len(set(step)) for step in steps} == {4}
    for epoch in range(0, 12, 3):
        assert len({token for step in steps[epoch : epoch + 3] for token in step}) == 12  # none twice


def test_a_step_of_another_size_is_refused(two_ranks: Path, shards: str, tmp_path: Path) -> None:
    shutil.copytree(two_ranks / "elastic", tmp_path / "elastic")
    found = (
        r"a step had 4 samples \(stream\.batch_size 2 x optimiser\.accumulate 1 x 2 ranks\), now it has 2 \(2 x 1 x 1\)"
    )
    with pytest.raises(MismatchError, match=found):
        SFT(elastic_recipe(shards, tmp_path / "elastic", 2), CPU, log=lambda text: None)
    with pytest.raises(MismatchError, match=r"another recipe \(stream\.seed: 0 -> 1\)"):
        SFT(elastic_recipe(shards, tmp_path / "elastic", 4, seed=1), CPU, log=lambda text: None)


def test_a_full_disk_stops_all_ranks(two_ranks: Path) -> None:
    """None waits for one that has gone; nothing half-written stays."""
    said = [(two_ranks / f"full_{rank}.txt").read_text() for rank in range(2)]
    assert "step_00000001.pt: cannot be written" in said[0]
    assert "make room" in said[0]
    assert said[1] == f"rank 0 failed, and so all ranks stop: StoreError: {said[0]}"
    assert not list((two_ranks / "full").iterdir())


def test_jobs_of_one_process_refuse_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed.refuse_ranks("a", "b")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"jobs\.experiments is one process, and WORLD_SIZE is 2: .* -m jobs\.sft"):
        experiments.main(["nowhere.yaml"])
    with pytest.raises(ConfigError, match=r"jobs\.grpo_experiments is one process, .* -m jobs\.grpo "):
        grpo_experiments.main(["nowhere.yaml"])
