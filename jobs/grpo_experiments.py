"""`python -m jobs.grpo_experiments CONFIG policy=FILE [seeds=[0,1,2]] [minutes=60] [key=value ...]`: does GRPO help?

Trains the recipe of `jobs.grpo` over several seeds, from one policy or (``policy=runs/sft_{seed}/stage_2.pt``) from one
a seed, and the control with the same seeds: advantages dealt by chance within each group. Prints held-out scores before
and after, for each seed the change paired by scene (interval over logs), and the mean change over seeds with its 95 %
interval (Student's t), of the score and of every sub-score. A run that is there is not done again; none is begun after
`minutes`, and what is missing is said.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from pydantic import Field

from jobs import config as job_config
from jobs.experiments import its_own
from jobs.grpo import train
from reports.grpo import AFTER, BEFORE, NAMES, Outcome, finished, rows_table
from reports.intervals import Interval, over
from reports.tables import table
from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel
from trainer import distributed
from trainer.grpo_config import GRPOConfig, GRPOControls

RECIPE, CONTROL = "the recipe", "advantages shuffled"
Results = dict[str, dict[int, Outcome]]
"""Row -> seed -> what the run came to."""


class GRPOExperimentsConfig(StrictModel):
    """What is repeated."""

    recipe: GRPOConfig
    """Of `jobs.grpo`; its `out` is the folder of all runs, and ``{seed}`` in its `policy` the run's seed."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=2, max_length=20)
    """At least two, for a spread."""
    minutes: float = Field(default=60, gt=0)
    """No run is begun later."""


def main(arguments: list[str]) -> Results:
    """Run the job; gives what the tables show."""
    distributed.refuse_ranks(
        "jobs.grpo_experiments", "a single run can have many: torchrun ... -m jobs.grpo CONFIG policy=... seed=..."
    )
    config = job_config.load_around(GRPOExperimentsConfig, GRPOConfig, arguments)
    if config.recipe.questions is not None and config.recipe.questions.alone:
        raise ConfigError(
            "jobs.grpo_experiments compares drives; run jobs.grpo, with controls.shuffle_advantages=true too"
        )
    end = time.monotonic() + 60 * config.minutes
    results: Results = {RECIPE: {}, CONTROL: {}}
    skipped = []
    with distributed.session(config.recipe.device) as device:
        for seed in config.seeds:
            for name in results:
                recipe = _recipe(config.recipe, name, seed)
                outcome = finished(recipe)
                if outcome is None and time.monotonic() > end:
                    skipped.append(f"{name}, seed {seed}")
                    continue
                outcome = outcome or train(recipe, device, lambda text: None)
                if outcome is None:
                    continue
                results[name][seed] = outcome
                print(f"{name}, seed {seed}: {outcome.change('score')}", flush=True)
    if results[RECIPE]:
        _print(config, results, skipped)
    return results


def _recipe(recipe: GRPOConfig, name: str, seed: int) -> GRPOConfig:
    """Of one run, see `its_own`."""
    policy = recipe.policy.replace("{seed}", str(seed))
    controls = GRPOControls(shuffle_advantages=name == CONTROL)
    return recipe.model_copy(update={**its_own(recipe, name, seed), "policy": policy, "controls": controls})


def mean_change(rows: Mapping[int, Outcome], name: str) -> Interval | None:
    """Of a number, over the seeds that have it."""
    return over([change.middle for outcome in rows.values() if (change := outcome.change(name)) is not None])


def _print(config: GRPOExperimentsConfig, results: Results, skipped: list[str]) -> None:
    first = next(iter(results[RECIPE].values()))
    print(f"\nthe first seed, {len(first.logs)} scenes of {len(set(first.logs))} held-out logs, scores x 100:")
    print(rows_table(first))
    body = []
    for name, rows in results.items():
        for seed, outcome in rows.items():
            after, before = outcome.rows[AFTER].means(), outcome.rows[BEFORE].means()
            cells = [
                f"{100 * row[k]:.2f}" if k in row else "-" for k in ("score", "sampled") for row in (before, after)
            ]
            body.append([f"{name}, seed {seed}", *cells, _hundredths(outcome.change("score"))])
    print()
    head = ["held out", "before", "after", "sampled before", "sampled after", "change, 95 % over logs"]
    print(table(head, body))
    print(f"\nmean change over {len(results[RECIPE])} seeds, 95 % by Student's t, scores x 100 (ADE in centimetres):")
    shown = [k for k in first.shown if any(o.changed(k) for rows in results.values() for o in rows.values())]
    body = [[NAMES[k], *(_hundredths(mean_change(rows, k)) for rows in results.values())] for k in shown]
    print(table(["", *results], body))
    print()
    for name, rows in results.items():
        if (change := mean_change(rows, "score")) is not None:
            print(f"- {name}: {verdict(change)}")
    for missing in skipped:
        print(f"NOT RUN (after {config.minutes:g} minutes): {missing}")
    for notice in first.notices:
        print(f"WARNING: {notice}")


def verdict(change: Interval) -> str:
    """What an interval of the score's change allows to be said."""
    if not change.excludes_zero:
        return "no change of the held-out score can be told"
    return "the held-out score rises" if change.middle > 0 else "the held-out score FALLS"


def _hundredths(interval: Interval | None) -> str:
    return "-" if interval is None else interval.text(100, 2)


if __name__ == "__main__":
    job_config.run(
        lambda arguments: main(arguments) and 0,
        interrupted="interrupted: run the same command again, what was trained is kept",
    )
