"""A policy at the wheel: batches in, trajectories out, the same way for evaluation and for NAVSIM's devkit."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.batch import Batch
from trainer.build import Policy
from trainer.segments import allow_table


@torch.no_grad()
def drive(
    policy: Policy,
    batch: Batch,
    *,
    temperature: float = 0.0,
    group: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """What the policy answers, on whatever device it is.

    Args:
        policy: see `build.load_policy`; moved to a device with ``policy.student.to(device)``.
        batch: of B scenes, on any device; futures and targets are not looked at.
        temperature: 0 takes the policy's one answer (`Student.answer`), else answers are drawn.
        group: answers drawn a scene; then B is scenes times this, those of a scene side by side.
        generator: of the policy's device; needed to draw the same twice.

    Returns:
        Trajectories float32 [B, S, 3] on the CPU (x, y, heading at 0.5 s, ..., rear axle now), and bool [B], whether
        the answer parsed; one that did not is zeros.
    """
    device = next(policy.student.parameters()).device
    batch = batch.to(device)
    half = policy.config.dtype == "bfloat16"
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        table = allow_table(policy.table_stage)
        if not temperature:
            poses, parsed = policy.student.answer(batch, table)
        else:
            said = policy.student.sample(batch, table, group=group, temperature=temperature, generator=generator)
            poses, parsed = policy.student.answers.decode(said.tokens, batch.status.repeat_interleave(group, 0))
    return poses.float().cpu(), parsed.cpu()
