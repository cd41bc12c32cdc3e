"""What the logs know of a scene anyway, as numbers: the labels of probes, and ego status, which is held against them.

All of it comes from the dataset: the documents of `samples`, and a `pdm` column where there is one. A label that cannot
be known of a scene is NaN there; one that the dataset does not know at all stands in `Labels.absent` with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from pipeline.reading.reader import Dataset
from pipeline.stores.threads import map_ahead
from questions.making.seeing import see
from shards_schema import layout
from shards_schema.poses import Float64, to_local
from shards_schema.records import COMMANDS

AGENTS = ("vehicle", "pedestrian", "bicycle")
NEAR_M, AHEAD_M, ASIDE_M, ROAD_M = 40.0, 50.0, 3.0, 20.0
"""How far agents are counted, how far and how far aside one ahead is looked for, and how long the road is."""
DIRECTIONS = {
    "CAM_F0": 0.0, "CAM_L0": 55.0, "CAM_L1": 108.0, "CAM_L2": 146.0,
    "CAM_R0": -55.0, "CAM_R1": -108.0, "CAM_R2": -146.0, "CAM_B0": 180.0,
}  # fmt: skip
"""Where the cameras of nuPlan's rig look, degrees, left positive; each sees some 32 to either side."""
_HALF_VIEW = 32.0
_SECONDS = (1, 2, 4)
_THIRDS = ("left", "middle", "right")
_THEN = 2
"""Seconds after which the agent ahead is looked for once more; pdm's agents have a step each 0.1 s."""
_THREADS = 4

MEANINGS = {
    "speed": "of the ego now, m/s",
    "yaw rate": "of the ego now, rad/s",
    **{f"{axis} {s} s": f"where the ego is after {s} s, {side}, m" for s in _SECONDS
       for axis, side in (("x", "forward"), ("y", "to the left"))},
    "distance ahead": f"to the nearest agent within {ASIDE_M:g} m aside of straight ahead; {AHEAD_M:g} m where none is",
    f"distance ahead {_THEN} s": f"the same {_THEN} s later, from where the ego is then (pdm)",
    "class ahead": f"its class, one of {', '.join(AGENTS)} or none (one 0 or 1 each, R2 over all of them)",
    **{f"agents {third}": f"within {NEAR_M:g} m in the {third} third of the front image, half hidden at most"
       for third in _THIRDS},
    "red light": "1 where one is red: on the route (pdm's v2), or, without that column, any that the log names",
    "path curvature": "of the path that is driven next, 1/m, where it is at least 4 m",
    "road curvature": f"of the {ROAD_M:g} m of the route's middle line ahead (pdm), 1/m",
}  # fmt: skip
KNOWN = frozenset(("speed", "yaw rate"))
"""What stands in ego status: nothing can be added to it."""
LATER = {
    **{f"{axis} {s} s": now for s in _SECONDS for axis, now in (("x", "speed"), ("y", "yaw rate"))},
    f"distance ahead {_THEN} s": "distance ahead",
}
"""What comes later -> its like of now. A target of later frames must gain more in the first than in the second."""


@dataclass(frozen=True, eq=False)
class Labels:
    """Of n scenes.

    Attributes:
        logs: n.
        status: float64 [n, s], what an ego-status baseline sees: poses, velocities and accelerations of history, the
            command, and products of what is now.
        values: label -> float64 [n, c], c is 1 but for classes; NaN where a scene does not tell.
        absent: label -> why the dataset does not tell it.
        around: camera -> float64 [n, 3]: agents in the left and the right half of where it looks, and how near one is.
    """

    logs: tuple[str, ...]
    status: Float64
    values: Mapping[str, Float64]
    absent: Mapping[str, str]
    around: Mapping[str, Float64]


