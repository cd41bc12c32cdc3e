"""Poison, through the whole plain pipeline: each bad image or log ends as a good sample or as a quarantined one.

The policy, one row a kind, is `IMAGES` and `LOGS` below; docs/security.md says why.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pickles.unpickle import load_pickle
from pipeline.reading.reader import Dataset
from pipeline.reading.verify import verify
from pipeline.sources.navsim import NavsimConfig, NavsimSource
from pipeline.stores.decode import MAX_PIXELS, decode_jpeg
from pipeline.writing import run as runs
from pipeline.writing.images import MAX_BYTES, read_image
from shards_schema import layout
from shards_schema.errors import SampleError
from shards_schema.records import Scene
from tests.committed import commit
from tests.toys import ToySource, ToyTeacher, write_images

FRAMES, LOGS_OF = 24, 3
SCENES = LOGS_OF * (FRAMES - 4)


def _saved(
    change: Callable[[Image.Image], Image.Image] = lambda image: image, **options: Any
) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        image = change(Image.open(path).copy())
        image.save(path, "JPEG", quality=95, **options)

    return write


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return write


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _sparse(path: Path) -> None:
    os.truncate(path, MAX_BYTES + 1)


def _exif(path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # to be shown turned by 90 degrees
    _saved(exif=exif)(path)


def _bomb(data: bytes) -> bytes:
    """The header says 65,500 x 65,500: 12.9 GB of pixels."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + (65500).to_bytes(2, "big") * 2 + data[at + 4 :]


def _scans(path: Path) -> None:
    """A progressive file of some 200 kB that asks for 300 passes over 16 million pixels."""
    out = io.BytesIO()
    Image.new("RGB", (4096, 4096)).save(out, "JPEG", quality=5, progressive=True)
    data = out.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    path.write_bytes(data[:-2] + 300 * last + data[-2:])


