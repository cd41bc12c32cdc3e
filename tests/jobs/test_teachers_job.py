"""The real job on a real local Ray: the command line, an interrupted driver, a killed one, the exit codes."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import config as job_config
from jobs import teachers as teachers_job
from pipeline.reading.verify import verify
from pipeline.sources import registry as sources
from pipeline.stores.lease import hold
from pipeline.stores.volume import Volume
from shards_schema.errors import ConfigError, HeldError
from shards_schema.records import Scene
from shards_schema.specs import TargetSpec
from shards_schema.storage import decode, encode, stored_specs
from tests.blocks import block
from tests.chaos import small
from tests.chaos.processes import ROOT, kill, records
from tests.chaos.small import SmallJob
from tests.chaos.world import digests
from tests.inline_job import run_inline
from tests.made_once import drive

RECORDS = 15
"""10 scenes in 5 shards of 3 columns."""
pytestmark = pytest.mark.timeout(600)  # one of these starts Ray and the networks three times


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drive(tmp_path_factory)


@pytest.fixture(scope="module")
def job(data: Path) -> Iterator[SmallJob]:
    """Both kinds of network on 2 logs of 5 scenes."""
    teachers = {"vggt": small.VGGT, "cosmos": small.COSMOS}
    config = small.settings(data, shard_size=2, teachers=teachers)
    with tempfile.TemporaryDirectory(prefix="tj", dir="/tmp") as folder, SmallJob(Path(folder), config) as made:
        yield made  # (the short path is for Ray's sockets)


@pytest.fixture(scope="module")
def undisturbed(job: SmallJob) -> Path:
    """Of one process, without Ray."""
    with pytest.MonkeyPatch.context() as patch:
        run_inline(patch)
        teachers_job.main([str(job.config), f"out={job.folder / 'undisturbed'}"])
    assert len(records(job.folder / "undisturbed")) == RECORDS
    return job.folder / "undisturbed"


class Shell:
    """A command line in this process, which has all imports: the exit code, and what is printed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def run(self, job: SmallJob, out: Path, *overrides: str) -> tuple[Any, str]:
        """`python -m jobs.teachers` of `job`, as a test may have changed it."""
        arguments = [str(job.config), f"out={out}", *overrides]
        return self._left("jobs.teachers", arguments, lambda: job_config.run(teachers_job.main))

    def module(self, name: str, *arguments: str) -> tuple[Any, str]:
        """`python -m name`."""
        return self._left(name, arguments, lambda: runpy.run_module(name, run_name="__main__", alter_sys=True))

    def _left(self, name: str, arguments: Sequence[str], run: Callable[[], object]) -> tuple[Any, str]:
        self._monkeypatch.setattr(sys, "argv", [name, *arguments])
        with pytest.raises(SystemExit) as left:
            run()
        captured = self._capsys.readouterr()
        return left.value.code, captured.out + captured.err


@pytest.fixture
def shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(monkeypatch, capsys)


def test_the_job_and_verify(undisturbed: Path, job: SmallJob, shell: Shell) -> None:
    assert verify(str(undisturbed)).faults == ()
    code, output = shell.run(job, undisturbed)
    assert code == 0
    assert "0 to do" in output
    code, output = shell.module("jobs.verify", f"out={undisturbed}")
    assert (code, output.strip().rsplit(": ", 1)[-1]) == (0, "clean")


def encoded_sample() -> tuple[dict[str, Any], dict[str, Any]]:
    """The members of a sample with a bfloat16 and an int8 target, and what our reader makes of them."""
    values = np.random.default_rng(0).standard_normal((2, 5, 300)).astype(np.float32)
    members: dict[str, Any] = {}
    read = {}
    for name, choice in (("l23_special", "bfloat16"), ("l23_grid", "int8")):
        spec = TargetSpec(
            name=name, dims=("view", "token", "channel"), shape=values.shape, dtype="float32", unit="1", meaning="x"
        )
        stored_spec, *_ = stored_specs([spec], {name: choice})
        arrays = encode(stored_spec, values)
        members |= {f"{key}.npy": array for key, array in arrays.items()}
        read[name.removeprefix("l23_")] = decode(stored_spec, arrays)
    return members, read


def test_the_format_page_is_true(undisturbed: Path) -> None:
    """Every Python block of docs/format.md, as a stranger would paste it, on a dataset that the job made.

    But for the one that reads a view, which this dataset has not: tests/pipeline/stores/test_view.py runs that one.
    """
    page = (ROOT / "docs" / "format.md").read_text()
    blocks = [b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "targets.view" not in b]
    assert len(blocks) == 8
    names: dict[str, Any] = {}
    for text in blocks:
        assert "shards_schema" not in text
        assert "pipeline" not in text
        if "l23_grid_scale" in text:  # nothing is encoded in the job's own dataset
            assert names["grid"].shape[:2] == (10, 3)
            names["sample"], expected = encoded_sample()
        exec(text.replace("out/demo", str(undisturbed)), names)
    assert names["pose"].shape == (3, 9)
    for name in ("special", "grid"):
        np.testing.assert_array_equal(names[name], expected[name])
    assert names["mean"].shape == names["std"].shape == (128,)
    assert names["good"].all()
    assert names["future"].shape == (10, 10, 3)
    assert len(names["bad"]) == 0


