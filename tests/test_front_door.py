"""The front door: every name, lazily, and a clear word where something of it is not installed or is somebody else's."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import last_shards as ls

ROOT = Path(__file__).parents[1]


def python(code: str, *first: Path) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter; `first` stands before our folder on its path."""
    path = "".join(f"sys.path.insert({i}, {str(folder)!r})\n" for i, folder in enumerate([*first, ROOT]))
    return subprocess.run(
        [sys.executable, "-I", "-c", f"import sys\n{path}{code}"], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("name", ls.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(ls, name) is not None
    assert name in dir(ls)


def test_the_names_for_type_checkers_are_the_names() -> None:
    tree = ast.parse(Path(ls.__file__).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imported = {alias.name for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert imported | {"__version__"} == set(ls.__all__)


def test_every_error_is_at_the_door() -> None:
    from shards_schema import errors

    tree = {e.__name__ for e in vars(errors).values() if isinstance(e, type) and issubclass(e, ls.ShardsError)}
    assert tree - {"UnsafePickleError"} == {name for name in ls.__all__ if name.endswith("Error")}


def test_the_door_alone_imports_nothing_heavy() -> None:
    done = python(
        "import last_shards as ls\n"
        "assert not {'numpy', 'torch', 'pyarrow', 'pydantic'} & {*sys.modules}, sys.modules\n"
        "ls.Dataset, ls.CacheConfig, ls.Teacher, ls.TargetSpec, ls.ShardsError\n"
        "print(sorted({'torch', 'zarr', 'simplejpeg', 'tqdm', 'yaml', 'PIL', 'diffusers', 'ray'} & {*sys.modules}))"
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_an_unknown_name_is_told_with_those_there_are() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'Datset'; it has .*Dataset"):
        _ = ls.Datset  # type: ignore[attr-defined]


def test_what_is_not_installed_is_told_with_its_extra() -> None:
    done = python("sys.modules['torch'] = None\nimport last_shards as ls\nls.Dataset\nls.ShardStream")
    assert "ShardStream needs torch, which is not installed; `pip install -e '.[stream]'` in the clone" in done.stderr


@pytest.mark.parametrize("imported", [False, True])
def test_a_foreign_package_of_our_name_is_told_by_its_path(tmp_path: Path, imported: bool) -> None:
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "__init__.py").write_text("")
    first = "import pipeline\n" if imported else ""
    done = python(f"{first}import last_shards as ls\nls.Dataset", tmp_path)
    assert f"needs its own package 'pipeline', in {ROOT / 'pipeline'}" in done.stderr
    assert f"Python finds another one, in {tmp_path / 'pipeline'}" in done.stderr
