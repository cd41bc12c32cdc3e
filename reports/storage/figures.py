"""What each storage choice of a target loses and saves, over some samples.

A vector is the features of one place (along the channel axis); for a target without one it is the whole sample. Two
passes: the statistics of each channel, then every choice. A sample with a value that a choice cannot hold would be
quarantined, so it is counted and left out of the other figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.reading.reader import Dataset
from pipeline.stores.fidelity import COSINE, cosines, standardised, vectors
from reports.inspection.facts import NAVTRAIN_SCENES
from reports.storage.probed import HEAD as PROBES
from reports.storage.probed import Lost
from shards_schema.codecs import npy_bytes
from shards_schema.specs import TargetSpec
from shards_schema.statistics import ChannelStatistics
from shards_schema.storage import decode, encode_counted, possible, stored_specs

Vectors = NDArray[np.float32]
Samples = Callable[[], Iterable[NDArray[Any]]]
"""Gives the same samples of one target each time it is called."""

_ZSTD = 3

HEAD = [
    "stored as", "B a sample", "TB", "zstd-3", "cosine", "p1", "min", "standardised", "p1", "min", "rel. L2",
    "overflow", *PROBES, "",
]  # fmt: skip


class Spread(NamedTuple):
    """Mean, 1st percentile and minimum of a cosine over vectors."""

    mean: float
    low: float
    least: float

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Spread:
        """Over some."""
        return cls(mean=float(values.mean()), low=float(np.percentile(values, 1)), least=float(values.min()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One target under one choice.

    Attributes:
        choice: see `shards_schema.storage`.
        computed: whether it is what the teacher gives.
        size: bytes of a sample in the tar, headers and all.
        zstd: those over its bytes under zstd (level 3), member by member.
        cosine: between vectors as computed and as read; None where no sample can be stored.
        standardised: the same after each channel is standardised; None also where there are no channels.
        relative: L2 norm of the error over that of the values.
        overflow: finite values (int8: groups) that the choice cannot hold.
        quarantined: samples that have one.
        probes: what linear probes lose by it; None where they were not asked, or tell nothing.
    """

    choice: str
    computed: bool
    size: float
    zstd: float
    cosine: Spread | None
    standardised: Spread | None
    relative: float
    overflow: int
    quarantined: int
    probes: Lost | None = None

    def row(self) -> list[str]:
        """A line of the table, below `HEAD`."""
        verdict = "as computed" if self.computed else "offered" if self.offered else "NOT OFFERED"
        spreads = (("-",) * 3 if s is None else [f"{v:.6f}" for v in s] for s in (self.cosine, self.standardised))
        return [
            self.choice,
            f"{self.size:,.0f}",
            f"{self.size * NAVTRAIN_SCENES / 1e12:.4f}",
            f"x{self.zstd:.2f}",
            *(cell for cells in spreads for cell in cells),
            f"{self.relative:.1e}",
            str(self.overflow),
            *(["-"] * len(PROBES) if self.probes is None else self.probes.row()),
            f"quarantines {self.quarantined}" if self.quarantined else verdict,
        ]

    def to_json(self) -> dict[str, Any]:
        """All of it, and whether it is offered."""
        spreads = {"cosine": self.cosine, "standardised": self.standardised}
        plain = ("choice", "computed", "offered", "size", "zstd", "relative", "overflow", "quarantined")
        return {name: getattr(self, name) for name in plain} | {
            **{name: s and dict(zip(("mean", "p1", "min"), s, strict=True)) for name, s in spreads.items()},
            "probes": self.probes and self.probes.to_json(),
        }

    @property
    def offered(self) -> bool:
        """Whether a column may have it: int8 has to pass the gate of the writer, and nothing may overflow."""
        if self.quarantined or self.cosine is None:
            return False
        both = (self.cosine, self.standardised)
        return self.choice != "int8" or all(spread.low >= COSINE for spread in both if spread is not None)


def stored(dataset: Dataset, column: str, samples: int) -> Iterator[tuple[TargetSpec, Samples]]:
    """The float targets of a column that have a shape: of `samples` tokens, spread over the dataset."""
    tokens = dataset.tokens(column)
    chosen = list(dict.fromkeys(tokens[i * len(tokens) // samples] for i in range(samples if tokens else 0)))
    for spec in dataset.specs(column).values():
        if chosen and np.dtype(spec.dtype).kind == "f" and not spec.ragged and spec.shape:
            yield spec, partial(_read, dataset, column, spec.name, chosen)


def _read(dataset: Dataset, column: str, target: str, tokens: Iterable[str]) -> Iterator[NDArray[Any]]:
    return (dataset.read(token, {column: [target]})[column][target] for token in tokens)


def measure(spec: TargetSpec, samples: Samples) -> list[Figures]:
    """Every choice that a computed target may have."""
    flat = spec.channel_axis is None
    computed: ChannelStatistics | None = None
    for values in samples():
        if not flat:
            part = ChannelStatistics.of(_vectors(spec, values), 1)
            computed = part if computed is None else computed.merged(part)
    return [_measure(spec, choice, samples, computed) for choice in possible(spec)]


def _measure(spec: TargetSpec, choice: str, samples: Samples, computed: ChannelStatistics | None) -> Figures:
    specs = {s.name: s for s in stored_specs([spec], {spec.name: choice})}
    stored_as = specs[spec.name]
    raw: list[NDArray[np.float64]] = []
    after: list[NDArray[np.float64]] = []
    norm = error_norm = 0.0
    count = overflow = quarantined = size = packed = 0
    for values in samples():
        stored, lost = encode_counted(stored_as, values)
        count += 1
        members = [npy_bytes(array) for array in stored.values()]
        size += sum(512 + len(m) + (-len(m) % 512) for m in members)
        packed += sum(_zstd_size(stored))
        overflow += lost
        if lost:
            quarantined += 1
            continue
        x, y = _vectors(spec, values), _vectors(spec, decode(stored_as, stored))
        raw.append(cosines(x, y))
        error = y - x
        norm += float(np.einsum("nc,nc->", x, x, dtype=np.float64))
        error_norm += float(np.einsum("nc,nc->", error, error, dtype=np.float64))
        if computed is not None:
            after.append(cosines(*(standardised(v, computed) for v in (x, y))))
    plain = size / max(count, 1)
    return Figures(
        choice=choice,
        computed=choice == spec.dtype,
        size=plain,
        zstd=size / packed if packed else 1.0,
        cosine=Spread.of(np.concatenate(raw)) if raw else None,
        standardised=Spread.of(np.concatenate(after)) if after else None,
        relative=(error_norm / norm) ** 0.5 if norm else 0.0,
        overflow=overflow,
        quarantined=quarantined,
    )


def _vectors(spec: TargetSpec, values: NDArray[Any]) -> Vectors:
    axis = spec.channel_axis
    return np.asarray(values.reshape(1, -1) if axis is None else vectors(values, axis), np.float32)


def _zstd_size(stored: Mapping[str, NDArray[Any]]) -> Iterable[int]:
    codec = pa.Codec("zstd", _ZSTD)
    return (512 + len(codec.compress(npy_bytes(array), asbytes=True)) for array in stored.values())
