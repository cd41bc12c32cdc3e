"""The folder is the one that was begun: whose it is, what is renewed in it, and that nothing is made in its place."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.stores.volume import Volume
from pipeline.writing import run as runs
from shards_schema import layout
from shards_schema.errors import ConfigError, DatasetError, MismatchError, StoreError
from shards_schema.plan import PlanConfig
from shards_schema.specs import TargetSpec
from teachers.base import column_manifest
from tests.chaos.world import digests
from tests.committed import begin, commit
from tests.toys import ToySource, ToyTeacher, write_images


@pytest.fixture
def source(tmp_path: Path) -> ToySource:
    write_images(tmp_path / "data", logs=3, frames=9)
    return ToySource(str(tmp_path / "data"))


@pytest.mark.parametrize(
    "name",
    [".tmp/precious.txt", "index.parquet", "plan.parquet", "samples/000000.tar", "notes.txt", "empty/", "dataset.json"],
)
def test_a_folder_of_somebody_else_is_refused_before_anything_is_written(
    source: ToySource, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    path = out / name
    path.parent.mkdir(parents=True)
    path.mkdir() if name.endswith("/") else path.write_text("mine")
    with pytest.raises((MismatchError, DatasetError), match=name if name.startswith(".tmp") else name.split("/")[0]):
        commit(source, out, [ToyTeacher()])
    assert [p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()] == [name] * path.is_file()
    assert path.is_dir() or path.read_text() == "mine"


def test_what_a_run_leaves_that_was_killed_while_it_began_is_ours(source: ToySource, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / layout.TEMP).mkdir(parents=True)
    (out / layout.LOCK).write_text("{}")
    (out / layout.TEMP / "dataset.json.0123456789ab").write_text("half")
    (out / "lost+found").mkdir()  # the root is a mount point
    commit(source, out, [ToyTeacher()])
    assert not (out / layout.TEMP).exists()


def test_an_empty_path_is_no_folder() -> None:
    for url in ("", "  "):
        with pytest.raises(ConfigError, match="empty"):
            Volume(url)


def move(out: Path) -> None:
    os.rename(out, out.with_name("moved"))


def exchange(out: Path) -> None:
    """As an unmounted disk leaves it: a folder of that name, and nothing in it."""
    move(out)
    out.mkdir()


@pytest.mark.parametrize("harm", [move, exchange])
@pytest.mark.parametrize("first", [0, 1, None])
def test_a_folder_that_goes_ends_the_run_and_nothing_is_made_in_its_place(
    source: ToySource, tmp_path: Path, harm: Callable[[Path], None], first: int | None
) -> None:
    out = tmp_path / "out"
    run, worker = begin(source, out, [ToyTeacher()])
    tasks = list(run.todo())
    for task in tasks[:first]:
        worker.process(task)
    harm(out)
    if first is not None:
        with pytest.raises(StoreError, match="moved, removed or unmounted"):
            worker.process(tasks[first])
    worker.close()
    with pytest.raises(StoreError, match="moved, removed or unmounted"):
        runs.close(run)
    assert not out.exists() or not list(out.iterdir())


def test_a_volume_makes_its_root_once_and_so_do_its_copies(tmp_path: Path) -> None:
    volume = Volume(str(tmp_path / "out"))
    volume.put("a", b"1")
    function, arguments, state = volume.__reduce__()
    copy = function(*arguments)
    copy.__dict__.update(state)
    shutil.rmtree(tmp_path / "out")
    for one in (volume, copy):
        with pytest.raises(StoreError, match="nothing is made anew"):
            one.put("b/c", b"2")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["disk", "store"])
def test_another_dataset_in_its_place_gets_nothing(source: ToySource, tmp_path: Path, where: str) -> None:
    url = str(tmp_path / "out") if where == "disk" else f"memory://{uuid.uuid4().hex}/out"
    run, worker = begin(source, url, [ToyTeacher()])  # type: ignore[arg-type]
    document = run.volume.read(layout.DATASET)
    commit(replace(source, frames=8), tmp_path / "other", [ToyTeacher()])
    other = (tmp_path / "other" / layout.DATASET).read_bytes()
    run.volume.put(layout.DATASET, other)
    before = run.volume.walk()
    for attempt in (lambda: worker.process(run.todo()[0]), lambda: runs.close(run)):
        with pytest.raises(MismatchError, match="another dataset is in its place"):
            attempt()
    assert run.volume.walk() == before
    run.volume.put(layout.DATASET, document)
    run.volume.put(layout.column_json("toy"), column_manifest(ToyTeacher(gain=2)).to_bytes())
    with pytest.raises(MismatchError, match=r"toy/column\.json is not the one"):
        worker.process(run.todo()[0])
    worker.close()


FOLLOW = [layout.PLAN, "targets.zarr/zarr.json", "targets.zarr/toy/zarr.json", "targets.zarr/toy/grid/zarr.json"]


@pytest.mark.parametrize("begun", [False, True])
def test_documents_that_follow_from_others_are_renewed(source: ToySource, tmp_path: Path, begun: bool) -> None:
    """When the next run begins, and when one closes that had begun before they were removed."""
    out = tmp_path / "out"
    commit(source, out, [ToyTeacher()])
    clean = digests(out)
    run, worker = begin(source, out, [ToyTeacher()])
    for name in FOLLOW:
        (out / name).unlink()
    if begun:
        runs.close(run)
    else:
        commit(source, out, [ToyTeacher()])
    worker.close()
    assert digests(out) == clean


@pytest.mark.parametrize("name", FOLLOW)
def test_documents_that_say_something_else_are_refused(source: ToySource, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    commit(source, out, [ToyTeacher()])
    (out / name).write_bytes(b"{}")
    with pytest.raises(DatasetError, match=f"{name} is damaged, or another dataset's.*remove it"):
        commit(source, out, [ToyTeacher()])
    assert (out / name).read_bytes() == b"{}"


def test_a_lost_document_is_written_anew_where_the_records_vouch_for_it(source: ToySource, tmp_path: Path) -> None:
    out = tmp_path / "out"
    commit(source, out, [ToyTeacher()])
    clean = digests(out)
    (out / layout.DATASET).unlink()
    commit(source, out, [ToyTeacher()])
    (out / layout.column_json("toy")).unlink()
    commit(source, out, [ToyTeacher()])
    assert digests(out) == clean
    (out / layout.column_json("toy")).unlink()
    with pytest.raises(MismatchError, match="not what column toy was committed under"):
        commit(source, out, [ToyTeacher(gain=2)])
    assert not (out / layout.column_json("toy")).exists()
    commit(source, out, [ToyTeacher()])
    (out / layout.DATASET).unlink()
    with pytest.raises(MismatchError, match="not what column samples was committed under"):
        commit(replace(source, frames=8), out, [ToyTeacher()])
    assert not (out / layout.DATASET).exists()


@pytest.mark.parametrize("name", sorted(layout.RESERVED))
def test_names_that_the_dataset_needs_are_refused(source: ToySource, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"no teacher's column may be called '{name}'"):
        column_manifest(ToyTeacher(name=name))
    if name != layout.SAMPLES:
        manifest = replace(column_manifest(ToyTeacher()), column=name)
        with pytest.raises(ConfigError, match=f"no teacher's column may be called '{name}'"):
            runs.begin(source, str(tmp_path / "out"), [manifest], plan_config=PlanConfig(shard_size=6))
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("taken", [layout.VALID, "mean"])
def test_a_target_may_not_take_the_place_of_another_array(taken: str) -> None:
    class Clash(ToyTeacher):
        @property
        def specs(self) -> tuple[TargetSpec, ...]:
            return (*super().specs, replace(super().specs[1], name=taken))

    with pytest.raises(ConfigError, match="names that differ from each other and from 'valid'"):
        column_manifest(Clash())


def test_the_page_names_the_reserved_names() -> None:
    page = (Path(__file__).parents[3] / "docs" / "recipe.md").read_text()
    names = re.search(r"No teacher's column may be called (.*?)\.", page, re.DOTALL)
    assert names is not None
    assert set(re.findall(r"`(\w+)`", names[1])) == layout.RESERVED
