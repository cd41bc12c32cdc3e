"""One self-contained HTML page of a dataset: notices, provenance, and a few scenes with all that is stored of them.

No script, no request: pictures are ``data:`` URIs, drawings are inline SVG. Everything that comes from the data is
escaped. What cannot be read is said in its place, and the page goes on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from pipeline.reading.reader import Dataset
from reports.inspection import drive, text
from reports.inspection.colours import jpeg_uri
from reports.inspection.facts import NAVTRAIN_SCENES, ColumnFacts, Facts, settings, weights_line
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
    body = [*_header(facts), *_columns(facts)]
    if dataset is not None:
        for number, token in enumerate(tokens, start=1):
            body += _scene(dataset, token, f"Scene {number} of {len(tokens)}")
    if not tokens:
        body.append('<p class="absent">No committed sample to show yet.</p>')
    template = Template((Path(__file__).parent / "page.html").read_text(encoding="utf-8"))
    name = facts.where.rsplit("/", 1)[-1]
    return template.substitute(title=escape(f"{name}: last-shards dataset"), body="\n".join(body))


def _header(facts: Facts) -> Iterator[str]:
    yield f"<h1>{escape(facts.where.rsplit('/', 1)[-1])}</h1><code>{escape(facts.where)}</code>"
    for notice in facts.notices:
        yield f'<div class="notice">{escape(notice)}</div>'
    if facts.unfinished:
        yield '<div class="notice">Not finished: shards are missing. Run the job again to go on.</div>'
    for column in facts.columns:
        for fault in column.damage:
            yield f'<div class="notice">Column {escape(column.name)} is damaged: {escape(fault)}</div>'
    rows = [("source", text.source_line(facts)), ("filter", text.filter_line(facts)), ("plan", text.plan_line(facts))]
    total = facts.bytes_a_sample
    navtrain = bytes_text(total * NAVTRAIN_SCENES)
    rows.append(("size", f"{total / 1e6:.3f} MB a sample; {navtrain} for navtrain's {NAVTRAIN_SCENES:,} scenes"))
    cells = "".join(f"<tr><th>{k}</th><td>{escape(v)}</td></tr>" for k, v in rows)
    yield f'<div class="card"><table class="facts">{cells}</table></div>'


def _columns(facts: Facts) -> Iterator[str]:
    head = "".join(
        f"<th>{h}</th>" for h in ("column", "written", "quarantined", "shards", "size", "weights", "made by")
    )
    yield f'<h2>Columns</h2><div class="card"><table class="facts"><tr>{head}</tr>'
    for column in facts.columns:
        yield _column_row(column)
    yield "</table></div>"


def _column_row(column: ColumnFacts) -> str:
    reasons = "".join(
        f'<div class="absent">{count} &times; {escape(code)}: {escape(example.reason)} ({escape(example.token)})</div>'
        for code, (count, example) in sorted(column.quarantined.items())
    )
    manifest = column.manifest
    if manifest is None:
        made = weights = '<span class="absent">column.json cannot be read</span>'
        badge = ""
    else:
        badge = '<br><span class="badge" style="margin:0">RANDOM WEIGHTS</span>' if manifest.random_weights else ""
        document = {
            "provenance": dict(manifest.provenance),
            "config": dict(manifest.config),
            "environment": dict(manifest.environment),
            "targets": [spec.to_json() for spec in manifest.targets],
        }
        brief = ", ".join(f"{k} {v}" for k, v in settings(manifest).items())
        made = (
            f"<code>{manifest.fingerprint[:12]}</code><details><summary>{escape(brief[:110])} ...</summary>"
            f"<pre>{escape(json.dumps(document, indent=1))}</pre></details>"
        )
        weights = escape(weights_line(manifest)) or '<span class="quiet">none</span>'
    return (
        f"<tr><th>{escape(column.name)}{badge}</th><td class=n>{column.written}</td><td>{column.left_out}{reasons}</td>"
        f"<td class=n>{column.shards} of {column.shards + column.missing}</td>"
        f"<td class=n>{bytes_text(column.tar)} tar<br>{bytes_text(column.zarr)} Zarr</td>"
        f"<td>{weights}</td><td>{made}</td></tr>"
    )


def _scene(dataset: Dataset, token: str, title: str) -> Iterator[str]:
    yield f'<section><h2>{title} <code>{escape(token)}</code></h2><div class="card">'
    if layout.SAMPLES in dataset.columns:
        values, problem = _read(dataset, token, layout.SAMPLES)
        yield problem if values is None else _drive(values)
    for name, manifest in dataset.columns.items():
        if name == layout.SAMPLES:
            continue
        values, problem = _read(dataset, token, name)
        random = manifest.random_weights
        badge = '<span class="badge">RANDOM WEIGHTS: noise, not knowledge</span>' if random else ""
        content = problem if values is None else figures(manifest, values)
        yield f'<div class="column{" random" if random else ""}"><h3>{escape(name)}{badge}</h3>{content}</div>'
    yield "</div></section>"


def _read(dataset: Dataset, token: str, column: str) -> tuple[dict[str, Any] | None, str]:
    """A column of a scene, or why there is none, HTML."""
    try:
        return dataset.read(token, {column: None})[column], ""
    except QuarantinedError as error:
        why = f"quarantined as {error.code}: {error.reason}"
    except AbsentError as error:
        why = str(error)
    except ShardsError as error:
        why = f"cannot be read: {error}"
    return None, f'<p class="absent">{escape(column)}: {escape(why)}</p>'


def _drive(values: Mapping[str, Any]) -> str:
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
            frames.append(f'<p class="absent">{escape(view)}: no picture ({escape(str(error))})</p>')
            continue
        picture = drive.camera_svg(uri, camera, poses, ground, f"{camera['channel']} with the future path")
        size = f"{camera['size'][0]}&times;{camera['size'][1]}"
        frames.append(f'<div>{picture}<span class="quiet">{escape(str(camera["channel"]))} {size}</span></div>')
    front = frames[0] if frames else '<p class="quiet">no camera images are stored</p>'
    others = f'<div class="others">{"".join(frames[1:])}</div>' if frames[1:] else ""
    above = f"{drive.above_svg(document)}{drive.legend(document['annotations'])}"
    return f'{_chips(document)}<div class="drive"><div>{front}{others}</div><div>{above}</div></div>'


def _chips(document: Mapping[str, Any]) -> str:
    ego = document["ego"]
    speed = float(np.hypot(*ego["velocity"]))
    path = drive.path_of(document)
    length = float(np.hypot(*np.diff(path[:, :2], axis=0).T).sum())
    time = datetime.fromtimestamp(document["timestamp"] / 1e6, UTC)
    chips = {
        "command": ego["command"],
        "speed": f"{speed:.1f} m/s ({speed * 3.6:.0f} km/h)",
        "acceleration": f"{ego['acceleration'][0]:+.2f} m/s² ahead, {ego['acceleration'][1]:+.2f} left",
        "future": f"{length:.1f} m in {(len(path) - 1) / 2:g} s, turns {np.degrees(path[-1, 2]):+.0f}°",
        "log": document["log"],
        "map": document["map"],
        "time": time.strftime("%Y-%m-%d %H:%M:%S UTC"),
    }
    inner = "".join(f'<span class="chip">{k} <b>{escape(str(v))}</b></span>' for k, v in chips.items())
    return f'<div class="chips">{inner}</div>'
