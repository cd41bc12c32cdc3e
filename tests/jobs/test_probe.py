"""`batch_size: auto`: how a size is searched, that it is asked for before anything is written, and that it stays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jobs import probe
from jobs import teachers as teachers_job
from pipeline.reading.verify import verify
from pipeline.stores.volume import Volume
from pipeline.writing import batch_sizes
from pipeline.writing.run import begin
from shards_schema.errors import ConfigError
from shards_schema.manifests import ColumnManifest
from shards_schema.plan import PlanConfig
from teachers import probing
from teachers.base import ColumnConfig, column_manifest
from teachers.probing import Figure, chosen, search
from teachers.registry import parse_config
from teachers.vggt.config import VGGTConfig
from teachers.vggt.teacher import VGGTTeacher
from tests.inline_job import run_inline
from tests.toys import ToySource, ToyTeacher

VGGT: dict[str, Any] = {
    "weights": {"random": 0},
    "network": "tiny",
    "width": 126,
    "views": ["CAM_F0"],
    "heads": [],
    "pools": {"grid": {"rows": 3, "cols": 4}},
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config of one small teacher with batch_size: auto; its shards are made in this process and not in Ray's."""
    config = {
        "out": str(tmp_path / "out"),
        "source": {
            "kind": "synthetic",
            "root": str(tmp_path / "data"),
            "logs": 1,
            "frames": 18,
            "width": 96,
            "height": 54,
            "lidar_points": 0,
            "cameras": ["CAM_F0"],
            "filter": {"frame_interval": 1},
        },
        "plan": {"shard_size": 4},
        "teachers": {"vggt": {**VGGT, "batch_size": "auto"}},
        "worker": {"device": "cpu", "decode_threads": 1, "torch_threads": 1},
        "scan_processes": 1,
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(config))

    run_inline(monkeypatch)
    return path


def curve(rates: dict[int, float | None], peak: int = 0) -> Callable[[int], Figure]:
    return lambda size: Figure(size, rates[size], peak * size)


@pytest.mark.parametrize(
    ("rates", "budget", "tried", "size"),
    [
        ({1: 10, 2: 18, 4: 30, 8: 30.8}, 1e9, [1, 2, 4, 8], 4),  # 2.7 % more is not worth it
        ({1: 10, 2: 18, 4: 30, 8: 31.0}, 1e9, [1, 2, 4, 8], 8),  # 3.3 % is
        ({1: 10, 2: 9, 4: 99, 8: 99}, 1e9, [1, 2], 1),
        ({1: 10, 2: 20, 4: 40, 8: 80}, 4, [1, 2, 4, 8], 4),  # a byte a scene
        ({1: 10, 2: 20, 4: None, 8: 80}, 1e9, [1, 2, 4], 2),  # torch.OutOfMemoryError
        ({1: None}, 1e9, [1], None),
        ({1: 10}, 0, [1], None),
    ],
)
def test_the_search(rates: dict[int, float | None], budget: float, tried: list[int], size: int | None) -> None:
    figures = search(curve(rates, peak=1), largest=11, budget=budget, growth=0.03)
    assert [figure.batch_size for figure in figures] == tried
    assert chosen(figures, budget=budget, growth=0.03) == size


def test_a_batch_is_no_larger_than_a_shard() -> None:
    figures = search(lambda size: Figure(size, float(size), None), largest=6, budget=float("inf"), growth=0.03)
    assert [figure.batch_size for figure in figures] == [1, 2, 4]


def test_without_a_probe_nothing_is_begun(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"vggt\.batch_size is auto, .*run `python -m jobs\.probe CONFIG out=.*/out`"):
        teachers_job.main([str(recipe)])
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.json"))


