"""What a student has to beat: the same scenes without eyes.

- constant velocity: straight on at the present speed (NAVSIM's ConstantVelocityAgent).
- stop: where it is, for four seconds.
- ego-status MLP: status in, poses out, trained on as many samples as the student saw. Twice: with what NAVSIM's
  EgoStatusMLP sees (velocity, acceleration, command, now), and with all that our student sees but the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from shards_schema.records import COMMANDS
from trainer import seeds
from trainer.batch import Batch
from trainer.data import ExampleMaker
from trainer.evaluate import displacement
from trainer.students.tiny import STATUS_SCALE
from trainer.tally import known, mean_known


def constant_velocity(status_BH7: Tensor, steps: int) -> Tensor:
    """Float32 [B, S, 3], steps of 0.5 s: x grows by the present speed (of status [B, H, 7]), y and heading stay 0."""
    speed_B = status_BH7[:, -1, 3:5].norm(dim=-1)
    times_S = 0.5 * torch.arange(1, steps + 1, device=status_BH7.device)
    out = torch.zeros(len(status_BH7), steps, 3, device=status_BH7.device)
    out[..., 0] = speed_B.unsqueeze(1) * times_S
    return out


def stop(status_BH7: Tensor, steps: int) -> Tensor:
    """Float32 [B, S, 3]: the pose of now, all the time. The simulated car brakes as hard as it can to hold it."""
    return torch.zeros(len(status_BH7), steps, 3, device=status_BH7.device)


class EgoStatusMLP(nn.Module):
    """Four linear layers with ReLU, as NAVSIM's.

    Args:
        steps: S.
        inputs: H history steps of which all 7 numbers are seen, or 0: velocity and acceleration of now only.
        hidden: units.
    """

    def __init__(self, steps: int, inputs: int, hidden: int = 512) -> None:
        super().__init__()
        self.steps, self.inputs = steps, inputs
        seen = 7 * inputs if inputs else 4
        sizes = [seen + len(COMMANDS), hidden, hidden, hidden]
        layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, 3 * steps))

    def forward(self, status_BH7: Tensor, command_B: Tensor) -> Tensor:
        """Poses float32 [B, S, 3] of status [B, H, 7] and command int64 [B]."""
        scaled = status_BH7 / torch.tensor(STATUS_SCALE, device=status_BH7.device)
        seen = scaled.flatten(1) if self.inputs else scaled[:, -1, 3:]
        command = nn.functional.one_hot(command_B, len(COMMANDS)).float()
        out: Tensor = self.layers(torch.cat((seen, command), 1))
        return out.view(-1, self.steps, 3)


@dataclass(frozen=True, slots=True)
class Scenes:
    """What a blind baseline learns from: status float32 [n, H, 7], command int64 [n], future float32 [n, S, 3]."""

    status: Tensor
    command: Tensor
    future: Tensor

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Scenes:
        """Of batches, without their images."""
        return cls(
            torch.cat([b.status for b in batches]),
            torch.cat([b.command for b in batches]),
            torch.cat([b.future for b in batches]),
        )

    @classmethod
    def read(cls, maker: ExampleMaker, documents: Iterable[Mapping[str, Any]]) -> Scenes:
        """Of samples' ``json`` members, without opening an image."""
        return cls.of([maker.blind_of(documents)])


def train_mlp(scenes: Scenes, *, inputs: int, steps: int, batch: int, seed: int, lr: float = 1e-3) -> EgoStatusMLP:
    """L1 on x, y, heading (as NAVSIM trains it), AdamW, cosine to 0; on the CPU, torch's own RNG is left alone.

    Args:
        scenes: to learn from.
        inputs: see `EgoStatusMLP`.
        steps: of the optimiser.
        batch: scenes a step, drawn with replacement.
        seed: of weights and draws.
        lr: at the start.

    Returns:
        The MLP in eval mode.
    """
    generator = seeds.generator("cpu", seed, "baseline scenes")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.mixed(seed, "baseline weights"))
        model = EgoStatusMLP(scenes.future.shape[1], inputs)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.randint(len(scenes.status), (batch,), generator=generator)
        loss = nn.functional.l1_loss(model(scenes.status[rows], scenes.command[rows]), scenes.future[rows])
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def scores(predicted_NS3: Tensor, future_NS3: Tensor) -> dict[str, float]:
    """Mean ADE and FDE in metres (`evaluate.displacement`) of trajectories [N, S, 3]; none where N is 0."""
    return known({k: mean_known(v) for k, v in displacement(predicted_NS3, future_NS3).items()})
