"""How long `make plan` takes for navtrain, and with what memory: a tree of its size and layout, tiny files.

    logs       1,192, each of 8 drives; a frame has eight cameras and some boxes
    scenes     103,288: in each drive 11 frames in a row are a scene's now
    images     of those scenes, now and the three frames before, as download_navtrain_*.sh brings them, of the three
               cameras that configs/navtrain.yaml asks for. What lies ahead is there where another scene's past is.

The images are links to one file, since an inode each would fill disks; a listing sees no difference. Then the real
command runs on it, in a process of its own: configs/navtrain.yaml, which is fine, and configs/openscene.yaml, which
asks for the future and is refused.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import Field

from benchmarks.measure import ROOT, temporary
from shards_schema.inputs.models import StrictModel
from shards_schema.records import CHANNELS

_CAMERAS = ("CAM_F0", "CAM_L0", "CAM_R0")
_DRIVES, _RUN, _BETWEEN = 8, 11, 40
"""Drives of a log; scenes of a drive, one a frame; frames of a drive that are no scene's now."""
_LEAD, _TAIL = 10, 30
_LOG, _TOKENS = "@" * 5, "@" * 8
"""What a log's number and the first half of its tokens are in the template."""
_TICK = 1.0
"""Seconds between looks at the processes."""
_LINKS = 60_000
"""Names that one file is given; ext4 ends at 65,000."""


class Config(StrictModel):
    """The measurement."""

    logs: int = Field(default=1192, ge=1)
    """Of the tree."""
    scenes: int = Field(default=103_288, ge=1)
    """Of the tree, at most 88 a log."""
    boxes: int = Field(default=10, ge=0)
    """Annotated objects of a frame."""
    processes: int = Field(default=2, ge=1)
    """That read logs; the recipe has 16."""
    folder: str | None = None
    """Where the tree is made, and left; None for a folder that goes away."""


def run(config: Config) -> None:
    """Make the tree, plan it."""
    if config.folder is not None:
        _measure(config, Path(config.folder))
        return
    with temporary() as folder:
        _measure(config, folder)


def _measure(config: Config, folder: Path) -> None:
    began = time.perf_counter()
    if not (folder / "filter.yaml").exists():
        _make(config, folder)
        print(f"the tree: {time.perf_counter() - began:.0f} s to make")
    for recipe in ("navtrain", "openscene"):
        command = [sys.executable, "-m", "jobs.plan", str(ROOT / "configs" / f"{recipe}.yaml"), f"out={folder}/out"]
        command += [f"source.filter={folder}/filter.yaml", f"scan_processes={config.processes}"]
        environment = {**os.environ, "OPENSCENE_DATA_ROOT": str(folder)}
        print(f"\n$ python -m jobs.plan configs/{recipe}.yaml", flush=True)
        began, peak, busy = time.perf_counter(), 0, dict[int, float]()
        with subprocess.Popen(command, cwd=ROOT, env=environment) as process:
            while process.poll() is None:
                found = _below(process.pid)
                peak = max(peak, sum(_resident(pid) for pid in found))
                busy |= {pid: seconds for pid in found if (seconds := _busy(pid))}
                time.sleep(_TICK)
        told = f"{time.perf_counter() - began:.0f} s, {sum(busy.values()):.0f} s of CPU, {peak / 1e9:.2f} GB at most"
        print(f"exit {process.returncode}; {told}, all its processes together", flush=True)


