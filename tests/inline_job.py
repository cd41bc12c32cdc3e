"""`jobs.teachers` without Ray: its shards are made in this process, where a test can look.

What Ray would carry to a worker and back goes through Ray's pickle all the same.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import pytest
from ray import cloudpickle

from jobs import teachers as teachers_job
from pipeline.writing.task import ShardReceipt, ShardTask
from pipeline.writing.worker import ShardWorker

_Value = TypeVar("_Value")


def run_inline(monkeypatch: pytest.MonkeyPatch) -> list[ShardReceipt]:
    """From now on the job is as it is, but for Ray's session and actors; gives the receipts, as they come."""
    receipts: list[ShardReceipt] = []

    @contextmanager
    def session(config: Any) -> Iterator[None]:
        yield

    def drive(
        tasks: Sequence[ShardTask],
        make: Callable[[], ShardWorker],
        *,
        on_start: Callable[[int], None],
        on_receipt: Callable[[ShardReceipt], None],
        **_: Any,
    ) -> None:
        worker = _carried(make)()
        worker.load()
        on_start(os.getpid())
        for task in tasks:
            receipts.append(_carried(worker.process(_carried(task))))
            on_receipt(receipts[-1])
        worker.close()

    monkeypatch.setattr(teachers_job, "session", session)
    monkeypatch.setattr(teachers_job, "drive", drive)
    monkeypatch.setattr(teachers_job, "worker_count", lambda config: 1)
    return receipts


def _carried(value: _Value) -> _Value:
    return cast(_Value, cloudpickle.loads(cloudpickle.dumps(value)))
