"""`python -m jobs.grpo CONFIG policy=stage_2.pt [data=DIR] [out=DIR] [key=value ...]`: a policy, refined by its score.

Runs in one process, or one a rank under ``torchrun --nproc-per-node N -m jobs.grpo CONFIG ...``. Run the same command
again after any interruption: it goes on from the last checkpoint. The closing table holds the policy before and after
against the human and constant velocity on held-out logs, with every sub-score; ``result.json`` has the scenes one by
one. With questions.units=FILE it is refined by how it answers questions too, or (questions.alone=true) by that only; of
the held-out ones (questions.held=FILE) a table has each kind, and ``questions.html`` some, drawn. Exit code: 0 when it
ended, 1 when training failed, 2 when the config cannot be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from jobs import config as job_config
from reports.grpo import AFTER, BEFORE, CONSTANT, HUMAN, Outcome, asked_text, drives_text, write
from reports.journal import follow, log
from trainer import baselines, checkpoint, distributed
from trainer.config import SFTConfig
from trainer.dry_run import grpo_needs, report
from trainer.grpo import GRPO, POLICY
from trainer.grpo_config import GRPOConfig
from trainer.scored import given_scores
from trainer.splits import logs_of
from trainer.tally import ASKED


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
    began = run.before()
    rows = {} if run.reward is None else {BEFORE: run.evaluate(held, began), AFTER: run.evaluate(held)}
    said = {name: a for name, who in ((BEFORE, began), (AFTER, None)) if (a := run.ask(who)) is not None}
    if distributed.rank() > 0:
        return None
    if run.reward is not None:
        blind = held.blind()
        straight_on = [baselines.constant_velocity(b.status, run.sft.samples.steps) for b in blind]
        rows = {
            HUMAN: given_scores([b.future.float() for b in blind], blind, run.reward),
            CONSTANT: given_scores(straight_on, blind, run.reward),
            **rows,
        }
    log_of = logs_of(run.dataset)
    outcome = Outcome(rows, [log_of[t] for t in run.held_tokens] if rows else [], run.notices, said)
    write(config, outcome, run.read_question)
    _print_closing(run, outcome, trained, tell)
    return outcome


def _recipe(policy: str) -> SFTConfig:
    """Of a policy file, or the file itself, where a dry run has nothing else yet."""
    if policy.endswith((".yaml", ".yml")):
        return job_config.load(SFTConfig, [policy])
    return SFTConfig.model_validate_json(checkpoint.load(Path(policy))["config"])


def _print_opening(run: GRPO, tell: Callable[[str], None]) -> None:
    config, asked = run.config, run.config.questions
    drives = f"{run.step_samples} scenes, reward {config.reward.version}" if run.reward is not None else ""
    questions = f"{asked.share:g} units a scene of stream.batch_size, weight {asked.weight:g}" if asked else ""
    tell(
        f"{len(run.train_tokens)} training scenes, {len(run.held_tokens)} held out (the logs that SFT held out) of "
        f"{config.data}; {config.steps} steps of {' and '.join(filter(None, (drives, questions)))}; "
        f"{config.group} answers each, loss {config.loss}"
    )
    if config.controls.shuffle_advantages:
        tell("CONTROL: advantages are dealt by chance")
    for notice in run.notices:
        tell(f"WARNING: {notice}")


def _of_held(numbers: Mapping[str, float]) -> str | None:
    return _told(numbers, "held", {"score": "held out, score", "sampled": "sampled"})


def _of_training(numbers: Mapping[str, float]) -> str | None:
    return _told(numbers, "train", {"reward/score": "reward", "kl": "KL", "dropped": "groups dropped"})


def _told(numbers: Mapping[str, float], part: str, words: Mapping[str, str]) -> str | None:
    """What there is of these, of drives and of questions; None of nothing."""
    texts = []
    for whose in ("", ASKED):
        there = {word: numbers.get(f"{part}/{whose}{name}") for name, word in words.items()}
        if text := ", ".join(f"{word} {value:.3f}" for word, value in there.items() if value is not None):
            texts.append(f"questions: {text}" if whose else text)
    return "; ".join(texts) or None


def _print_closing(run: GRPO, outcome: Outcome, seconds: float, tell: Callable[[str], None]) -> None:
    if outcome.rows:
        tell(f"\n{drives_text(outcome)}")
    if outcome.asked:
        tell(f"\n{asked_text(outcome)}")
    tell(f"\ntrained {seconds:.0f} s")
    for notice in outcome.notices:
        tell(f"WARNING: {notice}")
    tell(f"\nThe policy is {Path(run.config.out) / POLICY}")


if __name__ == "__main__":
    job_config.run(
        lambda arguments: main(arguments) and 0,
        interrupted="interrupted: run the same command again to go on from the last checkpoint",
    )
