"""`docs/results/reliability.md` from what the parts wrote into ``out/chaos/``: no figure in it is typed by hand.

The page has the tables of faults, the soak, and the bugs that were found, each with its test
(`tests.chaos.found`; a test that is not there stops the report). A part that was not run is told as not run.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shards_schema.errors import MissingFileError
from shards_schema.inputs.models import StrictModel
from tests.chaos import corruption, leavings, shim
from tests.chaos.found import BUGS, Bug
from tests.chaos.results import load

ROOT = Path(__file__).parents[2]


class Config(StrictModel):
    """Where the page goes."""

    page: str = str(ROOT / "docs" / "results" / "reliability.md")


def page(faults: dict[str, Any] | None, jobs: dict[str, Any] | None, soak: dict[str, Any] | None) -> str:
    """The page, of what `save` kept; None for a part that was not run."""
    return "\n".join(
        [
            "# Reliability",
            "",
            "Made by `python -m tests.chaos report` from what `make chaos` found; every figure is the harness's own.",
            "After each fault the same command is given again, without faults. Then the dataset is held against one",
            "that nothing disturbed. *Lost* and *duplicated* are samples, as Python's `tarfile` sees them. *Leftover*",
            "are files that the undisturbed one has not. *Wrong* counts faults after which anything at all was not as",
            "it should be: also one byte, a traceback in place of a sentence, a descriptor, thread or process kept.",
            "",
            "`make test` strikes every step of a shard's commit with some kinds of fault (`make test-slow`: with every",
            "kind), a whole run at a stride and the real job once (`tests/chaos/`). The rest is `make chaos`. Equal is",
            "to the byte, on one machine. What is equal between machines: [format](../format.md#equal-to-the-bit).",
            "",
            "## Every fault point of the write path",
            "",
            *(_faults(faults) if faults else _not_run("faults")),
            "",
            "## The real job on a real Ray",
            "",
            *(_jobs(jobs) if jobs else _not_run("jobs")),
            "",
            "## What runs leave behind",
            "",
            *_leavings(load("leavings")),
            "",
            "## Half an hour of small shards",
            "",
            *(_soak(soak) if soak else _not_run("soak minutes=30")),
            "",
            "## Corruption after the fact",
            "",
            *_corruption(load("corruption")),
            "",
            "## Fuzzing",
            "",
            "See [fuzzing](security.md).",
            "",
            "## What was found on the way",
            "",
            *_bugs(BUGS),
            "",
        ]
    )


def _not_run(part: str) -> list[str]:
    return [f"*Not run here.* `python -m tests.chaos {part}` measures it."]


def _corruption(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return _not_run("corruption")
    return [
        corruption.markdown(found).strip(),
        "",
        f"`python -m tests.chaos corruption`; {_where(found)}. What each word means: `tests/chaos/corruption.py`.",
    ]


def _where(found: dict[str, Any]) -> str:
    where = found["where"]
    return f"{where['at']}, {where['cpus']} CPUs, Linux {where['kernel']}, Python {where['python']}"


def _faults(found: dict[str, Any]) -> list[str]:
    calls = ", ".join(f"{n} `{call}`" for call, n in found["calls"].items())
    stride = "each" if found["stride"] == 1 else f"one in {found['stride']} of them"
    rows = [
        [
            f"`{row['kind']}`",
            *(str(row[k]) for k in ("injected", "redone", "lost", "duplicated", "leftover", "wrong")),
            ", ".join(f"{n} {end}" for end, n in row["ends"].items()),
        ]
        for row in found["rows"]
    ]
    kinds = (shim.__doc__ or "").split("\n\n")[2]
    return [
        f"A whole run (two columns, shards: {found['shards']}) passes {found['points']} calls that change its folder",
        f"({calls}). {stride[0].upper()}{stride[1:]} is a fault point, for every kind of fault:",
        "",
        "```",
        kinds,
        "    storm    a run is hit at a random point by a random kind, six times one after the other",
        "```",
        "",
        *_table(
            ["kind", "injected", "shards redone", "lost", "duplicated", "leftover", "wrong", "how the run ended"], rows
        ),
        "",
        f"`python -m tests.chaos faults`, {found['seconds']:.0f} s; {_where(found)}. A run that *ended well*",
        "bore the fault (half a write; `mkdir` of what is there; a lock file that could not be removed). At the moment",
        "of the fault, not only after the resume, every commit record on disk vouched for whole files.",
    ]


def _jobs(found: dict[str, Any]) -> list[str]:
    rows = []
    outcomes = found["outcomes"]
    for o in outcomes:
        if o["skipped"]:
            rows.append([found["what"][o["scenario"]], f"*skipped: {o['skipped']}*", *[""] * 8])
            continue
        cells = [str(o[k]) for k in ("begun", "rewritten", "lost", "duplicated", "leftover", "left")]
        rows.append(
            [
                found["what"][o["scenario"]],
                str(o["at"]),
                o["how"],
                "yes" if o["resumed"] else "NO",
                *cells,
                "; ".join(_short(w) for w in o["wrong"]) or "-",
            ]
        )
    done = [o for o in outcomes if not o["skipped"]]
    heads = ["fault", "at record", "disturbed run", "resumed", "begun, done again", "rewritten", "lost", "duplicated"]
    return [
        f"`jobs.teachers` with the tiny VGGT, a local Ray, {found['records']} commit records, struck when a random",
        "number of them was there; resumed at once, while what outlived the fault could still write. *Begun, done",
        "again* is the work that a fault costs: (column, shard) with files and no record. *Rewritten* are records that",
        "were there and were written anew. *Left* are processes a minute after the resumed run, and temp files.",
        "",
        *_table([*heads, "leftover", "left", "wrong"], rows),
        "",
        f"{len(done)} faults, {sum(o['resumed'] for o in done)} resumed, lost {sum(o['lost'] for o in done)}, "
        f"duplicated {sum(o['duplicated'] for o in done)}, leftover {sum(o['leftover'] for o in done)}; "
        f"{sum(o['begun'] for o in done)} (column, shard) begun and done again.",
        f"`python -m tests.chaos jobs`, seed {found['config']['seed']}, {sum(o['seconds'] for o in done):.0f} s;",
        f"{_where(found)}.",
    ]


def _leavings(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return _not_run("leavings")
    heads, rows = leavings.summary(found["outcomes"])
    return [
        f"{len(found['outcomes'])} runs of the same small job; every second one is ended by a signal to its driver, at",
        "a random time between its first import and its last line. Processes are found by a mark in their environment,",
        "so that one without a parent is found too. *Left* are processes a minute after the driver's end, temp files,",
        "and segments of shared memory that nobody has mapped.",
        "",
        *_table(heads, rows),
        "",
        "Ray's own two agents may outlive a SIGKILL of the driver, for a minute or more on a busy machine; no worker",
        "did. A SIGTERM while Ray starts may be answered by Ray itself, with -6, which is counted as left too.",
        f"`python -m tests.chaos leavings`; {_where(found)}.",
    ]


def _soak(found: dict[str, Any]) -> list[str]:
    rss = found["rss"]
    left = found["left"]
    names = {
        "descriptors": "open descriptors",
        "threads": "threads",
        "shm": "mapped files in /dev/shm",
        "under_way": "files under way",
        "temp": "temp files",
    }
    rows = [
        [names[n], *(str(c[k]) for k in ("first", "second", "busy")), *(str(left[n][k]) for k in ("before", "after"))]
        for n, c in found["counts"].items()
    ]
    return [
        f"One worker made {found['shards']:,} small shards ({found['passes']} passes over a dataset, a driver's begin",
        f"and close after each) in {found['minutes']:.1f} min. Resident memory: median {rss['median']:.1f} MB, slope",
        f"{rss['slope']:+.2f} MB/h, 95 % interval [{rss['low']:+.2f}, {rss['high']:+.2f}]: at most",
        f"{rss['growth']:+.2%} over the fitted {rss['hours'] * 60:.0f} min.",
        f"**{'Flat' if found['flat'] else 'NOT FLAT'}**, by the criterion in",
        "`tests/chaos/soak.py` (first fifth left out, 20 block means, upper end of the interval below 2 %; counts at",
        "the end of each pass no larger in the second half than in the first; nothing left when worker and driver are",
        "closed).",
        "",
        *_table(["", "quiet, first half", "quiet, second half", "at work, most", "before", "after"], rows),
        "",
        f"`python -m tests.chaos soak minutes={found['config']['minutes']:g}`; {_where(found)}. The table of every",
        "sample is `out/chaos/soak.csv`.",
    ]


def _bugs(bugs: Sequence[Bug]) -> list[str]:
    rows = []
    for bug in bugs:
        for name in bug.tests:
            _check(name)
        rows.append([bug.what, bug.mended, "<br>".join(f"`{t}`" for t in bug.tests)])
    return _table(["what", "mended by", "test"], rows)


def _check(test: str) -> None:
    path, _, name = test.partition("::")
    tree = ast.parse((ROOT / path).read_text())
    if name not in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}:
        raise MissingFileError(f"{path} has no {name}; a bug in tests/chaos/found.py names it as its test")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    clean = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    return [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in clean)]


def _short(text: str, most: int = 120) -> str:
    line = text.splitlines()[0]
    return line if len(line) <= most else line[: most - 3] + "..."


def run(config: Config) -> int:
    """Write the page."""
    path = Path(config.page)
    path.write_text(page(load("faults"), load("jobs"), load("soak")))
    print(f"wrote {path}")
    return 0
