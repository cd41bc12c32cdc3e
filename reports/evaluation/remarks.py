"""What a reader of an evaluation's numbers must know of how they came about, a sentence each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.reading.reader import Dataset
from reports.evaluation.columns import COMFORT_BETWEEN_FRAMES
from reports.evaluation.config import EvaluateConfig
from reports.evaluation.results import DriverResult
from scoring import Version
from trainer.build import Policy
from trainer.splits import logs_of


def of_drivers(
    config: EvaluateConfig,
    policies: Mapping[str, Policy],
    joined: Sequence[str],
    dataset: Dataset,
    scored: Sequence[str],
) -> tuple[str, ...]:
    """Of who drove, and on what: `joined` are the columns that decide the split, `scored` the tokens."""
    out = []
    log_of = logs_of(dataset)
    for name, policy in policies.items():
        held = {log_of[token] for token in policy.held_out if token in log_of}  # none: it is of other data, see below
        if config.split == "held_out" and held and not {log_of[token] for token in scored} <= held:
            out.append(f"NOTE: {name} was trained with another split: it may have learnt from these logs.")
        elif config.split != "held_out":
            out.append(f"NOTE: {name} may have learnt from some of these scenes: split={config.split}.")
        missing = {t.column for t in policy.config.aligned.values()} - {*joined}
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


def of_score(
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
