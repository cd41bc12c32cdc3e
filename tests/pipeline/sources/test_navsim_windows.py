"""Which windows of a NAVSIM log are scenes, where logs are as they are met: gaps, groups, frames that are damaged."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.recipe import TeachersConfig
from pickles.unpickle import load_pickle
from pipeline.sources.base import Scan
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.writing import run
from reports.run import refuse_left_out
from shards_schema.errors import ConfigError, IncompleteError
from shards_schema.plan import PlanConfig
from shards_schema.records import Scene

FILE = next((Path(__file__).parents[2] / "data" / "navsim").glob("*.pkl"))
EVERY = {"frame_interval": 1}
Frames = list[dict[str, Any]]


def frames() -> Frames:
    made: Frames = load_pickle(FILE.read_bytes(), "test log")
    return made


def write(root: Path, name: str, content: Any, split: str = "mini") -> NavsimConfig:
    folder = root / "navsim_logs" / split
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.pkl").write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, 5))
    return NavsimConfig(root=str(root), split=split, filter=EVERY)


def starts(scan: Scan) -> list[int]:
    return sorted(ref.start for ref in scan.refs)


def later(content: Frames, start: int, microseconds: int) -> None:
    for frame in content[start:]:
        frame["timestamp"] += microseconds


def groups(count: int, *, same_log: bool = False) -> Frames:
    """private_test_hard's layout: one pickle of groups of five frames, each of a log and a scene of its own."""
    made = frames()[: 5 * count]
    for i, frame in enumerate(made):
        group = i // 5
        frame["scene_token"] = f"{group:016x}"
        frame["log_name"] = "one_log" if same_log else f"log_{group}"
        frame["timestamp"] += group * 286_000_000
        frame["ego2global_translation"] = frame["ego2global_translation"] + group * 1e6
        frame["frame_idx"] = i % 5
    return made


@pytest.mark.parametrize(("same_log", "reason"), [(False, "other_log"), (True, "other_scene")])
def test_a_window_never_crosses_into_another_log_or_scene(tmp_path: Path, same_log: bool, reason: str) -> None:
    content = groups(8, same_log=same_log)
    config = write(tmp_path, "private", content, "private_test_hard")
    now = {group * 5 + place for group in range(8) for place in (3, 4)}
    official = {"num_history_frames": 4, "num_future_frames": 8, "frame_interval": 1, "has_route": True}
    tokens = [content[i]["token"] for i in sorted(now)]
    scan = NavsimSource(config.model_copy(update={"filter": config.filter.load({**official, "tokens": tokens})})).scan()
    assert scan.refs == ()
    assert scan.skipped[reason] == 12
    told = rf"12 {reason} \(the first: log private: between frames .*16 tokens .*12 windows .*num_future_frames"
    with pytest.raises(ConfigError, match=told):
        scan.refuse_nothing()

    alone = config.filter.load({**official, "num_future_frames": 0, "tokens": tokens})
    source = NavsimSource(config.model_copy(update={"filter": alone, "context_frames": 3}))
    scan = source.scan()
    assert starts(scan) == sorted(i - 3 for i in now)
    assert scan.not_found == ()
    made = source.scenes("private", scan.refs)
    for scene, ref in zip(made, scan.refs, strict=True):
        assert isinstance(scene, Scene)
        assert len(scene.before) == ref.start % 5  # neither does what comes before the window
        assert np.ptp([frame.ego_translation[0] for frame in (*scene.before, *scene.frames)]) < 1e3


def test_groups_that_happen_to_be_half_a_second_apart_are_still_of_two_logs(tmp_path: Path) -> None:
    content = frames()[:20]
    for frame in content[10:]:
        frame["log_name"] = "another"
    config = write(tmp_path, "log", content).model_copy(update={"context_frames": 2})
    source = NavsimSource(config.model_copy(update={"filter": config.filter.load({**EVERY, "num_future_frames": 2})}))
    scan = source.scan()
    assert starts(scan) == [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]
    lengths = {ref.start: scene for ref, scene in zip(scan.refs, source.scenes("log", scan.refs), strict=True)}
    assert [len(s.before) for s in (lengths[10], lengths[11], lengths[12]) if isinstance(s, Scene)] == [0, 1, 2]


def test_a_change_of_scene_alone_is_no_break(tmp_path: Path) -> None:
    content = frames()
    for frame in content[20:]:
        frame["scene_token"] = "f" * 16
    scan = NavsimSource(write(tmp_path, "log", content)).scan()
    assert starts(scan) == list(range(27))
    assert scan.notes == ()


def test_gaps_are_kept_as_in_navsim_and_counted_and_may_be_dropped(tmp_path: Path) -> None:
    content = frames()
    later(content, 20, 1_600_000)  # at 8 m/s a step of 16.8 m
    config = write(tmp_path, "log", content)
    scan = NavsimSource(config).scan()
    assert starts(scan) == list(range(27))
    assert "time_gap" not in scan.skipped
    (note,) = scan.notes
    assert "13 of 27 scenes hold a gap in time" in note
    assert "2.1 s" in note
    assert "source.gaps=drop" in note

    dropped = NavsimSource(config.model_copy(update={"gaps": "drop"})).scan()
    assert starts(dropped) == [*range(7), *range(20, 27)]
    assert dropped.skipped["time_gap"] == 13
    assert "2.1 s" in dropped.examples["time_gap"]
    assert dropped.notes == ()


