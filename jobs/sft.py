"""`python -m jobs.sft CONFIG [data=DIR] [out=DIR] [key=value ...]`: shards in, a policy out, in two supervised stages.

Runs in one process, or one a rank under ``torchrun --nproc-per-node N -m jobs.sft CONFIG ...``. Run the same command
again after any interruption: it goes on from the last checkpoint. The closing table holds each stage against blind
baselines on held-out logs. Exit code: 0 when it ended, 1 when training failed, 2 when the config cannot be.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from jobs import config as job_config
from reports.journal import follow, log
from reports.sft import baseline_rows, print_closing, read_earlier
from trainer import distributed
from trainer.config import SFTConfig
from trainer.dry_run import report, sft_needs
from trainer.evaluate import summary
from trainer.sft import SFT


def main(arguments: list[str]) -> dict[str, dict[str, float]]:
    """Run the job; gives the closing table's numbers, row -> metric -> value (rank 0; empty on others)."""
    config = job_config.load(SFTConfig, arguments)
    if config.dry_run:
        log(report(sft_needs(config), config.machine))
        return {}
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

    trained = follow(run, _of_held, _of_training, ended)
    read_earlier(run, results, held)
    if distributed.rank() > 0:
        return {}
    learned = baseline_rows(run, blind) if config.baselines else {}
    rows = {"quantisation alone": oracle, **learned, **results}
    print_closing(run, rows, trained)
    return rows


def _print_opening(run: SFT) -> None:
    config, model = run.config, run.model
    student = sum(p.numel() for p in model.student.parameters())
    adapters = sum(p.numel() for p in model.adapters.parameters())
    log(
        f"{len(run.train_tokens)} training samples, {len(run.held_tokens)} held out (whole logs) of {config.data}; "
        f"student {config.student.kind}, {student / 1e6:.2f} M weights, adapters {adapters / 1e6:.2f} M (in training); "
        f"latents: {', '.join(f'{t.latents} of {t.column}/{t.target}' for t in config.aligned.values()) or 'none'}"
    )
    for notice in run.notices:
        log(f"WARNING: {notice}")


def _of_held(numbers: Mapping[str, float]) -> str | None:
    held = {k.removeprefix("held/"): v for k, v in numbers.items() if k.startswith("held/")}
    return f"held out {summary(held)}" if held else None


def _of_training(numbers: Mapping[str, float]) -> str:
    return f"loss {numbers['train/loss']:.3f}, {numbers['train/samples_per_s']:.0f} samples/s"


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(
        f"{k.replace('_', ' ').upper()} s {v:.3f} m" for k, v in metrics.items() if k.startswith(("ade", "fde"))
    )


if __name__ == "__main__":
    job_config.run(main, interrupted="interrupted: run the same command again to go on from the last checkpoint")
