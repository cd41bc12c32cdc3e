"""The search along the road graph is the devkit's, at a fraction of its work."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from maps.roads import Block
from maps.ways import AFTER, search


def naive(start: int, targets: set[int], edges: dict[int, list[int]], max_depth: int) -> list[int] | None:
    """What the devkit does: a queue in which a node stands as often as it is reached, and the last parent wins."""
    queue: deque[tuple[int, int]] = deque([(start, 1)])
    parent: dict[tuple[int, int], int] = {}
    while queue:
        node, depth = queue.popleft()
        if depth > max_depth:
            return None
        if node in targets:
            path = [node]
            while (node, depth) in parent:
                node, depth = parent[node, depth], depth - 1
                path.append(node)
            return path[::-1]
        for following in edges.get(node, []):
            queue.append((following, depth + 1))
            parent[following, depth + 1] = node
    return None


def graph(edges: dict[int, list[int]]) -> list[Block]:
    blocks = [Block(i, connector=False, area=None) for i in range(max(edges, default=0) + 8)]
    for i, following in edges.items():
        blocks[i].after.extend(blocks[n] for n in following)
    return blocks


@settings(max_examples=300, deadline=None)
@given(
    edges=st.dictionaries(st.integers(0, 7), st.lists(st.integers(0, 7), max_size=3), max_size=8),
    targets=st.sets(st.integers(0, 7), min_size=1, max_size=3),
    depth=st.integers(1, 6),
)
def test_search_is_the_devkits(edges: dict[int, list[int]], targets: set[int], depth: int) -> None:
    blocks = graph(edges)
    found = search(blocks[0], {blocks[i] for i in targets}, AFTER, depth)
    assert (None if found is None else [b.id for b in found]) == naive(0, targets, edges, depth)


def test_search_does_not_explode() -> None:
    """Three ways on at each of 30 levels are 2e14 queue entries, but few blocks."""
    blocks = graph({i: [(i * 3 + k) % 50 for k in range(3)] for i in range(50)})
    assert search(blocks[0], {blocks[-1]}, AFTER, 30) is None
