"""A measurement in a forked process of its own: what a library keeps mapped, running or allocated ends with it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import TypeVar, cast

import torch

Value = TypeVar("Value")


def apart(measure: Callable[[], Value]) -> Value:
    """The result of `measure`, called in a forked process with one torch thread.

    Raises:
        RuntimeError: it ended without one.
    """
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(1)
        there.send(measure())

    process = context.Process(target=child)
    process.start()
    there.close()
    try:
        return cast(Value, here.recv())
    except EOFError as error:
        raise RuntimeError("the measured process failed; its traceback stands above") from error
    finally:
        process.join()
