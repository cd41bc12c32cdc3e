"""A column's targets as figures, by their specs alone, so that a teacher we have never seen is drawn too.

two neighbouring axes named (.*_)row, (.*_)col, and `channel`   PCA to RGB, one basis for all views or times
the same without a channel                                      a heat map for each leading index, one range
a leading axis `time`, with channels                            also the change against its first entry
few values                                                      the values
anything else                                                   range, median, and a histogram
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

from reports.inspection.colours import heat, pca_rgb, png_uri, ramp_css, robust_range
from reports.pages import render, tag
from shards_schema.manifests import ColumnManifest
from shards_schema.specs import TargetSpec

Array = NDArray[Any]

_ROW, _COL = re.compile(r"(.*_)?row\Z"), re.compile(r"(.*_)?col\Z")
_FEW = 40
_MOST_TILES = 16
_BINS = 32


def figures(manifest: ColumnManifest, arrays: Mapping[str, Array]) -> Markup:
    """HTML of every target of one sample: pictures first, then numbers."""
    pictures, numbers = [], []
    for spec in manifest.targets:
        if spec.name not in arrays:
            continue
        array = np.asarray(arrays[spec.name])
        axes = _picture_axes(spec)
        if axes is None or not array.size:
            sizes = zip(spec.dims, array.shape, strict=True)
            shape = " \N{MULTIPLICATION SIGN} ".join(f"{dim} {n}" for dim, n in sizes) or "scalar"
            numbers.append((spec, shape, _values(array)))
        else:
            pictures.append((spec, _figure(spec, array, axes, labels(manifest, arrays, spec, array))))
    shown = {"pictures": pictures, "numbers": numbers, "png": png_uri, "gradient": ramp_css}
    return Markup(render("inspection/figures.html", **shown))


def _picture_axes(spec: TargetSpec) -> tuple[list[int], int, int, int | None] | None:
    """(leading axes, row, col, channel or None), or None for a target that is no picture."""
    dims = spec.dims
    rows = [i for i, d in enumerate(dims) if _ROW.match(d)]
    cols = [i for i, d in enumerate(dims) if _COL.match(d)]
    if len(rows) != 1 or cols != [rows[0] + 1]:
        return None
    channel = dims.index("channel") if "channel" in dims else None
    leading = [i for i in range(len(dims)) if i not in (rows[0], cols[0], channel)]
    return leading, rows[0], cols[0], channel


def labels(manifest: ColumnManifest, arrays: Mapping[str, Array], spec: TargetSpec, array: Array) -> list[str]:
    """A name for each tile: the views of a window, the roles and seconds of latent frames, else the indices."""
    axes = _picture_axes(spec)
    leading = [] if axes is None else axes[0]
    sizes = [array.shape[i] for i in leading]
    dims = [spec.dims[i] for i in leading]
    plain = [
        ", ".join(f"{d} {i}" for d, i in zip(dims, index, strict=True)) for index in np.ndindex(*sizes) if len(index)
    ]
    if dims == ["view"]:
        views, window = manifest.provenance.get("views"), manifest.provenance.get("window", [0])
        if isinstance(views, list) and isinstance(window, list) and len(views) * len(window) == sizes[0]:
            return [str(v) if step == 0 else f"{v}, {step / 2:+g} s" for step in window for v in views]
    if dims == ["time"] and {"frame_idx", "latent_role"} <= arrays.keys():
        return _times(sizes[0], arrays["frame_idx"], arrays["latent_role"], arrays.get("frame_valid"))
    return plain or [""]


def _times(count: int, frames: Array, roles: Array, valid: Array | None) -> list[str]:
    """Latent 0 closes frame 0, latent i the next group of k frames (a causal video VAE; see teachers.cosmos.frames)."""
    if count != len(roles) or (count > 1 and (len(frames) - 1) % (count - 1)):
        return [f"time {i}" for i in range(count)]
    k = (len(frames) - 1) // (count - 1) if count > 1 else 0
    names = []
    for i, role in enumerate(roles.tolist()):
        group = slice(0, 1) if i == 0 else slice(1 + k * (i - 1), 1 + k * i)
        good = np.ones(len(frames), bool) if valid is None else valid.astype(bool)
        steps = (frames[group][good[group]] if good[group].any() else frames[group]).tolist()
        first, last = steps[0] / 2, steps[-1] / 2
        seconds = f"t = {first:+g} s" if first == last else f"t = {first:+g} to {last:+g} s"
        what = {0: "padding", 1: "current" if steps[0] == 0 else "history and current" if steps[-1] == 0 else "history"}
        names.append(f"latent {i}: {what.get(role, 'future')}, {seconds.replace('+0 s', '0 s')}")
    return names


@dataclass(frozen=True, slots=True)
class Figure:
    """A target as pictures: how they were made, the ramp of their colours with its ends, and (name, picture) each."""

    how: str
    bar: tuple[str, str, str] | None
    tiles: list[tuple[str, NDArray[np.uint8]]]


def _figure(
    spec: TargetSpec, array: Array, axes: tuple[list[int], int, int, int | None], names: Sequence[str]
) -> Figure:
    leading, row, col, channel = axes
    moved = array.transpose([*leading, row, col, *([] if channel is None else [channel])])
    tiles = moved.reshape(-1, *moved.shape[len(leading) :])
    cut = f"First {_MOST_TILES} of {len(tiles)} tiles. " if len(tiles) > _MOST_TILES else ""
    tiles, names = tiles[:_MOST_TILES], names[:_MOST_TILES]
    if channel is None:
        low, high = robust_range(tiles)
        shown = [(name, heat(tile, low, high)) for name, tile in zip(names, tiles, strict=True)]
        return Figure(cut, ("cool", *_range_text(spec, low, high)), shown)
    colours, share = pca_rgb(tiles)
    what = "views" if "view" in spec.dims else "times" if "time" in spec.dims else "tiles"
    how = f"{cut}PCA to RGB, one basis over all {what}; the three colours carry {share:.0%} of the variance"
    shown = list(zip(names, colours, strict=True))
    if spec.dims[0] != "time" or len(tiles) < 2:
        return Figure(how, None, shown)
    change = np.linalg.norm(tiles[1:].astype(np.float32) - tiles[:1].astype(np.float32), axis=-1)
    _, high = robust_range(change)
    shown += [(f"change of latent {i} to 0", heat(tile, 0, high, "warm")) for i, tile in enumerate(change, 1)]
    return Figure(f"{how}; change ", ("warm", "0", f"{high:.3g} (L2 over channels)"), shown)


def _range_text(spec: TargetSpec, low: float, high: float) -> tuple[str, str]:
    """The ends of a range; those of a logarithm also as what they are the logarithm of."""
    inner = re.fullmatch(r"log\((.*)\)", spec.unit)
    if inner is None:
        unit = "" if spec.unit == "1" else f" {spec.unit}"
        return f"{low:.4g}{unit}", f"{high:.4g}{unit}"
    unit = "" if inner[1] == "1" else f" {inner[1]}"
    return f"e^{low:.2f} = {np.exp(low):.3g}{unit}", f"e^{high:.2f} = {np.exp(high):.3g}{unit}"


def _values(array: Array) -> Markup:
    if not array.size:
        return Markup("empty")
    if array.size <= _FEW:
        rows = array.reshape(-1, array.shape[-1]) if array.ndim > 1 else array.reshape(1, -1)
        return Markup("<br>").join(tag("code", "  ".join(map(_number, row))) for row in rows.tolist())
    if array.dtype.kind not in "fiub":
        return escape(array.dtype)
    x = array.astype(np.float64).ravel()
    x = x[np.isfinite(x)]
    if not x.size:
        return Markup("no finite value")
    low, middle, high = np.percentile(x, [0, 50, 100])
    rms = float(np.sqrt((x**2).mean()))
    return _histogram(x) + tag("code", f"min {low:.4g}  median {middle:.4g}  max {high:.4g}  rms {rms:.4g}")


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _histogram(x: Array) -> Markup:
    """Counts between the 0.5th and 99.5th percentile, as bars."""
    low, high = np.percentile(x, [0.5, 99.5])
    counts, _ = np.histogram(x, bins=_BINS, range=(low, high) if high > low else None)
    bars = (counts / max(1, counts.max()) * 20).tolist()
    rects = (tag("rect", x=4 * i, y=f"{20 - b:.1f}", width=3, height=f"{b:.1f}") for i, b in enumerate(bars))
    return tag("svg", rects, class_="hist", viewBox=f"0 0 {4 * _BINS} 20", width=4 * _BINS, height=20)
