"""The light meter: its sums are right, and it runs where almost nothing is."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.light import Config, meter, networks, report
from benchmarks.light.meter import Device, Readings, Row, in_turn, matrix_rate
from shards_schema.errors import ConfigError
from teachers.flops import counted

ROOT = Path(__file__).parents[2]
QUICK = ["device=cpu", "width=154", "clip.size=[64, 64]", "image=[160, 90]", "repeats=1", "job_repeats=1"]
QUICK += ["seconds=0.001", "shards=2", "shard_size=4"]


def row(name: str = "row", kind: str = "vggt", **fields: Any) -> Row:
    return Row(**{"name": name, "kind": kind, "dtype": "fp32", "flops": 100, "run": lambda calls: 0.0, **fields})


def test_rates_of_a_reading() -> None:
    reading = Readings(row(scenes=4, frames=3, flops=1000), calls=5, wall=[2.0, 4.0], busy=[1.0, 4.0])
    assert reading.scene_rates() == [10.0, 5.0]
    assert reading.flop_rates() == [2500.0, 1250.0]
    assert reading.busy_shares() == [0.5, 1.0]


def test_the_matrix_rate_is_the_best_sizes_median() -> None:
    def matmul(name: str, *wall: float) -> Readings:
        return Readings(row(name, "matmul"), calls=1, wall=list(wall))

    readings = [matmul("small", 1.0, 0.1, 1.0), matmul("large", 0.5, 0.5, 0.5), Readings(row(), 1, [0.001])]
    assert matrix_rate(readings, "fp32") == (200.0, "large")
    assert matrix_rate(readings, "bf16") is None


def test_a_measured_product_is_counted_right() -> None:
    device = Device("cpu")
    row = meter.matmuls(device)[0]
    assert counted(lambda: row.run(3)) == 3 * row.flops == 3 * 2 * 512**3
    (reading,) = in_turn(device, [row], {}, repeats=2, seconds=0.001)
    assert len(reading.wall) == 2
    assert reading.flop_rates() == [reading.calls * row.flops / seconds for seconds in reading.wall]


def test_a_row_that_fails_is_left_out_with_its_reason() -> None:
    def fail(calls: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    missing: dict[str, str] = {}
    readings = in_turn(Device("cpu"), [row("big", run=fail), row("fits")], missing, repeats=3, seconds=0.001)
    assert [r.row.name for r in readings] == ["fits"]
    assert missing == {"big": "OutOfMemoryError: CUDA out of memory."}


def test_rows_are_taken_in_turn() -> None:
    order: list[str] = []

    def note(name: str) -> Any:
        return lambda calls: order.append(name) or 0.0

    in_turn(Device("cpu"), [row("a", run=note("a")), row("b", run=note("b"))], {}, repeats=2, seconds=1e-6)
    assert order == ["a", "a", "b", "b", "b", "a", "a", "b"]


def result(*, cuda: bool, network: str = "1b", job: Any = None, kinds: tuple[str, ...] = ("vggt", "cosmos")) -> Any:
    rates = {"vggt": 40.0, "cosmos": 80.0}
    readings = [Readings(row(kind=kind, scenes=1), 1, [1 / rates[kind]], [1 / rates[kind]]) for kind in kinds]
    device: Any = SimpleNamespace(cuda=cuda, torch=torch.device("cuda" if cuda else "cpu"))
    return report.Result(Config.model_validate({"network": network}), device, readings, {}, job)


def test_the_headline() -> None:
    line = report.headline(result(cuda=True))
    hours = 103_288 * (1 / 40 + 1 / 80) / 3600
    assert hours == pytest.approx(1.076, abs=1e-3)
    assert f"{hours:.2f} h of teachers (VGGT 0.72, CV8x8x8 0.36)" in line
    job: Any = SimpleNamespace(columns=("vggt", "cosmos"), job=[20.0, 25.0, 22.0])
    assert "1.30 h at the job's rate" in report.headline(result(cuda=True, job=job))


@pytest.mark.parametrize(
    "other", [{"cuda": False}, {"cuda": True, "network": "tiny"}, {"cuda": True, "kinds": ("vggt",)}]
)
def test_no_headline_without_the_real_thing(other: dict[str, Any]) -> None:
    line = report.headline(result(**other))
    assert "not measured" in line
    assert "h of teachers" not in line


def test_a_whole_run_on_the_cpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "light.md"
    command.main(["light", *QUICK, f"out={page}", "batches=[2]"])
    said = capsys.readouterr().out
    for name in ("VGGT tiny, batch 2", "VGGT tiny, batch 2, tokens only", "CV8x8x8 tiny, 9 frames"):
        assert re.search(rf"^{name}.*\d fp32 +\d+%", said, re.MULTILINE), name
    assert "VGGT 1b in batches" in said
    if find_spec("vggt") is None:
        assert "VGGT tiny, batch 1, Meta's own: not measured: implementation: upstream needs Meta's package" in said
    else:
        assert re.search(r"^VGGT: [\d.]+ times Meta's own", said, re.MULTILINE)
    assert "not measured: it needs CUDA and full-size networks" in said
    assert re.search(r"^job over bare loop: [\d.]+ .* samples and vggt, cosmos, 8 scenes", said, re.MULTILINE)
    assert "1.00 JPEG decodes" in said
    assert page.read_text().startswith("Measured: ")
    assert page.read_text().strip() in said


def test_it_runs_where_ray_and_diffusers_and_the_stores_are_not() -> None:
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(sys.argv[1].split(',')))  # None: not installed\n"
        "from benchmarks.__main__ import main\n"
        "main(sys.argv[2:])\n"
    )
    absent = "ray,diffusers,transformers,simplejpeg,zarr,numcodecs,google_crc32c,fsspec,pyarrow,webdataset,tqdm,pytest"
    run = subprocess.run(
        [sys.executable, "-c", script, absent, "light", *QUICK, "batches=[1]"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert re.search(r"^VGGT tiny, batch 1 .*\d fp32", run.stdout, re.MULTILINE)
    assert "CV8x8x8 tiny, 9 frames, batch 1: not measured: diffusers is not installed" in run.stdout
    assert re.search(r"^job over bare loop: not measured: \w+ is not installed", run.stdout, re.MULTILINE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_cuda_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ConfigError, match="sees no CUDA"):
        Config(device="cuda").plan()


def test_a_lone_measurements_knobs_need_no_name() -> None:
    assert command.named(["device=cpu", "light.repeats=2"], ["light"]) == ["light.device=cpu", "light.repeats=2"]
    assert command.named(["job.repeats=2"], ["light", "job"]) == ["job.repeats=2"]
    with pytest.raises(ConfigError, match="nonsense"):
        command.main(["light", "nonsense=1"])


def test_measurements_are_listed_without_being_imported() -> None:
    known = command.measurements()
    assert {"job", "light", "writer", "scoring"} <= set(known)
    assert {"measure", "workload", "__main__"}.isdisjoint(known)
    assert all(known.values()), "a measurement without a docstring"
    with pytest.raises(ConfigError, match=r"light .*against light"):
        command.main(["no_such_measurement"])


def test_ready_batches_are_what_a_teacher_takes() -> None:
    from teachers import registry

    teacher = registry.build("cosmos", {"weights": {"random": 0}, "network": "tiny", "size": [64, 48], "pool": None})
    batch = networks.ready(teacher, 0, 2)
    assert [item.images.shape for item in batch] == [(9, 48, 64, 3)] * 2
    teacher.load("cpu")
    assert networks.loop(Device("cpu"), [(teacher, [batch, batch])], 3) > 0


@pytest.mark.gpu
def test_a_whole_run_on_cuda(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["light", "device=cuda", "network=small", "batches=[4]", "repeats=1", "seconds=0.05", "job=false"])
    said = capsys.readouterr().out
    assert re.search(r"^matrix rate in bf16: [\d.]+ TFLOP/s", said, re.MULTILINE)
    assert re.search(r"^VGGT small, batch 4 .*\d bf16 .*%", said, re.MULTILINE)


def test_a_module_of_ours_that_is_gone_is_a_fault_and_no_reason() -> None:
    from benchmarks.light import absent

    assert absent(ModuleNotFoundError("No module named 'zarr.codecs'", name="zarr.codecs")) == "zarr is not installed"
    with pytest.raises(ModuleNotFoundError, match="pipeline"):
        absent(ModuleNotFoundError("No module named 'pipeline.gone'", name="pipeline.gone"))


def test_what_is_predicted_is_named_as_its_row_is() -> None:
    """On CUDA, where the rows are built: a prediction that no row can have would never be held against anything."""
    plan = Config(network="1b", batches=(4, 8, 16), compile=True, width=518)
    rows = networks._makers(plan, cast(Any, SimpleNamespace(cuda=True)), Path("nowhere"))
    assert set(report.PREDICTED) <= set(rows)
    for middle, low, high in report.PREDICTED.values():
        assert low < middle < high
