"""The house: who may import whom. The table is the design's; a room that reaches over the fence fails here."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS: dict[str, set[str]] = {
    "last_shards": {"shards_schema", "scoring", "teachers", "pipeline", "trainer"},
    "shards_schema": set(),
    "maps": {"shards_schema"},
    "scoring": {"shards_schema"},
    "teachers": {"shards_schema", "maps", "scoring"},
    "pipeline": {"shards_schema", "maps", "teachers.base"},
    "trainer": {"shards_schema", "scoring", "pipeline"},
    "jobs": {"shards_schema", "scoring", "teachers", "pipeline", "trainer"},
    "navsim_agent": {"shards_schema", "pipeline", "trainer"},
}
FORBIDDEN: dict[str, set[str]] = {
    "last_shards": {"numpy", "torch", "ray", "webdataset", "zarr", "diffusers", "fsspec", "pydantic"},
    "shards_schema": {"torch", "ray", "webdataset", "zarr", "diffusers", "fsspec", "pydantic"},
    "maps": {"torch", "ray", "webdataset", "zarr", "diffusers", "fsspec", "pydantic"},
    "scoring": {"ray", "webdataset", "zarr", "diffusers", "pipeline"},
    "teachers": {"ray", "webdataset", "zarr", "torchvision"},
    "pipeline": {"ray", "argparse", "torchvision", "diffusers"},
    "trainer": {"ray"},
    "jobs": {"torchvision"},
    "navsim_agent": {"ray", "torchvision"},
}


def imports(path: Path) -> set[str]:
    """Every absolute module that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide which room is entered"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def faults(room: str, files: list[Path]) -> list[str]:
    allowed = ROOMS[room] | {room}
    out = []
    for path in files:
        for module in imports(path):
            top = module.split(".")[0]
            if top in ROOMS and not any(module == a or module.startswith(f"{a}.") for a in allowed):
                if any(a.startswith(f"{module}.") for a in allowed):
                    continue  # `from teachers import base` names teachers first
                out.append(f"{path.name}: {room} may not import {module}")
            if top in FORBIDDEN[room]:
                out.append(f"{path.name}: {room} may not import {module}")
    return out


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_table(room: str) -> None:
    files = sorted((ROOT / room).rglob("*.py"))
    assert not faults(room, files)


def test_the_check_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from teachers.vggt import teacher\n    import ray.util\n")
    assert len(faults("pipeline", [bad])) >= 2
    bad.write_text("from teachers.base import Teacher\nfrom shards_schema import layout\n")
    assert not faults("pipeline", [bad])
    bad.write_text("from pipeline import run\n")
    assert faults("teachers", [bad])


@pytest.mark.parametrize("outermost", ["jobs", "last_shards", "navsim_agent"])
def test_nothing_imports_the_outermost_rooms(outermost: str) -> None:
    for room in set(ROOMS) - {outermost}:
        for path in (ROOT / room).rglob("*.py"):
            assert not any(m.split(".")[0] == outermost for m in imports(path)), path
