"""A map over threads whose look-ahead is bounded, as `Executor.map` has it from Python 3.14 on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    call: Callable[[Item], Result], items: Iterable[Item], *, threads: int, depth: int | None = None, name: str = ""
) -> Iterator[Result]:
    """`call` of each item, in order. What it raises is raised in its place; nothing is left running at the end.

    Args:
        call: safe in threads.
        items: taken one by one.
        threads: of this map, called `name`.
        depth: calls that are under way, or done and not taken yet; None is twice as many as threads.
    """
    rest = iter(items)
    pool = ThreadPoolExecutor(threads, name)
    try:
        waiting = deque(pool.submit(call, item) for item in islice(rest, depth or 2 * threads))
        while waiting:
            got = waiting.popleft().result()
            waiting.extend(pool.submit(call, item) for item in islice(rest, 1))
            yield got
    finally:
        pool.shutdown(cancel_futures=True)
