"""The job itself over a source that gains images and logs: the same command, and what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from jobs import teachers, verify
from shards_schema.errors import IncompleteError, MismatchError
from tests import navsim_root
from tests.chaos.world import digests
from tests.inline_job import run_inline
from tests.pipeline.writing.test_grown import members

ROOT = Path(__file__).parents[2]
LOGS = {f"log_{c}": 16 for c in "abcd"}


def command(room: Path, out: str = "out", **more: Any) -> list[str]:
    filter = more.pop("filter", "{log_names: [log_a, log_b, log_c, log_d]}")
    given = [f"{key}={value}" for key, value in more.items()]
    return [
        f"out={room / out}",
        f"source={{kind: navsim, root: '{room / 'data'}', split: mini, filter: {filter}}}",
        "teachers={vggt: {weights: {random: 0}, network: tiny, views: [CAM_F0]}}",
        "plan.shard_size=2",
        "scan_processes=1",
        "worker.device=cpu",
        *given,
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that had everything from the start."""
    room = tmp_path_factory.mktemp("whole")
    navsim_root.write(room / "data", LOGS)
    with pytest.MonkeyPatch.context() as patched:
        run_inline(patched)
        teachers.main(command(room))
    return room / "out"


def test_images_that_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = run_inline(monkeypatch)
    navsim_root.write(tmp_path / "data", {"log_b": 16, "log_d": 16})
    # of the others the current frame of their first windows is missing
    navsim_root.write(tmp_path / "data", {"log_a": 16, "log_c": 16}, lambda index, channel: index != 3)
    args = command(tmp_path, max_quarantined=0.9)
    teachers.main(args)
    told = capsys.readouterr().out
    assert "vggt: 2 x image_missing" in told
    assert "looked at by the same command" in told
    assert "retry=[image_missing]" in told
    with pytest.raises(IncompleteError, match=r"retry=\[image_missing\]"):
        teachers.main([a for a in args if "max_quarantined" not in a])
    count = len(made)
    teachers.main([*args, "retry=[image_mising]"])
    (typed,) = re.findall(r'make teachers SET="(retry=[^"]+)"', (ROOT / "docs" / "recipe.md").read_text())
    teachers.main([*args, typed])
    assert len(made) == count
    told = capsys.readouterr().out
    for codes in ("image_mising", "image_damaged, image_unreadable"):
        assert f"nothing that is committed was left out as {codes}; there is image_missing (4)" in told
    navsim_root.write(tmp_path / "data", LOGS)
    teachers.main(args)
    assert "made again: " in (told := capsys.readouterr().out)
    assert "4 x image_missing" in told
    assert {r.shard for r in made[count:]} <= {r.shard for r in made[:count]}
    count = len(made)
    teachers.main(args)
    assert len(made) == count
    assert verify.main([f"out={tmp_path / 'out'}"]) in (None, 0)
    teachers.main(command(tmp_path, "again"))
    assert digests(tmp_path / "again") == digests(tmp_path / "out")


def test_a_log_whose_images_were_never_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their folder is not there from the start, so nothing went away: they are missing, until they come."""
    made = run_inline(monkeypatch)
    navsim_root.write(tmp_path / "data", {log: count for log, count in LOGS.items() if log != "log_b"})
    navsim_root.write(tmp_path / "data", {"log_b": 16}, lambda index, channel: False)
    teachers.main(command(tmp_path, max_quarantined=0.5))
    assert sum(sum(c.quarantined.values()) for r in made for c in r.columns) == 2
    navsim_root.write(tmp_path / "data", LOGS)
    teachers.main(command(tmp_path))
    teachers.main(command(tmp_path, "again"))
    assert digests(tmp_path / "again") == digests(tmp_path / "out")


def test_logs_that_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], whole: Path
) -> None:
    made = run_inline(monkeypatch)
    navsim_root.write(tmp_path / "data", dict(list(LOGS.items())[:2]))
    teachers.main(command(tmp_path, max_quarantined=0.5))
    first, count = digests(tmp_path / "out"), len(made)
    navsim_root.write(tmp_path / "data", LOGS)
    capsys.readouterr()
    teachers.main(command(tmp_path))
    assert "the dataset grows: 2 scenes were not in its plan" in capsys.readouterr().out
    assert len(made) > count
    assert all(r.shard >= len({r.shard for r in made[:count]}) for r in made[count:])
    after = digests(tmp_path / "out")
    changed = {p.rsplit("/", 1)[-1] for p in first if after[p] != first[p]}
    assert changed <= {"zarr.json", "index.parquet", "statistics.parquet", "quarantine.parquet"}
    assert verify.main([f"out={tmp_path / 'out'}"]) in (None, 0)
    ours, theirs = members(tmp_path / "out"), members(whole)
    assert ours.keys() == theirs.keys()
    assert {n for n in ours if n.startswith("samples/")} == {
        n for n in theirs if n.startswith("samples/") and ours[n] == theirs[n]
    }


def test_a_filter_that_makes_other_windows_is_no_growth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_inline(monkeypatch)
    navsim_root.write(tmp_path / "data", LOGS)
    teachers.main(command(tmp_path, filter="{log_names: [log_a]}"))
    with pytest.raises(MismatchError, match=r"source\.filter\.frame_interval: null on disk, 1 here"):
        teachers.main(command(tmp_path, filter="{log_names: [log_a, log_b], frame_interval: 1}"))
    with pytest.raises(MismatchError, match=r"of log log_a \(source\.filter\.log_names: \[.log_a.\] on disk, .*here\)"):
        teachers.main(command(tmp_path, filter="{log_names: [log_b]}"))
