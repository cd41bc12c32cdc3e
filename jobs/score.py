"""`python -m jobs.score --metric-cache DIR | --data DATASET --trajectories FILE.json --version v1|v2 [--out FILE.json]`

NAVSIM scores of trajectories outside any training, without the devkit. What they are scored against comes from the
devkit's metric caches or from the reward column of a dataset. The input is ``{token: {name: poses}}``, poses being
``[[x, y, heading] x 8]`` at 0.5 s relative to the rear axle now, or ``{token: {"rows": {name: {"poses": ...}}}}``.
Prints means by name; ``--out`` gets ``{token: {name: row}}``. A row of v1 is its sub-scores and `score`; one of v2 is
``{"nofilter": ..., "filtered": ...}``, the human filter off and on, each with its sub-scores, their product, and:

- `pdm_score`: without extended comfort, and under ``filtered`` still that of the unfiltered sub-scores, as the devkit
  exports it (``--consistent`` recomputes it);
- `score`: EPDMS from the row's own sub-scores. With ``--extended-comfort`` it includes extended comfort wherever the
  frame at most 0.55 s before, of the same log, has a trajectory of the same name. A follow-up of a two-stage split is
  no frame of its log: ``--mapping`` gives the devkit's train_test_split file, which says what is before it; without it
  a follow-up has no extended comfort.

Anything that cannot be scored stops the job with the token and the file, before a number is printed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from jobs import config as job_config
from pipeline.stores.places import outside
from reports.evaluation import trajectories
from reports.evaluation.accounting import read_tokens
from reports.evaluation.frames import comfort_between_frames
from reports.evaluation.sources import Caches, Column, ContextSource
from shards_schema.errors import ConfigError, SampleError
from shards_schema.inputs.places import local_place


def _place(check: Callable[[str], object]) -> Callable[[str], Path]:
    """A path of the command line that passes a check."""

    def path(text: str) -> Path:
        try:
            return Path(str(check(text)))
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return path


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.score",
        description="Score trajectories as NAVSIM does (PDMS v1, EPDMS v2), without its devkit.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--metric-cache", type=_place(local_place), help="directory of the devkit's metric caches")
    source.add_argument("--data", help="dataset with a reward column (a path or URL)")
    parser.add_argument("--column", default="pdm", help="name of that column")
    parser.add_argument(
        "--trajectories", type=_place(local_place), required=True, help="JSON: {token: {name: 8 x [x, y, heading]}}"
    )
    parser.add_argument("--version", choices=("v1", "v2"), required=True, help="v1: PDMS; v2: EPDMS")
    parser.add_argument("--out", type=_place(lambda text: outside(local_place(text))), help="JSON of every row")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--extended-comfort", action="store_true", help="v2: with the frame before, where it is scored too"
    )
    parser.add_argument("--mapping", type=Path, help="with it: a two-stage train_test_split file, for follow-ups")
    parser.add_argument("--consistent", action="store_true", help="v2: recompute pdm_score after the human filter")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Score a file of trajectories; returns the exit code."""
    options = parse(arguments)
    if options.out is not None and not options.out.parent.is_dir():
        raise ConfigError(f"--out {options.out}: there is no directory {options.out.parent}")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {options.device}: torch sees no CUDA device here; use cpu")
    wanted = trajectories.read_trajectories(options.trajectories)
    mapped: Mapping[str, str] = {}
    if options.mapping is not None:
        stages = read_tokens(options.mapping)[1]
        if stages is None or not stages.groups:
            raise ConfigError(
                f"--mapping {options.mapping}: a two-stage train_test_split file has reactive_all_mapping"
            )
        mapped = stages.before
    source: ContextSource = (
        Column(options.data, options.version, options.column)
        if options.data
        else Caches(options.metric_cache, options.version)
    )
    without = {t: why for t in wanted if (why := source.missing(t)) is not None}
    if without:
        token, why = next(iter(without.items()))
        raise SampleError(
            "unknown_token",
            f"{options.trajectories}: token {token} {why} ({len(without)} of {len(wanted)} tokens have none)",
        )
    scored = trajectories.score_all(
        source, wanted, options.version, consistent=options.consistent, device=torch.device(options.device)
    )
    comfort = None
    if options.extended_comfort and options.version == "v2":
        states, synthetic = scored.result.states, scored.synthetic
        comfort = comfort_between_frames(scored.keys, states, scored.frames, mapped=mapped, synthetic=synthetic)
    if scored.synthetic:
        print(
            f"NOTE: {len(scored.synthetic)} scenes are follow-ups. Traffic is replayed from the log here; NAVSIM's "
            "two-stage run has reactive traffic, and so has jobs.evaluate (traffic=reactive)"
        )
    if comfort is not None and (lone := scored.synthetic - {*mapped, *mapped.values()}):
        print(f"NOTE: {len(lone)} follow-ups have no extended comfort: --mapping FILE says which frame is before which")
    groups = trajectories.columns(scored.result, comfort)
    if options.out is not None:
        trajectories.write_rows(options.out, scored.keys, groups)
    print(trajectories.means(scored.keys, groups))
    return 0


if __name__ == "__main__":
    job_config.run(main)
