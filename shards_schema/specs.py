"""Target specs: what one array of a sample is, before a byte of it is written.

A spec is the whole contract of a target. The store takes its shape and dtype from it, `column.json` carries it,
`verify` checks against it, and a reader who has only the spec knows what each axis means and in which unit it is.
A target that is stored smaller than it was computed has a spec of what is stored (see `shards_schema.storage`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards_schema import layout
from shards_schema.errors import ConfigError, SampleError, SpecError

NAME = re.compile(r"[a-z][a-z0-9_]*\Z")
"""Columns and targets: no dot (WebDataset cuts a member's key at the first one), no slash (Zarr's separator)."""

TEXT = "str"
"""The dtype of text (variable length, UTF-8); only the `samples` column has such arrays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSpec:
    """One named array of a sample.

    Attributes:
        name: ``[a-z][a-z0-9_]*``; the member is ``<token>.<name>.npy``, the Zarr array ``<column>/<name>``.
        dims: a name for each axis, e.g. ``("view", "row", "col", "channel")``.
        shape: the size of each axis; ``None`` marks a ragged axis (such a target is in the tar, not in Zarr).
        dtype: a numpy dtype name, little-endian, e.g. ``"float16"``.
        unit: SI or ``"1"``; a log is written as ``"log(m)"``.
        meaning: one sentence, with the source of a formula where there is one.
        finite: whether NaN and infinity quarantine the sample (only asked of floating dtypes).
        encoding: how the stored numbers stand for values, a key of `storage.RULES`; None: they are the values.
        computed: dtype that the teacher computed, where another one is stored; None: the same.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int | None, ...]
    dtype: str
    unit: str
    meaning: str
    finite: bool = True
    encoding: str | None = None
    computed: str | None = None

    def __post_init__(self) -> None:
        if not NAME.match(self.name):
            raise ConfigError(f"target name must match [a-z][a-z0-9_]*, got {self.name!r}")
        if len(self.dims) != len(self.shape):
            raise ConfigError(f"target {self.name}: {len(self.dims)} dims {self.dims} for shape {self.shape}")
        if len(set(self.dims)) != len(self.dims):
            raise ConfigError(f"target {self.name}: dims must differ from each other, got {self.dims}")
        try:
            dtype = np.dtype(self.dtype)
        except TypeError:
            raise ConfigError(f"target {self.name}: dtype must be one of numpy's, got {self.dtype!r}") from None
        if dtype.hasobject or dtype.byteorder == ">":
            raise ConfigError(f"target {self.name}: dtype must be plain and little-endian, got {self.dtype}")

    @classmethod
    def of(cls, name: str, dims: str, shape: tuple[int | None, ...], dtype: str, unit: str, meaning: str) -> TargetSpec:
        """The same by position, with `dims` as words: ``"view row col channel"``."""
        return cls(name=name, dims=tuple(dims.split()), shape=shape, dtype=dtype, unit=unit, meaning=meaning)

    @property
    def ragged(self) -> bool:
        """Whether some axis has no fixed size, so that the target cannot be a Zarr array."""
        return None in self.shape

    @property
    def channel_axis(self) -> int | None:
        """The axis of the features: the first dim that is ``channel`` or ends in ``_channel``; None without one."""
        return next((i for i, dim in enumerate(self.dims) if dim == "channel" or dim.endswith("_channel")), None)

    @property
    def fixed_shape(self) -> tuple[int, ...]:
        """The shape of a target that is not ragged.

        Raises:
            SpecError: the target is ragged.
        """
        if self.ragged:
            raise SpecError(f"target {self.name} is ragged {self.shape}: it has no fixed shape")
        return tuple(n for n in self.shape if n is not None)

    def check(self, array: NDArray[Any]) -> None:
        """Refuse an array that is not what this spec says.

        Raises:
            SpecError: wrong dtype, rank or size (the teacher's fault).
            SampleError: code ``non_finite``, NaN or infinity where the spec wants finite values.
        """
        fits = len(array.shape) == len(self.shape) and all(
            want is None or want == got for want, got in zip(self.shape, array.shape, strict=True)
        )
        if array.dtype != np.dtype(self.dtype) or not fits:
            raise SpecError(
                f"target {self.name}: expected {self.dtype} {list(self.shape)}, got {array.dtype} {list(array.shape)}"
            )
        if self.finite and array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(array.size - np.isfinite(array).sum())
            raise SampleError("non_finite", f"target {self.name}: {bad} of {array.size} values are NaN or infinite")

    def to_json(self) -> dict[str, Any]:
        """The spec as it stands in ``column.json``; the last two keys only where they say something."""
        stored = {"encoding": self.encoding, "computed": self.computed}
        return {
            "name": self.name,
            "dims": list(self.dims),
            "shape": list(self.shape),
            "dtype": self.dtype,
            "unit": self.unit,
            "meaning": self.meaning,
            "finite": self.finite,
            **{key: value for key, value in stored.items() if value is not None},
        }

    @classmethod
    def from_json(cls, obj: Mapping[str, Any]) -> TargetSpec:
        """The inverse of `to_json`.

        Raises:
            ConfigError: a field is impossible.
            KeyError: a field is missing.
        """
        return cls(
            name=obj["name"],
            dims=tuple(obj["dims"]),
            shape=tuple(obj["shape"]),
            dtype=obj["dtype"],
            unit=obj["unit"],
            meaning=obj["meaning"],
            finite=obj["finite"],
            encoding=obj.get("encoding"),
            computed=obj.get("computed"),
        )


def refuse_reserved(column: str, targets: Sequence[TargetSpec] = ()) -> None:
    """Refuse names that the dataset needs for itself: of a teacher's column, and of the targets that it stores.

    Raises:
        ConfigError: the column is one of `layout.RESERVED`, a target is `layout.VALID`, or two have one name.
    """
    if column in layout.RESERVED:
        raise ConfigError(
            f"no teacher's column may be called {column!r}: a dataset has {', '.join(sorted(layout.RESERVED))} for "
            f"itself; give the column another name and say which teacher it is, e.g. {column}_features: {{kind: ...}}"
        )
    names = [spec.name for spec in targets]
    if layout.VALID in names or len(set(names)) < len(names):
        raise ConfigError(
            f"column {column}: its targets are stored as {', '.join(sorted(names))}; expected names that differ from "
            f"each other and from {layout.VALID!r}, which the column has for itself"
        )
