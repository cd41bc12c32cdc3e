"""What the networks know of drives that they have not seen, beside baselines that know nothing.

Depth and translations are compared in metres, by one factor a window: that of the medians. Pixels that see farther than
`FAR`, or the sky, do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pretraining.dynamics import video
from pretraining.footage import CLIP, Footage, medians
from pretraining.windows import FAR, Frames, batch, motions, rigs
from shards_schema.poses import Float64
from teachers.vggt.network import VGGTNetwork

Row = dict[str, float]
Guess = Callable[[Footage, Frames], tuple[NDArray[np.floating], Float64]]
"""A window's depth [S, H, W] and pose encodings [S, 9], in any unit."""


def seen_by(network: VGGTNetwork) -> Guess:
    """What a network says of a window."""

    def guess(footage: Footage, frames: Frames) -> tuple[NDArray[np.floating], Float64]:
        with torch.inference_mode():
            out = network(batch([(footage, frames)]).images)
        assert out.depth is not None
        assert out.pose_enc is not None
        return out.depth[0].numpy(), out.pose_enc[0].double().numpy()

    return guess


def blind(trained_on: Sequence[Footage], windows: Callable[[Footage], list[Frames]]) -> Guess:
    """Each pixel's median depth, in metres, and the mean pose of such windows, over what was trained on."""
    depth = {view: np.minimum(median, FAR) for view, median in medians(trained_on).items()}
    poses = []
    for drive in trained_on:
        for frames in windows(drive):
            seen = batch([(drive, frames)])
            poses.append(seen.pose[0].double().numpy() * [*[seen.scale[0]] * 3, *[1.0] * 6])
    mean = np.mean(poses, axis=0)

    def guess(footage: Footage, frames: Frames) -> tuple[NDArray[np.floating], Float64]:
        return np.stack([depth[footage.frames[i][1]] for i in frames]), mean

    return guess


def standing(guess: Guess) -> Guess:
    """The same depth, of cameras that do not move."""

    def still(footage: Footage, frames: Frames) -> tuple[NDArray[np.floating], Float64]:
        depth, _ = guess(footage, frames)
        return depth, np.tile([0.0, 0, 0, 0, 0, 0, 1, 0, 0], (len(frames), 1))

    return still


def geometry(guess: Guess, held_out: Sequence[Footage], windows: Callable[[Footage], list[Frames]]) -> Row:
    """Means over windows: `absrel` and `delta` (share within a quarter) of depth; of the frames but the first,
    `rotation` [degrees] and `translation` [m] off."""
    rows: list[tuple[float, float, float, float]] = []
    for drive in held_out:
        for frames in windows(drive):
            truth = batch([(drive, frames)])
            unit, counts = float(truth.scale[0]), truth.counts[0].numpy()
            true = truth.depth[0].double().numpy()[counts] * unit
            depth, pose = guess(drive, frames)
            said = depth.astype(np.float64)[counts]
            factor = float(np.median(true) / np.median(said))
            ratio = said * factor / true
            target = truth.pose[0].double().numpy()
            rows.append(
                (
                    float(np.abs(ratio - 1).mean()),
                    float((np.maximum(ratio, 1 / ratio) < 1.25).mean()),
                    float(angles(pose[1:, 3:7], target[1:, 3:7]).mean()) if len(frames) > 1 else 0.0,
                    float(np.linalg.norm(pose[1:, :3] * factor - target[1:, :3] * unit, axis=1).mean())
                    if len(frames) > 1
                    else 0.0,
                )
            )
    return dict(zip(("absrel", "delta", "rotation", "translation"), np.mean(rows, axis=0).tolist(), strict=True))


def angles(a: Float64, b: Float64) -> Float64:
    """[N] degrees between rotations, quaternions [N, 4] of any length."""
    cosine = np.abs((a * b).sum(-1)) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
    return np.asarray(np.degrees(2 * np.arccos(np.clip(cosine, 0.0, 1.0))))


def geometry_table(
    networks: Mapping[str, VGGTNetwork], trained_on: Sequence[Footage], held_out: Sequence[Footage]
) -> dict[str, dict[str, Row]]:
    """For three views of a moment, and for three moments of a view: who -> figures."""
    table: dict[str, dict[str, Row]] = {}
    for name, windows in (("three views", rigs), ("three moments", motions)):
        median = blind(trained_on, windows)
        guesses = {who: seen_by(network) for who, network in networks.items()} | {"medians": median}
        if windows is motions:
            guesses["medians, standing still"] = standing(median)
        table[name] = {who: geometry(guess, held_out, windows) for who, guess in guesses.items()}
    return table


def dynamics_table(
    networks: Mapping[str, Any], trained_on: Sequence[Footage], held_out: Sequence[Footage]
) -> dict[str, Row]:
    """Who -> PSNR [dB] of the nine frames, of `now` and of the eight `after`; the mean over clips."""
    mean = np.mean([drive.video for drive in trained_on], axis=(0, 1))
    table = {who: psnr(held_out, partial(rebuilt, network)) for who, network in networks.items()}
    table["mean frame"] = psnr(held_out, lambda drive: np.broadcast_to(mean, drive.video.shape))
    beside = [1, *range(CLIP - 1)]  # the frame before; the first has none, and gets the one after
    table["frame beside, repeated"] = psnr(held_out, lambda drive: drive.video[beside])
    return table


def rebuilt(network: Any, drive: Footage) -> NDArray[np.float32]:
    """A clip, encoded and decoded: float32 [9, 144, 256, 3] in 0..255."""
    with torch.inference_mode():
        made = network(video(drive)).sample[0].clamp(-1, 1)
    return np.asarray(((made + 1) * 127.5).permute(1, 2, 3, 0).numpy())


def psnr(held_out: Sequence[Footage], guess: Callable[[Footage], NDArray[Any]]) -> Row:
    """Peak signal to noise of clips."""
    rows = []
    for drive in held_out:
        error = ((guess(drive).astype(np.float64) - drive.video) ** 2).mean(axis=(1, 2, 3))
        rows.append([10 * np.log10(255**2 / max(float(part.mean()), 1e-9)) for part in (error, error[:1], error[1:])])
    return dict(zip(("all", "now", "after"), np.mean(rows, axis=0).tolist(), strict=True))
