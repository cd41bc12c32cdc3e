"""Corruption after the fact: what `verify` and the reader make of it, and what the peers' readers do.

    python -m tests.chaos.corruption flips=40 seed=0 peers=/tmp/benchvenv/lib/python3.11/site-packages

A small dataset is made, then corrupted in one place and put right again, over and over: a bit of a byte flipped, a file
cut (a tar at a member's boundary, with and without a new end), deleted, swapped with its neighbour, replaced by the
same file of another run. After each, `verify` must name the file, and a reader that asks for every sample must get what
was written or an error: never another value, never one sample less. Other libraries are measured by the same faults
in their own files (`tests.chaos.corruption_peers`); `peers` is where they are installed, if not beside us.

What is counted as "no effect": nothing noticed it, and every document and value still says the same (a bit in the
indentation of a JSON, in an unused byte of a Parquet footer).
"""

from __future__ import annotations

import random
import re
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import Field

from jobs import config as job_config
from pipeline.reading.reader import Dataset
from pipeline.reading.verify import verify
from shards_schema.codecs import TAR_END
from shards_schema.errors import ShardsError
from shards_schema.inputs.models import StrictModel
from tests.chaos import results
from tests.chaos.world import World

Harm = Callable[[random.Random], None]


class Config(StrictModel):
    """How much."""

    seed: int = 0
    """Of the places and bits."""
    flips: int = Field(default=40, ge=1)
    """Bits flipped in each kind of file, one at a time."""
    peers: Path | None = None
    """A folder of packages to look for the peers in, behind our own; None leaves out those that are not here."""
    only: tuple[str, ...] | None = None
    """Kinds of our files; None is all."""
    with_peers: bool = True
    """Whether to measure the peers at all."""


KINDS: dict[str, str] = {
    "dataset.json": r"dataset\.json",
    "column.json": r"\w+/column\.json",
    "plan.parquet": r"plan\.parquet",
    "commit record": r"(?!logs/)\w+/\d+\.json",
    "tar": r"\w+/\d+\.tar",
    "Zarr chunk": r"targets\.zarr/.*/c/.*",
    "zarr.json": r"targets\.zarr/.*zarr\.json",
    "index, quarantine": r"(index|quarantine)\.parquet",
    "statistics": r".*statistics.*\.parquet",
}
"""Kind of file -> its paths."""

FAULTS = ("bit flipped", "cut", "cut at a member, ended anew", "deleted", "swapped", "another run's")


@dataclass(frozen=True, slots=True)
class Trial:
    """One harm: its kind and fault, the files that `verify` may name for it, and how to do it."""

    kind: str
    fault: str
    names: tuple[str, ...]
    harm: Harm


def measure(config: Config) -> dict[str, Any]:
    """Harm and look; JSON values: ``ours`` {kind: {fault: {outcome: count}}} by who looked, and ``peers``."""
    rng = random.Random(config.seed)
    with tempfile.TemporaryDirectory(prefix="corruption-") as folder:
        root = Path(folder)
        World.make(root / "world", logs=2).job(root / "out")
        World.make(root / "other-world", logs=2, frames=10).job(root / "other")
        ours = _ours(root / "out", root / "other", config, rng)
    found: dict[str, Any] = {"seed": config.seed, "flips": config.flips, "ours": ours}
    if config.with_peers:
        from tests.chaos import corruption_peers

        found["peers"] = corruption_peers.measure(config.seed, config.flips, config.peers)
    return found


def _ours(out: Path, other: Path, config: Config, rng: random.Random) -> dict[str, Any]:
    truth = _values(Dataset(str(out)))
    assert not verify(str(out)).faults
    tables: dict[str, dict[str, dict[str, Counter[str]]]] = {}
    for trial in _trials(out, other, config):
        kept = {path: path.read_bytes() for name in trial.names if (path := out / name).is_file()}
        try:
            trial.harm(rng)
            seen = {
                "verify": _verified(out, trial.names),
                "reader": _read(out, truth, check_digests=False),
                "reader, digests checked": _read(out, truth, check_digests=True),
            }
        finally:
            for path, data in kept.items():
                path.write_bytes(data)
        if seen["verify"] == "silent" and all(outcome == "true values" for outcome in list(seen.values())[1:]):
            seen["verify"] = "no effect"
        for who, outcome in seen.items():
            tables.setdefault(who, {}).setdefault(trial.kind, {}).setdefault(trial.fault, Counter())[outcome] += 1
    return {who: {k: {f: dict(c) for f, c in t.items()} for k, t in kinds.items()} for who, kinds in tables.items()}


