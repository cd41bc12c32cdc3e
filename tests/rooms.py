"""Draws docs/rooms.svg, of what the files of each room import: ``python -m tests.rooms``.

A room stands above all that it imports. An arrow that follows from others (A to B to C, so A to C) is not drawn.
"""

from __future__ import annotations

from statistics import mean

from tests.test_house import ROOMS, ROOT, folder, imports

PICTURE = ROOT / "docs" / "rooms.svg"
LEFT_OUT = {"benchmarks", "examples", "tests/chaos"}  # they may import nearly all
WIDE, HIGH, BETWEEN, BELOW = 136, 34, 22, 62
"""Of a box, and the space beside and below it, in pixels."""


def arrows() -> dict[str, set[str]]:
    """Room -> rooms that its files import."""
    rooms = [room for room in ROOMS if room not in LEFT_OUT]
    found: dict[str, set[str]] = {}
    for room in rooms:
        named = set().union(*(imports(path) for path in folder(room).rglob("*.py")))
        found[room] = {r for r in rooms if r != room and any(f"{name}.".startswith(f"{r}.") for name in named)}
    return found


def svg(found: dict[str, set[str]]) -> str:
    """The picture; nothing but the arrows decides its bytes."""

    def below(room: str) -> set[str]:
        return found[room].union(*map(below, found[room]))

    def level(room: str) -> int:
        return 1 + max(map(level, found[room]), default=-1)

    drawn = {room: {b for b in found[room] if not any(b in below(c) for c in found[room])} for room in found}
    levels = [[room for room in found if level(room) == n] for n in range(1 + max(map(level, found)))]
    width = max(map(len, levels)) * (WIDE + BETWEEN) + BETWEEN
    height = len(levels) * (HIGH + BELOW) - BELOW + 2 * BETWEEN
    at: dict[str, tuple[float, float]] = {}
    for n, rooms in enumerate(levels):
        rooms.sort(key=lambda room: mean([at[b][0] for b in drawn[room]] or [0]))
        for i, room in enumerate(rooms):
            x = width / 2 + (i - (len(rooms) - 1) / 2) * (WIDE + BETWEEN)
            at[room] = x, height - BETWEEN - HIGH / 2 - n * (HIGH + BELOW)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="monospace" '
        'font-size="13">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0,0 L8,4 L0,8 z" fill="#667"/></marker></defs>',
        '<rect width="100%" height="100%" fill="#fff"/>',
    ]
    for room, (x, y) in at.items():
        for other in sorted(drawn[room]):
            (u, v), bend = at[other], BELOW * 0.7
            path = f"M{x:g},{y + HIGH / 2:g} C{x:g},{y + bend:g} {u:g},{v - bend:g} {u:g},{v - HIGH / 2:g}"
            out.append(f'<path d="{path}" fill="none" stroke="#667" marker-end="url(#head)"/>')
    for room, (x, y) in at.items():
        out.append(
            f'<rect x="{x - WIDE / 2:g}" y="{y - HIGH / 2:g}" width="{WIDE}" height="{HIGH}" rx="5" fill="#e8eaf6" '
            f'stroke="#3f51b5"/><text x="{x:g}" y="{y + 4:g}" text-anchor="middle">{room}</text>'
        )
    return "\n".join([*out, "</svg>\n"])


if __name__ == "__main__":
    PICTURE.write_text(svg(arrows()))
