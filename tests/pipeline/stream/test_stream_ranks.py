"""Processes of torch.distributed (gloo): killed in the middle of an epoch, resumed with another number of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from pipeline.reading.reader import Dataset
from pipeline.stream import ShardStream, StreamConfig
from tests.pipeline.stream.stream_toys import SMALL, make

CONFIG = StreamConfig(seed=4, global_batch=12)


def _rank(url: str, folder: Path, rank: int, world: int, workers: int, steps: int) -> None:
    """A trainer of two epochs in steps of 12 samples; keeps its state after step 2, dies after step `steps`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
    stream = ShardStream(Dataset(url), SMALL, CONFIG.model_copy(update={"batch_size": 12 // world}))
    assert (stream.rank, stream.world_size) == (rank, world)
    state = folder / "state.json"
    if state.exists():
        stream.load_state_dict(json.loads(state.read_text()))
    done = 0
    with open(folder / f"tokens-{world}-{rank}", "a") as log:
        for epoch in range(stream.epoch, 2):
            stream.set_epoch(epoch)
            for batch in DataLoader(stream.batches(), batch_size=None, num_workers=workers):
                total = torch.tensor(len(batch["token"]))
                dist.all_reduce(total)  # ranks of unequal length would hang here
                stream.advance(int(total))
                log.write(json.dumps([epoch, batch["token"]]) + "\n")
                log.flush()
                done += 1
                if done == 2 and rank == 0:
                    state.write_text(json.dumps(stream.state_dict()))
                if done == steps:
                    dist.barrier()
                    os.kill(os.getpid(), signal.SIGKILL)
    states: list[Any] = [None] * world
    dist.all_gather_object(states, stream.state_dict())
    assert all(s == states[0] for s in states)
    dist.destroy_process_group()


def _launch(url: str, folder: Path, world: int, workers: int, steps: int) -> list[int | None]:
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_rank, args=(url, folder, r, world, workers, steps)) for r in range(world)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return [rank.exitcode for rank in ranks]


def _steps(folder: Path, world: int) -> list[tuple[int, list[str]]]:
    """(epoch, tokens of all ranks in global order) of each step."""
    ranks = [(folder / f"tokens-{world}-{rank}").read_text().splitlines() for rank in range(world)]
    out = []
    for lines in zip(*ranks, strict=True):
        batches: list[Any] = [json.loads(line) for line in lines]
        out.append((batches[0][0], [t for row in zip(*(tokens for _, tokens in batches), strict=True) for t in row]))
    return out


@pytest.mark.parametrize(("before", "workers_before", "after", "workers_after"), [(2, 1, 1, 0), (1, 0, 2, 2)])
def test_killed_and_resumed_on_another_number_of_ranks(
    tmp_path: Path, before: int, workers_before: int, after: int, workers_after: int
) -> None:
    url = make(tmp_path, logs=4, frames=13)  # 36 samples: 3 steps of 12 an epoch
    assert _launch(url, tmp_path, before, workers_before, steps=4) == [-9] * before
    first = _steps(tmp_path, before)
    assert len(first) == 4
    assert _launch(url, tmp_path, after, workers_after, steps=-1) == [0] * after
    second = _steps(tmp_path, after)
    one = ShardStream(Dataset(url), SMALL, StreamConfig(seed=4), rank=0, world_size=1)
    orders = [[one.tokens[i] for i in one.order_of(epoch)] for epoch in range(2)]
    whole = [(epoch, orders[epoch][k : k + 12]) for epoch in range(2) for k in (0, 12, 24)]
    assert first == whole[:4]
    assert second == whole[2:]  # from the state that was kept after step 2, the same batches in the same order
