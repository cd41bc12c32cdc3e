"""The latent statistics of a VAE: where they come from, how they are laid out, how they are recorded.

Targets are stored as (z - mean) / std, so that a consumer needs no statistics and float16 is safe. A list of C values
is one for each channel. A list of C * N values (Cosmos CV8x8x8-1.0: 16 * 16) is one for each channel and latent time,
**channel-major**: ``view(C, N)``. Its first C values are the times of channel 0, not the channels.
The 1.0 diffusion model also multiplies by sigma_data = 0.5; targets do not.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal

from shards_schema.errors import ConfigError

Origin = Literal["config", "checkpoint", "diffusers"]
"""The run's config, the checkpoint's ``config.json``, or the default arguments of diffusers' class."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """Mean and standard deviation of the latents, [C] or [C * N] channel-major; None while diffusers is not imported.

    Raises:
        ConfigError: lengths do not agree, are not a multiple of `channels`, or a value is impossible.
    """

    origin: Origin
    channels: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.mean is None or self.std is None:
            return
        if len(self.mean) != len(self.std) or not self.mean or len(self.mean) % self.channels:
            raise ConfigError(
                f"latents_mean and latents_std (of {self.origin}): expected {self.channels} values each, or "
                f"{self.channels} * N in channel-major order, got {len(self.mean)} and {len(self.std)}"
            )
        if not all(map(math.isfinite, self.mean)) or not all(math.isfinite(s) and s > 0 for s in self.std):
            raise ConfigError(f"latents_mean and latents_std (of {self.origin}): means must be finite, stds positive")

    @property
    def times(self) -> int | None:
        """N, the latent times that have their own statistics; None where one serves all times."""
        if self.mean is None or len(self.mean) == self.channels:
            return None
        return len(self.mean) // self.channels

    def check_times(self, latents: int) -> None:
        """Refuse a clip with more latent frames than there are statistics for.

        Raises:
            ConfigError: `latents` is more than `times`.
        """
        if self.times is not None and latents > self.times:
            raise ConfigError(
                f"the clip has {latents} latent frames, but the statistics (of {self.origin}) end after {self.times}; "
                "take a shorter layout, or give latents_mean and latents_std of one value a channel"
            )

    def table(self, which: Literal["mean", "std"], latents: int) -> list[list[float]]:
        """[C][T] values for T = `latents` latent frames."""
        values = self.mean if which == "mean" else self.std
        assert values is not None
        self.check_times(latents)
        if self.times is None:
            return [[value] * latents for value in values]
        rows = (values[c * self.times : (c + 1) * self.times] for c in range(self.channels))
        return [list(row[:latents]) for row in rows]

    def identity(self) -> dict[str, Any]:
        """JSON for provenance: the values where they are few, else their digest; diffusers' defaults by version."""
        if self.mean is None or self.std is None:
            from importlib.metadata import version

            return {"origin": self.origin, "diffusers": version("diffusers")}
        if self.times is None:
            return {"origin": self.origin, "mean": list(self.mean), "std": list(self.std)}
        digest = hashlib.sha256(json.dumps([list(self.mean), list(self.std)]).encode()).hexdigest()
        return {"origin": self.origin, "times": self.times, "sha256": digest}