def _trials(out: Path, other: Path, config: Config) -> Iterator[Trial]:
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    for kind, pattern in KINDS.items():
        names = [name for name in files if re.fullmatch(pattern, name)]
        if not names or (config.only is not None and kind not in config.only):
            continue
        for n in range(config.flips):
            yield Trial(kind, "bit flipped", (name := names[n % len(names)],), _flip(out / name))
        for name in names[:: max(1, len(names) // 4)]:
            path = out / name
            yield Trial(kind, "cut", (name,), _cut(path))
            if kind == "tar":
                yield Trial(kind, "cut", (name,), _cut_member(path, b""))
                yield Trial(kind, FAULTS[2], (name,), _cut_member(path, TAR_END))
            yield Trial(kind, "deleted", (name,), lambda rng, path=path: path.unlink())  # type: ignore[misc]
            if (other / name).is_file() and (theirs := (other / name).read_bytes()) != path.read_bytes():
                yield Trial(
                    kind,
                    "another run's",
                    (name,),
                    lambda rng, path=path, data=theirs: _put(path, data),  # type: ignore[misc]
                )
        for a, b in pairwise(names):
            if Path(a).parent == Path(b).parent and (out / a).read_bytes() != (out / b).read_bytes():
                yield Trial(kind, "swapped", (a, b), _swap(out / a, out / b))


def _put(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _flip(path: Path) -> Harm:
    def harm(rng: random.Random) -> None:
        data = bytearray(path.read_bytes())
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)

    return harm


def _cut(path: Path) -> Harm:
    return lambda rng: _put(path, path.read_bytes()[: rng.randrange(path.stat().st_size)])


def _cut_member(path: Path, end: bytes) -> Harm:
    """At the boundary of a member: what is left is a tar."""

    def harm(rng: random.Random) -> None:
        with tarfile.open(path) as archive:
            places = [member.offset for member in archive][1:]
        _put(path, path.read_bytes()[: rng.choice(places)] + end)

    return harm


def _swap(a: Path, b: Path) -> Harm:
    def harm(rng: random.Random) -> None:
        first, second = a.read_bytes(), b.read_bytes()
        _put(a, second)
        _put(b, first)

    return harm


def _verified(out: Path, names: tuple[str, ...]) -> str:
    """Whether `verify` names one of the files (or the array that a Zarr chunk belongs to)."""
    try:
        report = verify(str(out), threads=1)
    except ShardsError as error:
        return "named" if any(name in str(error) for name in names) else f"refused, file not named: {error}"
    except Exception as error:
        return f"crash: {type(error).__name__}: {error}"
    if any(fault.path in names or any(name in fault.what for name in names) for fault in report.faults):
        return "named"
    if report.faults:
        return "found, another file named"
    return "told as unfinished" if report.incomplete else "silent"


def _read(out: Path, truth: Mapping[tuple[str, str], dict[str, bytes]], *, check_digests: bool) -> str:
    """What a reader gets that asks for every sample that was written."""
    refused = False
    try:
        dataset = Dataset(str(out), check_digests=check_digests)
        for (column, token), values in truth.items():
            try:
                if _bytes(dataset.read(token, {column: None})[column]) != values:
                    return "WRONG VALUES"
            except ShardsError:
                refused = True
    except ShardsError:
        refused = True
    except Exception as error:
        return f"crash: {type(error).__name__}: {error}"
    return "refused" if refused else "true values"


def _values(dataset: Dataset) -> dict[tuple[str, str], dict[str, bytes]]:
    return {
        (column, token): _bytes(dataset.read(token, {column: None})[column])
        for column in dataset.columns
        for token in dataset.tokens(column)
    }


def _bytes(sample: Mapping[str, Any]) -> dict[str, bytes]:
    return {
        k: v if isinstance(v, bytes) else repr(v).encode() if isinstance(v, dict) else v.tobytes()
        for k, v in sample.items()
    }


def markdown(found: Mapping[str, Any]) -> str:
    """The tables, for a page."""
    lines = [f"Seed {found['seed']}, {found['flips']} bits flipped in each kind of file, one at a time.", ""]
    lines += ["| our file | fault | verify | reader | reader, digests checked |", "|---|---|---|---|---|"]
    ours = found["ours"]
    for kind, faults in ours["verify"].items():
        for fault in faults:
            cells = [_cell(ours[who].get(kind, {}).get(fault, {})) for who in ours]
            lines.append(f"| {kind} | {fault} | {' | '.join(cells)} |")
    if "peers" in found:
        peers = found["peers"]
        names = list(dict.fromkeys(fault for faults in peers.values() for fault in faults))
        lines += ["", f"| who reads | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
        total = _summed(ours)
        for who, faults in {**total, **peers}.items():
            lines.append(f"| {who} | {' | '.join(_cell(faults.get(name, {})) for name in names)} |")
    return "\n".join(lines) + "\n"


def _summed(ours: Mapping[str, Any]) -> dict[str, dict[str, Counter[str]]]:
    """Ours under the peers' heads: the data files are the tars, what describes them is the rest but Zarr."""
    data = ("tar",)
    out: dict[str, dict[str, Counter[str]]] = {}
    for who, kinds in ours.items():
        heads: dict[str, Counter[str]] = {}
        for kind, faults in kinds.items():
            for fault, counts in faults.items():
                head = fault if kind in data else "bit flipped, index" if fault == "bit flipped" else None
                if head is not None and (kind in data or kind in ("commit record", "dataset.json", "column.json")):
                    heads.setdefault(head, Counter()).update(counts)
        out[f"last-shards, {who}"] = heads
    return out


def _cell(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{outcome} {n}" for outcome, n in sorted(counts.items())) or "-"


def run(config: Config) -> int:
    """Measure, write ``out/chaos/corruption.json`` and print; 1 where something of ours was missed or wrong."""
    found = measure(config)
    path = results.save("corruption", found)
    print(markdown(found), f"\n{path}", sep="")
    return int(bool(list(bad(found))))


def bad(found: Mapping[str, Any]) -> Iterator[str]:
    """What must not be, of ours: a fault that `verify` missed, or a value that is not what was written."""
    for who, kinds in found["ours"].items():
        for kind, faults in kinds.items():
            for fault, counts in faults.items():
                for outcome in counts:
                    fine = ("named", "no effect", "told as unfinished", "refused", "true values")
                    gone = fault == "deleted" and outcome == "found, another file named"  # what it vouched for
                    if outcome not in fine and not gone:
                        yield f"{who}: {kind}, {fault}: {outcome}"


if __name__ == "__main__":
    job_config.run(lambda arguments: run(job_config.load(Config, arguments)))
