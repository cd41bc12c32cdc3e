"""No training step asks its device for a value, but the one that the gradient's finiteness takes.

Steps run on torch's meta device, where there are no values to be had: what would make the host wait for a GPU (a value
that is read, an index whose size depends on values, a tensor that is made here and sent there) shows itself, with the
line of ours that asks. Constants go to the device in the first step; so it is the second that is watched.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.trainer.reward_toys import grpo_recipe
from tests.trainer.shard_toys import recipe
from tests.trainer.trainer_toys import batch_of
from tests.trainer.vlm_toys import hf_student
from trainer import rollouts
from trainer.batch import Batch
from trainer.constants import sent
from trainer.grpo import GRPO
from trainer.optimiser import make_optimiser
from trainer.policy_gradient import PolicyPass
from trainer.rollouts import Pass, Rollout, roll_out
from trainer.segments import allow_table
from trainer.sft import SFT
from trainer.students.hf import FAMILIES

CPU, META = torch.device("cpu"), torch.device("meta")
FINITE = "optimiser.py: if not torch.isfinite(whole):"
TRAINER = Path(rollouts.__file__).parent


def ours() -> str:
    """The innermost line of `trainer/` on the stack."""
    frames = [f for f in traceback.extract_stack() if Path(f.filename).is_relative_to(TRAINER)]
    return f"{Path(frames[-1].filename).name}: {frames[-1].line}" if frames else "autograd, or a test"


READS = ("_local_scalar_dense", "nonzero", "multinomial", "masked_select", "unique", "equal.default")
"""Operations that wait on CUDA; meta's own versions of some do not."""
INDEXED = ("aten.index.Tensor", "aten.index_put", "aten._index_put_impl_", "aten._unsafe_index")


class Sees(TorchDispatchMode):
    """Notes each operation that reads a value of the device, and each that has tensors of two devices."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, there = str(func), [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if there and there[0].device == META and self._reads(name, args):
            self.found[ours()] += 1
            if "_local_scalar_dense" in name:
                return args[0].dtype is torch.bool or 1.0  # as if all were well
        out = func(*args, **(kwargs or {}))
        there += [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        if len({tensor.device.type for tensor in there if tensor.dim()}) > 1:
            self.found[ours()] += 1
        return out

    def _reads(self, name: str, args: Any) -> bool:
        by_mask = name.startswith(INDEXED) and any(i is not None and i.dtype is torch.bool for i in args[1])
        return by_mask or any(word in name for word in READS)


class Asks(TorchFunctionMode):
    """What would make the host wait: line of ours -> how often. Tensors made of Python's numbers count too."""

    MADE_HERE = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self._sees = Sees(self.found)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.tolist and args[0].device == META:
            self.found[ours()] += 1
            return torch.ones(args[0].shape).tolist()
        out = func(*args, **(kwargs or {}))
        if func in self.MADE_HERE and out.device == META:
            self.found[ours()] += 1
        return out

    def __enter__(self) -> Any:
        self._sees.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._sees.__exit__(*error)


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows no meta device."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())


def repeated(batch: Batch) -> Iterator[Batch]:
    """One batch without end."""
    while True:
        yield batch


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "answers",
    [{"kind": "motion", "size": 6, "smoothing": 0.1, "regression": 2.0}, {"kind": "text", "digits": 1}],
    ids=["motion", "text"],
)
def test_a_supervised_step(shards: str, tmp_path: Path, answers: dict[str, object], accumulate: int) -> None:
    """Forward, backward, clipping, AdamW, of a batch as the stream makes it: one read, of the gradient's norm."""
    config = recipe(shards, tmp_path, answers=answers, optimiser={"accumulate": accumulate}, stream={"batch_size": 2})
    run = SFT(config, CPU, log=lambda text: None)
    batch = run._collate([run.reader.read(token) for token in run.train_tokens[:2]]).to(META)
    run.model.to(META)
    run.device = META
    run._optimiser = make_optimiser(run.model, config.optimiser)
    with Asks():
        run._advance(repeated(batch))  # type: ignore[arg-type]
    with Asks() as asks:
        run._advance(repeated(batch))  # type: ignore[arg-type]
    assert asks.found == {FINITE: 1}
    with Asks() as asks:
        assert run._numbers(1, 1.0).keys() > {"loss", "answer", "gradient", "lr"}
    assert asks.found.total() == 1, "what is logged is read at once"


