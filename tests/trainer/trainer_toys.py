"""Batches and tiny students for the tests of the trainer: random, small, and of the real classes."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from trainer import checkpoint, distributed
from trainer.answers.base import Answers
from trainer.answers.geometry import compose
from trainer.answers.motion import MotionAnswers, MotionConfig
from trainer.batch import Batch
from trainer.segments import Segment, allow_table
from trainer.students.base import Student
from trainer.students.tiny import TinyConfig, TinyStudent

COUNTS = {"wm": 6, "geo": 3}
CHANNELS = {"wm": 5, "geo": 7}
STEPS = 4
STILL = {"shift": 0, "jitter": 0.0, "patch_dropout": 0.0}
"""A student that is trained on what it is given."""


def trajectories(count: int, seed: int = 0, steps: int = STEPS) -> torch.Tensor:
    """Smooth drives [count, steps, 3] of random speed and curvature."""
    g = torch.Generator().manual_seed(seed)
    speed, bend = 6 * torch.rand(count, generator=g), 0.15 * torch.randn(count, generator=g)
    pose, poses = torch.zeros(count, 3), []
    for _ in range(steps):
        speed = (speed + 0.3 * torch.randn(count, generator=g)).clamp_min(0)
        pose = compose(pose, torch.stack((speed, 0.5 * speed * bend, bend), -1))
        poses.append(pose)
    return torch.stack(poses, 1)


def status_of(count: int, seed: int = 0) -> torch.Tensor:
    """Status [count, 4, 7] whose present velocity goes with the first motion of the drives of that seed."""
    g = torch.Generator().manual_seed(seed + 1000)
    status = torch.randn(count, 4, 7, generator=g)
    status[:, -1, 3:5] = 2 * trajectories(count, seed)[:, 0, :2]
    return status


def batch_of(count: int, seed: int = 0, size: tuple[int, int] = (48, 32), views: int = 1, steps: int = STEPS) -> Batch:
    """Random pixels, status and targets."""
    g = torch.Generator().manual_seed(seed)
    return Batch(
        tokens=tuple(f"{seed:08x}{i:08x}" for i in range(count)),
        images=torch.randint(0, 256, (count, views, 3, size[1], size[0]), generator=g, dtype=torch.uint8),
        status=status_of(count, seed),
        command=torch.randint(0, 4, (count,), generator=g),
        future=trajectories(count, seed, steps),
        targets={k: torch.randn(count, COUNTS[k], CHANNELS[k], generator=g) for k in COUNTS},
    )


def motion_answers(
    size: int = 16, smoothing: float = 0.0, regression: float = 0.0, expected: bool = False
) -> MotionAnswers:
    """A vocabulary of the toy drives."""
    config = MotionConfig(
        size=size, smoothing=smoothing, regression=regression, decode="expected" if expected else "greedy"
    )
    return MotionAnswers.fit(trajectories(200, 9), status_of(200, 9), config)


def tiny_student(answers: Answers | None = None, seed: int = 0, **config: object) -> TinyStudent:
    """A tiny student of 2 layers, no dropout."""
    torch.manual_seed(seed)
    values = {
        "width": 32,
        "depth": 2,
        "heads": 2,
        "image": (48, 32),
        "dropout": 0.0,
        "answer_dropout": 0.0,
        **STILL,
        **config,
    }
    return TinyStudent(TinyConfig.model_validate(values), answers or motion_answers(), COUNTS, views=1, history=4)


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every leaf of nested mappings and lists."""
    if isinstance(value, dict):
        return {k2: v2 for k, v in value.items() for k2, v2 in leaves(v, f"{path}/{k}").items()}
    if isinstance(value, list | tuple):
        return {k2: v2 for i, v in enumerate(value) for k2, v2 in leaves(v, f"{path}/{i}").items()}
    return {path: value}


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Weights (``model.<name>``) and optimiser (``optimiser.<name>.<key>``) of a checkpoint, whole."""
    reader = HuggingFaceStorageReader(str(folder))
    found: Any = reader.read_metadata().state_dict_metadata
    whole = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in found.items()}
    load(whole, storage_reader=reader, no_dist=True)
    return whole


def with_other(folder: Path, there: Path, **changes: Any) -> None:
    """A copy of a checkpoint that says something else."""
    shutil.copytree(folder, there)
    checkpoint.save(there / "state.pt", checkpoint.load(folder) | changes)


def assert_same(a: Path, b: Path) -> None:
    """Two checkpoints hold the same bits, but for where the run lies."""
    left, right = ({**leaves(checkpoint.load(x)), **(tensors_of(x) if x.is_dir() else {})} for x in (a, b))
    assert left.keys() == right.keys()
    for key, value in left.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, right[key]), key
        elif key not in ("/config", "/grpo"):
            assert value == right[key], key


def two_ranks(
    worker: Callable[..., None], root: Path, *arguments: str, processes: int = 2, ports: int = 1, start: str = "spawn"
) -> Path:
    """Two processes call ``worker(rank, root, *arguments)``; the file `port` has their port. What they left behind.

    Forked ones need no seconds to import, and may not ask for gradients.
    """
    free = [socket.socket() for _ in range(ports)]
    for one in free:
        one.bind(("127.0.0.1", 0))
    (root / "port").write_text(" ".join(str(one.getsockname()[1]) for one in free))
    for one in free:
        one.close()
    mp.start_processes(worker, args=(str(root), *arguments), nprocs=processes, start_method=start)  # type: ignore[no-untyped-call]
    return root


@contextmanager
def joined(rank: int, root: str) -> Iterator[torch.device]:
    """One of `two_ranks`, in the group of both."""
    torch.set_num_threads(1)
    os.environ.update(WORLD_SIZE="2", RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = Path(root, "port").read_text()
    with distributed.session("cpu") as device:
        yield device


def a_group_shares_the_pass_over_its_prompt(student: Student, batch: Batch, table: torch.Tensor) -> None:
    """The prompt goes through the network once a scene, a token once an answer; and the answers are the policy's."""
    rows: list[int] = []
    group = 4
    seen = student.blocks[0].register_forward_pre_hook(lambda block, args: rows.append(len(args[0])))
    sampled = student.sample(batch, table, group=group, generator=torch.Generator().manual_seed(3))
    seen.remove()
    assert rows[0] == len(batch)
    assert set(rows[1:]) == {len(batch) * group}
    places = tuple(i for i in range(len(batch)) for _ in range(group))
    many = batch.take(torch.tensor(places), places)
    assert len({tuple(row) for row in sampled.tokens.tolist()}) > len(batch), "a group has answers of its own"
    with torch.no_grad():
        again = student.logp(many, sampled.tokens, table)
    assert (again - sampled.logp).abs().max() < 1e-5
    alone = student.sample(many, table, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(alone.logp, sampled.logp, atol=1e-5, rtol=0)
    assert torch.equal(alone.tokens, sampled.tokens)


def a_group_of_answers_stands_behind_one_prompt(student: Student, batch: Batch, table: torch.Tensor) -> None:
    """Each scene's answers in one sequence, each with its own thought, if any: log-probabilities are the sampler's, and
    they and gradients those of answers that stand alone.
    """
    group, rows = 3, list[int]()
    drawn = student.sample(batch, table, group=group, generator=torch.Generator().manual_seed(3))
    sampled, stepwise, words = drawn.tokens, drawn.logp, 0
    if drawn.thought is not None and drawn.thought_logp is not None:
        words = drawn.thought.shape[1]
        sampled, stepwise = torch.cat((drawn.thought, sampled), 1), torch.cat((drawn.thought_logp, stepwise), 1)
    places = tuple(i for i in range(len(batch)) for _ in range(group))
    many, weight = batch.take(torch.tensor(places), places), torch.randn(sampled.shape)
    seen = student.blocks[0].register_forward_pre_hook(lambda block, args: rows.append(args[0][..., 0].numel()))
    found = []
    for asked in (batch, many):
        student.zero_grad()
        logp = student.logp(asked, sampled, table, words=words)
        (logp * weight).sum().backward()
        found.append((logp.detach(), {n: p.grad for n, p in student.named_parameters() if p.grad is not None}))
    seen.remove()
    (together, gradients), (alone, expected) = found
    torch.testing.assert_close(together, alone, atol=2e-5, rtol=0)
    torch.testing.assert_close(together, stepwise, atol=2e-5, rtol=0)
    torch.testing.assert_close(together.sum(1), stepwise.sum(1), atol=1e-4, rtol=0)
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-4, rtol=1e-4, msg=name)
    prompt, said = student.prompt(batch).segments.numel(), (sampled.shape[1] - 1) * len(sampled)
    assert rows == [prompt + said, group * prompt + said]
    with torch.no_grad():  # no answer sees another
        other = sampled.clone()
        other[1::group] = sampled[::group]
        changed = student.logp(batch, other, table, words=words)
    kept = torch.arange(len(sampled)) % group != 1
    assert torch.equal(changed[kept], student.logp(batch, sampled, table, words=words)[kept])


def student_needs_no_mask_in_stage_2(student: Student, batch: Batch, close: float) -> None:
    """Its own causal path and the mask of one row a position give the same."""
    answers, masks = student.answers.encode(batch.future, batch.status), list[bool]()

    def note(_block: object, args: tuple[torch.Tensor, ...], kwargs: dict[str, Any]) -> None:
        masks.append((kwargs["attention_mask"] if "attention_mask" in kwargs else args[1]) is not None)

    seen = student.blocks[0].register_forward_pre_hook(note, with_kwargs=True)
    own, masked = allow_table(2), allow_table(2)
    masked[Segment.PAD, Segment.PAD] = True  # says nothing, and is not known as stage 2's
    found = []
    for table in (own, masked):
        student.zero_grad()
        out = student(batch, answers, table)
        (out.logits.square().sum() + sum(x.square().sum() for x in out.latents.values())).backward()
        gradients = {n: p.grad for n, p in student.named_parameters() if p.grad is not None}
        found.append({"logits": out.logits, **out.latents, **gradients})
    seen.remove()
    assert masks == [False, True]
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], atol=close, rtol=close, msg=name)
