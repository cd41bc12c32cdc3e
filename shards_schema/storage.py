"""Storage choices: how a target that was computed in one dtype is kept in a smaller one, and how it is read again.

    choice    stored as                                                     read as    bytes a value
    float32   float32, the values                                           float32    4
    float16   float16, the values                                           float16    2
    bfloat16  uint16, the high half of a float32, rounded to nearest even   float32    2
    int8      <name> int8 and <name>_scale float16, one a group             float32    1 + 2/128

int8 is symmetric: a group is 128 neighbours along the channel axis (the last one may be shorter), its scale is the
largest magnitude over 127, rounded up to a float16 so that nothing clips; value = code x scale. A group of zeros has
scale 0. What a choice cannot hold (a finite value beyond its range) is a `SampleError`, never clipped.

A choice is only ever applied to what a teacher computed: it may narrow, never widen, so a target that the teacher gives
as float16 cannot be stored as float32. The specs that result say all of it (`TargetSpec.encoding`, `.computed`), so a
column's own `column.json` is enough to write it, to read it, and to refuse another choice by its fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards_schema.errors import ConfigError, SampleError
from shards_schema.specs import TargetSpec

CHOICES = ("float32", "float16", "bfloat16", "int8")
GROUP = 128
"""Channels that share a scale."""

BFLOAT16_NAN = 0x7FC0

RULES = {
    "bfloat16": "value = the float32 whose high 16 bits are this uint16 and whose low 16 bits are 0",
    "int8": f"value = this * {{name}}_scale, where each scale holds for {GROUP} neighbours along {{channel}}",
    "scale": f"scale of an int8 array of the same name, one for {GROUP} neighbours of its channel axis",
}
"""Encoding -> how a plain reader undoes it; in the attributes of the Zarr array."""

_WIDTH = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


def rule(spec: TargetSpec) -> str | None:
    """How the stored numbers of `spec` stand for values, as a sentence; None where they are the values."""
    if spec.encoding is None:
        return None
    axis = spec.channel_axis
    return RULES[spec.encoding].format(name=spec.name, channel="" if axis is None else spec.dims[axis])


def stored_specs(specs: Sequence[TargetSpec], storage: Mapping[str, str]) -> tuple[TargetSpec, ...]:
    """What is stored of the targets that a teacher computes.

    Args:
        specs: as computed.
        storage: target -> choice; one that is not named is stored as it is computed.

    Raises:
        ConfigError: no such target or choice, or a choice that the target cannot have.
    """
    if not isinstance(storage, Mapping):
        raise ConfigError(f"storage: expected target: choice, got {storage!r}")
    names = [spec.name for spec in specs]
    for name, choice in storage.items():
        if name not in names:
            raise ConfigError(f"storage: there is no target {name!r}; there are {', '.join(names)}")
        if choice not in CHOICES:
            raise ConfigError(f"storage.{name}: expected one of {', '.join(CHOICES)}, got {choice!r}")
    out: list[TargetSpec] = []
    for spec in specs:
        out += _stored(spec, storage.get(spec.name, spec.dtype))
    scales = [spec.name for spec in out if spec.encoding == "scale"]
    if {*scales} & {*names}:
        raise ConfigError(f"storage: the scales of an int8 target would have the name of another, of {names}")
    return tuple(out)


def possible(spec: TargetSpec) -> tuple[str, ...]:
    """The choices that a computed target may have."""
    return tuple(choice for choice in CHOICES if _refusal(spec, choice) is None)


def _stored(spec: TargetSpec, choice: str) -> tuple[TargetSpec, ...]:
    if choice == spec.dtype:
        return (spec,)
    if (why := _refusal(spec, choice)) is not None:
        raise ConfigError(f"storage.{spec.name}: {choice} cannot be: {why}")
    if choice == "int8":
        axis = spec.channel_axis
        assert axis is not None
        groups = -(-spec.fixed_shape[axis] // GROUP)
        scale = TargetSpec(
            name=f"{spec.name}_scale",
            dims=(*spec.dims[:axis], f"{spec.dims[axis]}_group", *spec.dims[axis + 1 :]),
            shape=(*spec.shape[:axis], groups, *spec.shape[axis + 1 :]),
            dtype="float16",
            unit=spec.unit,
            meaning=f"scale of {spec.name}",
            encoding="scale",
        )
        return replace(spec, dtype="int8", encoding="int8", computed=spec.dtype), scale
    if choice == "bfloat16":
        return (replace(spec, dtype="uint16", encoding="bfloat16", computed=spec.dtype),)
    return (replace(spec, dtype=choice, computed=spec.dtype),)


def _refusal(spec: TargetSpec, choice: str) -> str | None:
    """Why a computed target cannot have a choice; None where it can."""
    if spec.dtype not in _WIDTH or spec.encoding is not None:
        return f"the teacher gives {spec.dtype}; only floating-point targets have a choice"
    if choice == spec.dtype:
        return None
    if _WIDTH[choice] >= _WIDTH[spec.dtype]:
        return f"the teacher gives {spec.dtype}, and storage only narrows what it gives"
    if choice == "int8" and (spec.channel_axis is None or spec.ragged or not spec.finite):
        return f"int8 needs a fixed shape, finite values and a channel axis; dims are {spec.dims}, shape {spec.shape}"
    return None


def storage_of(specs: Sequence[TargetSpec]) -> dict[str, str]:
    """The `storage` that made these stored specs: ``stored_specs(computed_specs(s), storage_of(s)) == s``."""
    return {spec.name: spec.encoding or spec.dtype for spec in specs if spec.computed is not None}


def computed_specs(specs: Sequence[TargetSpec]) -> tuple[TargetSpec, ...]:
    """The targets as their teacher gives them, of stored specs."""
    plain = (replace(s, dtype=s.computed or s.dtype, encoding=None, computed=None) for s in _targets(specs))
    return tuple(plain)


def read_specs(specs: Sequence[TargetSpec]) -> tuple[TargetSpec, ...]:
    """The targets as a reader gives them, of stored specs: the encoded ones are float32."""
    return tuple(s if s.encoding is None else replace(s, dtype="float32", encoding=None) for s in _targets(specs))


def _targets(specs: Sequence[TargetSpec]) -> list[TargetSpec]:
    return [spec for spec in specs if spec.encoding != "scale"]


def parts(spec: TargetSpec) -> tuple[str, ...]:
    """The stored arrays that a target is read from."""
    return (spec.name, f"{spec.name}_scale") if spec.encoding == "int8" else (spec.name,)


def encode(spec: TargetSpec, values: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The stored arrays of a target's computed values, which have passed their own spec's check.

    Args:
        spec: of what is stored.
        values: as computed.

    Raises:
        SampleError: code ``overflow``, a finite value that the choice cannot hold.
    """
    stored, lost = encode_counted(spec, values)
    if lost:
        choice = spec.encoding or spec.dtype
        what = f"{lost} groups of {GROUP} channels" if choice == "int8" else f"{lost} of {values.size} values"
        raise SampleError(
            "overflow",
            f"target {spec.name}: {what} (largest {np.abs(values).max():.4g}) are beyond what {choice} holds; give it "
            "another storage",
        )
    return stored


