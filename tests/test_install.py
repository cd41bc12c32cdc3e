"""What is installed is enough: the core alone reads a dataset; the wheel has the recipes, and is well made."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.pipeline.stream.stream_toys import make

ROOT = Path(__file__).parents[1]

READ = """
import last_shards as ls
dataset = ls.Dataset({out!r})
tokens = dataset.tokens("samples", "toy")
sample = dataset.read(tokens[0])
print(len(tokens), sample["toy"]["grid"].shape, sample["samples"]["json"]["token"] == tokens[0])
"""


def core() -> set[str]:
    """The distributions that the core's dependencies bring, by what those that are installed say."""
    found: set[str] = set()
    rest: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    while rest:
        requirement = Requirement(rest.pop())
        name = requirement.name.lower().replace("_", "-")
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        rest += metadata.requires(name) or []
    return found


def test_the_core_alone_reads_a_dataset(tmp_path: Path) -> None:
    """Every module that the core's dependencies do not bring is away."""
    kept = core()
    assert {"numpy", "pyarrow", "pydantic", "pydantic-core", "fsspec", "google-crc32c"} <= kept
    absent = {
        module
        for module, owners in metadata.packages_distributions().items()
        if not {owner.lower().replace("_", "-") for owner in owners} & {*kept, "last-shards"}
    }
    assert {"torch", "zarr", "yaml", "simplejpeg", "tqdm", "ray", "shapely"} <= absent
    code = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        + f"sys.modules.update(dict.fromkeys({absent!r}))\n"
        + READ.format(out=make(tmp_path))
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.split(" ", 1)[0], done.stdout.strip()[-4:]) == ("15", "True"), done.stderr


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_wheel_in_an_empty_environment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Builds wheel and sdist, has twine check both, and reads a dataset with what the core alone brings."""
    tools, reader = tmp_path / "tools", tmp_path / "reader"
    for folder in (tools, reader):
        venv.create(folder, with_pip=True)
    pip = ("-m", "pip", "--disable-pip-version-check", "install", "--quiet")

    def run(python: Path, *arguments: str) -> str:
        done = subprocess.run([python / "bin" / "python", *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(tools, *pip, "build", "twine")
    run(tools, "-m", "build", "--outdir", str(tmp_path / "dist"), str(ROOT))
    made = sorted(map(str, (tmp_path / "dist").iterdir()))
    assert len(made) == 2
    assert run(tools, "-m", "twine", "check", "--strict", *made).count("PASSED") == 2
    wheel = next(name for name in made if name.endswith(".whl"))
    began = time.perf_counter()
    run(reader, *pip, "-c", str(ROOT / "constraints.txt"), wheel)
    seconds = time.perf_counter() - began
    out = make(tmp_path / "data")
    assert run(reader, "-c", READ.format(out=out)).startswith("15 ")
    size = sum(path.stat().st_size for path in reader.rglob("*") if path.is_file() and not path.is_symlink())
    (jobs,) = reader.glob("lib/*/site-packages/last_shards/configs/demo.yaml")  # for `jobs.*`, which want the extra ray
    assert jobs.read_bytes() == (ROOT / "configs" / "demo.yaml").read_bytes()
    assert (jobs.parents[2] / "exports" / "rows.py").is_file()
    (town,) = reader.glob("lib/*/site-packages/teachers/town")
    for path in (ROOT / "teachers" / "town").glob("*.[js]*"):  # the weights that ship, and their card
        assert (town / path.name).read_bytes() == path.read_bytes()
    with capsys.disabled():
        print(f"\nthe core alone: {size / 1e6:.0f} MB with pip, installed in {seconds:.0f} s")
