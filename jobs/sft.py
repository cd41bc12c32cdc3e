"""`python -m jobs.sft CONFIG [data=DIR] [out=DIR] [key=value ...]`: shards in, a policy out, in two supervised stages.

Runs in one process, or one a rank under ``torchrun --nproc-per-node N -m jobs.sft CONFIG ...``. Run the same command
again after any interruption: it goes on from the last checkpoint. The closing table holds each stage against blind
baselines on held-out logs. Exit code: 0 when it ended, 1 when training failed, 2 when the config cannot be.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from jobs import config as job_config
from jobs.report import table
from trainer import baselines, checkpoint, distributed
from trainer.batch import Batch
from trainer.config import SFTConfig
from trainer.evaluate import SECONDS, summary
from trainer.sft import SFT


class Journal:
    """What a person and TensorBoard see of a run: lines above the bar, `log.jsonl`, event files where it is installed.

    Args:
        out: folder of the run.
        total: optimiser steps.
        done: of them, before this process.
    """

    def __init__(self, out: str, total: int, done: int) -> None:
        Path(out).mkdir(parents=True, exist_ok=True)
        self._file = open(Path(out) / "log.jsonl", "a")  # noqa: SIM115 (open as long as the run)
        self._bar = tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, mininterval=1.0)
        self._board = _summary_writer(out)

    def line(self, text: str) -> None:
        """A line for a person."""
        self._bar.write(text)

    def step(self, step: int) -> None:
        """A step is done."""
        self._bar.update(step - self._bar.n)

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step; those of held-out samples also as a line."""
        self._file.write(json.dumps({"step": step, **numbers}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        held = {k.removeprefix("held/"): v for k, v in numbers.items() if k.startswith("held/")}
        if held:
            self.line(f"step {step}: held out {summary(held)}")
        else:
            loss, rate = numbers["train/loss"], numbers["train/samples_per_s"]
            self._bar.set_postfix_str(f"loss {loss:.3f}, {rate:.0f} samples/s")

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()
        self._file.close()
        if self._board is not None:
            self._board.close()


def _summary_writer(out: str) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(f"{out}/tensorboard")


def main(arguments: list[str]) -> dict[str, dict[str, float]]:
    """Run the job; gives the closing table's numbers, row -> metric -> value (rank 0; empty on others)."""
    config = job_config.load(SFTConfig, arguments)
    with distributed.session(config.device) as device:
        return _run(config, device)


def _run(config: SFTConfig, device: torch.device) -> dict[str, dict[str, float]]:
    first = distributed.rank() == 0

    def say(text: str) -> None:
        if first:
            print(text, flush=True)

    journal: Journal | None = None

    def numbers(step: int, values: Mapping[str, float]) -> None:
        if journal is not None:
            journal.numbers(step, values)

    run = SFT(config, device, log=say, on_step=numbers)
    held = run.held_batches()
    _print_opening(run, say)
    oracle = run.oracle(held)
    say("the answers' own quantisation, held out: " + _metrics(oracle))
    if config.check_mask:
        run.check_mask(held[0])
        say("mask: gradients are exactly zero where it forbids, and only there")
    began = time.perf_counter()
    results: dict[str, dict[str, float]] = {}

    def ended(index: int) -> None:
        results[f"stage {config.stages[index].stage}"] = run.evaluate(held, config.stages[index])

    if first:
        journal = Journal(config.out, config.total_steps, run.step)
    try:
        run.fit(on_batch=journal.step if journal else None, on_stage=ended)
    finally:
        if journal is not None:
            journal.close()
    trained = time.perf_counter() - began
    _read_earlier(run, results, held)
    if not first:
        return {}
    blind = baseline_rows(run, held) if config.baselines else {}
    rows = {"quantisation alone": oracle, **blind, **results}
    _print_closing(run, rows, trained, say)
    return rows


def _print_opening(run: SFT, say: Callable[[str], None]) -> None:
    config, model = run.config, run.model
    student = sum(p.numel() for p in model.student.parameters())
    adapters = sum(p.numel() for p in model.adapters.parameters())
    say(
        f"{len(run.train_tokens)} training samples, {len(run.held_tokens)} held out (whole logs) of {config.data}; "
        f"student {config.student.kind}, {student / 1e6:.2f} M weights, adapters {adapters / 1e6:.2f} M (in training); "
        f"{config.counts['wm']} dynamics and {config.counts['geo']} geometry latents"
    )
    for notice in run.notices:
        say(f"WARNING: {notice}")


def _read_earlier(run: SFT, results: dict[str, dict[str, float]], held: list[Batch]) -> None:
    """Stages that ended before this process began, evaluated from what they left; the run's own weights come back."""
    now = run.model.state_dict()
    own = {k: v.detach().clone() for k, v in now.items()}
    for i, stage in enumerate(run.config.stages):
        name = f"stage {stage.stage}"
        path = Path(run.config.out) / f"stage_{i + 1}.pt"
        if name in results or not path.exists():
            continue
        content = checkpoint.load(path)
        weights = {f"{part}.{k}": v for part in ("student", "adapters") for k, v in content[part].items()}
        checkpoint.load_weights(run.model, weights)
        results[name] = run.evaluate(held, stage)
    run.model.load_state_dict(own)


def baseline_rows(run: SFT, held: list[Batch]) -> dict[str, dict[str, float]]:
    """The baselines: row -> metric -> value.

    Trained on as many samples as the student saw, and once on four times as many: at the budget of a short run the MLP
    has not ended to learn either, and a step costs it next to nothing.
    """
    config = run.config
    documents = [run.dataset.read(t, {"samples": ["json"]})["samples"]["json"] for t in run.train_tokens]
    train, test = baselines.Scenes.read(run.reader, documents), baselines.Scenes.of(held)
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


def _print_closing(
    run: SFT, rows: Mapping[str, Mapping[str, float]], seconds: float, say: Callable[[str], None]
) -> None:
    horizons = [s for s in SECONDS if f"ade_{s}" in rows["quantisation alone"]]
    head = [
        "held out",
        *(f"ADE {s} s" for s in horizons),
        f"FDE {horizons[-1]} s",
        "cos wm",
        "cos geo",
        "CE",
        "no parse",
    ]
    keys = [*(f"ade_{s}" for s in horizons), f"fde_{horizons[-1]}", "cosine_wm", "cosine_geo", "answer"]
    body = []
    for name, metrics in rows.items():
        cells = [f"{metrics[k]:.3f}" if k in metrics else "-" for k in keys]
        body.append([name, *cells, f"{metrics['unparsed']:.1%}" if "unparsed" in metrics else "-"])
    say("")
    say(table(head, body))
    say(f"\nmetres, means over {len(run.held_tokens)} scenes of held-out logs; {seconds:.0f} s of training")
    for notice in run.notices:
        say(f"WARNING: {notice}")
    if run.notices:
        say("WARNING: the checkpoints carry these notices; what is above says nothing about driving.")
    say(f"\nThe policy is {Path(run.config.out) / f'stage_{len(run.config.stages)}.pt'}")


def _metrics(metrics: Mapping[str, float]) -> str:
    return ", ".join(
        f"{k.replace('_', ' ').upper()} s {v:.3f} m" for k, v in metrics.items() if k.startswith(("ade", "fde"))
    )


if __name__ == "__main__":
    job_config.run(main, interrupted="interrupted: run the same command again to go on from the last checkpoint")
