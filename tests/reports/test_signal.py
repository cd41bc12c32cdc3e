"""What `make signal` says of columns whose contents are known: invented ones, of labels and noise, then harmed."""

from __future__ import annotations

import math
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs import config as job_config
from jobs import signal as job
from jobs.recipe import TeachersConfig
from pipeline.reading.reader import Dataset
from reports.signal import checks, labels, report
from reports.signal.labels import KNOWN, LATER
from reports.signal.measure import NOW, Signal, measure
from shards_schema.errors import ConfigError, DatasetError
from shards_schema.records import Scene
from teachers.registry import build_teacher
from tests.blocks import block, checkout
from tests.committed import begin
from tests.pages import Page
from tests.reports.invented import (
    CAMERAS,
    FRAMES,
    LOGS,
    SHARD,
    Float64,
    Invented,
    Street,
    around,
    made,
    next_second,
    speed,
)
from tests.test_tutorial import jobs_of
from tests.toys import write_images


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Street:
    root = tmp_path_factory.mktemp("street")
    write_images(root, logs=LOGS, frames=FRAMES)
    return Street(str(root))


def signal(dataset: Dataset, reference: Dataset | None = None, samples: int = 1000) -> Signal:
    return measure(dataset, None, samples=samples, dims=64, seed=0, reference=reference)


def said(found: Signal) -> dict[str, str]:
    return {target.name: " ".join(report.sentences(target)) for target in found.targets}


def verdicts(found: Signal) -> dict[str, list[tuple[str, str]]]:
    return {target.name: [(c.kind, c.verdict) for c in target.checks] for target in found.targets}


