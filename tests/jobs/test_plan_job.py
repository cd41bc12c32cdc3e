"""`make plan`, and the head of a run: what is certain is said before the first shard, and what cannot be is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import last_shards as ls
from cluster.hopeless import Hopeless
from jobs import plan as plan_job
from jobs import teachers as teachers_job
from pipeline.reading.verify import verify
from pipeline.stores.volume import Volume
from pipeline.writing import batch_sizes
from pipeline.writing.task import ColumnReceipt, ShardReceipt
from reports.tables import bytes_text
from shards_schema.errors import ConfigError, IncompleteError
from teachers.base import ColumnConfig
from tests import navsim_root
from tests.inline_job import run_inline

VGGT = "{weights: {random: 0}, network: tiny, views: [CAM_F0], width: 252}"
FUTURE = "{weights: {random: 0}, network: tiny, layout: A, size: [64, 64], pool: null}"
SMALL = ("plan.shard_size=2", "scan_processes=1", "worker.device=cpu", "worker.torch_threads=1")


def command(root: Path, teachers: str, *overrides: str, filter: str = "{frame_interval: 1}") -> list[str]:
    source = f"source={{kind: navsim, root: '{root}/data', split: mini, filter: {filter}}}"
    return [f"out={root}/out", source, f"teachers={teachers}", *SMALL, *overrides]


def test_it_says_what_the_run_then_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    navsim_root.write(tmp_path / "data", {"log_a": 17, "log_b": 15})
    given = command(tmp_path, f"{{vggt: {VGGT}, cosmos: {FUTURE}}}")
    plan_job.main(given)
    told = capsys.readouterr().out
    assert "found: 2 of 2 logs, 6 scenes" in told
    assert "images of the future are asked for by cosmos\n" in told
    assert re.search(r"^vggt +6 of 6 ", told, re.MULTILINE), told
    assert re.search(r"^6 scenes in 3 shards of at most 2 \(plan (\w+)\)", told, re.MULTILINE), told
    assert not (tmp_path / "out").exists()
    run_inline(monkeypatch)
    teachers_job.main(given)
    ran = capsys.readouterr().out
    assert told.splitlines()[:8] == ran.splitlines()[:8]
    assert re.search(r"\(plan (\w+)\)", told)[1] in ran  # type: ignore[index]
    for column in ("samples", "vggt", "cosmos"):
        real = sum(file.stat().st_size for file in (tmp_path / "out" / column).glob("*.tar"))
        assert _bytes(told, column, 2) == pytest.approx(real, rel=0.2), column
        arrays = (tmp_path / "out" / "targets.zarr" / column).rglob("*")
        real = sum(f.stat().st_size for f in arrays if f.is_file() and f.name != "zarr.json" and "valid" not in f.parts)
        assert _bytes(told, column, 3) == pytest.approx(real, rel=0.2, abs=2000), column


def _bytes(told: str, column: str, place: int) -> float:
    (row,) = re.findall(rf"^{column} +.*$", told, re.MULTILINE)
    number, unit = re.split(r"  +", row)[place + 1].split()
    return float(number) * {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}[unit]


def test_the_hours_are_stated_or_measured_or_not_known(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    navsim_root.write(tmp_path / "data", {"log_a": 49})
    given = command(tmp_path, f"{{vggt: {VGGT}, cosmos: {FUTURE}}}")

    def told(*overrides: str) -> str:
        plan_job.main([*given, *overrides])
        return capsys.readouterr().out

    assert "device hours of vggt, cosmos are not known" in told()
    assert "0.5 device hours at 0.02 scenes/s" in told("rate=0.02")
    assert "device hours of vggt are not known" in told("rate={cosmos: 0.02}")
    config = ColumnConfig(**yaml.safe_load(VGGT), batch_size=8)
    figures = [{"batch_size": 4, "rate": 1.0, "peak": None}, {"batch_size": 8, "rate": 0.01, "peak": None}]
    batch_sizes.write(Volume(str(tmp_path / "out")), {"vggt": batch_sizes.entry(config, 8, "a card", figures)})
    assert "1.5 device hours in all" in told("rate={cosmos: 0.02}", "teachers.vggt.batch_size=auto")
    assert "device hours of vggt are not known" in told("rate={cosmos: 0.02}", "teachers.vggt.heads=[depth]")


def test_bytes_and_hours_for_other_numbers_of_scenes_and_devices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    navsim_root.write(tmp_path / "data", {"log_a": 16})
    given = [*command(tmp_path, f"{{vggt: {VGGT}, cosmos: {FUTURE}}}"), "scenes=7200", "devices=4"]
    plan_job.main([*given, "rate={vggt: 2, cosmos: 1}"])
    told = capsys.readouterr().out.splitlines()[-1]
    each = ls.plan(given_recipe(tmp_path))
    tars = 7200 * sum(column.tar or 0 for column in each.columns)
    assert f"7200 scenes on 4 devices: {bytes_text(tars)} in tars, " in told
    assert f"{bytes_text(tars + 7200 * sum(column.zarr for column in each.columns))} with targets.zarr" in told
    assert "; 0.8 hours" in told  # 3 hours of one device
    plan_job.main(given)
    assert "hours not known, for vggt, cosmos" in capsys.readouterr().out


def given_recipe(root: Path) -> dict[str, Any]:
    """What `command` says, as a program says it."""
    source = {"kind": "navsim", "root": str(root / "data"), "split": "mini", "filter": {"frame_interval": 1}}
    teachers = {"vggt": yaml.safe_load(VGGT), "cosmos": yaml.safe_load(FUTURE)}
    return {"out": str(root / "out"), "source": source, "teachers": teachers, "plan": {"shard_size": 2}}


def test_a_program_is_told_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    navsim_root.write(tmp_path / "data", {"log_a": 17, "log_b": 15})
    found = ls.plan(given_recipe(tmp_path), rate={"vggt": 0.5, "cosmos": 0.5})
    assert [column.name for column in found.columns] == ["samples", "vggt", "cosmos"] == [*found.todo]
    assert (found.scenes, found.columns[1].covered) == (6, 6)
    assert found.size() == found.size(6) > found.size(zarr=False) > 0
    assert found.hours() == pytest.approx(6 * 4 / 3600)
    assert found.hours(600, devices=8) == pytest.approx(300 / 3600)
    monkeypatch.setenv("THE_DATA", str(tmp_path / "data"))
    given = given_recipe(tmp_path)
    given["source"]["root"] = "${THE_DATA}"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(given))
    assert ls.plan(tmp_path / "mine.yaml").scan == found.scan
    assert ls.plan(tmp_path / "mine.yaml").hours() is None
    run_inline(monkeypatch)
    teachers_job.main([str(tmp_path / "mine.yaml"), *SMALL])
    assert ls.plan(tmp_path / "mine.yaml").todo == ()


@pytest.mark.parametrize("drawn", [False, True])
def test_a_program_without_a_guard_is_told_too(tmp_path: Path, drawn: bool) -> None:
    """A script of a few lines, whose logs are read, or drawn, in processes: they must not run the script anew."""
    recipe = given_recipe(tmp_path) | {"scan_processes": 2}
    if drawn:
        small = {"logs": 4, "frames": 14, "width": 64, "height": 36, "lidar_points": 0, "processes": 2}
        recipe |= {"source": {"kind": "synthetic", "root": str(tmp_path / "data"), **small, "cameras": ["CAM_F0"]}}
    else:
        navsim_root.write(tmp_path / "data", {f"log_{i}": 14 for i in range(10)})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "script.py").write_text("import last_shards as ls\nprint(ls.plan('mine.yaml'))\n")
    environment = os.environ | {"PYTHONPATH": str(Path(ls.__file__).parents[1])}
    run = [sys.executable, "script.py"]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    scenes = 4 if drawn else 10
    assert done.stdout.startswith(f"Forecast({scenes} scenes, with all images: samples {scenes}, ")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teecher": {}}, "teecher.*teachers"),
        ({"plan": {"shard_size": 0}}, "plan.shard_size: .*greater than or equal to 1"),
        ({"teachers": {"cosmos": {"weights": {"random": 0}, "network": "huge"}}}, "network"),
        ({"source": {"kind": "navsim", "root": "${NOT_SET_ANYWHERE}", "split": "mini"}}, "NOT_SET_ANYWHERE"),
    ],
)
def test_a_program_is_refused_in_the_same_words(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    navsim_root.write(tmp_path / "data", {"log_a": 14})
    with pytest.raises(ConfigError, match=told):
        ls.plan(given_recipe(tmp_path), **changes)
    with pytest.raises(ConfigError, match=r"recipe nowhere\.yaml: No such file"):
        ls.plan("nowhere.yaml")


def test_a_batch_size_that_nobody_has_measured_is_no_reason_not_to_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    navsim_root.write(tmp_path / "data", {"log_a": 14})
    plan_job.main(command(tmp_path, f"{{vggt: {VGGT}}}", "teachers.vggt.batch_size=auto"))
    told = capsys.readouterr().out
    assert "NOTE: teachers.vggt.batch_size is auto, and nobody has measured it" in told
    assert "1 scenes in 1 shards" in told


def test_no_weights_are_looked_for(tmp_path: Path) -> None:
    navsim_root.write(tmp_path / "data", {"log_a": 14})
    plan_job.main(command(tmp_path, f"{{vggt: {{weights: {{path: '{tmp_path}/nowhere'}}, views: [CAM_F0]}}}}"))


def test_room_that_is_not_there_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    navsim_root.write(tmp_path / "data", {"log_a": 14})
    usage = type(shutil.disk_usage(tmp_path))(1000, 990, 10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    plan_job.main(command(tmp_path, f"{{vggt: {VGGT}}}"))
    assert re.search(rf"NOT ENOUGH ROOM: .* to write, 10 B free at {tmp_path}$", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("teachers", "filter", "error", "told"),
    [
        (f"{{cosmos: {FUTURE}}}", "{num_future_frames: 4}", ConfigError, r"frames \+0 \.\. \+8"),
        (f"{{cosmos: {FUTURE}}}", "{frame_interval: 1}", IncompleteError, "cosmos: 0 of 3 .* of future"),
        (f"{{vggt: {VGGT}}}", "{log_names: [log_a, log_z]}", IncompleteError, "1 of 2 logs"),
        (
            "{vggt: {weights: {random: 0}, network: tiny, views: [CAM_F0], height: 518}}",
            "null",
            ConfigError,
            "vggt, CAM",
        ),
    ],
)
def test_what_is_certain_to_fail_is_refused_before_anything_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teachers: str, filter: str, error: type[Exception], told: str
) -> None:
    navsim_root.write(tmp_path / "data", {"log_a": 16}, lambda index, channel: index < 9)
    receipts = run_inline(monkeypatch)
    for job in (plan_job, teachers_job):
        with pytest.raises(error, match=told):
            job.main(command(tmp_path, teachers, filter=filter))
    assert receipts == []
    assert not list((tmp_path / "out").glob("*"))  # but for the lease, which is gone again


def test_an_image_that_can_be_taken_is_enough(tmp_path: Path) -> None:
    """One odd camera in three is a matter of its scenes, and so is an image that cannot be read."""
    content = navsim_root.frames("log_a", 16, ("CAM_F0",))
    navsim_root.write_log(tmp_path / "data", "log_a", content)
    for index, size in ((3, (96, 96)), (4, (96, 54))):
        navsim_root.write_images(tmp_path / "data", content, lambda i, channel, index=index: i == index, size)  # type: ignore[misc]
    (tmp_path / "data" / "sensor_blobs" / "mini" / content[5]["cams"]["CAM_F0"]["data_path"]).write_bytes(b"no JPEG")
    plan_job.main(command(tmp_path, f"{{vggt: {VGGT}}}"))


def test_only_covered_scenes_are_planned_and_what_is_covered_later_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    navsim_root.write(tmp_path / "data", {"log_a": 18}, lambda index, channel: index < 14)
    given = command(tmp_path, f"{{cosmos: {FUTURE}}}", "plan.require=[cosmos]")
    receipts = run_inline(monkeypatch)
    teachers_job.main(given)
    assert "2 not_covered" in capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (document["plan"]["samples"], document["plan"]["require"]) == (3, ["cosmos"])
    navsim_root.write(tmp_path / "data", {"log_a": 18})
    image = tmp_path / "data" / "sensor_blobs" / "mini" / "log_a" / "CAM_F0" / f"{navsim_root.token_of('log_a', 4)}.jpg"
    image.unlink()  # of what is made; it is needed no more
    made = len(receipts)
    teachers_job.main(given)
    assert len(receipts) == made + 1
    assert verify(str(tmp_path / "out")).faults == ()


def test_a_dataset_that_is_made_needs_its_images_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    navsim_root.write(tmp_path / "data", {"log_a": 16})
    run_inline(monkeypatch)
    teachers_job.main(command(tmp_path, f"{{vggt: {VGGT}}}"))
    shutil.rmtree(tmp_path / "data" / "sensor_blobs")
    capsys.readouterr()
    teachers_job.main(command(tmp_path, f"{{vggt: {VGGT}}}"))
    assert "0 to do" in capsys.readouterr().out
    with pytest.raises(IncompleteError, match="more: 0 of 3"):  # another column would need them
        teachers_job.main(command(tmp_path, f"{{vggt: {VGGT}, more: {{kind: vggt, {VGGT[1:]}}}"))
    assert not (tmp_path / "out" / "more").exists()


# --- while a run works


def receipt(shard: int, written: int, **quarantined: int) -> ShardReceipt:
    planned = written + sum(quarantined.values())
    column = ColumnReceipt(
        column="vggt", planned=planned, written=written, quarantined=quarantined, size=0, teacher_seconds=0.0
    )
    return ShardReceipt(shard=shard, columns=(column,), decodes=0, images=0, seconds=0.0, host="h", device="cpu")


def stopped_after(receipts: list[ShardReceipt], samples: int = 100, most: float = 0.01) -> int | None:
    hopeless = Hopeless(samples, most)
    for count, one in enumerate(receipts, 1):
        try:
            hopeless.add(one)
        except IncompleteError:
            return count
    return None


def test_a_column_that_comes_to_nothing_stops_the_run() -> None:
    lost: list[Any] = [receipt(i, 0, image_shape=4) for i in range(20)]
    assert stopped_after(lost) == 3
    assert stopped_after(lost, samples=2000) == 6  # 20 may be left out
    assert stopped_after(lost, most=1.0) is None
    assert stopped_after([receipt(0, 1, image_shape=3), *lost]) is None
    assert stopped_after([lost[0], receipt(1, 0, image_damaged=4), *lost[2:]]) is None
    assert stopped_after([*lost[:2], receipt(2, 4), *lost]) is None


def test_the_job_is_stopped_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images that are there and are none: their existence says nothing against them."""
    navsim_root.write(tmp_path / "data", {"log_a": 33})
    for image in (tmp_path / "data" / "sensor_blobs").rglob("*.jpg"):
        image.write_bytes(b"nothing that is a JPEG")
    receipts = run_inline(monkeypatch)
    with pytest.raises(
        IncompleteError, match="all 6 scenes of the first 3 shards are quarantined under image_not_jpeg"
    ):
        teachers_job.main(command(tmp_path, f"{{vggt: {VGGT}}}"))
    assert len(receipts) == 3


