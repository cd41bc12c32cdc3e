"""docs/tutorial.md: what it tells people to type is typed, in its order; and what pages call `make X` is a target."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.blocks import DOCS, block, checkout
from tests.chaos import small
from tests.inline_job import run_inline
from tests.made_once import drive

ROOT = DOCS.parent
BLOCKS = re.findall(r"<!-- block: (\w+) -->\n```(\w+)\n", (DOCS / "tutorial.md").read_text())
PLAN = ["plan.shard_size=5", "samples.size=[64,36]", "worker.torch_threads=1"]
PLAN += ["teachers.vggt.width=266", "teachers.cosmos.size=[128,64]"]
STEPS = "stages=[{stage: 1, steps: 2, lr: 0.002}, {stage: 2, steps: 2, lr: 0.002}]"


def smaller(data: Path) -> dict[str, list[str]]:
    """Job -> what makes it one of seconds: two logs of five scenes, small images, few steps."""
    run = [*PLAN, f"source={json.dumps(small.source(data))}", f"teachers.pdm.maps_root={data}/maps"]
    sft = ["samples.image=[64,32]", "student.image=[64,32]", "answers.size=16", "stream.batch_size=2", STEPS]
    return {"plan": run, "teachers": run, "sft": [*sft, "samples.held_out=0.5"], "inspect": ["scenes=1"]}


def jobs_of(command: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The jobs that a line of the shell starts through the repository's Makefile, each with its arguments."""
    asked = command.replace("make ", f"make -n -C {folder} ")
    told = subprocess.run(["bash", "-ec", asked], capture_output=True, text=True, check=True).stdout
    last = [line for line in told.splitlines() if re.search(r"-m jobs\.", line) and not line.startswith("test ")][-1]
    words = shlex.split(last)
    yield words[words.index("-m") + 1].removeprefix("jobs."), words[words.index("-m") + 2 :]


def test_in_small(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block in this process: a `make` by the job that it starts, Ray left out."""
    checkout(tmp_path, monkeypatch)
    data = drive(tmp_path_factory)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "synthetic").symlink_to(data)
    run_inline(monkeypatch)
    names: dict[str, Any] = {}
    ran = []
    for name, language in BLOCKS:
        text = block("tutorial", name)
        if language == "python":
            exec(compile(text, f"tutorial.md: {name}", "exec"), names)
            continue
        assert language == "bash", name
        rest = re.sub(r"^.*\bmake .*$\n", "", text, flags=re.MULTILINE)
        subprocess.run(["bash", "-ec", rest], cwd=tmp_path, check=True)
        for line in re.findall(r"^.*\bmake .*$", text, re.MULTILINE):
            variables, _, command = line.rpartition("make ")
            with pytest.MonkeyPatch.context() as patch:
                for variable in shlex.split(variables):
                    patch.setenv(*variable.split("=", 1))
                for job, arguments in jobs_of(f"make {command}", tmp_path):
                    more = smaller(data).get(job, []) if name != "mini" else PLAN
                    assert import_module(f"jobs.{job}").main([*arguments, *more]) in (None, 0) or job == "sft", line
                    ran.append(job)
    assert ran == ["plan", "teachers", "verify", "inspect", "sft", "evaluate", "plan"]
    assert (tmp_path / "out/demo-inspect.html").exists()
    assert (tmp_path / "runs/first-scores/worst.html").exists()
    assert names["result"].score[0, 0] > names["result"].score[0, 1]  # the human over who stands still
    assert names["batch"]["vggt"]["l3_tok12"].shape[:3] == (8, 3, 12)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_as_it_stands(tmp_path: Path) -> None:
    """Every block as it is typed, in a fresh clone; but `make setup` is a link to the environment of the tests."""
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(tmp_path / "last-shards")], check=True)
    clone = tmp_path / "last-shards"
    python = clone / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH={clone} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (clone / ".venv" / ".ready").touch()
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"TMPDIR": "/tmp"}
    pasted = ""
    for name, language in BLOCKS:
        text = block("tutorial", name)
        if language == "python":  # pasted into one interpreter
            pasted += text
            command = [str(python), "-c", pasted]
        else:
            command = ["bash", "-ec", text]
        done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}\n{done.stdout}\n{done.stderr}"
    assert (clone / "runs/first-scores/worst.html").exists()
    said = subprocess.run(["git", "status", "--short"], cwd=clone, capture_output=True, text=True, check=True).stdout
    assert said == "?? first.yaml\n"


def test_what_pages_tell_people_to_make_is_a_target() -> None:
    targets = set(re.findall(r"^([a-z-]+)(?=[ :].*)(?=.*:)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    told: dict[str, str] = {}
    for page in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]:
        typed = re.findall(r"^ *```.*?^ *```$|`[^`\n]+`", page.read_text(), re.DOTALL | re.MULTILINE)
        told |= dict.fromkeys(re.findall(r"(?:`|^|=\S+ )make +([a-z-]+)", "\n".join(typed), re.MULTILINE), page.name)
    assert {"plan", "teachers", "sft"} <= told.keys()
    assert not {target: page for target, page in told.items() if target not in targets}
