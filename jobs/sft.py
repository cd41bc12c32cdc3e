"""`python -m jobs.sft CONFIG [data=DIR] [out=DIR] [key=value ...]`: shards in, a policy out, in two supervised stages.

Runs in one process, or one a rank under ``torchrun --nproc-per-node N -m jobs.sft CONFIG ...``. Run the same command
again after any interruption: it goes on from the last checkpoint. The closing table holds each stage against blind
baselines on held-out logs. Exit code: 0 when it ended, 1 when training failed, 2 when the config cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from jobs import config as job_config
from jobs.journal import Journal, follow, log
from reports.tables import table
from trainer import baselines, checkpoint, distributed
from trainer.batch import Batch
from trainer.config import SFTConfig
from trainer.evaluate import SECONDS, summary
from trainer.sft import SFT


class SFTJournal(Journal):
    """`Journal` with the line and the bar of this loop."""

    def line(self, numbers: Mapping[str, float]) -> str | None:
        """Of held-out samples."""
        held = {k.removeprefix("held/"): v for k, v in numbers.items() if k.startswith("held/")}
        return f"held out {summary(held)}" if held else None

    def postfix(self, numbers: Mapping[str, float]) -> str | None:
        """Of training."""
        return f"loss {numbers['train/loss']:.3f}, {numbers['train/samples_per_s']:.0f} samples/s"


def main(arguments: list[str]) -> dict[str, dict[str, float]]:
    """Run the job; gives the closing table's numbers, row -> metric -> value (rank 0; empty on others)."""
    config = job_config.load(SFTConfig, arguments)
    with distributed.session(config.device) as device:
        return _run(config, device)


def _run(config: SFTConfig, device: torch.device) -> dict[str, dict[str, float]]:
    run = SFT(config, device, log=log)
    held = run.held_batches()
    _print_opening(run)
    blind = held.blind() if distributed.rank() == 0 else []
    oracle = run.oracle(blind) if blind else {}
    log("the answers' own quantisation, held out: " + (_metrics(oracle) or "none parses"))
    if config.check_mask:
        run.check_mask(held[0])
        log("mask: gradients are exactly zero where it forbids, and only there")
    results: dict[str, dict[str, float]] = {}

    def ended() -> None:
        results[f"stage {run.stage.stage}"] = run.evaluate(held)

    trained = follow(run, SFTJournal, ended)
    _read_earlier(run, results, held)
    if distributed.rank() > 0:
        return {}
    learned = baseline_rows(run, blind) if config.baselines else {}
    rows = {"quantisation alone": oracle, **learned, **results}
    _print_closing(run, rows, trained)
    return rows


def _print_opening(run: SFT) -> None:
    config, model = run.config, run.model
    student = sum(p.numel() for p in model.student.parameters())
    adapters = sum(p.numel() for p in model.adapters.parameters())
    log(
        f"{len(run.train_tokens)} training samples, {len(run.held_tokens)} held out (whole logs) of {config.data}; "
        f"student {config.student.kind}, {student / 1e6:.2f} M weights, adapters {adapters / 1e6:.2f} M (in training); "
        f"{config.counts['wm']} dynamics and {config.counts['geo']} geometry latents"
    )
    for notice in run.notices:
        log(f"WARNING: {notice}")


def _read_earlier(run: SFT, results: dict[str, dict[str, float]], held: Sequence[Batch]) -> None:
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


def _print_closing(run: SFT, rows: Mapping[str, Mapping[str, float]], seconds: float) -> None:
    horizons = [s for s in SECONDS if any(f"ade_{s}" in row for row in rows.values())]
    head = [
        "held out",
        *(f"ADE {s} s" for s in horizons),
        *(f"FDE {s} s" for s in horizons[-1:]),
        "cos wm",
        "cos geo",
        "CE",
        "no parse",
    ]
    last = [f"fde_{s}" for s in horizons[-1:]]
    keys = [*(f"ade_{s}" for s in horizons), *last, "cosine_wm", "cosine_geo", "answer"]
    body = []
    for name, metrics in rows.items():
        cells = [f"{metrics[k]:.3f}" if k in metrics else "-" for k in keys]
        body.append([name, *cells, f"{metrics['unparsed']:.1%}" if "unparsed" in metrics else "-"])
    log("")
    log(table(head, body))
    log(f"\nmetres, means over {len(run.held_tokens)} scenes of held-out logs; {seconds:.0f} s of training")
    for notice in run.notices:
        log(f"WARNING: {notice}")
    if run.notices:
        log("WARNING: the checkpoints carry these notices; what is above says nothing about driving.")
    log(f"\nThe policy is {Path(run.config.out) / f'stage_{len(run.config.stages)}.pt'}")


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(
        f"{k.replace('_', ' ').upper()} s {v:.3f} m" for k, v in metrics.items() if k.startswith(("ade", "fde"))
    )


if __name__ == "__main__":
    job_config.run(main, interrupted="interrupted: run the same command again to go on from the last checkpoint")
