"""One self-contained HTML page of the worst scenes of an evaluation: where, when and by which metric they were lost.

No script, no request: drawings are inline SVG, pictures are ``data:`` URIs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipeline.reading.reader import Dataset
from reports import pages
from reports.evaluation import draw, report
from reports.evaluation.columns import SCORE_NAME, SUBSCORES, short
from reports.evaluation.failures import Failure, failures
from reports.evaluation.results import DriverResult
from reports.inspection import drive
from reports.inspection.colours import jpeg_uri
from reports.inspection.projection import fit_ground
from scoring import RewardContext, Version
from scoring.aggregate import MULTIPLICATIVE
from shards_schema import layout
from shards_schema.errors import ShardsError
from shards_schema.poses import Float64

OTHER_STYLES = ("other1", "other2", "other3", "other4")
CAMERA_WIDTH = 960
APART_S = 2.0
"""Scenes of a log that are nearer than this are one event: the worse one is shown."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluated:
    """What a page is of: drivers on n scenes; the first driver is the candidate."""

    version: Version
    split: str
    data: str
    tokens: Sequence[str]
    logs: Sequence[str]
    timestamps: Sequence[int]
    results: Sequence[DriverResult]
    notices: Sequence[str] = ()
    accounting: Sequence[str] = ()
    comments: Sequence[str] = ()


def worst(evaluated: Evaluated, count: int) -> list[int]:
    """Places of the scenes where the candidate scores least, the worst first, `APART_S` apart within a log.

    Scenes of equal score are taken from one log after the other, so that a page of zeros is not of one drive.
    """
    score = evaluated.results[0].score.tolist()
    turn: dict[tuple[float, str], int] = {}
    rank = []
    for i, value in enumerate(score):
        key = (value, evaluated.logs[i])
        turn[key] = turn.get(key, -1) + 1
        rank.append((value, turn[key], evaluated.logs[i], evaluated.timestamps[i], i))
    chosen: list[int] = []
    for _, _, log, when, i in sorted(rank):
        if len(chosen) >= count:
            break
        near = (abs(when - evaluated.timestamps[j]) * 1e-6 < APART_S for j in chosen if evaluated.logs[j] == log)
        if not any(near):
            chosen.append(i)
    return chosen


def render(evaluated: Evaluated, places: Sequence[int], dataset: Dataset, contexts: Sequence[RewardContext]) -> str:
    """The page.

    Args:
        evaluated: everything.
        places: of the scenes to show.
        dataset: for the front camera and the drives.
        contexts: of those scenes, in their order.
    """
    e, names = evaluated, SUBSCORES[evaluated.version]
    styles = _styles(e.results)
    legend = {r.name: style for r, style in zip(e.results, styles, strict=True)}
    head, body = report.rows(e.results, e.logs, e.version)
    return pages.render(
        "evaluation/worst.html",
        title=f"Worst scenes of {e.results[0].name}",
        e=e,
        name=SCORE_NAME[e.version],
        subscores={name: short(name) for name in names},
        summary=(head, list(zip(styles, body, strict=True))),
        legend={**legend, "human": "human", "PDM-Closed, the reference of progress": "pdm"},
        decisive=", ".join(short(n) for n in names if n in MULTIPLICATIVE[e.version]),
        apart=APART_S,
        scenes=[_scene(e, styles, i, context, dataset) for i, context in zip(places, contexts, strict=True)],
    )


def _scene(e: Evaluated, styles: Sequence[str], place: int, context: RewardContext, dataset: Dataset) -> dict[str, Any]:
    """What the page shows of a scene; where the dataset cannot be read, its token and why."""
    token, candidate = e.tokens[place], e.results[0]
    try:
        sample = dataset.read(token, {layout.SAMPLES: None})[layout.SAMPLES]
    except ShardsError as error:
        return {"token": token, "problem": str(error)}
    document = sample["json"]
    subscores = {k: float(v[place]) for k, v in candidate.subscores.items()}
    parsed = bool(candidate.parsed[place])
    found = failures(context, candidate.states[place], subscores) if parsed else []
    lines = [
        draw.Line(r.name, style, np.asarray(r.poses[place].numpy(), np.float64))
        for r, style in zip(e.results, styles, strict=True)
    ]
    human = np.asarray(document["future"]["trajectory"], np.float64).reshape(-1, 3)[:8]
    others = [line for line in lines[1:] if line.style != "human"]
    others += [draw.Line("PDM-Closed", "pdm", context.pdm_poses[5::5]), draw.Line("human", "human", human)]
    ego = document["ego"]
    return {
        "token": token,
        "score": float(candidate.score[place]),
        "chips": {
            "command": ego["command"],
            "speed": f"{float(np.hypot(*ego['velocity'])):.1f} m/s",
            "log": document["log"],
            "map": document["map"],
        },
        "picture": draw.scene_svg(context, lines[0], candidate.states[place].numpy(), others, found),
        "why": list(_why(e, place, found)) if parsed else [_Why("no plan", "the answer did not parse: score 0")],
        "rows": [
            (style, r.name, [float(v[place]) for v in (r.score, *(r.subscores[n] for n in SUBSCORES[e.version]))])
            for r, style in zip(e.results, styles, strict=True)
        ],
        "camera": _camera(sample, document, lines[0].poses),
    }


class _Why(NamedTuple):
    """A line of a scene's list: what was lost, how, what the metric is, and whether it weighs little."""

    head: str
    text: str
    meaning: str = ""
    mild: bool = False


def _why(e: Evaluated, place: int, found: Sequence[Failure]) -> Iterator[_Why]:
    candidate = e.results[0]
    for failure in sorted(found, key=lambda f: f.metric not in MULTIPLICATIVE[e.version]):
        weightless = e.version == "v1" and failure.metric == "driving_direction_compliance"
        grave = failure.metric in MULTIPLICATIVE[e.version] or (failure.value == 0 and not weightless)
        meaning = failure.metric.replace("_", " ") + ", no weight in PDMS" * weightless
        yield _Why(f"{short(failure.metric)} {failure.value:.2f}", failure.text, meaning, not grave)
    for name, before in candidate.unfiltered.items():
        if float(before[place]) < float(candidate.subscores[name][place]):
            head = f"{short(name)} {float(before[place]):.2f} \N{RIGHTWARDS ARROW} 1"
            yield _Why(head, "the human fails it too, so it is forgiven (human filter)", mild=True)


def _camera(sample: Mapping[str, Any], document: Mapping[str, Any], poses: Float64) -> dict[str, Any]:
    """The front camera, or the first that is stored, with the candidate's plan on the road."""
    views = sorted(document["cameras"], key=lambda view: view != "cam_f0")
    if not views:
        return {"label": "no camera image is stored"}
    camera = document["cameras"][views[0]]
    try:
        uri = jpeg_uri(sample[f"{views[0]}.jpg"], CAMERA_WIDTH)
    except (OSError, SyntaxError, KeyError) as error:  # what Pillow raises for a broken file
        return {"problem": f"{views[0]}: no picture ({error})"}
    path = np.concatenate((np.zeros((1, 3)), poses))
    label = f"{camera['channel']} with the candidate's plan"
    picture = drive.camera_svg(uri, camera, path, fit_ground(document["annotations"]), label)
    return {"picture": picture, "label": label}


def _styles(results: Sequence[DriverResult]) -> list[str]:
    """A class each: the first is the candidate."""
    free = iter(OTHER_STYLES)
    return [
        "candidate" if i == 0 else "human" if r.name == "human" else next(free, OTHER_STYLES[-1])
        for i, r in enumerate(results)
    ]
