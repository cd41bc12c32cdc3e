"""One self-contained HTML page of the worst scenes of an evaluation: where, when and by which metric they were lost.

No script, no request: drawings are inline SVG, pictures are ``data:`` URIs, everything that comes from the data is
escaped. The frame of the page is that of `jobs.inspect`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from pipeline.reading.reader import Dataset
from reports import inspection
from reports.evaluation import draw
from reports.evaluation.columns import SCORE_NAME, SUBSCORES, mean_text, short
from reports.evaluation.failures import Failure, failures
from reports.evaluation.results import DriverResult, interval
from reports.inspection import drive
from reports.inspection.colours import jpeg_uri
from reports.inspection.projection import fit_ground
from scoring import RewardContext, Version
from shards_schema import layout
from shards_schema.errors import ShardsError

OTHER_STYLES = ("other1", "other2", "other3", "other4")
CAMERA_WIDTH = 960
APART_S = 2.0
"""Scenes of a log that are nearer than this are one event: the worse one is shown."""

_DECISIVE: dict[Version, frozenset[str]] = {
    "v1": frozenset(("no_at_fault_collisions", "drivable_area_compliance")),
    "v2": frozenset(
        (
            "no_at_fault_collisions",
            "drivable_area_compliance",
            "driving_direction_compliance",
            "traffic_light_compliance",
        )
    ),
}
"""Sub-scores that multiply the whole score."""


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
    folder = Path(__file__).parent
    body = [(folder / "scenes.html").read_text(encoding="utf-8"), *_header(evaluated), *_legend(evaluated)]
    for number, (place, context) in enumerate(zip(places, contexts, strict=True), start=1):
        body += _scene(evaluated, place, context, dataset, f"{number} of {len(places)}")
    if not places:
        body.append('<p class="absent">No scene was scored.</p>')
    template = Template((Path(inspection.__file__).parent / "page.html").read_text(encoding="utf-8"))
    title = f"Worst scenes of {evaluated.results[0].name}"
    return template.substitute(title=escape(title), body="\n".join(body))


def _header(e: Evaluated) -> Iterator[str]:
    name = SCORE_NAME[e.version]
    yield f"<h1>Where {escape(e.results[0].name)} loses {name}</h1>"
    yield f'<span class="quiet">{len(e.tokens)} scenes, {escape(e.split)}, of</span> <code>{escape(e.data)}</code>'
    for notice in e.notices:
        yield f'<div class="notice">{escape(notice)}</div>'
    yield f'<div class="card">{_summary(e)}'
    yield "".join(f'<div class="how">{escape(line)}</div>' for line in (*e.accounting, *e.comments)) + "</div>"


def _summary(e: Evaluated) -> str:
    names = SUBSCORES[e.version]
    head = "".join(
        f"<th>{h}</th>" for h in ("", SCORE_NAME[e.version], "95 % over logs", *map(short, names), "ADE 4 s")
    )
    rows = ""
    for r, style in zip(e.results, _styles(e.results), strict=True):
        spread = interval(r.score.numpy(), e.logs)
        cells = [
            f'<td class="total">{float(r.score.mean()):.4f}</td>',
            f"<td>{spread[0]:.3f} .. {spread[1]:.3f}</td>" if spread else "<td>-</td>",
            *(f"<td>{mean_text(r.subscores[n], 2)}</td>" for n in names),
            f"<td>{mean_text(r.displacement['ade_4'], 2)} m</td>" if "ade_4" in r.displacement else "",
        ]
        rows += f'<tr><td style="text-align:left">{_swatch(style)}{escape(r.name)}</td>{"".join(cells)}</tr>'
    return f'<div class="wide"><table class="scores"><tr>{head}</tr>{rows}</table></div>'


def _legend(e: Evaluated) -> Iterator[str]:
    lines = [(style, r.name) for r, style in zip(e.results, _styles(e.results), strict=True)]
    if all(r.name != "human" for r in e.results):
        lines.append(("human", "human"))
    lines.append(("pdm", "PDM-Closed, the reference of progress"))
    patches = [
        ("var(--road-fill)", "road"),
        ("var(--cross-fill)", "intersection"),
        ("var(--route-fill)", "lanes of the route"),
        ("color-mix(in srgb, var(--red) 30%, transparent)", "red light of the route"),
        ("var(--mover)", "road user (faint: in 1, 2, 3, 4 s)"),
        ("color-mix(in srgb, var(--thing) 50%, transparent)", "static object"),
        ("color-mix(in srgb, var(--cand) 20%, transparent)", "swept by the candidate's car in simulation"),
        ("color-mix(in srgb, var(--fail) 50%, transparent)", "where it failed, with metric and time"),
    ]
    decisive = ", ".join(short(n) for n in SUBSCORES[e.version] if n in _DECISIVE[e.version])
    text = (
        "The scenes where the candidate scores least, worst first; scenes of a log less than "
        f"{APART_S:g} s apart are shown once. Seen from above, the ego looks up the page. A plan is not what is "
        "scored: NAVSIM lets a simulated car follow it, whose path is the shaded band. "
        f"{decisive} multiply the whole score, so one 0 is enough; the rest is a weighted mean. "
        "Red tells what was lost, where and when."
    )
    keys = "".join(f"<span>{_swatch(style)}{escape(name)}</span>" for style, name in lines)
    keys += "".join(f'<span><i class="patch" style="background:{colour}"></i>{name}</span>' for colour, name in patches)
    yield f'<div class="card"><p style="margin-top:0">{text}</p><div class="legend">{keys}</div></div>'


def _scene(e: Evaluated, place: int, context: RewardContext, dataset: Dataset, number: str) -> Iterator[str]:
    token, candidate = e.tokens[place], e.results[0]
    value = float(candidate.score[place])
    try:
        sample = dataset.read(token, {layout.SAMPLES: None})[layout.SAMPLES]
    except ShardsError as error:
        yield f'<h2>{number} <code>{escape(token)}</code></h2><p class="absent">{escape(str(error))}</p>'
        return
    document = sample["json"]
    found = _failures(candidate, place, context)
    state = candidate.states[place].numpy()
    lines = [draw.Line(r.name, s, _poses(r, place)) for r, s in zip(e.results, _styles(e.results), strict=True)]
    others = [line for line in lines[1:] if line.style != "human"]
    others += [draw.Line("PDM-Closed", "pdm", context.pdm_poses[5::5]), _human(document)]
    picture = draw.scene_svg(context, lines[0], state, others, found)
    zero = " zero" if value == 0 else ""
    yield (
        f'<section><h2>{number} <code>{escape(token)}</code><span class="big{zero}">{SCORE_NAME[e.version]} '
        f'{value:.3f}</span></h2><div class="card"><div class="chips">{_chips(document)}</div>'
        f'<div class="verdict"><div>{picture}</div><div>{_why(e, candidate, place, found)}{_table(e, place)}'
        f'<div class="camera">{_camera(sample, document, lines[0].poses)}</div></div></div></div></section>'
    )


def _failures(candidate: DriverResult, place: int, context: RewardContext) -> list[Failure]:
    if not bool(candidate.parsed[place]):
        return []
    subscores = {k: float(v[place]) for k, v in candidate.subscores.items()}
    return failures(context, candidate.states[place], subscores)


def _why(e: Evaluated, candidate: DriverResult, place: int, found: Sequence[Failure]) -> str:
    if not bool(candidate.parsed[place]):
        return '<ul class="why"><li><b>no plan</b>the answer did not parse: score 0</li></ul>'
    items = []
    for failure in sorted(found, key=lambda f: f.metric not in _DECISIVE[e.version]):
        weightless = e.version == "v1" and failure.metric == "driving_direction_compliance"
        grave = failure.metric in _DECISIVE[e.version] or (failure.value == 0 and not weightless)
        mild = "" if grave else ' class="mild"'
        meaning = failure.metric.replace("_", " ") + ", no weight in PDMS" * weightless
        items.append(
            f"<li{mild}><b>{short(failure.metric)} {failure.value:.2f}</b>{escape(failure.text)}"
            f'<span class="quiet"> ({escape(meaning)})</span></li>'
        )
    for name, before in candidate.unfiltered.items():
        if float(before[place]) < float(candidate.subscores[name][place]):
            items.append(
                f'<li class="mild"><b>{short(name)} {float(before[place]):.2f} &rarr; 1</b>'
                "the human fails it too, so it is forgiven (human filter)</li>"
            )
    return f'<ul class="why">{"".join(items)}</ul>' if items else '<p class="quiet">nothing failed</p>'


def _table(e: Evaluated, place: int) -> str:
    names = SUBSCORES[e.version]
    head = "".join(f'<th title="{n}">{short(n)}</th>' for n in names)
    rows = ""
    for r, style in zip(e.results, _styles(e.results), strict=True):
        cells = "".join(_cell(float(r.subscores[n][place])) for n in names)
        total = _cell(float(r.score[place]), "total")
        rows += f'<tr><td style="text-align:left">{_swatch(style)}{escape(r.name)}</td>{total}{cells}</tr>'
    head = f"<th></th><th>{SCORE_NAME[e.version]}</th>{head}"
    return f'<div class="wide"><table class="scores"><tr>{head}</tr>{rows}</table></div>'


def _cell(value: float, style: str = "") -> str:
    kind = "zero" if value == 0 else "part" if value < 0.995 else ""
    return f'<td class="{f"{style} {kind}".strip()}">{_number(value)}</td>'


def _number(value: float, digits: int = 2) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def _camera(sample: Mapping[str, Any], document: Mapping[str, Any], poses: draw.Float64) -> str:
    """The front camera, or the first that is stored, with the candidate's plan on the road."""
    views = sorted(document["cameras"], key=lambda view: view != "cam_f0")
    if not views:
        return '<span class="quiet">no camera image is stored</span>'
    camera = document["cameras"][views[0]]
    try:
        uri = jpeg_uri(sample[f"{views[0]}.jpg"], CAMERA_WIDTH)
    except (OSError, SyntaxError, KeyError) as error:  # what Pillow raises for a broken file
        return f'<p class="absent">{escape(views[0])}: no picture ({escape(str(error))})</p>'
    path = np.concatenate((np.zeros((1, 3)), poses))
    ground = fit_ground(document["annotations"])
    label = f"{camera['channel']} with the candidate's plan"
    picture = drive.camera_svg(uri, camera, path, ground, label)
    return f'{picture}<span class="quiet">{escape(label)}</span>'


def _chips(document: Mapping[str, Any]) -> str:
    ego = document["ego"]
    speed = float(np.hypot(*ego["velocity"]))
    chips = {"command": ego["command"], "speed": f"{speed:.1f} m/s", "log": document["log"], "map": document["map"]}
    return "".join(f'<span class="chip">{k} <b>{escape(str(v))}</b></span>' for k, v in chips.items())


def _human(document: Mapping[str, Any]) -> draw.Line:
    future = np.asarray(document["future"]["trajectory"], np.float64).reshape(-1, 3)[:8]
    return draw.Line("human", "human", future)


def _poses(result: DriverResult, place: int) -> draw.Float64:
    return np.asarray(result.poses[place].numpy(), np.float64)


def _styles(results: Sequence[DriverResult]) -> list[str]:
    """A class each: the first is the candidate."""
    free = iter(OTHER_STYLES)
    return [
        "candidate" if i == 0 else "human" if r.name == "human" else next(free, OTHER_STYLES[-1])
        for i, r in enumerate(results)
    ]


def _swatch(style: str) -> str:
    return f'<i class="swatch {style}"></i>'