IMAGES: dict[str, tuple[Callable[[Path], None], str | None, str]] = {
    # kind: (how, code or None for a good sample, words of the reason)
    "truncated": (_bytes(lambda d: d[: len(d) // 2]), "image_damaged", "truncated or corrupt"),
    "cut in its header": (_bytes(lambda d: d[:100]), "image_damaged", "100 bytes, truncated"),
    "zero bytes": (_bytes(lambda d: b""), "image_empty", "0 bytes"),
    "a PNG": (_bytes(lambda d: b"\x89PNG\r\n\x1a\n" + d), "image_not_jpeg", "no JPEG in"),
    "a web page": (_bytes(lambda d: b"<html>404 Not Found</html>"), "image_not_jpeg", "no JPEG in 26 bytes"),
    "a decompression bomb": (_bytes(_bomb), "image_too_large", f"65500x65500 pixels, at most {MAX_PIXELS}"),
    "a bomb of scans": (_scans, "image_too_large", "scans of 4096x4096 pixels"),
    "CMYK": (_saved(lambda i: i.convert("CMYK")), "image_colorspace", "colour space"),
    "a folder": (_folder, "image_unreadable", "directory"),
    "a pipe": (_fifo, "image_unreadable", "no regular file"),
    "a huge file": (_sparse, "image_too_large", f"at most {MAX_BYTES}"),
    "absent": (Path.unlink, "image_missing", "no such file"),
    "a link to nowhere": (_dangling, "image_missing", "no such file"),
    "EXIF says turned": (_exif, None, ""),
    "progressive": (_saved(progressive=True), None, ""),
    "grey": (_saved(lambda i: i.convert("L")), None, ""),
    "bytes after its end": (_bytes(lambda d: d + b"\0" * 999), None, ""),
    "another size": (_saved(lambda i: i.resize((96, 64))), None, ""),
}
"""What becomes of an image."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("poison") / "data"
    write_images(root, logs=LOGS_OF, frames=FRAMES)
    return root


@pytest.fixture
def source(world: Path, tmp_path: Path) -> ToySource:
    return ToySource(str(shutil.copytree(world, tmp_path / "data")), logs=LOGS_OF, frames=FRAMES)


def _users(log: int, frame: int) -> set[str]:
    """Tokens of the scenes whose teacher wants an image: those where it is at step 0, 1 or 2."""
    first = range(max(0, frame - 3), min(FRAMES - 4, frame))
    return {f"{log:08x}{start + 1:08x}" for start in first}


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_share_of_the_images_is_bad_in_every_way_at_once(source: ToySource, tmp_path: Path, share: float) -> None:
    """Each scene is lost if, and only if, one of its images is bad, and its reason names that image."""
    files = sorted(Path(source.root).rglob("*.jpg"))
    rng = np.random.default_rng(int(share * 100))
    kinds = list(IMAGES)
    chosen = rng.choice(len(files), size=max(2, int(share * len(files))), replace=False).tolist()
    bad: dict[str, list[Path]] = {}
    for n, which in enumerate(chosen):
        how, code, _ = IMAGES[kinds[n % len(kinds)]]
        how(files[which])
        for token in _users(int(files[which].parent.name[3:]), int(files[which].stem)) if code else ():
            bad.setdefault(token, []).append(files[which])
    run = commit(source, tmp_path / "out", [ToyTeacher()])
    (samples, toy) = runs.close(run)
    assert (toy.planned, toy.written) == (SCENES, SCENES - len(bad))
    assert samples.written + sum(samples.quarantined.values()) == SCENES
    assert verify(str(tmp_path / "out")).faults == ()
    table = pq.read_table(tmp_path / "out" / layout.QUARANTINE).to_pylist()
    lost = {row["token"]: row["reason"] for row in table if row["column"] == "toy"}
    assert lost.keys() == bad.keys()
    assert all(any(str(path) in reason for path in bad[token]) for token, reason in lost.items())


@pytest.mark.parametrize("kind", IMAGES)
def test_each_kind(source: ToySource, tmp_path: Path, kind: str) -> None:
    how, code, words = IMAGES[kind]
    path = Path(source.root) / "log00" / "005.jpg"
    before = path.read_bytes()
    how(path)
    if code is None:
        data = read_image(str(path))
        image = decode_jpeg(data, "x")
        there = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.abs(image.astype(int) - there).max() <= 2  # as Pillow, which the devkit uses: turned by nobody
        if kind != "another size":
            small = decode_jpeg(before, "x")
            assert image.shape == small.shape
            grey = small.astype(float) @ [0.299, 0.587, 0.114]
            assert np.abs(image.astype(float) @ [0.299, 0.587, 0.114] - grey).mean() < 3
        return
    with pytest.raises(SampleError) as caught:
        decode_jpeg(read_image(str(path)), str(path))
    assert caught.value.code == code
    assert words in caught.value.reason
    assert str(path) in caught.value.reason


def test_an_image_of_another_size_is_told_with_its_size(source: ToySource, tmp_path: Path) -> None:
    """It cannot be known to be wrong; its size stands beside it, and a teacher of one shape refuses or fits it."""
    _saved(lambda i: i.resize((96, 64)))(Path(source.root) / "log00" / "001.jpg")
    commit(source, tmp_path / "out", [ToyTeacher()])
    sample = Dataset(str(tmp_path / "out")).read(f"{0:08x}{1:08x}", {"samples": ["json"]})
    assert sample["samples"]["json"]["cameras"]["cam_f0"]["original_size"] == [96, 64]


def test_a_path_that_is_none() -> None:
    with pytest.raises(SampleError, match="null byte") as caught:
        read_image("/tmp/a\0.jpg")
    assert caught.value.code == "image_unreadable"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_that_is_cut_anywhere_is_never_half_a_picture(progressive: bool) -> None:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (24, 32, 3), np.uint8)
    Image.fromarray(noise).save(out, "JPEG", progressive=progressive)
    whole = out.getvalue()
    for size in range(len(whole)):
        with pytest.raises(SampleError):
            decode_jpeg(whole[:size], "x")


# --- logs

FILE = next((Path(__file__).parents[2] / "data" / "navsim").glob("*.pkl"))
Frames = list[dict[str, Any]]


def _log(root: Path, data: bytes | Frames, name: str = "a") -> NavsimSource:
    logs = root / "navsim_logs" / "mini"
    logs.mkdir(parents=True, exist_ok=True)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)  # a hostile writer's
    try:
        (logs / f"{name}.pkl").write_bytes(data if isinstance(data, bytes) else pickle.dumps(data, 5))
    finally:
        sys.setrecursionlimit(limit)
    window = {"num_history_frames": 2, "num_future_frames": 2, "frame_interval": 1}
    return NavsimSource(NavsimConfig(root=str(root), split="mini", filter=window))


def _frames(count: int = 8) -> Frames:
    frames: Frames = load_pickle(FILE.read_bytes(), "test log")[:count]
    return frames


def _laughs(levels: int = 60) -> list[Any]:
    value: list[Any] = [0.0, 0.0]
    for _ in range(levels):
        value = [value, value]
    return value


def _deep(levels: int = 900) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def _all(frames: Frames, **values: Any) -> None:
    for frame in frames:
        frame.update(values)


LOGS: dict[str, tuple[Callable[[Frames], Any], int, str]] = {
    # kind: (how frame 3 or all are changed, good scenes of five, code of the others)
    "nothing": (lambda f: None, 5, ""),
    "NaN position": (lambda f: f[3].update(ego2global_translation=[float("nan"), 0, 0]), 1, "bad_pose"),
    "infinite speed": (lambda f: f[3].update(ego_dynamic_state=[float("inf"), 0, 0, 0]), 1, "bad_pose"),
    "absurd position": (lambda f: f[3].update(ego2global_translation=[1e300, 0, 0]), 1, "bad_pose"),
    "zero quaternion": (lambda f: f[3].update(ego2global_rotation=[0, 0, 0, 0]), 1, "bad_pose"),
    "quaternion of length 2": (lambda f: f[3].update(ego2global_rotation=[2, 0, 0, 0]), 1, "bad_pose"),
    "float32 quaternion": (lambda f: f[3].update(ego2global_rotation=np.array([0.6, 0, 0, 0.8], np.float32)), 5, ""),
    "missing keys": (lambda f: f[3].pop("cams"), 1, "bad_frame"),
    "singular intrinsics": (
        lambda f: f[3]["cams"]["CAM_F0"].update(cam_intrinsic=np.diag([1000.0, 0, 1])), 1, "bad_calibration"),
    "a mirror for a rotation": (
        lambda f: f[3]["cams"]["CAM_F0"].update(sensor2lidar_rotation=-np.eye(3)), 1, "bad_calibration"),
    "absent annotations": (lambda f: f[3].update(anns=None), 5, ""),
    "NaN boxes": (lambda f: f[3]["anns"].update(gt_boxes=f[3]["anns"]["gt_boxes"] * np.nan), 1, "bad_annotations"),
    "repeated timestamp": (lambda f: f[3].update(timestamp=f[2]["timestamp"]), 2, "bad_timestamps"),
    "unsorted": (lambda f: f.insert(3, f.pop(4)), 2, "bad_timestamps"),
    "a timestamp beyond 64 bits": (lambda f: _all(f, timestamp=1 << 70), 0, ""),
    "a name with half a surrogate": (lambda f: f[7]["roadblock_ids"].append("\udc80"), 4, "bad_frame"),
    "a path with a NUL": (lambda f: f[3]["cams"]["CAM_F0"].update(data_path="a\0.jpg"), 1, "bad_frame"),
    "a list of 2^60 numbers": (lambda f: f[3].update(ego2global_translation=_laughs()), 1, "bad_pose"),
    "a token of 2^60": (lambda f: f[3].update(token=_laughs()), 1, "bad_frame"),
    "lights of 2^60": (lambda f: f[3].update(traffic_lights=_laughs()), 1, "bad_frame"),
    "a route of 2^60": (lambda f: f[7].update(roadblock_ids=[_laughs()]), 4, "bad_frame"),
    "boxes of 2^60": (lambda f: f[3]["anns"].update(gt_boxes=_laughs()), 1, "bad_annotations"),
    "deeper than Python": (lambda f: f[3].update(driving_command=_deep()), 1, "bad_frame"),
    "a token deeper than Python": (lambda f: f[3].update(token=_deep()), 1, "bad_frame"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOGS)
def test_a_poisoned_log(tmp_path: Path, kind: str) -> None:
    change, good, code = LOGS[kind]
    frames = _frames()
    change(frames)
    source = _log(tmp_path, frames)
    refs = source.scan().refs
    if not refs:  # the log as a whole
        (reason,) = source.scan().unreadable.values()
        assert good == 0
        assert len(reason) < 400
        return
    found = source.scenes("a", refs)
    assert sum(isinstance(scene, Scene) for scene in found) == good
    errors = [scene for scene in found if isinstance(scene, SampleError)]
    assert {error.code for error in errors} == ({code} if code else set())
    assert all(len(error.reason) < 600 and "scene " in error.reason for error in errors)
    for error in errors:
        error.reason.encode()  # it will stand in a commit record


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_share_of_the_logs_is_bad(tmp_path: Path, share: float) -> None:
    rng = np.random.default_rng(7)
    count = 100
    bad = set(rng.choice(count, int(share * count), replace=False).tolist())
    raw = pickle.dumps(_frames(5), 5)
    codes: Counter[bool] = Counter()
    frames = _frames(5)
    for n in range(count):
        data = raw
        for k, frame in enumerate(frames):
            data = data.replace(frame["token"].encode(), f"{n:08x}{k:08x}".encode())
        _log(tmp_path, data[: int(len(data) * rng.uniform(0, 0.99))] if n in bad else data, f"log{n:03d}")
        codes[n in bad] += 1
    scan = _log(tmp_path, raw[:20], "cut").scan()
    assert len(scan.refs) == 2 * codes[False]
    assert len(scan.unreadable) == codes[True] + 1
    assert all("not a whole pickle" in reason for reason in scan.unreadable.values())


def test_a_log_whose_name_is_no_text(tmp_path: Path) -> None:
    source = _log(tmp_path, _frames())
    folder = os.fsencode(tmp_path / "navsim_logs" / "mini")
    shutil.copy(os.path.join(folder, b"a.pkl"), os.path.join(folder, b"\xff\x1b[2J.pkl"))
    scan = source.scan()
    assert {ref.log for ref in scan.refs} == {"a"}
    assert list(scan.unreadable.values()) == ["its name is no printable text; rename it"]
    assert all(name.isprintable() for name in scan.unreadable)