@pytest.fixture(scope="module")
def honest(source: Street, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A column that holds speed, one that holds the next second, one of the agents ahead, and two of noise."""

    def noise(scene: Scene) -> Float64:
        return np.random.default_rng([int(scene.token, 16) % 2**31, 9]).normal(size=2)

    teachers = [
        Invented("fast", [speed]),
        Invented("future", [next_second]),
        Invented("ahead", [around("CAM_F0")]),
        Invented("noise", [noise]),
        Invented("blank", [noise], random_weights=True),
        Invented("future_random", [noise], random_weights=True),
    ]
    return made(source, tmp_path_factory.mktemp("honest") / "out", *teachers)


@pytest.fixture(scope="module")
def found(honest: Dataset) -> Signal:
    return signal(honest)


def test_a_column_is_said_to_know_what_it_was_made_of(found: Signal) -> None:
    by_name = {target.name: target.told for target in found.targets}
    assert by_name["fast/grid"]["speed"].knows
    assert by_name["fast/grid"]["speed"].alone.middle > 0.98
    assert by_name["fast/grid"]["speed"].adds is None  # status says it
    assert "speed" in KNOWN
    assert "fast/grid adds nothing over status for x 1 s" in said(found)["fast/grid"]
    assert "knows something of its scenes, but nothing that status does not say" in said(found)["fast/grid"]
    future = by_name["future/grid"]["x 1 s"]
    assert future.status < 0.1
    assert future.adds is not None
    assert future.adds.middle > 0.85
    assert future.adds.middle - future.adds.half > 0.8
    assert re.match(r"future/grid adds over status for x 1 s \(\+(0\.9\d|1\.00)\)", said(found)["future/grid"])
    ahead = by_name["ahead/grid"]
    assert ahead["agents left"].pays
    assert ahead["agents right"].pays
    assert not ahead["x 1 s"].pays


def test_a_column_of_noise_adds_nothing_and_the_causes_are_named(found: Signal) -> None:
    for name in ("noise/grid", "blank/grid"):
        told = next(t for t in found.targets if t.name == name).told
        assert not any(t.pays for t in told.values())
        assert all(t.alone.middle < 0.06 and t.shuffled < 0.06 for t in told.values())
        assert f"{name} adds nothing over status for" in said(found)[name]
    assert "knows nothing of its scenes at all. Usual causes: targets of other" in said(found)["noise/grid"]
    assert "was made with random weights" in said(found)["blank/grid"]


def test_controls_of_a_good_column_know_nothing(found: Signal) -> None:
    for target in found.targets:
        for told in target.told.values():
            assert told.shuffled < 0.05
            assert told.shuffled_adds < 0.05


def test_what_cannot_be_told_is_said_so_and_has_no_r2(found: Signal, source: Street, tmp_path: Path) -> None:
    """A constant label, one that no scene tells, those of logs without boxes: none of them has an R2 of 0."""
    assert found.absent["y 1 s"] == f"it is the same in all of its {found.scenes} scenes"
    assert found.absent["x 4 s"] == "no scene tells it"
    assert found.absent["road curvature"] == "needs a pdm column"
    assert found.absent["red light"] == "no log names the state of a light"
    assert found.absent["depth"] == "lidar is not in a dataset; not probed"
    assert not found.absent.keys() & {name for target in found.targets for name in target.told}
    blind = signal(made(replace(source, known=False), tmp_path / "out", Invented("future", [next_second])))
    assert blind.absent["distance ahead"] == "no labelled boxes"
    assert "agents left" in blind.absent
    assert set(blind.targets[0].told) == {"speed", "x 1 s", "path curvature"} - blind.absent.keys()


def test_a_twin_with_random_weights_is_held_against_it(source: Street, tmp_path: Path) -> None:
    noise = Invented("zero", [lambda scene: np.zeros(1)], random_weights=True)
    found = signal(made(source, tmp_path / "out", Invented("future", [next_second]), Invented("empty"), noise))
    told = said(found)
    assert "future/grid is better than random weights (zero/grid) for x 1 s (+" in told["future/grid"]
    assert "zero/grid is" not in told["zero/grid"]


def test_frames_that_come_later_are_held_against_those_of_now(source: Street, tmp_path: Path) -> None:
    """Of columns of one kind; one that gains as much in what is now is not better for what comes later."""
    now = Invented("now", [around("CAM_F0")], ("view", "channel"), {"window": [0]})
    later = Invented("later", [next_second, next_second], ("view", "channel"), {"window": [2, 4]})
    more = [around("CAM_F0"), speed, next_second]  # of what comes later no more than of now
    wrong = Invented("wrong", more, ("view", "channel"), {"window": [2, 4, 6]})
    found = signal(made(source, tmp_path / "out", now, later, wrong))
    assert {target.name: target.against for target in found.targets} == {
        "now/grid": {}, "later/grid": {NOW: "now/grid"}, "wrong/grid": {NOW: "now/grid"}
    }  # fmt: skip
    told = said(found)
    assert re.search(r"gains more over frames of now \(now/grid\) in x 1 s \(\+0\.\d\d\) than", told["later/grid"])
    assert "gains no more over frames of now (now/grid) in what comes later than" in told["wrong/grid"]
    over = next(t for t in found.targets if t.name == "later/grid").told
    assert over["x 1 s"].over[NOW].middle > 0.8
    assert "agents left" not in LATER
    assert over["agents left"].over == {}
    assert not over["x 1 s"].over.keys() - {NOW}


def test_the_agent_ahead_in_two_seconds_is_looked_for_from_where_the_ego_is_then() -> None:
    """The ego has gone 10 m and turned left; of the agents that are there by then, one stands 7 m before it."""
    pose, valid = np.zeros((4, 41, 3), np.float32), np.ones((4, 41), bool)
    pose[:, 20, :2] = [(10, 7), (10, 5), (10, 3), (17, 0)]  # 3 m before it is not an agent, 5 m away is gone by then
    valid[1, 20] = False
    told = {"v2_agents_pose": pose, "v2_agents_valid": valid, "v2_agents_is_agent": np.array([1, 1, 0, 1], bool)}
    left = np.array([10.0, 0.0, math.pi / 2])
    assert labels.distance_then({**told, "centerline": pose}, left) == pytest.approx(7)
    assert labels.distance_then(told, np.array([10.0, 0.0, 0.0])) == pytest.approx(7)  # the last one, straight on
    assert labels.distance_then(told, np.array([10.0, 0.0, math.pi])) == labels.AHEAD_M  # nobody there
    assert math.isnan(labels.distance_then(told, np.full(3, math.nan)))
    assert math.isnan(labels.distance_then({"centerline": pose}, left))


def test_fewer_samples_are_spread_over_the_logs(honest: Dataset) -> None:
    found = signal(honest, samples=64)
    assert (found.scenes, found.logs) == (64, LOGS)
    assert found.written == LOGS * (FRAMES - 4)
    assert "64 scenes of 16 logs, spread over the 144 that all columns have" in report.text(found)


# --- harms


def test_targets_of_other_scenes_are_told(source: Street, tmp_path: Path) -> None:
    """Each scene has the target of another one: the column knows nothing."""

    def of_another(scene: Scene) -> Float64:
        return np.random.default_rng(int(scene.token, 16) * 7 % 2**63).uniform(1, 5, 1)

    found = signal(made(source, tmp_path / "out", Invented("future", [of_another])))
    assert "knows nothing of its scenes at all" in said(found)["future/grid"]


@pytest.mark.parametrize(("aside", "expected"), [(6.0, {"shards", "probe"}), (0.0, {"probe"})])
def test_a_shard_of_another_checkpoint_is_told(
    source: Street, tmp_path: Path, aside: float, expected: set[str]
) -> None:
    """By its channels where their means move, and by the probe that fails there, also where they do not."""
    teacher = Invented("future", [next_second, around("CAM_F0")], aside=aside)
    run, worker = begin(source, tmp_path / "out", [teacher], shard_size=SHARD, zarr=False)
    for task in run.todo():
        if task.shard == 3:
            teacher.other_logs = frozenset(scene.ref.log for scene in task.scenes)
        worker.process(task)
        teacher.other_logs = frozenset()
    worker.close()
    found = signal(Dataset(str(tmp_path / "out")))
    assert {kind for kind, verdict in verdicts(found)["future/grid"] if verdict == "bad"} == expected
    told = said(found)["future/grid"]
    assert re.search(r"LOOK HERE: error of x 1 s .* in shard 3\. Usual cause: another checkpoint", told)
    if "shards" in expected:
        assert re.search(r"LOOK HERE: shards that stand out.*: 3 \(by \d+\)\. Usual cause: another", told)
    whole = made(source, tmp_path / "whole", replace(teacher))
    assert verdicts(signal(whole))["future/grid"] == [("shards", "good"), ("probe", "good")]


def test_a_shard_whose_label_varies_more_is_not_one_of_another_checkpoint() -> None:
    """Its errors are large beside the others', and small beside its own spread: until features are strange."""
    rng = np.random.default_rng(0)
    shards = np.repeat(np.arange(10), 40)
    label = rng.normal(size=(400, 1)) * np.where(shards == 3, 4, 1)[:, None]
    features = (label + 0.4 * label * rng.normal(size=(400, 1))).astype(np.float32)
    assert checks.residuals("curvature", features, label, shards).verdict == "good"
    features[shards == 3] = features[shards == 3][::-1]
    assert checks.residuals("curvature", features, label, shards).verdict == "bad"


@pytest.mark.parametrize("swapped", [False, True])
def test_views_in_another_order_are_told(source: Street, tmp_path: Path, swapped: bool) -> None:
    fed = ("CAM_L0", "CAM_F0", "CAM_R0") if swapped else CAMERAS
    views = Invented("views", [around(c) for c in fed], ("view", "channel"), {"views": list(CAMERAS)})
    found = signal(made(source, tmp_path / "out", views))
    expected = ["bad", "bad", "good"] if swapped else ["good"] * 3
    assert [v for kind, v in verdicts(found)["views/grid"] if kind == "view"] == expected
    told = said(found)["views/grid"]
    assert ("agents where CAM_F0 looks" in told and "that of CAM_L0. Usual cause: views" in told) == swapped


@pytest.mark.parametrize(("harm", "expected"), [("none", "good"), ("reversed", "bad"), ("shuffled", "not told")])
def test_frames_in_another_order(source: Street, tmp_path: Path, harm: str, expected: str) -> None:
    """The first latent of this clip is of now. Shuffled frames cannot be told from a clip that hardly moves."""
    tells = [around("CAM_F0"), lambda scene: np.array([float(int(scene.token, 16) % 97), 1.0])]
    clip = {"kind": "cosmos", "channel": "CAM_F0", "layout": {"steps": list(range(9))}}
    order = tells[::-1] if harm == "reversed" else tells
    teacher = Invented("clip", order, ("time", "channel", "row", "col"), clip, shuffle=harm == "shuffled")
    found = signal(made(source, tmp_path / "out", teacher))
    assert [v for kind, v in verdicts(found)["clip/grid"] if kind == "time"] == [expected]


def test_channels_that_are_not_those_of_a_reference(source: Street, tmp_path: Path) -> None:
    """Another layer or another scale of the same network: a probe does not mind, the statistics of channels do."""
    clip = {"kind": "cosmos", "channel": "CAM_F0"}
    good = made(source, tmp_path / "good", Invented("clip", [next_second], says=clip, target="latent", gain=0.2))
    same = made(
        replace(source, logs=LOGS - 3),
        tmp_path / "same",
        Invented("clip", [next_second], says=clip, target="latent", gain=0.2),
    )
    raw = made(source, tmp_path / "raw", Invented("clip", [next_second], says=clip, target="latent", gain=20))
    layer = made(
        source, tmp_path / "layer", Invented("clip", [next_second], says=clip, target="latent", seed=5, gain=0.2)
    )
    assert dict(verdicts(signal(same, good))["clip/latent"])["reference"] == "good"
    assert dict(verdicts(signal(layer, good))["clip/latent"])["reference"] == "bad"
    found = signal(raw, good)
    assert {"scale", "reference"} <= {kind for kind, v in verdicts(found)["clip/latent"] if v == "bad"}
    assert found.targets[0].told["x 1 s"].pays  # the probe does not mind
    other = made(source, tmp_path / "other", Invented("else", [next_second], says=clip, target="latent"))
    assert dict(verdicts(signal(other, good))["else/latent"])["reference"] == "not told"


# --- the command, and its page


def test_what_the_page_tells_people_to_type(
    honest: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout(tmp_path, monkeypatch)
    (tmp_path / "out").mkdir()
    for name in ("demo", "new", "trusted"):
        (tmp_path / "out" / name).symlink_to(honest.url)
    for name in ("signal", "reference"):
        for started, arguments in jobs_of(block("signal", name).strip(), tmp_path):
            assert started == "signal"
            assert job.main([*arguments, "columns=[future]", "dims=16", f"page={tmp_path / name}.html"]) == 0
            assert "- future/grid adds over status for x 1 s" in capsys.readouterr().out
    assert (
        "reference, good: half of the channels are off the reference by 0.0 standard errors"
        in (tmp_path / "reference.html").read_text()
    )
    assert "reference, good" not in (tmp_path / "signal.html").read_text()


def test_the_twin_of_the_page_is_one() -> None:
    command = shlex.split(block("signal", "twin"))
    assert command[:3] == ["python", "-m", "jobs.teachers"]
    recipe = job_config.load(TeachersConfig, command[3:])
    (twin,) = (build_teacher(column, told) for column, told in recipe.teachers.items())
    demo = job_config.load(TeachersConfig, ["configs/demo.yaml"])
    assert twin.random_weights
    assert twin.specs == build_teacher("vggt", demo.teachers["vggt"]).specs


def test_the_command_prints_a_table_and_writes_a_page(honest: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert job.main([f"data={honest.url}", "columns=[future,noise]", "dims=32"]) == 0
    told = capsys.readouterr().out
    assert re.search(
        r"^x 1 s +144 +-?0\.\d\d +(0\.9\d|1\.00) \+(0\.9\d|1\.00)\* +-?0\.0\d [+-]0\.0\d$", told, re.MULTILINE
    )
    assert "- noise/grid adds nothing over status for" in told
    assert "NOTE: The frames are generated" in told
    path = Path(told.strip().rsplit(": ", 1)[1])
    assert path == Path(honest.url).with_name("out-signal.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.loads
    assert not {"script", "iframe"} & {*page.tags}
    for target in ("future/grid", "noise/grid"):
        assert target in page.text
    assert "not probed: needs a pdm column" in page.text


def test_what_cannot_be_is_refused(honest: Dataset, source: Street, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no features in samples, gone; it has them in ahead, blank, fast"):
        job.main([f"data={honest.url}", "columns=[samples,gone]"])
    with pytest.raises(ConfigError, match="lies in the dataset"):
        job.main([f"data={honest.url}", f"page={honest.url}/x.html"])
    with pytest.raises(DatasetError, match=r"2 logs with scenes to probe; .* at least three"):
        signal(made(replace(source, logs=2), tmp_path / "two", Invented("fast")))
    with pytest.raises(DatasetError, match="need samples and a column with features"):
        signal(made(source, tmp_path / "none"))
