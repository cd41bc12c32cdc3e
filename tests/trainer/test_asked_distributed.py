"""Two processes with gloo: drives and questions train as in one process, in SFT, and in GRPO from such a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.reading.reader import Dataset
from tests.questions_toys import write_units
from tests.trainer import trainer_toys
from tests.trainer.reward_toys import grpo_recipe, sft_recipe
from tests.trainer.test_asked import question
from tests.trainer.test_grpo_distributed import train as grpo_train
from trainer import checkpoint
from trainer.grpo import GRPO
from trainer.sft import SFT

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
MODES = ("ddp", "fsdp")
TEXT = {"thought": "text", "stages": [{"stage": 2, "steps": 2, "lr": 0.3, "warmup": 0.0}]}


def train(data: str, units: str, out: Path, batch: int, **changes: Any) -> None:
    """Two steps of SGD without dropout, whose gradients are means over the ranks."""
    student = {"kind": "tiny", "width": 16, "depth": 2, "heads": 2, "image": [48, 32], "dropout": 0.0}
    values = {
        "student": student | {"answer_dropout": 0.0, **trainer_toys.STILL},
        "stages": [{"stage": 1, "steps": 2, "lr": 0.3, "warmup": 0.0}],
        "stream": {"batch_size": batch, "threads": 1},
        "questions": {"units": units},
        **changes,
    }
    run = SFT(sft_recipe(data, out, **values), CPU, log=lambda text: None)
    groups = [{"params": list(run.model.parameters()), "scale": 1.0}]
    run._optimiser = torch.optim.SGD(groups)  # type: ignore[assignment]
    run.fit()


def worker(rank: int, root: str, data: str, units: str) -> None:
    with trainer_toys.joined(rank, root):
        for mode in MODES:
            train(data, units, Path(root, mode), 2, parallel={"mode": mode})
            policy = str(Path(root, mode, "stage_1.pt"))
            config = grpo_recipe(data, policy, Path(root, f"grpo_{mode}"), steps=1, parallel={"mode": mode})
            GRPO(config, CPU, log=lambda text: None).fit()
            refine(data, policy, Path(root, f"both_{mode}"), 2, units, parallel={"mode": mode})
            train(data, units, Path(root, f"text_{mode}"), 2, parallel={"mode": mode}, **TEXT)
            policy = str(Path(root, f"text_{mode}", "stage_1.pt"))
            refine(data, policy, Path(root, f"text_both_{mode}"), 2, units, parallel={"mode": mode})


def refine(data: str, policy: str, out: Path, batch: int, units: str, **changes: Any) -> None:
    """GRPO on drives and questions."""
    grpo_train(data, policy, out, batch, questions={"units": units, "weight": 0.5}, **changes)


@pytest.fixture(scope="module")
def units(reward_shards: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    dataset = Dataset(reward_shards, columns=["samples", "toy"])
    held = SFT(sft_recipe(reward_shards, "/nowhere"), CPU, log=lambda text: None).held_tokens
    asked = [question(t, n) for t in dataset.tokens("samples", "toy") if t not in held for n in (0, 1)]
    return str(write_units(tmp_path_factory.mktemp("units") / "train.jsonl", asked))


@pytest.fixture(scope="module")
def two_ranks(reward_shards: str, units: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left behind."""
    return trainer_toys.two_ranks(worker, tmp_path_factory.mktemp("ranks"), reward_shards, units)


@pytest.mark.parametrize("text", ["", "text_"])
@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_learn_from_questions_as_one_does(
    two_ranks: Path, reward_shards: str, units: str, tmp_path: Path, mode: str, text: str
) -> None:
    train(reward_shards, units, tmp_path, 4, **(TEXT if text else {}))
    own, theirs = (checkpoint.load(folder / "stage_1.pt") for folder in (tmp_path, two_ranks / f"{text}{mode}"))
    assert own["words"] == theirs["words"]
    for name, value in own["student"].items():
        torch.testing.assert_close(theirs["student"][name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("text", ["", "text_"])
@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_are_refined_by_questions_as_one_is(
    two_ranks: Path, reward_shards: str, units: str, tmp_path: Path, mode: str, text: str
) -> None:
    """The words, which the drives' passes leave out (but for thoughts), and the motions, which the questions' do."""
    policy = two_ranks / f"{text}{mode}" / "stage_1.pt"
    refine(reward_shards, str(policy), tmp_path, 4, units)
    places = (tmp_path, two_ranks / f"{text}both_{mode}")
    own, theirs = (checkpoint.load(out / "policy.pt")["student"] for out in places)
    for name, value in own.items():
        torch.testing.assert_close(theirs[name], value, atol=1e-5, rtol=1e-4, msg=name)
    first = checkpoint.load(policy)["student"]
    for part in ("asking.head.table_out", "head.table_out"):
        assert (own[part] - first[part]).abs().max() > 1e-4, part


@pytest.mark.parametrize("mode", MODES)
def test_grpo_goes_on_from_a_policy_that_can_be_asked(two_ranks: Path, mode: str) -> None:
    """Drives leave the words as they were; the policy keeps them."""
    before = checkpoint.load(two_ranks / mode / "stage_1.pt")
    after = checkpoint.load(two_ranks / f"grpo_{mode}" / "policy.pt")
    assert after["words"] == before["words"]
    words = [name for name in before["student"] if name.startswith("asking.")]
    assert words
    for name in words:
        assert torch.equal(before["student"][name], after["student"][name]), name
