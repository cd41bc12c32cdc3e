"""What a run of GRPO came to: the policy before and after, beside the human and constant velocity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.stores.disk import write_text
from reports.evaluation.columns import SHORT
from reports.intervals import Interval, clustered
from reports.tables import table
from shards_schema.errors import DatasetError, MismatchError
from shards_schema.inputs import documents
from trainer import checkpoint
from trainer.grpo import GRPO, POLICY
from trainer.grpo_config import GRPOConfig
from trainer.resuming import FREE, refuse_other
from trainer.scored import Driven

NAMES = {"score": "PDMS", "sampled": "sampled", **SHORT, "ade_4": "ADE 4 s"}
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


def write(config: GRPOConfig, outcome: Outcome) -> None:
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
