"""What targets are probed on: labels that a probe can be judged by, of some scenes that are dealt to parts by log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.reading.reader import Dataset
from reports.signal import labels, probe
from reports.signal.labels import Labels
from reports.signal.probe import Errors, Float64, Int


@dataclass(frozen=True, eq=False)
class Ground:
    """What targets are probed on: n scenes, dealt to folds by log.

    Attributes:
        labels: that vary, and are told by three folds or more; the others are `absent`.
        status: float64 [n, s], standardised.
        folds, logs: int64 [n].
        scenes: label -> of how many scenes it is known.
    """

    labels: Labels
    status: Float64
    folds: Int
    logs: Int
    scenes: Mapping[str, int]

    @classmethod
    def of(cls, dataset: Dataset, tokens: Sequence[str], seed: int) -> Ground:
        """Reads the labels.

        Raises:
            DatasetError: fewer than three logs.
        """
        folds = probe.folds_of(dataset, tokens, seed)
        known = labels.read(dataset, tokens)
        absent, values = dict(known.absent), {}
        for name, label in known.values.items():
            there = ~np.isnan(label).any(1)
            if len(np.unique(folds[there])) < 3:
                absent[name] = "fewer than three held-out parts of the logs tell it"
            elif (label[there] == label[there][0]).all():
                absent[name] = f"it is the same in all of its {int(there.sum())} scenes"
            else:
                values[name] = label
        return cls(
            labels=Labels(known.logs, known.status, values, absent, known.around),
            status=probe.standardised(known.status),
            folds=folds,
            logs=np.unique(known.logs, return_inverse=True)[1].astype(np.int64),
            scenes={name: int((~np.isnan(label).any(1)).sum()) for name, label in values.items()},
        )

    def probed(self, values: NDArray[np.float32], base: Float64 | None = None) -> dict[str, Errors]:
        """Label -> the errors of features [n, d], over a base [n, b] where one is given."""
        out: dict[str, Errors] = {}
        given = np.zeros((len(values), 0)) if base is None else base
        for there, names in probe.groups(self.labels.values):
            label = np.concatenate([self.labels.values[name][there] for name in names], axis=1)
            e = probe.probe(given[there], values[there], label, self.folds[there], self.logs[there])
            rest = ((0, int(self.logs.max()) + 1 - len(e.mean)), (0, 0))  # the last logs may not tell these labels
            every, at = [np.pad(part, rest) for part in (e.mean, e.base, e.full)], 0
            for name in names:
                part = slice(at, at := at + self.labels.values[name].shape[1])
                out[name] = Errors(*(of[:, part] for of in every))
        return out
