"""Which frames make a clip, which of them are padding, and what each latent frame then stands for.

The VAEs are causal in time: with temporal factor k, latent 0 sees frame 0 alone, and latent i >= 1 closes the group of
frames 1 + k(i-1) .. ki (and sees all before). So only clips of 1 + kn frames are whole; diffusers drops the tail of
any other without a word, which is why every length is checked here.

    layout  steps of 0.5 s from now      T  factor 8                    factor 4
    A       0 .. +8                      9  [0] [1..8]                  [0] [1..4] [5..8]
    B       -4 (or -3 again), -3 .. +8  13  not whole                   [-4] [-3..0] [1..4] [5..8]
    C       -3 six times, -2 .. +8      17  [-3] [-3 x5, -2..0] [1..8]  [-3] [-3 x4] [-3..0] [1..4] [5..8]
    D       -4 (or -3 again), -3 .. 0    5  not whole                   [-4] [-3..0]

Everything here is a pure function of the scene's records and the layout.
"""

from __future__ import annotations

from dataclasses import dataclass

from shards_schema.errors import ConfigError
from shards_schema.records import Scene

PAD, HISTORY, FUTURE = 0, 1, 2
"""Roles of a latent frame: nothing but padding; history and now; some of the future."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The frames of a clip, in time order.

    Attributes:
        steps: frames from now, 0.5 s each, never decreasing. In a run of equal steps one is the real frame and the
            others pad: the last is real up to now, the first is real in the future.
        optional_first: the first frame lies before the usual window: where the scene does not have it, or not its
            image, the second is repeated in its place, as padding.
    """

    steps: tuple[int, ...]
    optional_first: bool = False

    def __post_init__(self) -> None:
        if any(later < earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)):
            raise ConfigError(f"layout: steps must never decrease (the VAE is causal in time), got {list(self.steps)}")

    @property
    def required(self) -> tuple[int, ...]:
        """Each step once, ascending, without the one that may be padding."""
        return tuple(sorted(set(self.steps[1:] if self.optional_first else self.steps)))


PAST_OF_C = (-3,) * 6 + (-2, -1, 0)
"""Layout C up to now: what looks at the past alone where the temporal factor is 8, for which D is not whole."""

LAYOUTS = {
    "A": Layout(tuple(range(9))),
    "B": Layout(tuple(range(-4, 9)), optional_first=True),
    "C": Layout(PAST_OF_C + tuple(range(1, 9))),
    "D": Layout(tuple(range(-4, 1)), optional_first=True),
}
"""The layouts for 2 Hz logs with four history frames."""


@dataclass(frozen=True, slots=True)
class Clip:
    """The frames of one scene's clip.

    Attributes:
        steps: T steps from now; equal neighbours show a repetition.
        valid: T flags; False marks a frame that only pads.
    """

    steps: tuple[int, ...]
    valid: tuple[bool, ...]

    @property
    def distinct(self) -> tuple[int, ...]:
        """Each step once, ascending: the images to ask for."""
        return tuple(sorted(set(self.steps)))

    @property
    def index(self) -> tuple[int, ...]:
        """For each of the T frames, its place in `distinct`."""
        place = {step: i for i, step in enumerate(self.distinct)}
        return tuple(place[step] for step in self.steps)


def clip_of(scene: Scene, layout: Layout, channel: str) -> Clip:
    """The clip of `scene` under `layout`.

    Raises:
        SampleError: ``missing_frame`` or ``missing_camera``, the scene lacks a frame that the layout needs.
    """
    steps = layout.steps
    first_repeats = layout.optional_first and not scene.may_have(steps[0], channel)
    if first_repeats:
        steps = (steps[1], *steps[1:])
    for step in sorted(set(steps)):
        scene.camera(step, channel)
    return Clip(steps, _valid(steps))


def _valid(steps: tuple[int, ...]) -> tuple[bool, ...]:
    before = (None, *steps[:-1])
    after = (*steps[1:], None)
    return tuple(step != (after[i] if step <= 0 else before[i]) for i, step in enumerate(steps))


def latent_count(frames: int, factor: int) -> int:
    """Latent frames of a clip of `frames` frames under temporal factor `factor`.

    Raises:
        ConfigError: `frames` is not 1 + factor * n; the message names the valid lengths around it.
    """
    if frames < 1 or (frames - 1) % factor:
        below = 1 + factor * max(0, (frames - 1) // factor)
        near = str(below) if frames < 1 else f"{below} or {below + factor}"
        raise ConfigError(
            f"layout: a clip of {frames} frames is not 1 + {factor}n, and the VAE would drop its tail in silence; "
            f"the nearest valid lengths are {near}"
        )
    return 1 + (frames - 1) // factor


def latent_roles(clip: Clip, factor: int) -> tuple[int, ...]:
    """The role of each latent frame: `PAD` if its group is padding only, else `FUTURE` if any frame of it is."""
    roles = []
    for i in range(latent_count(len(clip.steps), factor)):
        group = slice(0, 1) if i == 0 else slice(1 + factor * (i - 1), 1 + factor * i)
        if not any(clip.valid[group]):
            roles.append(PAD)
        else:
            roles.append(FUTURE if max(clip.steps[group]) > 0 else HISTORY)
    return tuple(roles)