def read(dataset: Dataset, tokens: Sequence[str]) -> Labels:
    """The labels of scenes, one document after the other.

    Args:
        dataset: open with `samples`, and with its pdm column where it has one.
        tokens: written in `samples`.
    """
    judge = next((c for c in dataset.columns if {"centerline", "ego_state"} <= dataset.specs(c).keys()), None)
    told = {} if judge is None else dataset.specs(judge)
    version = "v1" if "v1_agents_pose" in told else "v2"
    agents = [f"{version}_agents_{part}" for part in ("pose", "valid", "is_agent")]
    asked = [name for name in ("centerline", "v2_light_active", *agents) if name in told]
    judged = frozenset(dataset.tokens(judge)) if judge is not None else frozenset[str]()

    def one(token: str) -> tuple[str, Float64, dict[str, Float64]]:
        wanted = {layout.SAMPLES: ["json"], **({judge: asked} if judge is not None and token in judged else {})}
        sample = dataset.read(token, wanted)
        document = sample[layout.SAMPLES]["json"]
        return document["log"], _status(document), _values(document, sample.get(judge or "", {}))

    rows = list(map_ahead(one, tokens, threads=_THREADS))
    values = {name: np.stack([row[2][name] for row in rows]) for name in rows[0][2]}
    absent = {
        "depth": "lidar is not in a dataset; not probed",
        "time of exposure": "it is not in a dataset; not probed",
        **{name: _why(name, judge) for name in MEANINGS if np.isnan(values[name]).all()},
    }
    return Labels(
        logs=tuple(row[0] for row in rows),
        status=np.stack([row[1] for row in rows]),
        values={name: values[name] for name in MEANINGS if name not in absent},
        absent=absent,
        around={camera: values[camera] for camera in DIRECTIONS if not np.isnan(values[camera]).all()},
    )


def _why(name: str, judge: str | None) -> str:
    if name in ("road curvature", f"distance ahead {_THEN} s") and judge is None:
        return "needs a pdm column"
    if name == "red light":
        return "no log names the state of a light"
    if name.startswith("agents"):
        return "needs labelled boxes, and cam_f0 in samples"
    return {"distance ahead": "no labelled boxes", "class ahead": "no labelled boxes"}.get(name, "no scene tells it")


def _status(document: Mapping[str, Any]) -> Float64:
    history, command = document["history"], document["ego"]["command"]
    now = [*document["ego"]["velocity"], *document["ego"]["acceleration"], _yaw_rate(document, 0.0)]
    one_hot = [float(command == c) for c in COMMANDS]
    products = [a * b for a, b in combinations_with_replacement([*now, *one_hot[:3]], 2)]
    past = np.concatenate((history["trajectory"], history["velocity"], history["acceleration"]), axis=1)
    return np.array([*past.ravel(), *now, *one_hot, *products], dtype=np.float64)


def _yaw_rate(document: Mapping[str, Any], unknown: float) -> float:
    past, before = document["history"]["trajectory"], [f for f in document["frames"] if f["step"] == -1]
    if len(past) < 2 or not before:
        return unknown
    turned = math.remainder(past[-1][2] - past[-2][2], math.tau)
    return float(turned / ((document["timestamp"] - before[0]["timestamp"]) * 1e-6))


def _values(document: Mapping[str, Any], judged: Mapping[str, Any]) -> dict[str, Float64]:
    """Every label of a scene, and by camera what is around; NaN where it does not tell."""
    future = np.array(document["future"]["trajectory"], dtype=np.float64).reshape(-1, 3)
    ahead = [(f["timestamp"] - document["timestamp"]) * 1e-6 for f in document["frames"] if f["step"] > 0]
    out = {"speed": [math.hypot(*document["ego"]["velocity"])], "yaw rate": [_yaw_rate(document, math.nan)]}
    there = dict[int, Float64]()
    for seconds in _SECONDS:
        at = [i for i, t in enumerate(ahead[: len(future)]) if abs(t - seconds) < 0.05]
        there[seconds] = future[at[0]] if at else np.full(3, math.nan)
        out |= {f"{axis} {seconds} s": [float(there[seconds][i])] for i, axis in enumerate("xy")}
    out[f"distance ahead {_THEN} s"] = [distance_then(judged, there[_THEN])]
    steps = np.diff(future[:, :2], axis=0, prepend=np.zeros((min(1, len(future)), 2)))
    length = float(np.hypot(*steps.T).sum())
    out["path curvature"] = [math.remainder(float(future[-1, 2]), math.tau) / length if length >= 4 else math.nan]
    out["road curvature"] = [_road(np.asarray(judged["centerline"], dtype=np.float64)) if judged else math.nan]
    lights = [float(light["red"]) for light in document["traffic_lights"]]
    if "v2_light_active" in judged:
        lights = [float(judged["v2_light_active"][:, :1].any())]
    out["red light"] = [max(lights, default=math.nan)]
    return {name: np.array(value) for name, value in {**out, **_agents(document)}.items()}