def on_meta(rollout: Rollout) -> Rollout:
    """Its tensors there, its places here."""
    passes = [Pass(p.rows.to(META), p.scenes.to(META), p.places, p.counts) for p in rollout.passes]
    moved = {name: getattr(rollout, name).to(META) for name in ("answers", "advantage", "sampled")}
    return replace(rollout, passes=passes, batch=rollout.batch.to(META), **moved)


def test_what_grpo_learns_from_a_rollout(reward_shards: str, policy: str, tmp_path: Path) -> None:
    """Reference, two updates of several passes each, alignment: one read an update; what is logged stays there."""
    config = grpo_recipe(reward_shards, policy, tmp_path, inner=2, micro=3)
    run = GRPO(config, CPU, log=lambda text: None)
    batch = run.held_batches(3)[0]
    rollout, _ = roll_out(
        run.model.student, batch, run.reward, run.table, config, run._sampler, torch.autocast("cpu", enabled=False)
    )
    assert len(rollout.passes) > 1
    assert run.reference is not None
    run.model.to(META)
    run.reference.to(META)
    run.device = META
    run._pass = PolicyPass(run.model, config, run.table).eval()
    run._optimiser = make_optimiser(run.model, config.optimiser)
    there = [(run._tasks[0], on_meta(rollout))]
    with Asks():
        run._learn(there)
    with Asks() as asks:
        numbers = run._learn(there)
        run._tally.add(numbers)
        run._tally.add(numbers)
    assert asks.found == {FINITE: 2}
    assert isinstance(numbers["kl"], torch.Tensor)


def test_answers_are_drawn_without_a_question(reward_shards: str, policy: str, tmp_path: Path) -> None:
    """Prefill and decode; a generator of meta's does not exist, so torch's own is taken."""
    run = GRPO(grpo_recipe(reward_shards, policy, tmp_path), CPU, log=lambda text: None)
    batch, student = run.held_batches(3)[0].to(META), run.model.student.to(META)
    student.answers.decode(student.sample(batch, allow_table(2)).tokens, batch.status)
    with Asks() as asks:
        drawn = student.sample(batch, allow_table(2), group=4)
        poses, parsed = student.answers.decode(drawn.tokens, batch.status.repeat_interleave(4, 0))
    assert not asks.found
    assert poses.shape == (12, 8, 3)
    assert parsed.device == META


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_of_a_prepared_batch(family: str) -> None:
    """Of a VLM: ids, positions and pixels went with the batch, and no processor is asked again."""
    student = hf_student(family)
    batch = student.prepare(batch_of(3)).to(META)
    student._processor = student._tokenizer = None
    with Asks() as asks:
        prompt = student.prompt(batch[1:3])
        student.prompt(batch.take(torch.zeros(2, dtype=torch.long, device=META), (0, 0)))
    assert not asks.found
    assert prompt.data.ids.device == META


def test_a_constant_is_sent_once_and_forgotten() -> None:
    from trainer import constants

    constant = torch.ones(3)
    with Asks() as asks:
        assert sent(constant, META) is sent(constant, META)
    assert asks.found.total() == 1
    assert sent(constant, CPU) is constant
    before = len(constants._SENT)
    del constant
    assert len(constants._SENT) == before - 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x.tolist(),
        lambda x: torch.multinomial(x, 1),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x + torch.tensor([1.0, 2.0, 3.0], device=META),
        lambda x: x.new_tensor([1.0]),
        lambda x: torch.zeros(3).to(META),
        lambda x: x.copy_(torch.zeros(3)),
    ],
)
def test_the_check_sees_what_would_wait(ask: Callable[[torch.Tensor], object]) -> None:
    with Asks() as asks, contextlib.suppress(RuntimeError, NotImplementedError):
        ask(torch.empty(3, device=META))
    assert asks.found
