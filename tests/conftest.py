"""Tests marked `gpu` are skipped where there is no CUDA device, also when they are asked for; torch has one thread."""

from __future__ import annotations

import os
from collections import Counter

import pytest
import torch

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
"""Small networks gain nothing from threads, and lose much on a busy machine."""
torch.set_num_threads(THREADS)


@pytest.fixture(autouse=True)
def _threads() -> None:
    """A worker or a trainer of the test before set as many as its config says."""
    torch.set_num_threads(THREADS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` deals whole files to two processes in this order; they end together when the long ones come first."""
    size = Counter(item.path for item in items)
    timed = {item.path for item in items if item.get_closest_marker("timeout") and not item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in timed, -size[item.path]))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # keywords have the names of folders too
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
