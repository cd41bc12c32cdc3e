"""Two processes with gloo: GRPO reports, trains and evaluates as one process does on the same answers."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from questions.controls import said
from shards_schema.errors import MismatchError
from tests.trainer import trainer_toys
from tests.trainer.reward_toys import grpo_recipe
from tests.trainer.trainer_toys import tensors_of
from trainer import checkpoint, distributed
from trainer.batch import Batch
from trainer.grpo import GRPO
from trainer.students.base import Sampled

CPU = torch.device("cpu")
MODES = ("ddp", "fsdp")
GROUP = 4


def train(data: str, policy: str, out: Path, batch: int, **changes: Any) -> tuple[GRPO, list[dict[str, float]]]:
    """Two steps by SGD (Adam would blow up the rounding of gradients that are zero but for it)."""
    stream = {"batch_size": batch, "threads": 1}
    values = {
        "steps": 2, "stream": stream, "loss": "dapo", "inner": 2, "group": GROUP, "evaluate_samples": 1,
        "regulariser": {"wm": 0, "geo": 0}, "optimiser": {"clip": 1e9, "weight_decay": 0.0}, **changes,
    }  # fmt: skip
    seen: list[dict[str, float]] = []

    def note(step: int, numbers: Mapping[str, float]) -> None:
        seen.append(dict(numbers))

    run = GRPO(grpo_recipe(data, policy, out, **values), CPU, log=lambda text: None)
    run._optimiser = torch.optim.SGD([{"params": list(run.model.student.parameters()), "scale": 300.0}])  # type: ignore[assignment]
    vocabulary, length = run.answers.vocabulary, run.answers.length

    def by_token(batch: Batch, *_: Any, group: int = 1, **__: Any) -> Sampled:
        """Any answers, but the same for any number of ranks: by scene and place in the group."""
        if batch.asked:
            right = ((q, (int(q.token, 16) + i) % 3 > 0) for q, i in product(batch.asked, range(group)))
            tokens = run.model.student.speech.encode([said(q.answer if is_right else "No") for q, is_right in right])
            return Sampled(tokens, torch.zeros(tokens.shape))
        rows, thoughts = [], []
        for token, i in product(batch.tokens, range(group)):
            generator = torch.Generator().manual_seed(int(token, 16) % 2**31 + i)
            rows.append(torch.randint(vocabulary, (length,), generator=generator))
            if run.model.student.thinks:
                thoughts.append(torch.randint(1, 9, (5,), generator=generator))
                thoughts[-1][i:] = torch.tensor([run.model.student.words.end, *[-1] * 4])[: 5 - i]  # type: ignore[union-attr]
        zeros = torch.zeros(len(rows), length)
        if not thoughts:
            return Sampled(torch.stack(rows), zeros)
        return Sampled(torch.stack(rows), zeros, torch.stack(thoughts), zeros[:, :5], zeros[:, 0] > 0)

    run.model.student.sample = by_token  # type: ignore[method-assign]
    run.fit(on_numbers=note)
    return run, seen


def worker(rank: int, root: str, data: str, policy: str) -> None:
    with trainer_toys.joined(rank, root):
        for mode in MODES:
            run, seen = train(data, policy, Path(root, mode), 3, parallel={"mode": mode})
            torch.save(
                {"seen": seen, "held": run.evaluate(run.held_batches()).means()}, Path(root, f"{mode}_{rank}.pt")
            )
        honest = grpo_recipe(data, policy, Path(root, "honest"), micro=5, save_every=1)
        GRPO(honest, CPU, log=lambda text: None).fit(until=2)
        again = GRPO(honest, CPU, log=lambda text: None)
        states = distributed.gathered(again._sampler.get_state())
        assert not torch.equal(states[0], states[1])  # each rank draws its own answers
        again.fit(until=4)


@pytest.fixture(scope="module")
def two_ranks(reward_shards: str, policy: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    return trainer_toys.two_ranks(worker, tmp_path_factory.mktemp("ranks"), reward_shards, policy)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_on_two_ranks_is_the_run_on_one(
    two_ranks: Path, reward_shards: str, policy: str, tmp_path: Path, mode: str
) -> None:
    alone, expected = train(reward_shards, policy, tmp_path, 6)
    last = Path("checkpoints", "step_00000002")
    theirs, own = tensors_of(two_ranks / mode / last), tensors_of(tmp_path / last)
    first = checkpoint.load(Path(policy))["student"]
    assert theirs.keys() == own.keys()
    for name, value in own.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=1e-4, msg=name)
    moved = [(own[f"model.student.{name}"] - value).abs().max().item() for name, value in first.items()]
    assert max(moved) > 1e-3  # or equality would say nothing
    epochs = {checkpoint.load(folder / last)["stream"]["epoch"] for folder in (two_ranks / mode, tmp_path)}
    assert len(epochs) == 1
    found = torch.load(two_ranks / f"{mode}_0.pt", weights_only=True)
    for numbers, wanted in zip(found["seen"], expected, strict=True):
        for key, value in wanted.items():
            if key not in ("train/seconds", "train/gap"):
                assert numbers[key] == pytest.approx(value, abs=2e-4), key
    for rank in range(2):
        held = torch.load(two_ranks / f"{mode}_{rank}.pt", weights_only=True)["held"]
        assert held == pytest.approx(alone.evaluate(alone.held_batches()).means(), abs=1e-5)
    assert not torch.load(two_ranks / f"{mode}_1.pt", weights_only=True)["seen"]  # rank 0 speaks


@pytest.mark.parametrize("mode", MODES)
def test_adapters_that_were_frozen_are_in_the_policy_as_they_were(two_ranks: Path, policy: str, mode: str) -> None:
    """Whole, also where the ranks had parts of them."""
    theirs, before = checkpoint.load(two_ranks / mode / "policy.pt"), checkpoint.load(Path(policy))
    assert theirs["adapters"].keys() == before["adapters"].keys()
    assert all(torch.equal(value, theirs["adapters"][name]) for name, value in before["adapters"].items())


def test_a_run_of_two_ranks_goes_on_in_one(two_ranks: Path, reward_shards: str, policy: str) -> None:
    """With as many scenes a step as both had."""

    def resumed(batch: int) -> GRPO:
        stream = {"batch_size": batch, "threads": 1}
        config = grpo_recipe(reward_shards, policy, two_ranks / "honest", micro=5, save_every=1, stream=stream)
        return GRPO(config, CPU, log=lambda text: None)

    with pytest.raises(MismatchError, match=r"a step had 6 samples .* 3 x .* 2 ranks\), now it has 3"):
        resumed(3)
    run = resumed(6)
    assert run.step == 4
    assert len(checkpoint.load(two_ranks / "honest" / "checkpoints" / "step_00000004")["sampler"]) == 2
    run.fit(until=5)
    assert all(p.isfinite().all() for p in run.model.parameters())
