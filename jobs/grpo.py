"""`python -m jobs.grpo CONFIG policy=stage_2.pt [data=DIR] [out=DIR] [key=value ...]`: a policy, refined by its score.

Runs in one process, or one a rank under ``torchrun --nproc-per-node N -m jobs.grpo CONFIG ...``. Run the same command
again after any interruption: it goes on from the last checkpoint. The closing table holds the policy before and after
against the human and constant velocity on held-out logs, with every sub-score; ``result.json`` has the scenes one by
one. Exit code: 0 when it ended, 1 when training failed, 2 when the config cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from jobs import config as job_config
from reports.grpo import AFTER, BEFORE, CONSTANT, HUMAN, HUMAN_AT_LEAST, NAMES, Outcome, rows_table, write
from reports.journal import follow, log
from trainer import baselines, checkpoint, distributed
from trainer.config import SFTConfig
from trainer.dry_run import grpo_needs, report
from trainer.grpo import GRPO, POLICY
from trainer.grpo_config import GRPOConfig
from trainer.scored import given_scores
from trainer.splits import logs_of


def main(arguments: list[str]) -> Outcome | None:
    """Run the job; gives what the closing table shows (rank 0; None on others)."""
    config = job_config.load(GRPOConfig, arguments)
    if config.dry_run:
        log(report(grpo_needs(config, _recipe(config.policy)), config.machine))
        return None
    with distributed.session(config.device) as device:
        return train(config, device, log)


def train(config: GRPOConfig, device: torch.device, tell: Callable[[str], None]) -> Outcome | None:
    """One run from where it stands to its end, and its closing table; `tell` is called on every rank."""
    run = GRPO(config, device, log=tell)
    _print_opening(run, tell)
    held = run.held_batches()
    trained = follow(run, _of_held, _of_training)
    after, before = run.evaluate(held), run.evaluate(held, run.before())
    if distributed.rank() > 0:
        return None
    blind = held.blind()
    straight_on = [baselines.constant_velocity(b.status, run.sft.samples.steps) for b in blind]
    rows = {
        HUMAN: given_scores([b.future.float() for b in blind], blind, run.reward),
        CONSTANT: given_scores(straight_on, blind, run.reward),
        BEFORE: before,
        AFTER: after,
    }
    log_of = logs_of(run.dataset)
    outcome = Outcome(rows, [log_of[t] for t in after.tokens], run.notices)
    write(config, outcome)
    _print_closing(run, outcome, trained, tell)
    return outcome


def _recipe(policy: str) -> SFTConfig:
    """Of a policy file, or the file itself, where a dry run has nothing else yet."""
    if policy.endswith((".yaml", ".yml")):
        return job_config.load(SFTConfig, [policy])
    return SFTConfig.model_validate_json(checkpoint.load(Path(policy))["config"])


def _print_opening(run: GRPO, tell: Callable[[str], None]) -> None:
    config = run.config
    tell(
        f"{len(run.train_tokens)} training scenes, {len(run.held_tokens)} held out (the logs that SFT held out) of "
        f"{config.data}; {config.steps} steps of {run.step_samples} scenes x "
        f"{config.group} answers, reward {config.reward.version}, loss {config.loss}"
    )
    if config.controls.shuffle_advantages:
        tell("CONTROL: advantages are dealt by chance")
    for notice in run.notices:
        tell(f"WARNING: {notice}")


def _of_held(numbers: Mapping[str, float]) -> str | None:
    if "held/score" not in numbers:
        return None
    return f"held out, score {numbers['held/score']:.4f}, sampled {numbers['held/sampled']:.4f}"


def _of_training(numbers: Mapping[str, float]) -> str | None:
    if "train/reward/score" not in numbers:
        return None
    kl, dropped = numbers.get("train/kl", 0.0), numbers["train/dropped"]
    return f"reward {numbers['train/reward/score']:.3f}, KL {kl:.3f}, {dropped:.0%} groups dropped"


def _print_closing(run: GRPO, outcome: Outcome, seconds: float, tell: Callable[[str], None]) -> None:
    tell("")
    tell(rows_table(outcome))
    logs = len(set(outcome.logs))
    tell(f"\nscores x 100, ADE in metres; {len(outcome.logs)} scenes of {logs} held-out logs; trained {seconds:.0f} s")
    tell("change, paired by scene, interval over logs:")
    for name in outcome.shown:
        if outcome.changed(name):
            tell(f"  {NAMES[name]:8} {outcome.change(name)}")
    human, constant = (outcome.rows[k].means()["score"] for k in (HUMAN, CONSTANT))
    verdict = (
        "as it should be" if human >= HUMAN_AT_LEAST and constant < human - 0.1 else "WARNING: NOT as it should be"
    )
    tell(f"sanity: human {human:.3f} (>= {HUMAN_AT_LEAST}), constant velocity {constant:.3f} (far below): {verdict}")
    unparsed = outcome.rows[AFTER].means()["unparsed"]
    if unparsed:
        tell(f"WARNING: {unparsed:.1%} of the greedy answers did not parse; they score 0")
    for notice in outcome.notices:
        tell(f"WARNING: {notice}")
    tell(f"\nThe policy is {Path(run.config.out) / POLICY}")


if __name__ == "__main__":
    job_config.run(
        lambda arguments: main(arguments) and 0,
        interrupted="interrupted: run the same command again to go on from the last checkpoint",
    )
