"""What a run of the supervised stages came to, beside blind baselines of the same budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from reports.journal import log
from reports.tables import table
from trainer import baselines, checkpoint
from trainer.batch import Batch
from trainer.evaluate import SECONDS
from trainer.sft import SFT


def read_earlier(run: SFT, results: dict[str, dict[str, float]], held: Sequence[Batch]) -> None:
    """Evaluate stages that ended before this process began: their files, in the model of the run, which is over."""
    for i, stage in enumerate(run.config.stages):
        name = f"stage {stage.stage}"
        path = Path(run.config.out) / f"stage_{i + 1}.pt"
        if name in results or not path.exists():
            continue
        content = checkpoint.load(path)
        checkpoint.load_weights(run.model.student, content["student"])
        checkpoint.load_weights(run.model.adapters, content["adapters"])
        results[name] = run.evaluate(held, stage)


def baseline_rows(run: SFT, held: Sequence[Batch]) -> dict[str, dict[str, float]]:
    """The baselines: row -> metric -> value.

    Trained on as many samples as the student saw, and once on four times as many: at the budget of a short run the MLP
    has not ended to learn either, and a step costs it next to nothing.
    """
    config = run.config
    train, test = baselines.Scenes.of([run.reader.blind(run.train_tokens)]), baselines.Scenes.of(held)
    rows = {
        "constant velocity": baselines.scores(
            baselines.constant_velocity(test.status, test.future.shape[1]), test.future
        )
    }
    batch = run.step_samples
    history = test.status.shape[1]
    for name, inputs, times in (
        ("ego-status MLP (NAVSIM's inputs)", 0, 1),
        ("ego-status MLP (all status)", history, 1),
        ("ego-status MLP (all status, 4 x the steps)", history, 4),
    ):
        steps = times * config.total_steps
        mlp = baselines.train_mlp(train, inputs=inputs, steps=steps, batch=batch, seed=config.seed)
        with torch.no_grad():
            rows[name] = baselines.scores(mlp(test.status, test.command), test.future)
    return rows


def print_closing(run: SFT, rows: Mapping[str, Mapping[str, float]], seconds: float) -> None:
    """The rows as a table, what is to be known of them, and where the policy is."""
    horizons = [s for s in SECONDS if any(f"ade_{s}" in row for row in rows.values())]
    shown = {f"ade_{s}": f"ADE {s} s" for s in horizons} | {f"fde_{s}": f"FDE {s} s" for s in horizons[-1:]}
    shown |= {"cosine_wm": "cos wm", "cosine_geo": "cos geo", "answer": "CE"}
    body = []
    for name, metrics in rows.items():
        cells = [f"{metrics[k]:.3f}" if k in metrics else "-" for k in shown]
        body.append([name, *cells, f"{metrics['unparsed']:.1%}" if "unparsed" in metrics else "-"])
    log("")
    log(table(["held out", *shown.values(), "no parse"], body))
    log(f"\nmetres, means over {len(run.held_tokens)} scenes of held-out logs; {seconds:.0f} s of training")
    for notice in run.notices:
        log(f"WARNING: {notice}")
    if run.notices:
        log("WARNING: the checkpoints carry these notices; what is above says nothing about driving.")
    log(f"\nThe policy is {Path(run.config.out) / f'stage_{len(run.config.stages)}.pt'}")
