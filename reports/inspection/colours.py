"""Numbers as colours: perceptual ramps, token PCA, and PNG bytes for a page that loads nothing.

Ramps are viridis and inferno (N. Smith and S. van der Walt, 2015, CC0), ten stops each: equal steps of value look like
equal steps.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RGB = NDArray[np.uint8]

_STOPS = {
    "cool": "440154 482878 3e4a89 31688e 26828e 1f9e89 35b779 6dcd59 b4de2c fde725",
    "warm": "000004 1b0c41 4a0c6b 781c6d a52c60 cf4446 ed6925 fb9b06 f7d13d fcffa4",
}
_LEVELS = 256


def _ramp(stops: str) -> RGB:
    colours = np.array([list(bytes.fromhex(stop)) for stop in stops.split()])
    places = np.linspace(0, 1, len(colours))
    levels = np.linspace(0, 1, _LEVELS)
    return np.stack([np.interp(levels, places, channel) for channel in colours.T], axis=-1).round().astype(np.uint8)


RAMPS = {name: _ramp(stops) for name, stops in _STOPS.items()}
"""Dark violet over teal to yellow (values), near-black over red to yellow (changes); uint8 [256, 3]."""


def heat(values: NDArray[np.generic], low: float, high: float, ramp: str = "cool") -> RGB:
    """A map [h, w] as colours [h, w, 3], `low` at the dark end; NaN and infinity are grey."""
    x = np.asarray(values, np.float32)
    span = high - low if high > low else 1.0
    finite = np.isfinite(x)
    place = np.where(finite, (x - low) / span, 0).clip(0, 1) * (_LEVELS - 1)
    picture = RAMPS[ramp][place.round().astype(np.intp)]
    picture[~finite] = 128
    return picture


def robust_range(values: NDArray[np.generic]) -> tuple[float, float]:
    """The 1st and 99th percentile of the finite values; (0, 0) where there are none."""
    x = np.asarray(values, np.float32)
    x = x[np.isfinite(x)]
    if not x.size:
        return 0.0, 0.0
    low, high = np.percentile(x, [1, 99])
    return float(low), float(high)


def pca_rgb(features: NDArray[np.generic]) -> tuple[RGB, float]:
    """Features [..., C] as colours [..., 3], and the share of variance that the three colours carry.

    One basis for everything in `features`. Each channel is centred on its median and divided by its interquartile
    range first, and cut at 4 of it, so that a few massive channels (ViTs have them) do not become the picture; then
    each component is stretched from its 2nd to its 98th percentile. Signs are fixed, so the colours are deterministic.
    """
    flat = np.nan_to_num(np.asarray(features, np.float32).reshape(-1, features.shape[-1]), posinf=0, neginf=0)
    low, middle, high = np.percentile(flat, [25, 50, 75], axis=0)
    spread = (high - low).astype(np.float32)
    alive = spread > 1e-6 * max(float(spread.max(initial=0)), 1e-12)
    x = np.clip((flat[:, alive] - middle[alive].astype(np.float32)) / spread[alive], -4, 4)
    x = x - x.mean(0, keepdims=True)
    colours = np.full((len(flat), 3), 128, np.uint8)
    if not x.size or not x.any():
        return colours.reshape(*features.shape[:-1], 3), 0.0
    gram = x @ x.T if x.shape[0] < x.shape[1] else x.T @ x
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    best = vectors[:, ::-1][:, :3]
    components = best * np.sqrt(values[::-1][:3].clip(0)) if x.shape[0] < x.shape[1] else x @ best
    components = components * np.where(np.take_along_axis(components, np.abs(components).argmax(0)[None], 0) < 0, -1, 1)
    for i in range(components.shape[1]):
        a, b = np.percentile(components[:, i], [2, 98])
        colours[:, i] = (np.clip((components[:, i] - a) / (b - a if b > a else 1), 0, 1) * 255).round()
    share = float(values[::-1][:3].clip(0).sum() / values.clip(0).sum())
    return colours.reshape(*features.shape[:-1], 3), share


def png_uri(picture: RGB) -> str:
    """A ``data:`` URI of the picture, [h, w, 3], pixel for pixel."""
    sink = io.BytesIO()
    Image.fromarray(picture).save(sink, "PNG", optimize=True)
    return _uri("image/png", sink.getvalue())


def jpeg_uri(data: bytes, width: int) -> str:
    """A ``data:`` URI of a JPEG, made smaller where it is wider than `width`."""
    with Image.open(io.BytesIO(data)) as image:
        if image.width <= width:
            image.verify()
            return _uri("image/jpeg", data)
        small = image.convert("RGB").resize(
            (width, round(image.height * width / image.width)), Image.Resampling.LANCZOS
        )
    sink = io.BytesIO()
    small.save(sink, "JPEG", quality=88)
    return _uri("image/jpeg", sink.getvalue())


def _uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def ramp_css(ramp: str) -> str:
    """The ramp as a CSS gradient, for the bar beside a range."""
    return f"linear-gradient(90deg, #{_STOPS[ramp].replace(' ', ', #')})"
