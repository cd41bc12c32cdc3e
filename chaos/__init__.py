"""Chaos: faults on purpose, and the proof that nothing is lost, doubled, or let in. `python -m chaos` lists the parts.

Outside the product: nothing imports this room, and it touches the product only as a user, a kernel or a disk would.
"""
