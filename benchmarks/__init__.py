"""Measurements against their ceilings: `python -m benchmarks`, or `make bench`. Nothing here asserts on a time."""