def test_a_gap_that_no_wanted_scene_holds_is_not_told(tmp_path: Path) -> None:
    content = frames()
    later(content, 20, 1_600_000)
    config = write(tmp_path, "log", content)
    few = config.filter.load({**EVERY, "tokens": [content[4]["token"]]})
    scan = NavsimSource(config.model_copy(update={"filter": few})).scan()
    assert (starts(scan), scan.notes) == ([1], ())


DAMAGE: list[Callable[[Frames], Any]] = [
    lambda content: content[10].pop("roadblock_ids"),
    lambda content: content[10].update(roadblock_ids=7),
    lambda content: content[10].update(token="../../x"),
    lambda content: content[10].pop("token"),
    lambda content: content[10].update(timestamp="noon"),
    lambda content: content[10].update(timestamp=float("nan")),
    lambda content: content.__setitem__(10, None),  # type: ignore[call-overload]
    lambda content: content.__setitem__(10, [1, 2]),  # type: ignore[call-overload]
]


@pytest.mark.parametrize("change", DAMAGE)
def test_a_frame_that_cannot_be_used_costs_its_windows_and_not_the_log(
    tmp_path: Path, change: Callable[[Frames], Any]
) -> None:
    content = frames()
    change(content)
    source = NavsimSource(write(tmp_path, "log", content))
    scan = source.scan()
    assert scan.unreadable == {}
    assert starts(scan) == [start for start in range(27) if start != 7]  # whose current frame it is
    assert scan.skipped["bad_frame"] == 1
    assert scan.examples["bad_frame"].startswith("log log: ")
    made = dict(zip((ref.start for ref in scan.refs), source.scenes("log", scan.refs), strict=True))
    lost = {start: scene for start, scene in made.items() if not isinstance(scene, Scene)}
    assert sorted(lost) == [start for start in range(11) if start != 7]  # they hold it
    assert {getattr(scene, "code", None) for scene in lost.values()} == {"bad_frame"}


def test_a_log_without_a_usable_window_is_unreadable(tmp_path: Path) -> None:
    content = frames()
    for frame in content:
        del frame["roadblock_ids"]
    write(tmp_path, "bad", content)
    scan = NavsimSource(write(tmp_path, "log", frames())).scan()
    assert list(scan.unreadable) == ["bad"]
    assert "lacks roadblock_ids" in scan.unreadable["bad"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"", "the file is empty"),
    ],
)
def test_what_a_download_left_in_the_place_of_a_log_is_told(tmp_path: Path, content: bytes, words: str) -> None:
    scan = NavsimSource(write(tmp_path, "log", content)).scan()
    with pytest.raises(ConfigError, match=rf"1 logs cannot be read \(the first: log: .*not a whole pickle: .*{words}"):
        scan.refuse_nothing()


def test_nothing_is_told_with_every_reason(tmp_path: Path) -> None:
    content = frames()[:14]
    content[3]["roadblock_ids"] = [""]
    write(tmp_path, "log", content)
    write(tmp_path, "elsewhere", frames(), "trainval")
    config = NavsimConfig(
        root=str(tmp_path),
        split="mini",
        filter={**EVERY, "log_names": ["log", "elsewhere", "gone"], "tokens": ["f" * 16]},
    )
    with pytest.raises(ConfigError) as caught:
        NavsimSource(config).scan().refuse_nothing()
    for words in (
        "2 logs cannot be read",
        f"elsewhere: no such log file in {tmp_path}/navsim_logs/mini; the split trainval has it",
        "1 no_route, 13 too_short",
        f"1 tokens of the filter are in no window that could be made, e.g. {'f' * 16}",
    ):
        assert words in str(caught.value)


def test_windows_that_do_not_overlap_are_told(tmp_path: Path) -> None:
    config = write(tmp_path, "log", frames())
    apart = config.filter.load({})
    (note,) = NavsimSource(config.model_copy(update={"filter": apart})).scan().notes
    assert "a window begins every 14 frames" in note
    assert NavsimSource(config).scan().notes == ()


def test_a_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = write(tmp_path, "log", b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ConfigError, match=r"no scenes to plan: 1 logs cannot be read.*git lfs pull"):
        run.begin(NavsimSource(config), str(tmp_path / "out"), [], plan_config=PlanConfig())
    assert not (tmp_path / "out").exists()


def test_windows_lost_to_bad_frames_count_against_the_limit(tmp_path: Path) -> None:
    content = frames()
    del content[10]["roadblock_ids"]
    source = NavsimSource(write(tmp_path, "log", content))
    begun = run.begin(source, str(tmp_path / "out"), [], plan_config=PlanConfig())
    config = TeachersConfig(out=str(tmp_path), source={}, teachers={}, max_quarantined=0.03)
    with pytest.raises(IncompleteError, match=r"1 windows have no current frame that can be used.*lacks roadblock_ids"):
        refuse_left_out(config, begun, [])
    refuse_left_out(config.model_copy(update={"max_quarantined": 0.04}), begun, [])
