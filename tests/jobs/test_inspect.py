"""What `make inspect` says and draws: geometry by hand, colours by rule, text and page on a real toy dataset."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs import inspect as job
from pipeline.reading.reader import Dataset
from pipeline.reading.verify import verify
from reports.inspection import colours, drive, features, page, projection
from reports.inspection.facts import gather, weights_line
from reports.inspection.text import WIDTH, report
from reports.tables import bytes_text
from shards_schema.errors import ConfigError, MissingFileError
from shards_schema.lens import Lens
from shards_schema.manifests import ColumnManifest
from shards_schema.records import Annotations, Frame
from shards_schema.specs import TargetSpec
from tests.committed import commit
from tests.pages import Page
from tests.toys import ToySource, ToyTeacher, write_images

HOSTILE = '<script>alert("x")</script>'
POISONED = f"{1:08x}{3:08x}"
FORWARD = np.array([[0.0, 0, 1], [-1, 0, 0], [0, -1, 0]])
"""Rotation camera to ego of a camera that looks ahead."""


@dataclasses.dataclass(frozen=True)
class AnnotatedSource(ToySource):
    """A toy source whose boxes have names that would break a careless page, and a camera that sees the road."""

    def _frame(self, log: str, index: int) -> Frame:
        frame = super()._frame(log, index)
        boxes = np.array([[6.0, 2.0, 0.5, 4.0, 2.0, 1.0, 0.0], [9.0, -3.0, 0.5, 1.0, 1.0, 1.0, 1.0]])
        camera = dataclasses.replace(
            frame.cameras["CAM_F0"], sensor2ego_rotation=FORWARD, sensor2ego_translation=np.array([1.0, 0, 1.5])
        )
        return dataclasses.replace(
            frame,
            cameras={"CAM_F0": camera},
            annotations=Annotations(
                boxes=boxes, names=("vehicle", HOSTILE), velocity=np.zeros((2, 3)), track_tokens=("a", "b")
            ),
        )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inspect")
    write_images(root / "data", logs=3, frames=9)
    source = AnnotatedSource(str(root / "data"))
    commit(source, root / "out", [ToyTeacher(poison=POISONED, random_weights=True)])
    return root / "out"


def inspect(out: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[str, str]:
    assert job.main([f"out={out}", *more]) == 0
    told = capsys.readouterr().out
    return told, Path(told.strip().rsplit(": ", 1)[1]).read_text(encoding="utf-8")


def test_text_of_a_dataset_with_a_quarantined_sample(made: Path) -> None:
    text = report(gather(str(made)))
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    first = next(i for i, line in enumerate(lines) if "RANDOM WEIGHTS: toy" in line)
    assert first < next(i for i, line in enumerate(lines) if line.startswith("source"))
    assert "The frames are generated (synthetic)" in text
    assert "15 samples in 3 shards of at most 6, seed 0" in text
    assert "finished: every shard" in text
    assert "15 written, 0 quarantined, 0 shards missing of 3" in text
    assert "14 written, 1 quarantined, 0 shards missing of 3" in text
    assert f"quarantined 1 x non_finite, e.g. {POISONED}: target grid: 1 of 4608 values" in " ".join(text.split())
    assert re.search(r"grid +step 3 x row 8 x col 12 x channel 16 +float16 +1 +9\.2 kB", text)
    assert re.search(r"path +n \? +int16 +1 +~1\d\d B", text)  # ragged: the mean of what was written, header and all
    facts = gather(str(made))
    each = facts.bytes_a_sample
    assert re.search(rf"all +\S+ kB +{each / 1e6:.3f} .* {bytes_text(each * 103_288)}$", text, re.MULTILINE)
    samples, toy = facts.columns

    def on_disk(pattern: str) -> int:
        return sum(p.stat().st_size for p in made.glob(pattern) if p.is_file())

    for column in facts.columns:
        assert column.tar == on_disk(f"{column.name}/*.tar") > 0
        assert column.zarr == on_disk(f"targets.zarr/{column.name}/*/c/**/*") > 0
    assert toy.statistics == on_disk("toy/*.stats.parquet") > 0
    assert samples.statistics == 0
    assert toy.size == toy.tar + toy.zarr + toy.statistics
    assert re.search(r"14 written.* Zarr \S+ kB, statistics \S+ kB\n", text)
    assert re.search(r"15 written.* Zarr \S+ kB\n", text)


def test_what_other_numbers_of_scenes_take(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told, _ = inspect(made, capsys, "sizes_for=1000", "scenes=0")
    (toy,) = (column for column in gather(str(made)).columns if column.name == "toy")
    tars, zarr = (1000 * size / toy.written for size in (toy.tar + toy.statistics, toy.zarr))
    assert "1,000 scenes: tars" in told
    (row,) = re.findall(r"^toy  .*$", told.rpartition("MB a sample")[2], re.MULTILINE)
    assert row.endswith(f"  {bytes_text(tars):>{len('1,000 scenes: tars')}}  {bytes_text(tars + zarr):>9}")


def test_the_page_is_whole_self_contained_and_escaped(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told, html = inspect(made, capsys, "scenes=4")
    assert made.with_name("out-inspect.html").is_file()
    assert verify(str(made)).faults == ()
    tags = Page(html)
    names = tags.tags
    assert "script" not in names
    assert "link" not in names
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert all(value.startswith("data:image/") for value in tags.loads)
    assert not re.search(r"https?://|url\(", html)
    dataset = Dataset(str(made))
    tokens = page.choose(dataset, 4, 0)
    assert len(set(tokens)) == 4
    assert all(token in html for token in tokens)
    assert POISONED not in tokens
    assert names.count("image") == 4
    assert html.count("RANDOM WEIGHTS: noise, not knowledge") == 4
    assert "Made with RANDOM WEIGHTS: toy" in html
    assert "page of 4 scenes" in told


def test_scenes_spread_over_logs_and_follow_the_seed(made: Path) -> None:
    dataset = Dataset(str(made))
    log_of = dict(zip(*(dataset.plan.table[c].to_pylist() for c in ("token", "log")), strict=True))
    chosen = page.choose(dataset, 6, 0)
    assert chosen == page.choose(Dataset(str(made)), 6, 0)
    assert len({log_of[t] for t in chosen[:3]}) == 3
    assert page.choose(dataset, 6, 1) != chosen
    assert len(page.choose(dataset, 99, 0)) == 14


def test_a_quarantined_scene_tells_why(made: Path) -> None:
    html = page.render(gather(str(made)), Dataset(str(made)), [POISONED])
    assert "toy: quarantined as non_finite: target grid: 1 of 4608 values" in html


def test_an_unfinished_dataset_is_told_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "data", logs=3, frames=9)
    source = AnnotatedSource(str(tmp_path / "data"))
    commit(source, tmp_path / "out", [ToyTeacher()], shards=1)
    told, html = inspect(tmp_path / "out", capsys, "scenes=2")
    assert "NOT FINISHED" in told
    assert "2 shards missing of 3" in told
    assert "Not finished" in html
    assert Page(html).tags.count("image") == 2
    commit(source, tmp_path / "begun", [ToyTeacher()], shards=0)
    told, html = inspect(tmp_path / "begun", capsys)
    assert "3 shards missing of 3" in told
    assert "No committed sample" in html


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("toy/column.json", "column.json"),
        ("toy/000001.json", "000001.json"),
        ("toy/000001.tar", "toy/000001.tar has"),
    ],
)
def test_a_damaged_column_is_named_and_the_rest_goes_on(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], path: str, said: str
) -> None:
    out = Path(shutil.copytree(made, tmp_path / "out"))
    data = (out / path).read_bytes()
    (out / path).write_bytes(data[: len(data) // 2])
    told, html = inspect(out, capsys, "scenes=6")
    assert "DAMAGED" in told
    assert said.replace(" ", "") in re.sub(r"\s", "", told)  # lines are wrapped
    assert "Column toy is damaged" in html
    assert Page(html).tags.count("image") == 6


def test_where_the_page_may_lie(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="lies in the dataset"):
        job.main([f"out={made}", f"page={made}/toy/x.html"])
    told, _ = inspect(made, capsys, f"page={tmp_path}/deep/p.html", "scenes=0")
    assert str(tmp_path / "deep/p.html") in told
    with pytest.raises(MissingFileError):
        job.main([f"out={tmp_path}/nothing"])
    assert job.page_path(job.InspectConfig(out="memory://runs/one/")) == Path("one-inspect.html")


CAMERA = {
    "size": [480, 270],
    "intrinsics": [[400.0, 0, 240], [0, 400, 135], [0, 0, 1]],
    "sensor2ego_rotation": FORWARD.tolist(),
    "sensor2ego_translation": [2.0, 0.0, 1.5],
    "distortion": [0.0] * 5,
}
EYE = Lens(CAMERA)


def test_projection_by_hand() -> None:
    points = np.array([[12.0, 0, 0], [12, 2, 0], [22, -5, 0.5], [-8, 1, 0]])
    camera = EYE.to_camera(points)
    assert camera[:, 2].tolist() == [10, 10, 20, -10]
    # 10 m ahead, 1.5 m below: v = 135 + 400 * 1.5 / 10; 2 m to the left: u = 240 - 400 * 2 / 10
    pixels, known = EYE.project(camera[:3])
    assert np.allclose(pixels, [[240, 195], [160, 195], [340, 155]])
    assert known.all()


def test_projection_of_a_turned_camera() -> None:
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])  # ego yaw +90 degrees: the camera looks to the left
    eye = Lens(CAMERA | {"sensor2ego_rotation": turn @ FORWARD, "sensor2ego_translation": [0.0, 1.0, 1.5]})
    camera = eye.to_camera(np.array([[0.0, 11, 0], [1.0, 11, 0]]))
    assert np.allclose(camera[:, 2], 10)
    assert np.allclose(
        eye.project(camera)[0], [[240, 195], [280, 195]]
    )  # ahead of the car is to the right of that camera


def test_a_line_is_cut_before_the_camera() -> None:
    line = np.array([[0.0, 0, 0], [4, 0, 0], [12, 0, 0]])
    (piece,) = projection.polyline(EYE, line)
    assert np.allclose(piece[0], [240, 135 + 400 * 1.5 / projection.NEAR])
    assert np.allclose(piece[-1], [240, 195])
    assert len(piece) == 3
    assert projection.polyline(EYE, line - [20, 0, 0]) == []
    assert len(projection.polyline(EYE, np.array([[12.0, 0, 0], [0, 0, 0], [0, 1, 0], [12, 1, 0]]))) == 2


def test_the_dense_path_goes_through_the_poses_along_their_headings() -> None:
    angle = np.radians([0, 15, 30, 45, 60])
    arc = np.column_stack([20 * np.sin(angle), 20 * (1 - np.cos(angle)), angle])
    path = projection.dense_path(arc)
    radius = np.hypot(path[:, 0], path[:, 1] - 20)
    assert np.abs(radius - 20).max() < 0.005
    assert np.hypot(*np.diff(path[:, :2], axis=0).T).max() < projection.STEP * 1.05
    for pose in arc:
        assert np.abs(path - pose).sum(1).min() < 1e-9
    left = projection.beside(path, 1.5)
    assert np.abs(np.hypot(left[:, 0], left[:, 1] - 20) - 18.5).max() < 0.02
    back = projection.dense_path(np.array([[0.0, 0, 0], [-2, 0, 0]]))  # reversing makes no loop
    assert (np.diff(back[:, 0]) <= 0).all()
    assert len(projection.dense_path(np.zeros((3, 3)))) == 3  # a standing car


def test_ground_from_undersides() -> None:
    rng = np.random.default_rng(0)
    xy = rng.uniform(-40, 40, (12, 2))
    bottom = -0.3 + 0.01 * xy[:, 0]
    boxes = np.column_stack([xy, bottom + 0.8, np.full((12, 2), 2.0), np.full(12, 1.6), np.zeros(12)])
    boxes[3, 2] += 6  # on a bridge
    ground = projection.fit_ground({"boxes": boxes.tolist(), "names": ["vehicle"] * 12})
    assert abs(ground.h + 0.3) < 0.06
    assert abs(ground.a - 0.01) < 0.003
    alone = projection.fit_ground(None)
    assert (alone.h, alone.a, alone.b) == (-projection.AXLE_HEIGHT, 0, 0)
    assert projection.fit_ground({"boxes": [], "names": []}) == alone
    assert np.allclose(ground.lift(np.array([[10.0, 0.0]])), [[10, 0, ground.h + 10 * ground.a]])


def test_the_drawn_path_is_the_projected_one() -> None:
    poses, ground = np.array([[0.0, 0, 0], [12, 0, 0], [22, 0, 0]]), projection.Ground(0.0, 0.0, 0.0)

    def dots(camera: Mapping[str, Any]) -> list[tuple[str, str]]:
        svg = drive.camera_svg("data:image/png;base64,", camera, poses, ground, HOSTILE)
        assert "<script" not in svg
        return re.findall(r'<circle class="dot" cx="([\d.]+)" cy="([\d.]+)"', svg)

    assert dots(CAMERA) == [("240.0", "195.0"), ("240.0", "165.0")]
    # the stored image is bent, and so is what is drawn on it: 60 px below the middle are 0.15, whose square is 0.0225
    assert dots(CAMERA | {"distortion": [-0.4, 0, 0, 0, 0]})[0] == ("240.0", f"{135 + 60 * (1 - 0.4 * 0.0225):.1f}")


def test_the_view_from_above_has_left_to_the_left() -> None:
    document: dict[str, Any] = {
        "history": {"trajectory": [[-4.0, 0, 0], [0, 0, 0]]},
        "future": {"trajectory": [[4.0, 1.0, 0.2], [8.0, 3.0, 0.4]]},
        "annotations": {"boxes": [[6.0, 3.0, 0, 4.5, 2.0, 1.5, np.pi / 2]], "names": ["vehicle"]},
    }
    svg = drive.above_svg(document)
    assert '<circle class="dot" cx="-3.00" cy="-8.00"' in svg
    assert "translate(-3.00 -6.00) rotate(-90.0)" in svg
    # 5.176 by 2.297 m, its middle 1.461 m before the rear axle
    assert 'class="ego" transform="translate(-0.00 -1.46) rotate(-0.0)"' in svg
    assert 'x="-1.15" y="-2.59" width="2.30" height="5.18"' in svg


def test_ramps_rise_in_lightness_and_heat_marks_bad_values() -> None:
    for ramp in colours.RAMPS.values():
        luma = ramp @ np.array([0.2126, 0.7152, 0.0722])
        assert (np.diff(luma) > -1).all()
        assert luma[-1] - luma[0] > 180
        assert np.abs(np.diff(ramp.astype(int), axis=0)).max() <= 8
    picture = colours.heat(np.array([[0.0, 1, np.nan]]), 0, 1)
    assert picture[0, 0].tolist() == colours.RAMPS["cool"][0].tolist()
    assert picture[0, 1].tolist() == colours.RAMPS["cool"][-1].tolist()
    assert picture[0, 2].tolist() == [128, 128, 128]


@pytest.mark.parametrize("channels", [16, 600])
def test_pca_colours_follow_the_structure_not_the_massive_channel(channels: int) -> None:
    rng = np.random.default_rng(0)
    tokens = rng.normal(0, 0.05, (2, 8, 12, channels)).astype(np.float32)
    tokens[:, :, 6:, : channels // 2] += 1.0  # the right half differs
    tokens[..., -1] = np.where(rng.random((2, 8, 12)) < 0.05, 1000, tokens[..., -1])  # a few massive activations
    picture, share = colours.pca_rgb(tokens)
    again, _ = colours.pca_rgb(tokens.copy())
    assert np.array_equal(picture, again)
    left, right = picture[:, :, :6, 0].astype(int), picture[:, :, 6:, 0].astype(int)
    assert left.max() < right.min() or right.max() < left.min()
    assert 0.3 < share <= 1
    flat, none = colours.pca_rgb(np.ones((2, 3, 4, 5), np.float16))
    assert (flat == 128).all()
    assert none == 0


def manifest(*specs: TargetSpec, **provenance: Any) -> ColumnManifest:
    return ColumnManifest(
        column="new", targets=specs, provenance=provenance, random_weights=False, environment={}, config={}
    )


def spec(name: str, dims: str, shape: tuple[int | None, ...], unit: str = "1") -> TargetSpec:
    return TargetSpec(name=name, dims=tuple(dims.split()), shape=shape, dtype="float32", unit=unit, meaning=HOSTILE)


def test_a_teacher_that_nobody_knows_is_drawn_by_its_specs() -> None:
    rng = np.random.default_rng(0)
    specs = (
        spec("tokens", "view a_row a_col channel", (2, 4, 6, 8)),
        spec("latents", "time channel row col", (3, 8, 4, 6)),
        spec("height", "row col", (4, 6), "log(m)"),
        spec("vector", "channel", (5,)),
        spec("cloud", "point xyz", (None, 3), "m"),
    )
    arrays = {s.name: rng.normal(size=[n or 50 for n in s.shape]).astype(np.float32) for s in specs}
    html = features.figures(manifest(*specs, views=["CAM_F0", "CAM_B0"]), arrays)
    tags = Page(html)
    alts = [a["alt"] for tag, a in tags.seen if tag == "img"]
    assert alts == [
        "CAM_F0", "CAM_B0", "time 0", "time 1", "time 2", "change of latent 1 to 0", "change of latent 2 to 0", "",
    ]  # fmt: skip
    assert "<script" not in html
    assert re.search(r"e\^-?\d\.\d\d = [\d.]+ m<", html)
    assert html.count('class="hist"') == 1
    assert f"{arrays['vector'][0]:.4g}" in html


def test_latent_frames_have_roles_and_seconds() -> None:
    latent = spec("latent", "time channel row col", (3, 4, 2, 2))
    arrays = {
        "latent": np.zeros((3, 4, 2, 2), np.float32),
        "frame_idx": np.array([-4, -3, -2, -1, 0, 1, 2, 3, 4], np.int16),
        "latent_role": np.array([1, 1, 2], np.uint8),
    }
    assert features.labels(manifest(latent), arrays, latent, arrays["latent"]) == [
        "latent 0: history, t = -2 s",
        "latent 1: history and current, t = -1.5 to 0 s",
        "latent 2: future, t = +0.5 to +2 s",
    ]
    arrays |= {
        "frame_idx": np.array([-3, *[-3] * 3, -2, -1, 0, 1, 2], np.int16),
        "frame_valid": np.array([1, 0, 0, 0, 1, 1, 1, 1, 1], np.uint8),
        "latent_role": np.array([1, 1, 2], np.uint8),
    }
    assert features.labels(manifest(latent), arrays, latent, arrays["latent"])[1] == "latent 1: history, t = -1 s"


def test_weights_are_named_by_origin_and_digest() -> None:
    column = ColumnManifest(
        column="vggt",
        targets=(),
        provenance={"weights": {"random": False, "file": "model.safetensors", "sha256": "ab" * 32}},
        random_weights=False,
        environment={},
        config={"weights": {"hub": "facebook/VGGT-1B", "revision": "860abec7937da0a4"}},
    )
    assert weights_line(column) == "facebook/VGGT-1B @ 860abec7937d, model.safetensors, sha256 abababababababab"