def test_probe_run_resume(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """The size is measured, used, written down, and used again when the measurement is gone."""
    probe.main([str(recipe), "seconds=0.01", "growth=0.0001"])
    printed = capsys.readouterr().out
    size = json.loads((tmp_path / "out" / batch_sizes.RECORD).read_text())["vggt"]["batch_size"]
    assert size in (1, 2, 4)
    assert f"  vggt: {{batch_size: {size}}}" in printed
    assert "vggt on cpu, rate alone" in printed
    assert next(line for line in printed.splitlines() if "<- chosen" in line).split()[0] == str(size)

    seen: list[int] = []
    compute = VGGTTeacher.stage
    monkeypatch.setattr(VGGTTeacher, "stage", lambda self, batch: seen.append(len(batch)) or compute(self, batch))
    teachers_job.main([str(recipe)])
    assert f"teachers.vggt.batch_size: auto is {size} here" in capsys.readouterr().out
    assert max(seen) == min(size, 3)  # scenes of the larger shard
    column = tmp_path / "out" / "vggt" / "column.json"
    manifest = ColumnManifest.from_bytes(column.read_bytes(), "")
    assert manifest.provenance["batch_size"] == manifest.config["batch_size"] == size
    assert verify(str(tmp_path / "out")).faults == ()

    # the dataset knows now: other measurements, or none, are nobody's business
    before = column.read_bytes()
    for record in tmp_path.rglob("vggt/00000*.json"):
        record.unlink()
    (tmp_path / "out" / batch_sizes.RECORD).write_text(json.dumps({"vggt": {"batch_size": 77, "config": {}}}))
    seen.clear()
    teachers_job.main([str(recipe)])
    assert max(seen) == min(size, 3)
    assert column.read_bytes() == before
    shutil.rmtree(tmp_path / "out" / "logs")
    probe.main([str(recipe)])
    assert f"the dataset has this column, with batch_size {size}" in capsys.readouterr().out
    assert not (tmp_path / "out" / batch_sizes.RECORD).exists()


def test_a_measurement_is_for_its_config(tmp_path: Path) -> None:
    volume = Volume(str(tmp_path))
    measured = ColumnConfig(**VGGT, batch_size="auto", storage={"l3_grid": "int8"})
    batch_sizes.write(volume, {"a": batch_sizes.entry(measured, 8, "H200", []), "b": {"batch_size": 3, "config": {}}})
    given: dict[str, dict[str, Any]] = {"a": {**VGGT, "batch_size": "auto"}, "c": {"batch_size": 5}, "d": {}}
    teachers = {name: ColumnConfig(**fields) for name, fields in given.items()}
    resolved = {name: config.given for name, config in batch_sizes.resolve(teachers, volume).items()}
    assert resolved == {**given, "a": {**VGGT, "batch_size": 8}}
    assert teachers["a"].batch_size == "auto", "what was given is left alone"
    with pytest.raises(ConfigError, match=r"for another config \(other width\): run"):
        batch_sizes.resolve({"a": ColumnConfig(**VGGT | {"width": 140}, batch_size="auto")}, volume)
    batch_sizes.write(volume, {"e": batch_sizes.entry(ColumnConfig(), 2, "cpu", [])})
    assert batch_sizes.resolve({"a": teachers["a"]}, volume)["a"].batch_size == 8, "others' measurements stay"


def test_a_column_that_was_begun_with_a_default(tmp_path: Path) -> None:
    """Its config named no size, but its identity does."""
    source = ToySource(str(tmp_path / "none"))
    begin(source, str(tmp_path / "out"), [column_manifest(ToyTeacher(batch_size=7), {})], plan_config=PlanConfig())
    volume = Volume(str(tmp_path / "out"))
    assert batch_sizes.resolve({"toy": ColumnConfig(batch_size="auto")}, volume)["toy"].given == {"batch_size": 7}

    class Silent(ToyTeacher):
        def provenance(self) -> dict[str, Any]:
            return {}

    begin(source, str(tmp_path / "mute"), [column_manifest(Silent())], plan_config=PlanConfig())
    with pytest.raises(ConfigError, match="does not name one; give the number"):
        batch_sizes.resolve({"toy": ColumnConfig(batch_size="auto")}, Volume(str(tmp_path / "mute")))


def test_nothing_to_probe(recipe: Path) -> None:
    with pytest.raises(ConfigError, match="no teacher of this config has batch_size: auto"):
        probe.main([str(recipe), "teachers.vggt.batch_size=2"])


def test_what_does_not_fit_is_refused(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(probing, "_busy", full)
    with pytest.raises(ConfigError, match="not one scene fits"):
        probe.main([str(recipe)])
    assert not (tmp_path / "out" / batch_sizes.RECORD).exists()


def test_a_teacher_without_phases_is_timed_too() -> None:
    assert probing._busy(ToyTeacher(sleep=0.02), []) >= 0.02


@pytest.mark.gpu
def test_on_a_gpu_memory_is_looked_at() -> None:
    def make() -> VGGTTeacher:
        teacher = VGGTTeacher(parse_config(VGGTConfig, {**VGGT, "batch_size": 4}, "vggt"))
        teacher.load("cuda")
        return teacher

    small, large = (probing.measured(make, size, "cuda", 0.05) for size in (1, 64))
    assert small.rate is not None
    assert large.rate is not None
    assert large.rate > small.rate > 0
    assert small.peak is not None
    assert large.peak is not None
    assert large.peak > small.peak > 0
    assert large.peak < probing.room("cuda") < torch.cuda.get_device_properties(0).total_memory + 1

    class Greedy(VGGTTeacher):
        def forward(self, inputs: Any) -> Any:
            return {"l3_grid": torch.empty(1 << 45, device="cuda")}

    def greedy() -> VGGTTeacher:
        teacher = Greedy(make().config)
        teacher.load("cuda")
        return teacher

    assert probing.measured(greedy, 2, "cuda", 0.05) == Figure(2, None, None)
