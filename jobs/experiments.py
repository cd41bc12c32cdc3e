"""`python -m jobs.experiments CONFIG [arms=paradigms] [seeds=[0,1,2]] [minutes=120] [key=value ...]`: what matters?

Trains the recipe of `jobs.sft` over several seeds, and each control with the same seeds, samples and steps:

    teachers shuffled     each training sample has the teachers' features of another one
    latents zeroed        the trained policy, its latents' states set to zero while it is evaluated
    no staged training    all steps in stage 2
    no mask               stage 1 under the plain causal mask
    images hidden         every image grey, in training and in evaluation

and the blind baselines of `jobs.sft`, of the same budget. It prints one table (mean +- standard deviation over seeds),
then for each row the paired difference of ADE to the recipe with its 95 % interval (Student's t), and what that
allows to be said. A run that is there is not done again. No run is begun after `minutes`; what is missing is said.

With ``arms=paradigms`` the recipe stands beside other ways to think before an answer (`reports.paradigms`): scores by
the column pdm, the questions of `units`, and what an answer costs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from jobs import config as job_config
from pipeline.stores.disk import write_text
from pipeline.stores.places import LocalPath
from reports import controls, paradigms
from reports.progress import bar
from reports.sft import baseline_rows
from shards_schema.inputs.models import StrictModel
from trainer import distributed
from trainer.config import SFTConfig
from trainer.evaluate import zeroed_latents
from trainer.grpo_config import GRPOConfig
from trainer.sft import SFT

RECIPE, ZEROED = "the recipe", "latents zeroed"


def _no_stages(recipe: SFTConfig) -> dict[str, Any]:
    last = recipe.stages[-1]
    return {"stages": (last.model_copy(update={"steps": recipe.total_steps}),)}


def _no_mask(recipe: SFTConfig) -> dict[str, Any]:
    return {"stages": tuple(s.model_copy(update={"mask": 2}) for s in recipe.stages)}


def _control(name: str) -> Callable[[SFTConfig], dict[str, Any]]:
    return lambda recipe: {"controls": recipe.controls.model_copy(update={name: True})}


TRAINED: Mapping[str, Callable[[SFTConfig], dict[str, Any]]] = {
    RECIPE: lambda recipe: {},
    "teachers shuffled": _control("shuffle_teachers"),
    "no staged training": _no_stages,
    "no mask": _no_mask,
    "images hidden": _control("hide_images"),
}


class ExperimentsConfig(StrictModel):
    """What is repeated."""

    recipe: SFTConfig
    """Of `jobs.sft`; its `out` is the folder of all runs."""
    arms: Literal["controls", "paradigms"] = "controls"
    """What is held against the recipe: its controls, or other ways to think before an answer."""
    units: LocalPath | None = None
    """Of ``paradigms``: a unit file of the evaluation split; policies that train on questions are asked; null: none."""
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=2, max_length=10)
    """At least two, for a spread."""
    minutes: float = Field(default=120, gt=0)
    """No run is begun later."""


Results = dict[str, dict[int, dict[str, float]]]
"""Row -> seed -> metric -> value."""


def main(arguments: list[str]) -> Results:
    """Run the job; gives every number of the table."""
    distributed.refuse_ranks(
        "jobs.experiments", "a single run can have many: torchrun ... -m jobs.sft CONFIG seed=... controls.NAME=true"
    )
    config = job_config.load_around(ExperimentsConfig, SFTConfig, arguments)
    end = time.monotonic() + 60 * config.minutes
    beside = paradigms.Comparison(config.recipe, config.units) if config.arms == "paradigms" else None
    arms = TRAINED if beside is None else paradigms.arms(config.recipe)
    results: Results = {name: {} for name in ((RECIPE, ZEROED, *list(TRAINED)[1:]) if beside is None else arms)}
    skipped = []
    notices: Sequence[str] = ()
    with distributed.session(config.recipe.device) as device:
        todo = [(name, seed) for seed in config.seeds for name in arms]
        for name, seed in bar(todo, unit="run"):
            if time.monotonic() > end:
                skipped.append(f"{name}, seed {seed}")
                continue
            run = SFT(repeated(config.recipe, name, seed, arms[name](config.recipe)), device, log=lambda text: None)
            notices = run.notices
            run.fit()
            if beside is not None:
                results[name][seed] = beside.measured(name, seed, run)
                continue
            held = run.held_batches()
            results[name][seed] = run.evaluate(held)
            if name == RECIPE:
                with zeroed_latents(run.model.student):
                    results[ZEROED][seed] = run.evaluate(held)
                for row, metrics in baseline_rows(run, held.blind()).items():
                    results.setdefault(row, {})[seed] = metrics
            write_text(Path(config.recipe.out) / "experiments.json", json.dumps(results, indent=1))
    print("\n" + (controls.text(results, RECIPE) if beside is None else beside.text()))
    for missing in skipped:
        print(f"NOT RUN (after {config.minutes:g} minutes): {missing}")
    for notice in notices:
        print(f"WARNING: {notice}")
    return results


def repeated(recipe: SFTConfig, name: str, seed: int, changes: Mapping[str, Any]) -> SFTConfig:
    """Of one run, see `its_own`; evaluated and saved at the end of each stage."""
    seldom = {"evaluate_every": 10**9, "save_every": 10**9, "keep": 1}
    update = {**changes, **its_own(recipe, name, seed), **seldom}
    return SFTConfig.model_validate(recipe.model_copy(update=update).model_dump())


def its_own(recipe: SFTConfig | GRPOConfig, name: str, seed: int) -> dict[str, Any]:
    """What a run has that no other of the recipe has: weights and order, or answers and order; a folder."""
    return {
        "seed": seed,
        "stream": recipe.stream.model_copy(update={"seed": seed}),
        "out": str(Path(recipe.out) / f"{name.replace(' ', '_')}_{seed}"),
    }


if __name__ == "__main__":
    job_config.run(main, interrupted="interrupted: run the same command again, what was trained is kept")
