"""The house: who may import whom. The table is the design's; a room that reaches over the fence fails here."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

_PRODUCT = {
    "scoring",
    "questions",
    "teachers",
    "pipeline",
    "synthetic",
    "pretraining",
    "trainer",
    "cluster",
    "reports",
    "exports",
    "jobs",
}
ROOMS: dict[str, set[str]] = {
    "shards_schema": set(),
    "pickles": {"shards_schema"},
    "maps": {"shards_schema"},
    "scoring": {"shards_schema", "pickles"},
    "questions": {"shards_schema"},
    "teachers": {"shards_schema", "maps", "scoring"},
    "pipeline.stores": {"shards_schema"},
    "pipeline.sources": {"shards_schema", "pickles", "maps", "pipeline.stores"},
    "pipeline.writing": {"shards_schema", "teachers.base", "pipeline.stores", "pipeline.sources"},
    "pipeline.reading": {"shards_schema", "pipeline.stores"},
    "pipeline.stream": {"shards_schema", "pipeline.stores", "pipeline.reading"},
    "synthetic": {"shards_schema", "pipeline.stores", "pipeline.sources"},
    "pretraining": {"shards_schema", "teachers", "synthetic", "pipeline.stores"},
    "trainer": {"shards_schema", "scoring", "questions", "pipeline.stores", "pipeline.reading", "pipeline.stream"},
    "cluster": {"shards_schema", "pipeline.stores", "pipeline.sources", "pipeline.writing"},
    "reports": {"shards_schema", "scoring", "questions", "teachers", "pipeline", "trainer"},
    "exports": {"shards_schema", "questions", "pipeline", "synthetic", "trainer", "reports"},
    "last_shards": {"shards_schema", "scoring", "teachers", "pipeline", "trainer"},
    "jobs": {"shards_schema", *_PRODUCT} - {"jobs"},
    "navsim_agent": {"shards_schema", "pipeline", "trainer"},
    "benchmarks": {"shards_schema", *_PRODUCT},
    "examples": {"last_shards", "trainer.reward_functions"},
    "tests/chaos": {"shards_schema", "pickles", "maps", *_PRODUCT},
}
"""Each room, and the rooms (or modules) that it may import besides itself. A room stands below those that import it."""

_LIGHT = {"torch", "ray", "webdataset", "zarr", "diffusers", "fsspec"}
FORBIDDEN: dict[str, set[str]] = {
    "shards_schema": _LIGHT,
    "pickles": _LIGHT,
    "maps": _LIGHT,
    "scoring": {"ray", "webdataset", "zarr", "diffusers"},
    "questions": {"argparse", "PIL", "yaml", *_LIGHT},
    "teachers": {"ray", "webdataset", "zarr", "torchvision"},
    "pipeline.stores": {"ray", "argparse", "torch", "torchvision", "diffusers"},
    "pipeline.sources": {"ray", "argparse", "torchvision", "diffusers"},
    "pipeline.writing": {"ray", "argparse", "torchvision", "diffusers"},
    "pipeline.reading": {"ray", "argparse", "torch", "torchvision", "diffusers"},
    "pipeline.stream": {"ray", "argparse", "torchvision", "diffusers", "zarr"},
    "synthetic": {"ray", "argparse", "torch", "diffusers"},
    "pretraining": {"ray", "argparse", "webdataset", "zarr", "torchvision"},
    "trainer": {"ray"},
    "cluster": {"torchvision"},
    "reports": {"ray", "torchvision"},
    "exports": {"ray", "torchvision"},
    "last_shards": {"numpy", "pydantic", *_LIGHT},
    "jobs": {"ray", "torchvision"},
    "navsim_agent": {"ray", "torchvision"},
    "benchmarks": {"torchvision"},
    "examples": {"ray"},
    "tests/chaos": {"torchvision"},
}
"""What no file of a room imports, also within a function."""


def folder(room: str) -> Path:
    """Where a room is."""
    return ROOT / room if "/" in room else ROOT / room.replace(".", "/")


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
    allowed = ROOMS[room] | {room.replace("/", ".")}
    tops = {name.partition(".")[0] for name in ROOMS}
    out = []
    for path in files:
        for module in imports(path):
            top = module.split(".")[0]
            if top in tops and not any(module == a or module.startswith(f"{a}.") for a in allowed):
                if any(a.startswith(f"{module}.") for a in allowed):
                    continue  # `from teachers import base` names teachers first
                out.append(f"{path.name}: {room} may not import {module}")
            if top in FORBIDDEN[room]:
                out.append(f"{path.name}: {room} may not import {module}")
    return out


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_table(room: str) -> None:
    files = sorted(folder(room).rglob("*.py"))
    files = [p for p in files if not (p.parent / "pyproject.toml").exists()]  # a package of its own, as a stranger's
    assert files
    assert not faults(room, files)


def test_the_check_can_fail(tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from teachers.vggt import teacher\n    import ray.util\n")
    assert len(faults("pipeline.writing", [bad])) >= 2
    bad.write_text("from teachers.base import Teacher\nfrom shards_schema import layout\n")
    assert not faults("pipeline.writing", [bad])
    bad.write_text("from pipeline.writing import run\n")
    assert faults("teachers", [bad])


def test_no_arrow_of_the_table_runs_up() -> None:
    """A room stands below all that import it, so there is no circle of rooms."""
    above: set[str] = set()
    for room in reversed(ROOMS):
        above.add(room)
        for other in ROOMS[room]:
            assert other not in above, f"{room} imports {other}, which stands above it"


def test_every_folder_of_code_is_a_room() -> None:
    """Of the repository: also a new one, which has its line in the table before it has its second file."""
    folders = {path.relative_to(ROOT).parts[0] for path in ROOT.glob("[a-z]*/**/*.py")}
    assert folders - {name.partition(".")[0] for name in ROOMS} <= {"tests", "build", "out", "data", "runs"}
    assert {f"pipeline.{p.parent.name}" for p in (ROOT / "pipeline").glob("*/__init__.py")} <= set(ROOMS)
    assert [p.name for p in (ROOT / "pipeline").glob("*.py")] == ["__init__.py"]


def test_every_room_is_installed_and_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By setup.py as it is run, and by mypy; what is for a clone alone is neither."""
    from distutils.core import run_setup

    import setuptools  # noqa: F401 (brings distutils where Python has none)

    monkeypatch.chdir(ROOT)
    installed = {name.partition(".")[0] for name in run_setup("setup.py", stop_after="init").packages}
    tops = {room.partition(".")[0] for room in ROOMS}
    assert installed == tops - {"benchmarks", "examples", "tests/chaos"}
    assert installed == set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["packages"])


def test_jobs_has_one_short_file_a_command() -> None:
    """What knows no command line has another room, but for three files that serve every command."""
    files = [path for path in (ROOT / "jobs").glob("[a-z]*.py") if path.stem not in ("config", "recipe", "usage")]
    texts = {path.name: path.read_text() for path in files}
    assert not [name for name, text in texts.items() if 'if __name__ == "__main__":\n    job_config.run(' not in text]
    assert not {name: lines for name, text in texts.items() if (lines := text.count("\n")) > 150}


def test_no_module_imports_itself_through_others() -> None:
    """No circle of modules, also not where one arrow is for types alone or stands within a function."""
    modules = {}
    for room in ROOMS:
        for path in folder(room).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            modules[name] = imports(path)
    arrows = {}
    for name, found in modules.items():
        ours = {m for m in found if m in modules}
        # `from package import module` names the package too
        arrows[name] = {m for m in ours if not any(other.startswith(f"{m}.") for other in ours)}
    while ends := {name for name, found in arrows.items() if not found}:
        arrows = {name: found - ends for name, found in arrows.items() if name not in ends}
    assert not arrows
