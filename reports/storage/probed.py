"""What a storage choice loses of what linear probes find in a target: the probes of `jobs.signal`, on what is read.

Features are made anew of what is read, as whoever trains on it would. Labels are those that the target tells as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.reading.reader import Dataset
from reports.intervals import Interval
from reports.signal import features
from reports.signal.measure import something
from reports.signal.probe import LEAST_LOGS, Errors, Ground
from shards_schema import layout
from shards_schema.errors import SampleError
from shards_schema.specs import TargetSpec
from shards_schema.storage import decode, encode, possible, stored_specs
from trainer.splits import logs_of, spread

DIMS = 256
"""Numbers of a target that are probed, as `jobs.signal` has it."""
HEAD = ["R2 (labels)", "R2 lost (95 %)", "the most"]


@dataclass(frozen=True)
class Lost:
    """R2 of held-out logs, a mean over labels.

    Attributes:
        labels: that the target tells as it is; the mean is over these.
        r2: of what is read.
        lost: how much less that is than of the target as it is; the interval is of the difference, over logs.
        worst: the label that loses most.
        most: what it loses.
    """

    labels: Sequence[str]
    r2: Interval
    lost: Interval
    worst: str
    most: Interval

    @classmethod
    def between(cls, whole: Mapping[str, Errors], part: Mapping[str, Errors]) -> Lost | None:
        """Of `part` beside `whole`, label -> errors; None where `whole` tells no label."""
        labels = [name for name, e in whole.items() if something(e.r2())]
        if not labels:
            return None

        def together(of: Mapping[str, Errors]) -> Errors:
            units = [of[name].unit() for name in labels]
            return Errors(*(np.concatenate([getattr(e, part) for e in units], 1) for part in ("mean", "base", "full")))

        def less(before: Errors, after: Errors) -> Interval:
            gained = after.r2(before.full)
            return Interval(0.0 - gained.middle, gained.half)

        each = {name: less(whole[name], part[name]) for name in labels}
        worst = max(labels, key=lambda name: each[name].middle)
        after = together(part)
        return cls(labels, after.r2(), less(together(whole), after), worst, each[worst])

    def row(self) -> list[str]:
        """Cells below `HEAD`."""
        return [f"{self.r2.middle:.4f} ({len(self.labels)})", self.lost.text(), f"{self.most.middle:+.4f} {self.worst}"]

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        intervals = {name: getattr(self, name)._asdict() for name in ("r2", "lost", "most")}
        return {"labels": [*self.labels], "worst": self.worst, **intervals}


class Probed:
    """The scenes of a dataset, with the labels that probes are judged by.

    Args:
        dataset: open with `samples` and the columns.
        columns: to probe; scenes are those that all of them have.
        limit: at most so many scenes, spread over them; 0 is no probes.

    Attributes:
        about: what the figures are, or why there are none.
    """

    def __init__(self, dataset: Dataset, columns: Sequence[str], limit: int) -> None:
        self._dataset = dataset
        self._tokens = spread(dataset.tokens(layout.SAMPLES, *columns), limit)
        self._whole: dict[str, dict[str, tuple[TargetSpec, dict[str, Errors]]]] = {}
        log_of = logs_of(dataset)
        logs = len({log_of[token] for token in self._tokens})
        self._ground = Ground.of(dataset, self._tokens, seed=0) if logs >= LEAST_LOGS else None
        self.about = (
            f"none: probes hold whole logs out, which takes {LEAST_LOGS} of them, and these scenes are of {logs}"
        )
        if self._ground is not None:
            self.about = (
                f"of linear probes on {len(self._tokens)} scenes of {logs} logs, each log judged by probes that have "
                "not seen it; a mean over the labels that the target tells as it is (`make signal`). Lost: less than "
                "of the target as it is, and the label that loses the most"
            )

    def choices(self, column: str, spec: TargetSpec) -> dict[str, Lost | None]:
        """Choice -> what it loses; None where the target tells no label, or where the choice cannot hold it; nothing of
        a target that is not probed.
        """
        if self._ground is None or spec.name not in [s.name for s in features.probed(self._dataset, column)]:
            return {}
        whole = self._errors(column, spec, spec.dtype)
        self._whole.setdefault(column, {})[spec.name] = spec, whole
        parts = {c: whole if c == spec.dtype else self._errors(column, spec, c) for c in possible(spec)}
        return {choice: Lost.between(whole, part) if part else None for choice, part in parts.items()}

    def in_place(self, column: str) -> dict[str, tuple[str, Lost]]:
        """Of the targets of a column that `choices` was asked for: name -> the largest one with as many channels, and
        what is lost where this is kept in place of that (a pool in place of what it pools).
        """
        out: dict[str, tuple[str, Lost]] = {}
        every = self._whole.get(column, {})
        for name, (spec, errors) in every.items():
            alike = [s for s, _ in every.values() if _channels(s) == _channels(spec) is not None]
            largest = max(alike, key=lambda s: math.prod(s.fixed_shape), default=spec)
            found = None if largest is spec else Lost.between(every[largest.name][1], errors)
            out |= {} if found is None else {name: (largest.name, found)}
        return out

    def _errors(self, column: str, spec: TargetSpec, choice: str) -> dict[str, Errors]:
        """Label -> errors of a target in a choice; none where that cannot hold a value of some scene."""
        assert self._ground is not None
        value = features.reader(self._dataset, column, spec.name)
        stored = {s.name: s for s in stored_specs([spec], {spec.name: choice})}[spec.name]

        def read(token: str) -> NDArray[Any]:
            return decode(stored, encode(stored, value(token)))

        try:
            return self._ground.probed(features.read(read, spec, self._tokens, DIMS).values)
        except SampleError:
            return {}


def _channels(spec: TargetSpec) -> int | None:
    return None if spec.channel_axis is None else spec.fixed_shape[spec.channel_axis]