def _make(config: Config, root: Path) -> None:
    template = pickle.dumps(_frames(config.boxes), 4)
    logs, blobs = root / "navsim_logs" / "trainval", root / "sensor_blobs" / "trainval"
    logs.mkdir(parents=True)
    links, left, tokens, names = 0, config.scenes, list[str](), list[str]()
    image = root / "image-0"
    image.write_bytes(b"\xff\xd8\xff\xd9")
    for log in range(config.logs):
        number, name = f"{log:08x}", _name(f"{log:05d}")
        content = template.replace(_TOKENS.encode(), number.encode()).replace(_LOG.encode(), f"{log:05d}".encode())
        (logs / f"{name}.pkl").write_bytes(content)
        names.append(name)
        now = _scene_frames()[: -(-left // (config.logs - log))]
        left -= len(now)
        tokens += [f"{number}{index:08x}" for index in now]
        for camera in _CAMERAS:
            folder = blobs / name / camera
            folder.mkdir(parents=True)
            for index in sorted({index - back for index in now for back in range(4)}):
                if links == _LINKS:
                    links, image = 0, root / f"image-{log}"
                    image.write_bytes(b"\xff\xd8\xff\xd9")
                os.link(image, folder / f"{number}{index:08x}.jpg")
                links += 1
    scene_filter = {"num_history_frames": 4, "num_future_frames": 10, "frame_interval": 1, "has_route": True}
    document = {**scene_filter, "log_names": names, "tokens": tokens}
    (root / "filter.yaml").write_text(yaml.dump(document, Dumper=yaml.CSafeDumper))
    size = sum(file.stat().st_size for file in logs.iterdir())
    print(f"{config.logs} logs ({size / 1e9:.1f} GB), {len(tokens)} scenes, {_frame_count()} frames a log")


def _frame_count() -> int:
    return _LEAD + _DRIVES * (_RUN + _BETWEEN) + _TAIL


def _scene_frames() -> list[int]:
    return [_LEAD + drive * (_RUN + _BETWEEN) + i for drive in range(_DRIVES) for i in range(_RUN)]


def _name(number: str) -> str:
    return f"2021.05.12.22.00.38_veh-35_{number}_{number}"


def _frames(boxes: int) -> list[dict[str, Any]]:
    """A log in OpenScene's form, with the places of its number and tokens."""
    rng = np.random.default_rng(0)
    log, out = _name(_LOG), []
    for index in range(_frame_count()):
        token = f"{_TOKENS}{index:08x}"
        cameras = {
            channel: {
                "data_path": f"{log}/{channel}/{token}.jpg",
                "sensor2lidar_rotation": np.eye(3),
                "sensor2lidar_translation": np.zeros(3),
                "cam_intrinsic": np.array([[1545.0, 0, 960], [0, 1545.0, 560], [0, 0, 1]]),
                "distortion": np.zeros(5),
            }
            for channel in CHANNELS
        }
        annotations = {
            "gt_boxes": rng.normal(size=(boxes, 7)),
            "gt_names": np.array(["vehicle"] * boxes),
            "gt_velocity_3d": rng.normal(size=(boxes, 3)),
            "instance_tokens": [f"{index:08x}{n:08x}" for n in range(boxes)],
            "track_tokens": [f"{index // 40:08x}{n:08x}" for n in range(boxes)],
        }
        out.append(
            {
                "token": token,
                "timestamp": 1_620_000_000_000_000 + 500_000 * index,
                "log_name": log,
                "scene_token": f"{_TOKENS}{index // 40:08x}",
                "map_location": "us-nv-las-vegas-strip",
                "roadblock_ids": [str(60_000 + n) for n in range(20)],
                "driving_command": np.array([0, 1, 0, 0]),
                "ego2global_translation": np.array([664_000.0 + 4 * index, 3_996_000.0, 600.0]),
                "ego2global_rotation": [1.0, 0.0, 0.0, 0.0],
                "ego_dynamic_state": [8.0, 0.0, 0.0, 0.0],
                "traffic_lights": [(n, False) for n in range(10)],
                "cams": cameras,
                "lidar_path": f"{log}/MergedPointCloud/{token}.pcd",
                "anns": annotations,
            }
        )
    return out


def _below(pid: int) -> list[int]:
    """A process and those below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:  # gone meanwhile
        return []
    return [pid, *(one for child in children for one in _below(int(child)))]


def _resident(pid: int) -> int:
    """Bytes of a process; what it shares with others is divided among them."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return 1024 * int(rollup.partition("\nPss:")[2].split()[0])
    except (OSError, IndexError):
        return 0


def _busy(pid: int) -> float:
    """Seconds of CPU of a process so far."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
