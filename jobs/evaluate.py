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
from pathlib import Path
from typing import Any

import torch

from jobs import config as job_config
from jobs.progress import bar
from pipeline.reading.reader import Dataset
from pipeline.stores.volume import Volume
from reports.evaluation import accounting, page, report, two_stage_report
from reports.evaluation.accounting import Selection
from reports.evaluation.columns import COMFORT_BETWEEN_FRAMES, SCORE_NAME
from reports.evaluation.config import EvaluateConfig
from reports.evaluation.drivers import POSES, Driver, checked, documents_of, make_drivers
from reports.evaluation.results import DriverResult, Gathering, part_of
from reports.evaluation.two_stage import TwoStage, aggregate
from reports.outputs import write_bytes, write_text
from reports.tables import bytes_text
from scoring import Version, complete
from scoring.columns import REACTIVE_ARRAY
from scoring.idm import react
from shards_schema import layout
from shards_schema.errors import AbsentError, ConfigError
from trainer.baselines import Scenes
from trainer.build import Policy, load_policy
from trainer.data import DataConfig, ExampleMaker, notices
from trainer.reward import Reward
from trainer.splits import logs_of


def main(arguments: list[str]) -> int:
    """Run the job; returns the exit code."""
    config = job_config.load(EvaluateConfig, arguments)
    device = torch.device(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    policies = {name: load_policy(path) for name, path in named(config.policy).items()}
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
    said = _notices(dataset, policies)
    for notice in said:
        print(f"WARNING: {notice}")
    counted = accounting.lines(selection)
    print(f"{config.split} of {config.data}: {counted[0]}", flush=True)
    comments = _comments(config, policies, joined, dataset, selection.scored)
    stages = selection.two_stage
    lacks = None if stages is None else stages.lacks(selection.scored, config.data)
    if stages is not None and "v2" not in config.versions:
        lacks = "no two-stage score: it is made of EPDMS; give version=v2"
    if lacks:
        print(f"WARNING: {lacks}", flush=True)
    if selection.scored:
        drivers = make_drivers(config, dataset, data, selection.training, policies)
        for evaluated, reward in _evaluate(config, dataset, selection, drivers, device):
            of_version = evaluated.comments
            told = dataclasses.replace(evaluated, notices=said, accounting=counted, comments=(*comments, *of_version))
            _leave(config, told, dataset, reward, policies)
            print("\n".join(of_version))
            if stages is not None and lacks is None and evaluated.version == "v2":
                _leave_two_stage(config, told, stages, dataset, reactive=_reactive(config, dataset, selection))
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
    wanted = [t.column for p in [*policies.values()][:1] for t in p.config.targets.values()]
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


def _notices(dataset: Dataset, policies: Mapping[str, Policy]) -> tuple[str, ...]:
    """What has to be said of the data and of the checkpoints, each once."""
    every = [*notices(dataset, {}), *(n for p in policies.values() for n in p.notices)]
    return tuple(dict.fromkeys(every))


def _comments(
    config: EvaluateConfig,
    policies: Mapping[str, Policy],
    joined: Sequence[str],
    dataset: Dataset,
    scored: Sequence[str],
) -> tuple[str, ...]:
    """What a reader of the numbers must know of how they came about."""
    out = []
    log_of = logs_of(dataset)
    for name, policy in policies.items():
        held = {log_of[token] for token in policy.held_out if token in log_of}  # none: it is of other data, see below
        if config.split == "held_out" and held and not {log_of[token] for token in scored} <= held:
            out.append(f"NOTE: {name} was trained with another split: it may have learnt from these logs.")
        elif config.split != "held_out":
            out.append(f"NOTE: {name} may have learnt from some of these scenes: split={config.split}.")
        missing = {t.column for t in policy.config.targets.values()} - {*joined}
        if config.split == "held_out" and (
            missing or Path(policy.config.data).resolve() != Path(config.data).resolve()
        ):
            out.append(f"NOTE: {name} was trained on {policy.config.data}; the split is that of {dataset.url}.")
    if "ego_status_mlp" in config.baselines and config.split != "held_out":
        out.append("NOTE: ego_status_mlp was trained on a part of these logs.")
    if "best_of_n" in config.baselines:
        out.append(
            f"best_of_n: the best by the score itself of {config.samples} answers drawn at temperature "
            f"{config.temperature:g}: an upper bound of choosing among them, not a policy."
        )
    wanted = dataset.manifest.source.get("filter") or {}
    if wanted.get("include_synthetic_scenes") and Path(config.split).suffix not in (".yaml", ".yml"):
        out.append(
            "NOTE: the dataset is of a two-stage split of NAVSIM, and this is no score of that: give its "
            "train_test_split file as split (docs/evaluation.md)."
        )
    if "human" in config.baselines:
        out.append("human: what was driven; a reference that sees the future, not a policy.")
    return tuple(out)


def _evaluate(
    config: EvaluateConfig, dataset: Dataset, selection: Selection, drivers: Sequence[Driver], device: torch.device
) -> list[tuple[page.Evaluated, Reward]]:
    """Each scene answered once by each driver, and scored by each version."""
    options: dict[str, Any] = {
        "column": config.column,
        "use_human_filter": config.use_human_filter,
        "consistent": config.consistent,
        "device": device,
        "max_bytes": config.max_bytes,
        "keep": config.chunk,
    }
    reactive = _reactive(config, dataset, selection)
    rewards = {v: Reward(dataset, version=v, reactive=reactive and v == "v2", **options) for v in config.versions}
    gathered = {v: [Gathering(d.name, v) for d in drivers] for v in rewards}
    maker, tokens = ExampleMaker(dataset, DataConfig(steps=POSES), {}), selection.scored
    mapped = selection.two_stage.before if selection.two_stage is not None else {}
    synthetic: set[str] = set()
    logs: list[str] = []
    times: list[int] = []
    for start in bar(range(0, len(tokens), config.chunk), unit="chunk", needed=len(tokens) > config.chunk):
        some = tokens[start : start + config.chunk]
        documents = documents_of(dataset, some)
        logs += [d["log"] for d in documents]
        times += [d["timestamp"] for d in documents]
        synthetic |= {token for token, d in zip(some, documents, strict=True) if "original" in d}
        scenes = Scenes.read(maker, documents)
        answers = [checked(driver.name, some, driver.answer(documents, scenes)) for driver in drivers]
        poses = torch.cat([a.poses for a in answers], 1)
        for version, reward in rewards.items():
            scored, at = reward.score(some, poses), 0
            for gathering, answer in zip(gathered[version], answers, strict=True):
                width = answer.poses.shape[1]
                gathering.add(answer, part_of(scored, slice(at, at + width)), scenes.future)
                at += width
    frames = {t: (log, when) for t, log, when in zip(tokens, logs, times, strict=True)}
    out = []
    for version, reward in rewards.items():
        results = [gathering.finish(tokens, frames, mapped, synthetic) for gathering in gathered[version]]
        evaluated = page.Evaluated(
            version=version,
            split=config.split,
            data=config.data,
            tokens=tokens,
            logs=logs,
            timestamps=times,
            results=results,
            comments=_said_of(config, version, results, len(tokens), selection.two_stage is not None, reactive),
        )
        out.append((evaluated, reward))
    return out


def _reactive(config: EvaluateConfig, dataset: Dataset, selection: Selection) -> bool:
    """Whether traffic answers to the ego."""
    if config.traffic != "auto":
        return config.traffic == "reactive"
    return selection.two_stage is not None and REACTIVE_ARRAY in dataset.specs(config.column)


def _said_of(
    config: EvaluateConfig,
    version: Version,
    results: Sequence[DriverResult],
    scenes: int,
    stages: bool,
    reactive: bool,
) -> tuple[str, ...]:
    """What is in the number."""
    unparsed = [f"{r.name} {int((~r.parsed).sum())}" for r in results if not bool(r.parsed.all())]
    out = [f"answers that did not parse, scored 0: {', '.join(unparsed)} of {scenes}"] if unparsed else []
    if version == "v1":
        return (*out, "PDMS (NAVSIM 1.x): NC DAC (5 EP + 5 TTC + 2 C) / 12; DDC has no weight.")
    pairs = int((~results[0].subscores[COMFORT_BETWEEN_FRAMES].isnan()).sum())
    human = "on" if config.use_human_filter else "OFF"
    if reactive:
        out.append("traffic: reactive (IDM), as in NAVSIM's two-stage run.")
    if stages:
        return (
            *out,
            f"EPDMS (NAVSIM 2.x) of single scenes of both stages, human filter {human} (off in synthetic scenes, where "
            "no human drove): extended comfort is in the score of "
            f"{pairs} of {scenes}, those whose pair in the mapping is scored too. Their mean is no score of the split.",
        )
    return (
        *out,
        f"EPDMS (NAVSIM 2.x, one stage), human filter {human}: extended comfort is in the score of {pairs} of {scenes} "
        "scenes, those whose frame 0.5 s before is scored too (divisor 16); the others have none (divisor 14).",
    )


def _leave(
    config: EvaluateConfig,
    evaluated: page.Evaluated,
    dataset: Dataset,
    reward: Reward,
    policies: Mapping[str, Policy],
) -> None:
    """Print the table, write the files."""
    folder = config.out if len(config.versions) == 1 else config.out / evaluated.version
    tokens, version = evaluated.tokens, evaluated.version
    print(
        f"\n{SCORE_NAME[version]}, {len(tokens)} scenes\n{report.summary(evaluated.results, evaluated.logs, version)}"
    )
    report.write_parquet(folder / "scores.parquet", evaluated.results, tokens, evaluated.logs)
    for result in evaluated.results:
        report.write_csv(folder / f"{result.name}.csv", result, tokens, version)
    if config.worst:
        places = page.worst(evaluated, config.worst)
        contexts = reward.contexts([tokens[i] for i in places])
        if reward.reactive:  # the page then draws, and explains, the traffic that answered to the candidate
            states = evaluated.results[0].states.numpy()
            contexts = complete([react(context, states[i]) for context, i in zip(contexts, places, strict=True)])
        html = page.render(evaluated, places, dataset, contexts).encode("utf-8")
        write_bytes(folder / "worst.html", html)
        print(f"\nthe worst {len(places)} scenes ({bytes_text(len(html))}): {(folder / 'worst.html').resolve()}")
    if policies:
        name, path = next(iter(named(config.policy).items()))
        stored = dataset.columns[layout.SAMPLES].provenance
        write_text(folder / "agent.yaml", report.agent_yaml(name, path, stored["size"], stored["quality"]))
    print(f"scores.parquet, a csv a driver{', agent.yaml' if policies else ''}: {folder.resolve()}")


def _leave_two_stage(
    config: EvaluateConfig, evaluated: page.Evaluated, stages: TwoStage, dataset: Dataset, *, reactive: bool
) -> None:
    """Print and write the two-stage score of each driver that answered everywhere."""
    tokens = evaluated.tokens
    poses = torch.tensor([d["ego"]["pose"] for d in documents_of(dataset, tokens)], dtype=torch.float64)
    folder = config.out if len(config.versions) == 1 else config.out / evaluated.version
    found = {}
    for result in evaluated.results:
        if result.name == "human" and not bool(result.parsed.all()):
            none = int((~result.parsed).sum())
            print(f"human: no two-stage score: in {none} synthetic scenes nobody drove on")
            continue
        found[result.name] = aggregate(stages, result, tokens, poses)
        path = folder / f"{result.name}.two_stage.{'reactive' if reactive else 'log_replay'}.csv"
        two_stage_report.write_csv(path, stages, result, found[result.name], tokens)
    print(f"\ntwo-stage EPDMS of {stages.file.stem}, {len(stages.groups)} mappings")
    print(f"{two_stage_report.summary(found)}\n{two_stage_report.traffic(reactive)}")


if __name__ == "__main__":
    job_config.run(main)