def encode_counted(spec: TargetSpec, values: NDArray[Any]) -> tuple[dict[str, NDArray[Any]], int]:
    """Like `encode`, and how many finite values (int8: groups) the choice cannot hold; those are infinite in it."""
    if spec.computed is None:
        return {spec.name: values}, 0
    if spec.encoding == "int8":
        return _to_int8(spec, values)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = _to_bfloat16(values) if spec.encoding == "bfloat16" else values.astype(spec.dtype)
        back = _from_bfloat16(stored) if spec.encoding == "bfloat16" else stored
        return {spec.name: stored}, int(np.count_nonzero(np.isinf(back) & np.isfinite(values)))


def decode(spec: TargetSpec, stored: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """The values of a target, of its stored arrays (`parts`); the inverse of `encode` but for what rounding lost."""
    codes = stored[spec.name]
    if spec.encoding == "bfloat16":
        return _from_bfloat16(codes)
    if spec.encoding == "int8":
        return _from_int8(spec, codes, stored[f"{spec.name}_scale"])
    return codes


def _to_bfloat16(values: NDArray[Any]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    high = (rounded >> np.uint32(16)).astype(np.uint16)
    nan = (bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)  # rounding could carry one into infinity
    return np.where(nan, np.uint16(BFLOAT16_NAN), high) if nan.any() else high


def _from_bfloat16(codes: NDArray[Any]) -> NDArray[np.float32]:
    return (codes.astype("<u4") << np.uint32(16)).view("<f4")


def _grouped(array: NDArray[Any], axis: int) -> NDArray[Any]:
    """`array` with its channels last and in groups, [..., groups, size of a group], zeros at the end of the last."""
    last = np.moveaxis(array, axis, -1)
    channels = last.shape[-1]
    if channels <= GROUP:
        return last[..., None, :]
    if channels % GROUP:
        last = np.concatenate([last, np.zeros((*last.shape[:-1], -channels % GROUP), last.dtype)], -1)
    return last.reshape(*last.shape[:-1], -1, GROUP)


def _ungrouped(groups: NDArray[Any], axis: int, channels: int) -> NDArray[Any]:
    """The inverse of `_grouped`."""
    return np.ascontiguousarray(np.moveaxis(groups.reshape(*groups.shape[:-2], -1)[..., :channels], -1, axis))


def _to_int8(spec: TargetSpec, values: NDArray[Any]) -> tuple[dict[str, NDArray[Any]], int]:
    axis = spec.channel_axis
    assert axis is not None
    groups = _grouped(values.astype(np.float32), axis)
    largest = np.abs(groups).max(-1)
    with np.errstate(over="ignore"):
        scale = (largest / np.float32(127)).astype(np.float16)
        # 127 x a float16 is exact in float32, so this comparison is
        low = scale.astype(np.float32) * np.float32(127) < largest
        scale = np.where(low, np.nextafter(scale, np.float16(np.inf)), scale)
    divisor = np.where(scale > 0, scale, np.float16(1)).astype(np.float32)
    groups = groups / divisor[..., None]
    codes = np.rint(groups, out=groups).astype(np.int8)
    stored = {
        spec.name: _ungrouped(codes, axis, values.shape[axis]),
        f"{spec.name}_scale": np.ascontiguousarray(np.moveaxis(scale, -1, axis)),
    }
    return stored, int(np.isinf(scale).sum())


def _from_int8(spec: TargetSpec, codes: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.float32]:
    axis = spec.channel_axis
    assert axis is not None
    groups = _grouped(codes, axis).astype(np.float32)
    groups *= np.moveaxis(scale.astype(np.float32), axis, -1)[..., None]
    return _ungrouped(groups, axis, codes.shape[axis])