def distance_then(judged: Mapping[str, Any], ego: Float64) -> float:
    """How far the nearest agent ahead is after `_THEN` seconds, from where the ego, [x, y, heading], is by then."""
    told = {name.partition("_agents_")[2]: value for name, value in judged.items() if "_agents_" in name}
    if not told or np.isnan(ego).any():
        return math.nan
    step = 10 * _THEN
    agents = np.asarray(told["pose"], dtype=np.float64)[told["valid"][:, step] & told["is_agent"], step]
    return _ahead(to_local(agents, ego)[:, :2])[1]


def _ahead(places: Float64) -> tuple[int | None, float]:
    """Which of [N, 2] is the nearest straight ahead of the origin, and how far; `AHEAD_M` where none is."""
    before = [i for i, (x, y) in enumerate(places) if 0 < x <= AHEAD_M and abs(y) < ASIDE_M]
    first = min(before, key=lambda i: float(places[i, 0]), default=None)
    return first, AHEAD_M if first is None else float(places[first, 0])


def _road(line: Float64) -> float:
    """Turn a metre of a line [P, 2] over the next `ROAD_M` from where the ego (the origin) is."""
    if len(line) < 3:
        return math.nan
    steps = np.diff(line, axis=0)
    lengths = np.hypot(*steps.T)
    along = np.concatenate(([0.0], lengths.cumsum()))
    here = float(along[int(np.hypot(*line.T).argmin())])
    if along[-1] < here + ROAD_M:
        return math.nan
    headings = np.unwrap(np.arctan2(steps[:, 1], steps[:, 0]))
    before, after = np.interp([here, here + ROAD_M], along[1:] - lengths / 2, headings)
    return float((after - before) / ROAD_M)


def _agents(document: Mapping[str, Any]) -> dict[str, list[float]]:
    labels = document["annotations"]
    if labels is None:
        one = {name: [math.nan] for name in ("distance ahead", *(f"agents {third}" for third in _THIRDS))}
        nothing = {**one, "class ahead": [math.nan] * (len(AGENTS) + 1)}
        return {**nothing, **{camera: [math.nan] * 3 for camera in DIRECTIONS}}
    boxes = np.array(labels["boxes"], dtype=np.float64).reshape(-1, 7)
    names, away = labels["names"], np.hypot(boxes[:, 0], boxes[:, 1])
    agents = [i for i in range(len(names)) if names[i] in AGENTS]
    first, distance = _ahead(boxes[agents, :2])
    kind = "none" if first is None else names[agents[first]]
    out = {
        "distance ahead": [distance],
        "class ahead": [float(kind == c) for c in (*AGENTS, "none")],
    }
    near = [i for i in agents if away[i] < NEAR_M]
    bearings = np.degrees(np.arctan2(boxes[:, 1], boxes[:, 0]))
    for camera, direction in DIRECTIONS.items():
        aside = {i: math.remainder(float(bearings[i]) - direction, 360) for i in near}
        there = {i: a for i, a in aside.items() if abs(a) < _HALF_VIEW}
        left = sum(a > 0 for a in there.values())
        nearness = max((1 / (5 + float(away[i])) for i in there), default=0.0)
        out[camera] = [float(left), float(len(there) - left), nearness]
    thirds = [math.nan] * 3
    if "cam_f0" in document["cameras"]:
        some = {key: [values[i] for i in near] for key, values in labels.items()}
        width = document["cameras"]["cam_f0"]["size"][0]
        shown = [s for s in see({**document, "annotations": some}, "cam_f0") if s.hidden <= 0.5]
        places = [min(2, max(0, int(3 * s.centre[0] / width))) for s in shown]
        thirds = [float(places.count(i)) for i in range(3)]
    return {**out, **{f"agents {third}": [n] for third, n in zip(_THIRDS, thirds, strict=True)}}