def json_lines(output: str) -> list[dict[str, Any]]:
    """The lines of JSON among what was printed."""
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_interrupt_then_kill_then_finish(undisturbed: Path, job: SmallJob) -> None:
    """Ctrl-C ends the first run, the end of its machine the second; the third finishes, and nothing differs."""
    out = job.folder / "disturbed"
    (log_json,) = (word for word in block("clusters", "log").split() if word.startswith("log="))
    first = job.start(out, log_json)
    first.reach(1)
    os.kill(first.process.pid, signal.SIGINT)
    there = len(records(out))
    code, output = first.end(), first.said()
    left = records(out)
    assert code == 130, f"{there} records at the signal, {len(left)} at the end\n{output}"
    assert "run the same command again" in output
    assert 1 <= len(left) < RECORDS  # mid-run, or the test shows nothing
    assert [line["state"] for line in json_lines(output)] == ["starting", "interrupted"]
    assert "shard/s" not in output, "there is a bar beside the lines of JSON"
    second = job.start(out)
    second.reach(len(left) + 1)
    second.kill()
    assert len(left) < len(records(out)) < RECORDS
    code, output = job.run(out, log_json)
    assert code == 0, output
    last = json_lines(output)[-1]
    assert (last["state"], last["shards_left"], last["workers"], last["quarantined"]) == ("done", 0, 1, {})
    assert last["bytes"] > 0
    assert 0 < last["scenes"] <= 10
    assert 0 < last["device_utilisation"] <= 1
    assert "planned 10 scenes in 5 shards" in output
    assert "RANDOM WEIGHTS: vggt, cosmos" in output
    assert "synthetic" in output
    assert re.search(r"^vggt +5 +10 +10 +0 ", output, re.MULTILINE), output
    assert re.search(r"^cosmos +5 +10 +10 +0 ", output, re.MULTILINE), output
    assert "1.00 JPEG decodes per distinct image" in output
    assert digests(out) == digests(undisturbed)
    assert left.items() <= records(out).items(), "a record that was there was written anew"


@pytest.mark.slow
def test_kill_a_worker(undisturbed: Path, job: SmallJob) -> None:
    out = job.folder / "worker"
    run = job.start(out)
    run.reach(2)
    kill(run.find("ray::TeacherActor"), signal.SIGKILL)
    assert len(records(out)) < RECORDS
    code = run.end()
    assert code == 0, run.said()
    assert digests(out) == digests(undisturbed)


def test_a_run_over_its_quarantine_limit_is_red(
    job: SmallJob, data: Path, tmp_path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(data, tmp_path / "data")
    source = sources.build(small.source(tmp_path / "data"))
    ref = source.scan().refs[0]
    (scene,) = source.scenes(ref.log, [ref])
    assert isinstance(scene, Scene)
    image = Path(scene.camera(0, "CAM_F0").image)
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    run_inline(monkeypatch)
    out, overrides = (
        tmp_path / "bad",
        [f"source.root={tmp_path / 'data'}", f"teachers={json.dumps({'cosmos': small.COSMOS})}"],
    )
    code, output = shell.run(job, out, *overrides, "max_quarantined=0")
    assert code == 1
    assert "IncompleteError" in output
    assert "quarantine.parquet" in output
    assert verify(str(out)).faults == ()
    # everything is done: the dataset is only finalised again
    code, output = shell.run(job, out, *overrides, "max_quarantined=1")
    assert code == 0, output
    assert "0 to do" in output


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["plan.shard_size=0"], "plan.shard_size"),
        (["nonsense=1"], "nonsense"),
        (["source.kind=waymo"], "source.kind must be one of"),
        (["teachers.vggt.batch=3"], "batch"),
        (["teachers.lidar={}"], "no teacher 'lidar'"),
        (["source.frames=-3"], "frames"),
        (["source.filter={frame_interval: 0}"], "frame_interval"),
    ],
)
def test_a_config_that_cannot_be_is_named(job: SmallJob, tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        teachers_job.main([str(job.config), f"out={tmp_path / 'never'}", *overrides])
    assert not (tmp_path / "never").exists()


def test_a_refusal_is_printed_without_a_traceback(
    job: SmallJob, undisturbed: Path, tmp_path: Path, shell: Shell
) -> None:
    code, output = shell.run(job, undisturbed, "teachers.vggt.weights={random: 1}")
    assert code == 1
    assert "MismatchError" in output
    assert re.search(r"weights\.seed: 0 -> 1", output), output
    code, output = shell.run(job, tmp_path / "never", "plan.shard_size=0")
    assert code == 2
    assert "Traceback" not in output


def test_a_second_driver_is_refused_by_name(job: SmallJob, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with hold(Volume(str(out))), pytest.raises(HeldError, match=rf"pid {os.getpid()}"):
        teachers_job.main([str(job.config), f"out={out}"])
    assert not out.exists() or not any(out.iterdir())
