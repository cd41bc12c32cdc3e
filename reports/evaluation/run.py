"""An evaluation, from scenes to files: each scene answered once by each driver, and scored by each version."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from pipeline.reading.reader import Dataset
from pipeline.stores.disk import write_bytes, write_text
from reports.evaluation import page, remarks, report, two_stage
from reports.evaluation.accounting import Selection
from reports.evaluation.columns import SCORE_NAME
from reports.evaluation.config import EvaluateConfig
from reports.evaluation.drivers import Driver, checked, documents_of
from reports.evaluation.page import Evaluated
from reports.evaluation.results import Gathering
from reports.evaluation.two_stage import TwoStage, aggregate
from reports.tables import bytes_text
from scoring import Version, complete
from scoring.columns import REACTIVE_ARRAY
from scoring.idm import react
from shards_schema import layout
from trainer.baselines import Scenes
from trainer.data import DataConfig, ExampleMaker
from trainer.reward import POSES, Reward


def is_reactive(config: EvaluateConfig, dataset: Dataset, selection: Selection) -> bool:
    """Whether traffic answers to the ego."""
    if config.traffic != "auto":
        return config.traffic == "reactive"
    return selection.two_stage is not None and REACTIVE_ARRAY in dataset.specs(config.column)


def evaluate(
    config: EvaluateConfig,
    dataset: Dataset,
    selection: Selection,
    drivers: Sequence[Driver],
    device: torch.device,
    through: Callable[[Sequence[int]], Iterable[int]],
) -> list[tuple[Evaluated, Reward]]:
    """A result for each version, and what it was scored by; `through` is where the chunks are counted."""
    reactive = is_reactive(config, dataset, selection)
    rewards = {
        version: Reward(
            dataset,
            version=version,
            column=config.column,
            reactive=reactive and version == "v2",
            use_human_filter=config.use_human_filter,
            consistent=config.consistent,
            device=device,
            max_bytes=config.max_bytes,
            keep=config.chunk,
        )
        for version in config.versions
    }
    gathered = {v: [Gathering(d.name, v) for d in drivers] for v in rewards}
    maker, tokens = ExampleMaker(dataset, DataConfig(steps=POSES), {}), selection.scored
    synthetic: set[str] = set()
    frames: dict[str, tuple[str, int]] = {}
    for start in through(range(0, len(tokens), config.chunk)):
        some = tokens[start : start + config.chunk]
        documents = documents_of(dataset, some)
        frames |= {token: (d["log"], d["timestamp"]) for token, d in zip(some, documents, strict=True)}
        synthetic |= {token for token, d in zip(some, documents, strict=True) if "original" in d}
        scenes = Scenes.read(maker, documents)
        answers = [checked(driver.name, some, driver.answer(documents, scenes)) for driver in drivers]
        poses = torch.cat([a.poses for a in answers], 1)
        for version, reward in rewards.items():
            scored, at = reward.score(some, poses), 0
            for gathering, answer in zip(gathered[version], answers, strict=True):
                width = answer.poses.shape[1]
                gathering.add(answer, scored[:, at : at + width], scenes.future)
                at += width
    stages = selection.two_stage
    out = []
    for version, reward in rewards.items():
        mapped = stages.before if stages is not None else {}
        results = [gathering.finish(tokens, frames, mapped, synthetic) for gathering in gathered[version]]
        told = remarks.of_score(config, version, results, len(tokens), stages is not None, reactive)
        logs, times = zip(*(frames[token] for token in tokens), strict=True)
        out.append((Evaluated(version, config.split, config.data, tokens, logs, times, results, comments=told), reward))
    return out


def folder_of(config: EvaluateConfig, version: Version) -> Path:
    """Where the files of a version go."""
    return config.out if len(config.versions) == 1 else config.out / version


def leave(
    config: EvaluateConfig, evaluated: Evaluated, dataset: Dataset, reward: Reward, policies: Mapping[str, Path]
) -> None:
    """Print the table, write the files."""
    folder = folder_of(config, evaluated.version)
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
    for name, path in list(policies.items())[:1]:
        stored = dataset.columns[layout.SAMPLES].provenance
        write_text(folder / "agent.yaml", report.agent_yaml(name, path, stored["size"], stored["quality"]))
    print(f"scores.parquet, a csv a driver{', agent.yaml' if policies else ''}: {folder.resolve()}")


def leave_two_stage(
    config: EvaluateConfig, evaluated: Evaluated, stages: TwoStage, dataset: Dataset, *, reactive: bool
) -> None:
    """Print and write the two-stage score of each driver that answered everywhere."""
    tokens = evaluated.tokens
    poses = torch.tensor([d["ego"]["pose"] for d in documents_of(dataset, tokens)], dtype=torch.float64)
    folder = folder_of(config, evaluated.version)
    found = {}
    for result in evaluated.results:
        if result.name == "human" and not bool(result.parsed.all()):
            none = int((~result.parsed).sum())
            print(f"human: no two-stage score: in {none} synthetic scenes nobody drove on")
            continue
        found[result.name] = aggregate(stages, result, tokens, poses)
        path = folder / f"{result.name}.two_stage.{'reactive' if reactive else 'log_replay'}.csv"
        two_stage.write_csv(path, stages, result, found[result.name], tokens)
    print(f"\ntwo-stage EPDMS of {stages.file.stem}, {len(stages.groups)} mappings")
    print(f"{two_stage.summary(found)}\n{two_stage.traffic(reactive)}")
