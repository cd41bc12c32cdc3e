"""One self-contained HTML page of a dataset: notices, provenance, and a few scenes with all that is stored of them.

No script, no request: pictures are ``data:`` URIs, drawings are inline SVG. What cannot be read is said in its place,
and the page goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.reading.reader import Dataset
from reports import pages
from reports.inspection import drive, text
from reports.inspection.colours import jpeg_uri
from reports.inspection.facts import NAVTRAIN_SCENES, Facts, settings_line, weights_line
from reports.inspection.features import figures
from reports.inspection.projection import fit_ground
from reports.tables import bytes_text
from shards_schema import layout
from shards_schema.errors import AbsentError, QuarantinedError, ShardsError

FRONT_CAMERA = "cam_f0"
_FRONT_WIDTH, _OTHER_WIDTH = 1280, 480


def choose(dataset: Dataset, scenes: int, seed: int) -> list[str]:
    """Tokens to show: those that most columns have, drawn from one log after the other, fixed by the seed."""
    having: dict[str, int] = {}
    for column in dataset.columns:
        for token in dataset.tokens(column):
            having[token] = having.get(token, 0) + 1
    most = max(having.values(), default=0)
    table = dataset.plan.table
    by_log: dict[str, list[str]] = {}
    for token, log in zip(table["token"].to_pylist(), table["log"].to_pylist(), strict=True):
        if having.get(token, 0) == most and most:
            by_log.setdefault(log, []).append(token)
    rng = np.random.default_rng(seed)
    logs = sorted(by_log)
    queues = [list(rng.permutation(by_log[logs[i]])) for i in rng.permutation(len(logs))]
    chosen: list[str] = []
    while len(chosen) < scenes and any(queues):
        chosen += [str(queue.pop()) for queue in queues if queue]
    return chosen[:scenes]


def render(facts: Facts, dataset: Dataset | None, tokens: Sequence[str]) -> str:
    """The page.

    Args:
        facts: of the dataset.
        dataset: its readable columns; None where there are none.
        tokens: the scenes to show.
    """
    size, name = facts.bytes_a_sample, facts.where.rsplit("/", 1)[-1]
    return pages.render(
        "inspection/dataset.html",
        title=f"{name}: last-shards dataset",
        name=name,
        facts=facts,
        rows={
            "source": text.source_line(facts),
            "filter": text.filter_line(facts),
            "plan": text.plan_line(facts),
            "size": f"{size / 1e6:.3f} MB a sample; {bytes_text(size * NAVTRAIN_SCENES)} for navtrain's "
            f"{NAVTRAIN_SCENES:,} scenes",
        },
        scenes=[] if dataset is None else [_scene(dataset, token) for token in tokens],
        bytes_text=bytes_text,
        settings_line=settings_line,
        weights_line=weights_line,
    )


def _scene(dataset: Dataset, token: str) -> dict[str, Any]:
    """The token, and for each column what is drawn of it, or why there is nothing."""
    columns = []
    for name, manifest in dataset.columns.items():
        shown: dict[str, Any] = {"name": name, "random": manifest.random_weights}
        try:
            values = dataset.read(token, {name: None})[name]
            shown |= {"drive": _drive(values)} if name == layout.SAMPLES else {"figures": figures(manifest, values)}
        except QuarantinedError as error:
            shown["problem"] = f"quarantined as {error.code}: {error.reason}"
        except AbsentError as error:
            shown["problem"] = str(error)
        except ShardsError as error:
            shown["problem"] = f"cannot be read: {error}"
        columns.append(shown)
    return {"token": token, "columns": columns}


def _drive(values: Mapping[str, Any]) -> dict[str, Any]:
    document = values["json"]
    poses = drive.path_of(document)
    ground = fit_ground(document["annotations"])
    views = sorted(document["cameras"], key=lambda view: (view != FRONT_CAMERA, view))
    frames = []
    for place, view in enumerate(views):
        camera = document["cameras"][view]
        try:
            uri = jpeg_uri(values[f"{view}.jpg"], _OTHER_WIDTH if place else _FRONT_WIDTH)
        except (OSError, SyntaxError, KeyError) as error:  # what Pillow raises for a broken file
            frames.append({"label": f"{view}: no picture ({error})"})
            continue
        picture = drive.camera_svg(uri, camera, poses, ground, f"{camera['channel']} with the future path")
        width, height = camera["size"]
        frames.append({"picture": picture, "label": f"{camera['channel']} {width}\N{MULTIPLICATION SIGN}{height}"})
    return {
        "chips": _chips(document),
        "frames": frames,
        "above": drive.above_svg(document),
        "legend": drive.legend(document["annotations"]),
    }


def _chips(document: Mapping[str, Any]) -> dict[str, str]:
    ego = document["ego"]
    speed = float(np.hypot(*ego["velocity"]))
    path = drive.path_of(document)
    length = float(np.hypot(*np.diff(path[:, :2], axis=0).T).sum())
    time = datetime.fromtimestamp(document["timestamp"] / 1e6, UTC)
    return {
        "command": ego["command"],
        "speed": f"{speed:.1f} m/s ({speed * 3.6:.0f} km/h)",
        "acceleration": f"{ego['acceleration'][0]:+.2f} m/s² ahead, {ego['acceleration'][1]:+.2f} left",
        "future": f"{length:.1f} m in {(len(path) - 1) / 2:g} s, turns {np.degrees(path[-1, 2]):+.0f}°",
        "log": document["log"],
        "map": document["map"],
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC"),
    }
