"""The facts for a terminal of 100 columns; warnings come first."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from reports.inspection.facts import NAVTRAIN_SCENES, ColumnFacts, Facts, settings_line, weights_line
from reports.tables import bytes_text, table
from shards_schema import layout
from shards_schema.specs import TEXT, TargetSpec

WIDTH = 100


def report(facts: Facts, scenes: int = NAVTRAIN_SCENES) -> str:
    """The whole text; the last table says what as many samples take as there are `scenes`."""
    lines = [f"{facts.url}  ({facts.where})" if facts.where != facts.url else facts.url]
    for notice in facts.notices:
        lines += ["", "!" * WIDTH, *_wrapped(notice, "!!  "), "!" * WIDTH]
    lines += ["", *_dataset(facts)]
    for column in facts.columns:
        lines += ["", *_column(column)]
    lines += ["", *_totals(facts, scenes)]
    return "\n".join(lines)


def _wrapped(text: str, indent: str, hanging: str | None = None) -> list[str]:
    after = indent if hanging is None else hanging
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=after) or [indent.rstrip()]


def source_line(facts: Facts) -> str:
    """Kind, root, split of the source."""
    source = facts.manifest.source
    rest = {k: v for k, v in source.items() if k not in ("filter", "kind") and not isinstance(v, (dict, list))}
    return f"{source.get('kind', '?')}: " + ", ".join(f"{k} {v}" for k, v in rest.items())


def filter_line(facts: Facts) -> str:
    """The filter's values that are set; long lists as their length."""
    chosen = facts.manifest.source.get("filter")
    if not isinstance(chosen, Mapping):
        return "none" if chosen is None else str(chosen)
    return ", ".join(f"{k} {_brief(v)}" for k, v in chosen.items() if v not in (None, False, [], {})) or "none"


def _brief(value: Any) -> str:
    return f"[{len(value)}]" if isinstance(value, (list, dict)) and len(value) > 4 else json.dumps(value)


def plan_line(facts: Facts) -> str:
    """Samples, shards, seed and digest, and what the scan passed over."""
    plan = facts.manifest.plan
    line = (
        f"{plan['samples']} samples in {plan['shards']} shards of at most {plan['shard_size']}, seed {plan['seed']}, "
        f"digest {plan['digest'][:12]}"
        + (f", in {plan['generations']} generations: it grew" if "generations" in plan else "")
    )
    skipped = ", ".join(f"{count} {why}" for why, count in plan.get("skipped", {}).items())
    return line + (f"; windows passed over: {skipped}" if skipped else "")


def _dataset(facts: Facts) -> Iterator[str]:
    yield from _wrapped(source_line(facts), "source   ", " " * 9)
    yield from _wrapped(filter_line(facts), "filter   ", " " * 9)
    yield from _wrapped(plan_line(facts), "plan     ", " " * 9)
    plan = facts.manifest.plan
    for log, reason in list(plan.get("unreadable_logs", {}).items())[:5]:
        yield from _wrapped(f"UNREADABLE LOG {log}: {reason}", " " * 9)
    if plan.get("not_found"):
        yield " " * 9 + f"NOT FOUND: {len(plan['not_found'])} tokens of the filter, e.g. {plan['not_found'][0]}"
    if facts.unfinished:
        yield "state    NOT FINISHED: shards are missing; run the job again to go on"
    else:
        yield "state    finished: every shard of every column has a commit record"


def _column(column: ColumnFacts) -> Iterator[str]:
    manifest = column.manifest
    random = "  [RANDOM WEIGHTS]" if manifest is not None and manifest.random_weights else ""
    yield f"{column.name}{random}".ljust(WIDTH, " ").rstrip()
    yield "-" * WIDTH
    yield (
        f"  {column.written} written, {column.left_out} quarantined, {column.missing} shards missing of "
        f"{column.shards + column.missing}; tar {bytes_text(column.tar)}, Zarr {bytes_text(column.zarr)}"
        + (f", statistics {bytes_text(column.statistics)}" if column.statistics else "")
    )
    for fault in column.damage[:5]:
        yield from _wrapped(f"DAMAGED: {fault}", "  ", "    ")
    if len(column.damage) > 5:
        yield f"  DAMAGED: and {len(column.damage) - 5} faults more; `make verify` names them all"
    for code, (count, example) in sorted(column.quarantined.items()):
        yield from _wrapped(f"quarantined {count} x {code}, e.g. {example.token}: {example.reason}", "  ", "    ")
    if manifest is None:
        return
    if weights := weights_line(manifest):
        yield from _wrapped(weights, "  weights  ", " " * 11)
    yield from _wrapped(settings_line(manifest), "  made by  ", " " * 11)
    yield f"  print    {manifest.fingerprint[:12]}"
    yield ""
    if column.name == layout.SAMPLES:
        rows = [[name, bytes_text(size)] for name, size in column.members.items()]
        yield textwrap.indent(table(["in the tar", "a sample"], rows), "  ")
        yield ""
    yield from _targets(column, "in Zarr" if column.name == layout.SAMPLES else "target")


def _targets(column: ColumnFacts, head: str) -> Iterator[str]:
    assert column.manifest is not None
    specs = column.manifest.targets
    width = max((len(shape_text(s)) for s in specs), default=0)
    rows = [[s.name, shape_text(s).ljust(width), s.dtype, s.unit, size_text(s, column)] for s in specs]
    lines = table([head, "dims".ljust(width), "dtype", "unit", "a sample"], rows).splitlines()
    yield from ("  " + line for line in lines[:2])
    for spec, line in zip(specs, lines[2:], strict=True):
        yield "  " + line
        yield "    " + textwrap.shorten(spec.meaning, WIDTH - 4, placeholder=" ...")


def shape_text(spec: TargetSpec) -> str:
    """``view 3 x row 10 x col 18``."""
    sizes = ("?" if n is None else str(n) for n in spec.shape)
    return " x ".join(f"{dim} {n}" for dim, n in zip(spec.dims, sizes, strict=True)) or "scalar"


def size_text(spec: TargetSpec, column: ColumnFacts) -> str:
    """Bytes of a target in one sample: exact where the shape is fixed, else the mean of what was written."""
    if spec.dtype == TEXT:
        return "text"
    if spec.ragged:
        return "~" + bytes_text(column.members.get(f"{spec.name}.npy", 0.0))
    return bytes_text(int(np.prod(spec.fixed_shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize)


def _totals(facts: Facts, scenes: int) -> Iterator[str]:
    def row(name: str, columns: Sequence[ColumnFacts]) -> list[str]:
        written = [c for c in columns if c.written]
        tars = sum(scenes * (c.size - c.zarr) / c.written for c in written)
        zarr = sum(scenes * c.zarr / c.written for c in written)
        each = sum(c.bytes_a_sample for c in columns)
        whole = [f"{each / 1e6:.3f}", bytes_text(tars), bytes_text(tars + zarr)]
        return [
            name,
            str(columns[0].written) if name != "all" else "",
            bytes_text(sum(c.size for c in columns)),
            *whole,
        ]

    rows = [*(row(c.name, [c]) for c in facts.columns), row("all", facts.columns)]
    yield table(["column", "written", "on disk", "MB a sample", f"{scenes:,} scenes: tars", "with Zarr"], rows)
