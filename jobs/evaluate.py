"""`python -m jobs.evaluate policy=runs/sft/stage_2.pt data=DIR out=DIR version=v1|v2|both [key=value ...]`

How well a policy drives, by NAVSIM's score, beside named baselines: on whole logs that it was not trained on
(``split=held_out``), on everything (``all``), or on the tokens of a file (one a line, or a scene filter of NAVSIM).
Leaves in `out`: ``scores.parquet`` (one row a driver and scene), ``<driver>.csv`` (NAVSIM's own columns and closing
row), ``worst.html`` (the worst scenes, drawn), ``agent.yaml`` (the same checkpoint for NAVSIM's devkit); with
``version=both`` in a folder each.

Every scene is accounted for. Exit code: 0; 1 when a planned scene is neither scored nor quarantined with a reason (it
is not in the dataset, or not committed yet), 2 when the config cannot be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from jobs import config as job_config
from pipeline.reading.reader import Dataset
from pipeline.stores.volume import Volume
from reports.evaluation import accounting, remarks, run
from reports.evaluation.config import EvaluateConfig
from reports.evaluation.drivers import make_drivers
from reports.progress import bar
from shards_schema import layout
from shards_schema.errors import AbsentError, ConfigError
from trainer.build import Policy, load_policy
from trainer.data import DataConfig, notices
from trainer.reward import POSES


def main(arguments: list[str]) -> int:
    """Run the job; returns the exit code."""
    config = job_config.load(EvaluateConfig, arguments)
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    paths = named(config.policy)
    policies = {name: load_policy(path) for name, path in paths.items()}
    for name, policy in policies.items():
        policy.student.to(device)
        if policy.config.samples.steps != POSES:
            raise ConfigError(f"policy {name} plans {policy.config.samples.steps} poses; NAVSIM scores {POSES} (4 s)")
    dataset, joined = _open(config, policies)
    data = _split_config(config, policies)
    as_trained = config.held_out is None and config.split_seed is None
    held_before = next((frozenset(p.held_out) for p in policies.values() if as_trained), frozenset())
    selection = accounting.select(
        dataset, config.column, config.split, data, joined, config.limit, held_before=held_before
    )
    said = tuple(dict.fromkeys([*notices(dataset, {}), *(n for p in policies.values() for n in p.notices)]))
    for notice in said:
        print(f"WARNING: {notice}")
    counted = accounting.lines(selection)
    print(f"{config.split} of {config.data}: {counted[0]}", flush=True)
    comments = remarks.of_drivers(config, policies, joined, dataset, selection.scored)
    stages = selection.two_stage
    lacks = None if stages is None else stages.lacks(selection.scored, config.data)
    if stages is not None and "v2" not in config.versions:
        lacks = "no two-stage score: it is made of EPDMS; give version=v2"
    if lacks:
        print(f"WARNING: {lacks}", flush=True)
    if selection.scored:
        through = partial(bar, unit="chunk", needed=len(selection.scored) > config.chunk)
        drivers = make_drivers(config, dataset, data, selection.training, policies)
        for evaluated, reward in run.evaluate(config, dataset, selection, drivers, device, through):
            of_version = evaluated.comments
            told = dataclasses.replace(evaluated, notices=said, accounting=counted, comments=(*comments, *of_version))
            run.leave(config, told, dataset, reward, paths)
            print("\n".join(of_version))
            if stages is not None and lacks is None and evaluated.version == "v2":
                run.leave_two_stage(config, told, stages, dataset, reactive=reward.reactive)
    print("\n" + "\n".join([*comments, *counted]))
    for notice in said:
        print(f"WARNING: {notice}")
    if lacks:
        print(f"WARNING: {lacks}")
    if not selection.closes:
        print("NOT ACCOUNTED FOR: this is not an evaluation of what was asked; finish the dataset, or give its tokens.")
    return 0 if selection.closes and selection.scored and not lacks else 1


def named(paths: Sequence[Path]) -> dict[str, Path]:
    """Names for checkpoints: ``stage_2``, or with folders before it (``sft_stage_2``) where two would have the same.

    Raises:
        ConfigError: the same file twice.
    """
    for depth in range(1, max((len(p.resolve().parts) for p in paths), default=2)):
        names = ["_".join([*p.resolve().parts[-depth:-1], p.stem]) for p in paths]
        if len(set(names)) == len(names):
            return dict(zip(names, paths, strict=True))
    raise ConfigError(f"policy: expected distinct files, got {', '.join(map(str, paths))}")


def _open(config: EvaluateConfig, policies: Mapping[str, Policy]) -> tuple[Dataset, tuple[str, ...]]:
    """The dataset, and those columns of the first policy's training that it has: they decide the split."""
    wanted = [t.column for p in [*policies.values()][:1] for t in p.config.aligned.values()]
    there = Volume(config.data)
    if not there.exists(layout.column_json(config.column)) and there.exists(layout.DATASET):
        raise AbsentError(
            f"{config.data}: no column {config.column!r} to score with; `python -m jobs.teachers` writes it, with the "
            "teacher pdm in its config (docs/reward.md)"
        )
    joined = tuple(c for c in dict.fromkeys(wanted) if there.exists(layout.column_json(c)))
    return Dataset(config.data, columns=dict.fromkeys([layout.SAMPLES, config.column, *joined])), joined


def _split_config(config: EvaluateConfig, policies: Mapping[str, Policy]) -> DataConfig:
    """How logs are held out: as asked, else as the first policy was trained."""
    trained = next((p.config.samples for p in policies.values()), DataConfig())
    return DataConfig(
        held_out=config.held_out if config.held_out is not None else trained.held_out,
        split_seed=config.split_seed if config.split_seed is not None else trained.split_seed,
        steps=POSES,
    )


if __name__ == "__main__":
    job_config.run(main)
