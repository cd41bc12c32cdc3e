"""What a run of GRPO came to: the policy before and after, beside the human and constant velocity."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.stores.decode import encode_jpeg
from pipeline.stores.disk import write_text
from questions import scoring
from questions.scoring import CategoryScore
from reports import questions
from reports.evaluation.columns import SHORT
from reports.intervals import Interval, clustered
from reports.tables import table
from shards_schema.errors import DatasetError, MismatchError
from shards_schema.inputs import documents
from trainer import checkpoint
from trainer.answered import Answered
from trainer.grpo import GRPO, POLICY
from trainer.grpo_config import GRPOConfig
from trainer.questions import QuestionReader
from trainer.resuming import FREE, refuse_other
from trainer.scored import Driven

NAMES = {"score": "PDMS", "sampled": "sampled", **SHORT, "ade_4": "ADE 4 s"}
"""What is shown, as papers call it; `sampled` is the mean score of sampled answers, the rest of the greedy one."""

RESULT, PAGE = "result.json", "questions.html"
DRAWN = 4
"""Units of each kind on the page."""
HUMAN, CONSTANT, BEFORE, AFTER = "human", "constant velocity", "before", "after"
HUMAN_AT_LEAST = 0.9
"""What the human should score, or the scorer or the data is wrong (NAVSIM's humans: 0.948)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to, on all held-out scenes and questions.

    Attributes:
        rows: ``human``, ``constant velocity``, ``before``, ``after``; none where questions were alone.
        logs: of each scene.
        notices: what has to be said of it.
        asked: ``before`` and ``after``; none without held-out questions, or where it is read again.
    """

    rows: Mapping[str, Driven]
    logs: Sequence[str]
    notices: Sequence[str]
    asked: Mapping[str, Answered] = field(default_factory=dict)

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


def write(config: GRPOConfig, outcome: Outcome, read: QuestionReader | None = None) -> None:
    """``result.json``: the recipe, means, and each scene's and each unit's numbers; of questions ``questions.html``."""
    asked = outcome.asked
    content: dict[str, Any] = {
        "recipe": config.model_dump(mode="json"),
        "notices": list(outcome.notices),
        "tokens": list(outcome.rows[AFTER].tokens) if outcome.rows else [],
        "logs": list(outcome.logs),
        "rows": {name: {"means": driven.means(), **driven.state()} for name, driven in outcome.rows.items()},
        "questions": {
            name: {"means": a.means(), **questions.document(a.units(), "official")} for name, a in asked.items()
        },
    }
    write_text(Path(config.out, RESULT), json.dumps(content))
    if asked and read is not None:
        said = {name: answered.outputs for name, answered in asked.items()}
        page = questions.examples(
            asked[AFTER].prompts, DRAWN, lambda p: encode_jpeg(read.picture(p), 90), outcome.notices, said
        )
        write_text(Path(config.out, PAGE), page)


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


def drives_text(outcome: Outcome) -> str:
    """The table, what changed, and whether human and constant velocity score as they should."""
    logs = len(set(outcome.logs))
    human, constant = (outcome.rows[k].means()["score"] for k in (HUMAN, CONSTANT))
    right = human >= HUMAN_AT_LEAST and constant < human - 0.1
    unparsed = outcome.rows[AFTER].means()["unparsed"]
    lines = [
        rows_table(outcome),
        f"\nscores x 100, ADE in metres; {len(outcome.logs)} scenes of {logs} held-out logs",
        "change, paired by scene, interval over logs:",
        *(f"  {NAMES[name]:8} {outcome.change(name)}" for name in outcome.shown if outcome.changed(name)),
        f"sanity: human {human:.3f} (>= {HUMAN_AT_LEAST}), constant velocity {constant:.3f} (far below): "
        + ("as it should be" if right else "WARNING: NOT as it should be"),
        *([f"WARNING: {unparsed:.1%} of the greedy answers did not parse; they score 0"] if unparsed else []),
    ]
    return "\n".join(lines)


def _cell(name: str, value: float) -> str:
    return f"{value:.3f}" if name.startswith("ade") else f"{100 * value:.2f}"


def asked_text(outcome: Outcome) -> str:
    """Held-out questions by kind, before and after, answered once and drawn; and which answers are none."""
    before, after = outcome.asked[BEFORE], outcome.asked[AFTER]
    parts = [(before.categories(drawn=drawn), after.categories(drawn=drawn)) for drawn in (False, True)]
    chance = scoring.overall(parts[0][1])[1]
    body = [
        [name, str(one.units), _share(one.chance), *(c for part in parts for c in _cells(*part, name))]
        for name, one in parts[0][1].items()
    ]
    units = len(after.units())
    body.append(["overall", str(units), _share(chance), *(c for part in parts for c in _cells(*part, None))])
    change = "change, 95 % over logs"
    head = ("held-out questions", "units", "chance", BEFORE, AFTER, change, "drawn before", "drawn after", change)
    said = "after: " + questions.accounted(scoring.accounts(after.units(), after.outputs), 0).strip()
    return f"{table(head, body)}\n\n{said}\ncut by questions.length: {sum(before.cut)} before, {sum(after.cut)} after"


def _cells(
    before: Mapping[str, CategoryScore], after: Mapping[str, CategoryScore], name: str | None
) -> tuple[str, str, str]:
    """Two scores and their change, paired by unit, of a category or (None) of the mean over categories."""
    pair = (before, after) if name is None else ({name: before[name]}, {name: after[name]}) if before else ({}, {})
    (old, groups), (new, _) = (scoring.influence(part) for part in pair)
    change = clustered([n - o for n, o in zip(new, old, strict=True)], groups)
    scores = [_share(scoring.overall(part)[0]) for part in pair]
    return scores[0], scores[1], "-" if change is None else change.text(1, 3)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