# --- our recipes


def recipe(name: str, root: Path) -> list[str]:
    """A recipe as it stands, but for the sizes of its networks."""
    tokens = ", ".join(navsim_root.token_of("log_a", i) for i in range(10, 21))
    tiny = [f"teachers.{column}.{key}" for column in ("vggt", "cosmos") for key in ("network=tiny", "dtype=float32")]
    tiny.append("teachers.vggt.depth_precision=float32")
    drawn = [f"teachers.{column}.weights={{random: 0}}" for column in ("vggt", "cosmos")]
    places = [f"out={root}/out", "source.split=mini", f"source.filter={{frame_interval: 1, tokens: [{tokens}]}}"]
    return [f"configs/{name}.yaml", *places, *tiny, *drawn, "scan_processes=1", "worker.device=cpu"]


def test_the_recipe_of_navtrain_fits_navsims_own_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images of now and of three frames before: one recipe's columns have theirs, the other's lack the future."""
    there, cameras = set(range(7, 21)), ("CAM_F0", "CAM_L0", "CAM_R0")
    navsim_root.write(tmp_path, {"log_a": 40}, lambda index, channel: index in there, cameras)
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(tmp_path))
    plan_job.main(recipe("navtrain", tmp_path))
    told = capsys.readouterr().out
    for column in ("samples", "vggt", "cosmos", "pdm"):
        assert re.search(rf"^{column} +11 of 11 ", told, re.MULTILINE), told
    with pytest.raises(IncompleteError, match=r"cosmos: 3 of 11 scenes .* of future"):
        plan_job.main(recipe("openscene", tmp_path))
    plan_job.main([*recipe("openscene", tmp_path), "plan.require=[cosmos]"])
    told = capsys.readouterr().out
    assert "8 not_covered" in told
    assert re.search(r"^pdm +3 of 3 ", told, re.MULTILINE), told
