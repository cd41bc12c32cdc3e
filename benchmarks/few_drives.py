"""Alignment where few drives are labelled: all training scenes have a teacher's features, some logs have drives.

Three arms of a recipe of `jobs.sft`, with the same seeds, samples and steps: no alignment, the recipe, and the recipe
with the features of other scenes. The answer's loss counts the scenes of the chosen logs alone. The vocabulary of
motions is of all training drives, in every arm.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from benchmarks.measure import temporary
from jobs import config as job_config
from jobs.experiments import repeated
from reports import controls
from shards_schema.inputs.models import StrictModel
from trainer.batch import ANSWERS, Batch
from trainer.config import SFTConfig
from trainer.losses import LossWeights, answer_loss, total
from trainer.segments import allow_table
from trainer.sft import SFT
from trainer.splits import logs_of

ALONE = "no alignment"
NOTHING = LossWeights(wm=0, geo=0, answer=1)


class Config(StrictModel):
    """Knobs: the recipe, what is set in it (key=value), the share of logs that have drives, seeds."""

    recipe: str = "configs/sft_demo.yaml"
    settings: tuple[str, ...] = ()
    share: float = Field(default=0.125, gt=0, le=1)
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)


def run(config: Config) -> None:
    found: dict[str, dict[int, dict[str, float]]] = {ALONE: {}, "aligned": {}, "aligned, shuffled": {}}
    with temporary() as root:
        recipe = job_config.load(SFTConfig, [config.recipe, f"out={root}", *config.settings])
        for seed in config.seeds:
            for arm, rows in found.items():
                rows[seed] = trained(_arm(recipe, arm, seed), config.share)
                print(f"seed {seed}, {arm}: ADE 4 s {rows[seed].get('ade_4', float('nan')):.4f}", flush=True)
    print(f"\n{controls.text(found, ALONE)}")


def _arm(recipe: SFTConfig, arm: str, seed: int) -> SFTConfig:
    dealt = recipe.controls.model_copy(update={"shuffle_teachers": "shuffled" in arm})
    changes: dict[str, Any] = {"evaluate_limit": 1, "controls": dealt}
    if arm == ALONE:
        changes["stages"] = tuple(stage.model_copy(update={"weights": NOTHING}) for stage in recipe.stages)
    return repeated(recipe, arm, seed, changes)


def trained(recipe: SFTConfig, share: float) -> dict[str, float]:
    """Held-out metrics of a student of which `share` of the training logs had drives."""
    run = SFT(recipe, torch.device("cpu"), log=lambda text: None)
    log_of = logs_of(run.dataset)
    logs = sorted({log_of[t] for t in run.train_tokens}, key=_place)
    some = set(logs[: max(1, round(share * len(logs)))])
    driven = {t for t in run.train_tokens if log_of[t] in some}
    forget_drives(run, driven)
    run.fit()
    return run.evaluate(run.held_batches())


def _place(log: str) -> str:
    return hashlib.sha256(f"drives/{log}".encode()).hexdigest()


def forget_drives(run: SFT, driven: set[str]) -> None:
    """From now on the answer's loss is a mean over the samples of `driven`; alignment stays one over all of them."""
    model, share = run.model, len(driven) / len(run.train_tokens)

    def losses(batch: Batch, stage: int, weights: LossWeights) -> tuple[Tensor, dict[str, Tensor]]:
        student, answers = model.student, batch.prepared[ANSWERS]
        spoken, out = student.spoken(batch), student(batch, answers, allow_table(stage))
        rows, parts = torch.tensor([t in driven for t in batch.tokens]), model.align(out.latents, batch)
        answer = 0 * out.logits.sum()
        if rows.any():
            logits = out.logits[rows]
            distance = spoken.distance(logits, batch.future[rows], batch.status[rows])
            known = answer_loss(logits, answers[rows], spoken.smoothing) + (0 if distance is None else distance)
            answer = rows.float().mean() / share * known
        loss = total(weights, answer, parts.get("wm"), parts.get("geo"))
        return loss, {"loss": loss, "answer": answer}

    model._losses = losses  # type: ignore[method-assign]
