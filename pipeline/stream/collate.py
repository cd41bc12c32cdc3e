"""Samples to a batch, with one copy of each array: an `Unread` one goes from the file to its row, and is checked there.

Tensors and arrays are stacked, numbers become a tensor, dicts are entered, everything else (tokens, JSON) becomes a
list. A target with a ragged axis is padded with zeros to the longest of the batch, and has a mask beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.reading.opened import Wanted
from pipeline.reading.reader import Dataset
from pipeline.reading.values import Unread
from pipeline.stream.fetch import Fetcher
from shards_schema.errors import DatasetError

Path = tuple[str, ...]


@dataclass(frozen=True)
class Collate:
    """Makes a batch of samples of one dataset (or of several with the same targets).

    Attributes:
        ragged: (column, name) -> the axes that have no fixed size.
        pinned: make batches in page-locked memory (torch keeps and reuses its blocks); needs CUDA.
    """

    ragged: Mapping[Path, tuple[int, ...]]
    pinned: bool = False

    def __call__(self, samples: Sequence[Any]) -> Any:
        """The batch: the nesting of one sample, with tensors [B, ...] and lists of B.

        A ragged target ``name`` becomes [B, longest, ...] and ``name_mask``, bool [B, one size a ragged axis], is true
        where there is data.

        Raises:
            DatasetError: arrays that should be equal in shape and dtype are not.
            DigestError: an array that was still unread is not what was committed.
        """
        return self._enter(samples, ())

    def _enter(self, values: Sequence[Any], path: Path) -> Any:
        first = values[0]
        if isinstance(first, Mapping) and path[-1:] != ("json",):
            batch: dict[str, Any] = {}
            for key in first:
                inner = [value[key] for value in values]
                batch[key] = self._enter(inner, (*path, key))
                if (axes := self.ragged.get((*path, key))) is not None:
                    batch[f"{key}_mask"] = self._mask(inner, axes)
            return batch
        if isinstance(first, np.ndarray | torch.Tensor | Unread):
            return self._stack([v if isinstance(v, Unread) else np.asarray(v) for v in values], path)
        if isinstance(first, bool | int | float):
            return torch.tensor(list(values))
        return list(values)

    def _stack(self, arrays: Sequence[NDArray[Any] | Unread], path: Path) -> torch.Tensor:
        shapes, dtypes = {array.shape for array in arrays}, {array.dtype for array in arrays}
        if len(dtypes) > 1 or (path not in self.ragged and len(shapes) > 1):
            for array in arrays:
                _taken(array)  # one that is another's is told as that
            raise DatasetError(
                f"{'/'.join(path)}: the samples of a batch have shapes {sorted(shapes)}, dtypes "
                f"{', '.join(sorted(map(str, dtypes)))}; give the stream a transform that makes them equal, or a "
                "collate of your own"
            )
        longest = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
        dtype = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
        batch = torch.empty((len(arrays), *longest), dtype=dtype, pin_memory=self.pinned)
        rows = batch.numpy()
        for i, array in enumerate(arrays):
            row = rows[i, ...]
            if array.shape != longest:
                row[...] = 0
                row[tuple(slice(n) for n in array.shape)] = _taken(array)
            elif isinstance(array, Unread):
                array.into(row)
            else:
                np.copyto(row, array)
        return batch

    def _mask(self, arrays: Sequence[Any], axes: tuple[int, ...]) -> torch.Tensor:
        sizes = [tuple(int(array.shape[axis]) for axis in axes) for array in arrays]
        longest = [max(n) for n in zip(*sizes, strict=True)]
        mask = torch.zeros((len(arrays), *longest), dtype=torch.bool, pin_memory=self.pinned)
        for row, size in zip(mask, sizes, strict=True):
            row[tuple(slice(n) for n in size)] = True
        return mask


def _taken(array: NDArray[Any] | Unread) -> NDArray[Any]:
    return array.owned() if isinstance(array, Unread) else array


def collate_of(dataset: Dataset, targets: Wanted) -> Collate:
    """The collate that knows which targets of a dataset are ragged."""
    ragged: dict[Path, tuple[int, ...]] = {}
    for column, names in targets.items():
        for spec in dataset.specs(column).values():
            if spec.ragged:
                axes = tuple(axis for axis, size in enumerate(spec.shape) if size is None)
                ragged |= {
                    (column, name): axes for name in (spec.name, f"{spec.name}.npy") if names is None or name in names
                }
    return Collate(ragged)


def pin(batch: Any) -> Any:
    """A batch of another's collate with its tensors in page-locked memory: by its own `pin_memory`, if it has one."""
    if callable(method := getattr(batch, "pin_memory", None)):
        return method()
    if isinstance(batch, dict):
        return {key: pin(value) for key, value in batch.items()}
    return [pin(value) for value in batch] if isinstance(batch, list) else batch


class LatentCollator:
    """For a trainer of another's: a collate function that adds the latents of each sample, found by its token.

    Args:
        dataset: where they lie.
        targets: column -> names.
        inner: the collate function that the trainer would have used; gets the features without their tokens.
    """

    def __init__(self, dataset: Dataset, targets: Wanted, inner: Callable[[list[dict[str, Any]]], Any]) -> None:
        self._fetcher = Fetcher(dataset, targets, None)
        self._collate = collate_of(dataset, targets)
        self._inner = inner

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> Any:
        """`inner`'s batch with ``batch["latents"][column][name]``, tensors [B, ...] in the order of the features.

        Raises:
            DatasetError: a feature has no token.
            AbsentError: a token that the dataset cannot give; the message says why.
        """
        if not all("token" in feature for feature in features):
            raise DatasetError(
                f"a feature has no 'token' (it has {sorted(features[0])}); set remove_unused_columns=False in the "
                "trainer's arguments, and keep the column through any map()"
            )
        batch = self._inner([{k: v for k, v in feature.items() if k != "token"} for feature in features])
        self._fetcher = self._fetcher.here()
        latents = self._collate([self._fetcher.read(feature["token"], lazy=True) for feature in features])
        latents.pop("token")
        batch["latents"] = latents
        return batch
