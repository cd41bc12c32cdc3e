"""`python -m jobs.grpo CONFIG policy=stage_2.pt [data=DIR] [out=DIR] [key=value ...]`: a policy, refined by its score.

Runs in one process, or one a rank under ``torchrun --nproc-per-node N -m jobs.grpo CONFIG ...``. Run the same command
again after any interruption: it goes on from the last checkpoint. The closing table holds the policy before and after
against the human and constant velocity on held-out logs, with every sub-score; ``result.json`` has the scenes one by
one. Exit code: 0 when it ended, 1 when training failed, 2 when the config cannot be.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from jobs import config as job_config
from jobs.journal import Journal, follow, log
from reports.intervals import Interval, clustered
from reports.outputs import write_text
from reports.tables import table
from shards_schema.errors import DatasetError, MismatchError
from shards_schema.inputs import documents
from trainer import baselines, checkpoint, distributed
from trainer.grpo import GRPO, POLICY
from trainer.grpo_config import GRPOConfig
from trainer.resuming import FREE, refuse_other
from trainer.scored import Driven, given_scores
from trainer.splits import logs_of

NAMES = {
    "score": "PDMS",
    "sampled": "sampled",
    "no_at_fault_collisions": "NC",
    "drivable_area_compliance": "DAC",
    "driving_direction_compliance": "DDC",
    "traffic_light_compliance": "TLC",
    "ego_progress": "EP",
    "time_to_collision_within_bound": "TTC",
    "lane_keeping": "LK",
    "comfort": "C",
    "history_comfort": "HC",
    "ade_4": "ADE 4 s",
}
"""What is shown, as papers call it; `sampled` is the mean score of sampled answers, the rest of the greedy one."""

RESULT = "result.json"
HUMAN, CONSTANT, BEFORE, AFTER = "human", "constant velocity", "before", "after"
HUMAN_AT_LEAST = 0.9
"""What the human should score, or the scorer or the data is wrong (NAVSIM's humans: 0.948)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to, on all held-out scenes.

    Attributes:
        rows: ``human``, ``constant velocity``, ``before``, ``after``.
        logs: of each scene.
        notices: what has to be said of it.
    """

    rows: Mapping[str, Driven]
    logs: Sequence[str]
    notices: Sequence[str]

    def change(self, name: str) -> Interval | None:
        """After less before, paired by scene; the interval over logs. None where no scene has the number in both."""
        changes = self._changes(name)
        there = ~changes.isnan()
        return clustered(
            changes[there].tolist(), [log for log, is_there in zip(self.logs, there, strict=True) if is_there]
        )

    def changed(self, name: str) -> bool:
        """Whether any scene's number changed."""
        return bool((self._changes(name).nan_to_num(0.0) != 0).any())

    def _changes(self, name: str) -> torch.Tensor:
        """Of each scene, float64 [S]; NaN where it lacks one of the two."""
        return self.rows[AFTER].values(name) - self.rows[BEFORE].values(name)

    @property
    def shown(self) -> list[str]:
        """The numbers that there are, in the order of `NAMES`."""
        return [name for name in NAMES if any(name in driven.means() for driven in self.rows.values())]


class GRPOJournal(Journal):
    """`Journal` with the line and the bar of this loop."""

    def line(self, numbers: Mapping[str, float]) -> str | None:
        """Of held-out scenes."""
        if "held/score" not in numbers:
            return None
        return f"held out, score {numbers['held/score']:.4f}, sampled {numbers['held/sampled']:.4f}"

    def postfix(self, numbers: Mapping[str, float]) -> str | None:
        """Of training."""
        if "train/reward/score" not in numbers:
            return None
        kl, dropped = numbers.get("train/kl", 0.0), numbers["train/dropped"]
        return f"reward {numbers['train/reward/score']:.3f}, KL {kl:.3f}, {dropped:.0%} groups dropped"


def main(arguments: list[str]) -> Outcome | None:
    """Run the job; gives what the closing table shows (rank 0; None on others)."""
    config = job_config.load(GRPOConfig, arguments)
    with distributed.session(config.device) as device:
        return train(config, device, log)


def train(config: GRPOConfig, device: torch.device, tell: Callable[[str], None]) -> Outcome | None:
    """One run from where it stands to its end, and its closing table; `tell` is called on every rank."""
    run = GRPO(config, device, log=tell)
    _print_opening(run, tell)
    held = run.held_batches()
    trained = follow(run, GRPOJournal)
    after, before = run.evaluate(held), run.evaluate(held, run.before())
    if distributed.rank() > 0:
        return None
    straight_on = [baselines.constant_velocity(b.status, run.sft.samples.steps) for b in held]
    rows = {
        HUMAN: given_scores([b.future.float() for b in held], held, run.reward),
        CONSTANT: given_scores(straight_on, held, run.reward),
        BEFORE: before,
        AFTER: after,
    }
    log_of = logs_of(run.dataset)
    outcome = Outcome(rows, [log_of[t] for t in after.tokens], run.notices)
    _write(config, outcome)
    _print_closing(run, outcome, trained, tell)
    return outcome


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


def _write(config: GRPOConfig, outcome: Outcome) -> None:
    """``result.json``: the recipe, means, and each scene's numbers."""
    first = outcome.rows[AFTER]
    content: dict[str, Any] = {
        "recipe": config.model_dump(mode="json"),
        "notices": list(outcome.notices),
        "tokens": list(first.tokens),
        "logs": list(outcome.logs),
        "rows": {name: {"means": driven.means(), **driven.state()} for name, driven in outcome.rows.items()},
    }
    write_text(Path(config.out, RESULT), json.dumps(content))


def finished(config: GRPOConfig) -> Outcome | None:
    """What the run of this recipe in this place came to, if it is there.

    Raises:
        MismatchError: another recipe's is, or that of another policy.
    """
    path = Path(config.out, RESULT)
    if not path.exists():
        return None
    try:
        content = documents.parse_json(path.read_bytes())
    except (OSError, documents.UnreadableError) as error:
        raise DatasetError(f"{path} cannot be read ({error}); move it away to have it made anew") from error
    refuse_other(json.dumps(content["recipe"]), config, path, FREE | GRPO.also_free)
    before, after = Path(config.policy), Path(config.out, POLICY)
    if before.exists() and after.exists() and checkpoint.load(after)["policy_digest"] != checkpoint.digest(before):
        raise MismatchError(f"{path}: begun from another policy than {before}; give that one, or another out")
    rows = {name: Driven.restore(content["tokens"], row) for name, row in content["rows"].items()}
    return Outcome(rows, content["logs"], content["notices"])


def rows_table(outcome: Outcome) -> str:
    """Human, constant velocity, before, after: every sub-score, times 100."""
    shown = outcome.shown
    body = []
    for name, driven in outcome.rows.items():
        means = driven.means()
        body.append([name, *(_cell(k, means[k]) if k in means else "-" for k in shown)])
    return table(["held out", *(NAMES[k] for k in shown)], body)


def _cell(name: str, value: float) -> str:
    return f"{value:.3f}" if name.startswith("ade") else f"{100 * value:.2f}"


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
