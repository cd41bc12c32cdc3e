"""The real job on a real local Ray: the command line, a killed driver, a killed worker, the exit codes."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from chaos.processes import descendants
from jobs import teachers as teachers_job
from pipeline.lease import hold
from pipeline.stores.volume import Volume
from pipeline.verify import verify
from shards_schema import layout
from shards_schema.errors import ConfigError, HeldError
from shards_schema.specs import TargetSpec
from shards_schema.storage import decode, encode, stored_specs

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(600)  # each of these starts Ray and the networks, some of them three times


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a config, whose first run generates the data: 4 logs, 5 scenes each, in 4 shards."""
    folder = tmp_path_factory.mktemp("job")
    config = {
        "out": "unset",
        "source": {
            "kind": "synthetic",
            "root": str(folder / "data"),
            "logs": 4,
            "frames": 18,
            "width": 96,
            "height": 54,
            "lidar_points": 50,
            "filter": {"frame_interval": 1},
        },
        "plan": {"shard_size": 5},
        "samples": {"size": [64, 36]},
        "teachers": {
            "vggt": {"weights": {"random": 0}, "network": "tiny", "width": 266, "batch_size": 2},
            "cosmos": {"weights": {"random": 0}, "network": "tiny", "size": [128, 64], "batch_size": 2},
        },
        "worker": {"device": "cpu", "decode_threads": 1, "shards_in_flight": 1, "torch_threads": 1},
        "cluster": {"cpus": 2},
        "scan_processes": 1,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def start(work: Path, out: Path, *overrides: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "jobs.teachers", str(work / "job.yaml"), f"out={out}", *overrides]
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=_heed_ctrl_c,
    )  # fmt: skip


def _heed_ctrl_c() -> None:
    """A shell that puts the tests into the background has them, and all that they start, pass over SIGINT."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def run(work: Path, out: Path, *overrides: str) -> tuple[int, str]:
    return finish(start(work, out, *overrides))


def digests(out: Path) -> dict[str, str]:
    return {
        str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(out.rglob("*"))
        if p.is_file() and p.relative_to(out).parts[0] != layout.LOGS
    }


@pytest.fixture(scope="module")
def undisturbed(work: Path) -> Path:
    code, output = run(work, work / "undisturbed")
    assert code == 0, output
    assert "planned 20 scenes in 4 shards" in output
    assert "RANDOM WEIGHTS: vggt, cosmos" in output
    assert "synthetic" in output
    assert re.search(r"^vggt +4 +20 +20 +0 ", output, re.MULTILINE), output
    assert re.search(r"^cosmos +4 +20 +20 +0 ", output, re.MULTILINE), output
    assert "1.00 JPEG decodes per distinct image" in output
    return work / "undisturbed"


def committed(out: Path) -> int:
    return len([*out.glob("vggt/0*.json"), *out.glob("cosmos/0*.json"), *out.glob("samples/0*.json")])


def wait_for(out: Path, process: subprocess.Popen[str], records: int) -> None:
    deadline = time.monotonic() + 200
    while committed(out) < records:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def actor_of(pid: int) -> int:
    for child in descendants(pid):
        name = Path(f"/proc/{child}/cmdline").read_bytes()
        if name.startswith(b"ray::TeacherActor"):
            return child
    raise AssertionError("no actor is running")


def test_the_job_and_verify(undisturbed: Path, work: Path) -> None:
    assert verify(str(undisturbed)).faults == ()
    code, output = run(work, undisturbed)
    assert code == 0
    assert "0 to do" in output
    done = subprocess.run(
        [sys.executable, "-m", "jobs.verify", f"out={undisturbed}"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip().rsplit(": ", 1)[-1]) == (0, "clean")


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
    """Every Python block of docs/format.md, as a stranger would paste it, on a dataset that the job made."""
    page = (ROOT / "docs" / "format.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 7
    names: dict[str, Any] = {}
    for block in blocks:
        assert "shards_schema" not in block
        assert "pipeline" not in block
        if "l23_grid_scale" in block:  # nothing is encoded in the job's own dataset
            assert names["grid"].shape[:2] == (20, 3)
            names["sample"], expected = encoded_sample()
        exec(block.replace("out/demo", str(undisturbed)), names)
    assert names["pose"].shape == (3, 9)
    for name in ("special", "grid"):
        np.testing.assert_array_equal(names[name], expected[name])
    assert names["mean"].shape == names["std"].shape == (128,)
    assert names["good"].all()
    assert names["future"].shape == (20, 10, 3)
    assert len(names["bad"]) == 0


def test_kill_the_driver_and_resume(undisturbed: Path, work: Path) -> None:
    out = work / "driver"
    process = start(work, out)
    wait_for(out, process, 2)
    family = descendants(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = committed(out)
    assert 2 <= before < 12  # mid-run, or the test shows nothing
    for pid in family:  # what a machine's end would do at once, Ray's own reaper does in seconds
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    code, output = run(work, out)
    assert code == 0, output
    assert digests(out) == digests(undisturbed)


@pytest.mark.slow
def test_kill_a_worker(undisturbed: Path, work: Path) -> None:
    out = work / "worker"
    process = start(work, out)
    wait_for(out, process, 2)
    os.kill(actor_of(process.pid), signal.SIGKILL)
    assert committed(out) < 12
    code, output = finish(process)
    assert code == 0, output
    assert digests(out) == digests(undisturbed)


def test_interrupt_and_resume(undisturbed: Path, work: Path) -> None:
    out = work / "interrupt"
    process = start(work, out)
    wait_for(out, process, 1)
    process.send_signal(signal.SIGINT)
    there = committed(out)
    code, output = finish(process)
    assert code == 130, f"{there} records at the signal, {committed(out)} at the end\n{output}"
    assert "run the same command again" in output
    assert committed(out) < 12
    assert run(work, out)[0] == 0
    assert digests(out) == digests(undisturbed)


def test_a_run_over_its_quarantine_limit_is_red(work: Path, undisturbed: Path) -> None:
    image = next((work / "data" / "sensor_blobs").rglob("CAM_F0/*.jpg"))
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    try:
        code, output = run(work, work / "bad", "max_quarantined=0")
        assert code == 1
        assert "IncompleteError" in output
        assert "quarantine.parquet" in output
        assert verify(str(work / "bad")).faults == ()
        code, output = run(
            work, work / "bad", "max_quarantined=1"
        )  # everything is done: only the books are closed again
        assert code == 0, output
    finally:
        image.write_bytes(whole)


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
def test_a_config_that_cannot_be_is_named(work: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        teachers_job.main([str(work / "job.yaml"), f"out={work / 'never'}", *overrides])
    assert not (work / "never").exists()


def test_a_refusal_is_printed_without_a_traceback(work: Path, undisturbed: Path) -> None:
    code, output = run(work, undisturbed, "teachers.vggt.weights={random: 1}")
    assert code == 1
    assert "MismatchError" in output
    assert re.search(r"weights\.seed: 0 -> 1", output), output
    code, output = run(work, work / "never", "plan.shard_size=0")
    assert code == 2
    assert "Traceback" not in output


def test_a_second_driver_is_refused_by_name(work: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with hold(Volume(str(out))), pytest.raises(HeldError, match=rf"pid {os.getpid()}"):
        teachers_job.main([str(work / "job.yaml"), f"out={out}"])
    assert not out.exists() or not any(out.iterdir())
