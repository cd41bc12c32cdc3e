"""Which scenes an evaluation is of, and what became of each: planned = scored + quarantined, or it does not close.

Quarantined scenes were given up when the dataset was written, with a reason; the devkit has no cache for most of them
either. A token that the dataset does not have, or has not committed yet, is not accounted for: the evaluation is then
not of what was asked, and the exit code says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from pipeline.reading.reader import Dataset
from pipeline.sources.scene_filter import SceneFilter
from reports.evaluation.two_stage import TwoStage
from shards_schema import layout
from shards_schema.errors import AbsentError, ConfigError, QuarantinedError
from trainer.data import DataConfig
from trainer.splits import logs_of, split_like, spread


@dataclass(frozen=True, slots=True)
class Left:
    """A scene that is not scored: `code` groups, `reason` is for a person; `known`: the dataset says why."""

    token: str
    code: str
    reason: str
    known: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """Tokens to score, in plan order, and those of the plan that cannot be.

    `training` are those to learn from; `two_stage` is the split that the tokens are of, where it has a second stage.
    """

    planned: tuple[str, ...]
    scored: tuple[str, ...]
    left: tuple[Left, ...]
    training: tuple[str, ...]
    two_stage: TwoStage | None = None

    @property
    def closes(self) -> bool:
        """planned = scored + quarantined."""
        return len(self.planned) == len(self.scored) + sum(item.known for item in self.left)


def select(
    dataset: Dataset,
    column: str,
    which: str | Path,
    data: DataConfig,
    joined: Sequence[str],
    limit: int | None,
    *,
    held_before: Set[str] = frozenset(),
) -> Selection:
    """The scenes of a split.

    Args:
        dataset: open with `samples`, the reward column and `joined`.
        column: of the reward.
        which: ``held_out``, ``all``, or a file of tokens (one a line, or a scene filter of NAVSIM in YAML).
        data: share and seed of the held-out logs.
        joined: the columns that the policy was trained on; the split into logs is made over the tokens in all of them,
            as in training, or it would be another split.
        limit: at most so many, spread evenly; None: all.
        held_before: tokens that the policy's training held out; where the dataset has their logs, those are held out,
            whatever has been added to it since. Empty: `data` decides.

    Raises:
        DatasetError: ``held_out`` of fewer than two logs. ConfigError: no such file, or no token in it.
    """
    log_of = logs_of(dataset)
    training: tuple[str, ...] = ()
    stages: TwoStage | None = None
    common = dataset.tokens(layout.SAMPLES, *joined)
    if which == "held_out" or len({log_of[t] for t in common}) > 1:
        training, held = split_like(dataset, common, held_before, data)
        held_logs = {log_of[t] for t in held}
    if which == "all":
        planned = tuple(log_of)
    elif which == "held_out":
        planned = tuple(t for t in log_of if log_of[t] in held_logs)
    else:
        planned, stages = read_tokens(Path(which))
    planned = spread(planned, limit)
    ready = frozenset(dataset.tokens(layout.SAMPLES, column))
    left = tuple(_left(dataset, column, t) for t in planned if t not in ready)
    return Selection(planned, tuple(t for t in planned if t in ready), left, training, stages)


def read_tokens(path: Path) -> tuple[tuple[str, ...], TwoStage | None]:
    """The tokens of a file, in its order, each once; of a two-stage split those of both stages, and the split.

    Raises:
        ConfigError: no such file, or none in it.
    """
    stages = None
    if path.suffix in (".yaml", ".yml"):
        wanted = SceneFilter.load(path)
        stages = TwoStage.of(wanted, path)
        tokens: Iterable[str] = (wanted.tokens or ()) if stages is None else (*stages.first, *stages.second)
    else:
        try:
            tokens = path.read_text(encoding="utf-8").split()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"split {path}: {error}; expected held_out, all, or a file of tokens or a scene filter"
            ) from error
    found = tuple(dict.fromkeys(tokens))
    if not found:
        raise ConfigError(f"split {path}: names no token")
    return found, stages


def _left(dataset: Dataset, column: str, token: str) -> Left:
    for name in (layout.SAMPLES, column):
        try:
            dataset.read(token, {name: None if name == column else ["json"]})
        except QuarantinedError as error:
            return Left(token, f"{name}: {error.code}", error.reason, known=True)
        except AbsentError as error:
            return Left(token, f"{name}: absent", str(error), known=False)
    raise AssertionError(f"{token} is in both columns")


def lines(selection: Selection) -> list[str]:
    """The accounting, for a terminal."""
    known = sum(item.known for item in selection.left)
    unknown = len(selection.left) - known
    out = [
        f"planned {len(selection.planned)} = scored {len(selection.scored)} + without context {known}"
        + (f" + NOT ACCOUNTED FOR {unknown}" if unknown else "")
    ]
    for (code, is_known), count in sorted(Counter((i.code, i.known) for i in selection.left).items()):
        example = next(i for i in selection.left if i.code == code and i.known == is_known)
        out.append(f"  {count} x {code}, e.g. {example.token}: {example.reason}")
    return out
