"""Ways to think before driving, side by side: what each of them reaches, and what an answer of it costs.

    answers directly      no latents, no thought
    thinks in text        a chain of facts, written by the policy (`trainer.thoughts`); no latents
    latents alone         latents that no teacher teaches
    latents and teachers  the recipe
    without questions     the recipe, trained on drives only (where the recipe has questions)

All are trained with one student, on the same samples, for as many steps. An arm's numbers are of the policy that its
run left.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.stores.disk import write_text
from questions import scoring
from questions.outputs import Key, Output
from questions.scoring import UnitScore
from questions.units import Prompt, read_units
from reports import controls
from reports import questions as tables
from reports.intervals import Interval, clustered, over
from reports.tables import table
from shards_schema.errors import ConfigError
from trainer.asked import WAYS, WayName, ask
from trainer.batch import Batch
from trainer.build import Policy, load_policy
from trainer.config import SFTConfig
from trainer.questions import QuestionReader
from trainer.reward import Reward
from trainer.scored import Driven, policy_scores
from trainer.segments import allow_table
from trainer.sft import SFT
from trainer.splits import logs_of
from trainer.thoughts import facts_said

DIRECT, TEXT, ALONE, TEACHERS, DRIVES = (
    "answers directly",
    "thinks in text",
    "latents alone",
    "latents and teachers",
    "without questions",
)
TIMED = 32
"""Scenes whose answers are timed, one by one, at most."""
BATCH = 16
"""Questions that are asked at once."""


def _without_latents(thought: str) -> Callable[[SFTConfig], dict[str, Any]]:
    def changes(recipe: SFTConfig) -> dict[str, Any]:
        last = recipe.stages[-1]
        return {"thought": thought, "stages": (last.model_copy(update={"steps": recipe.total_steps}),)}

    return changes


def _without_teachers(recipe: SFTConfig) -> dict[str, Any]:
    stages = []
    for stage in recipe.stages:
        weights = stage.loss_weights.model_copy(update={"wm": 0.0, "geo": 0.0})
        stages.append(stage.model_copy(update={"weights": weights}))
    return {"stages": tuple(stages)}


def arms(recipe: SFTConfig) -> dict[str, Callable[[SFTConfig], dict[str, Any]]]:
    """Name -> what it changes in the recipe."""
    out: dict[str, Callable[[SFTConfig], dict[str, Any]]] = {
        DIRECT: _without_latents("none"),
        TEXT: _without_latents("text"),
        ALONE: _without_teachers,
        TEACHERS: lambda recipe: {},
    }
    return out if recipe.questions is None else {**out, DRIVES: lambda recipe: {"questions": None}}


@dataclass(frozen=True)
class Measured:
    """What one policy came to.

    Attributes:
        driven: held-out scenes.
        asked: way of asking -> scores of the same units; empty where nothing was asked.
        cost: ``tokens`` (positions that go through the network), ``passes`` and ``ms`` of an answer, one scene at once.
        facts: share of the true facts that its own thoughts had; None where it does not think in text.
    """

    driven: Driven
    asked: Mapping[WayName, Sequence[UnitScore]]
    cost: Mapping[str, float]
    facts: float | None

    def numbers(self) -> dict[str, float]:
        """Every mean, by name."""
        out = {**self.driven.means(), **self.cost, **({} if self.facts is None else {"facts": self.facts})}
        for way, units in self.asked.items():
            score = scoring.overall(scoring.by_category(units, "official"))[0]
            out |= {} if score is None else {f"asked/{way}": score}
        return out


Found = Mapping[str, Mapping[int, Measured]]
"""Arm -> seed -> what it came to."""


class Comparison:
    """The arms of a recipe as they are measured, one run after another.

    Args:
        recipe: whose `out` gets ``paradigms.json``, with every scene and every unit.
        units: file of the questions that are asked, where a policy trains on questions; None: none are.

    Raises:
        ConfigError: units, and a recipe without questions.
        AbsentError: the dataset has no reward column.
    """

    def __init__(self, recipe: SFTConfig, units: Path | None) -> None:
        if units is not None and recipe.questions is None:
            raise ConfigError("units: no policy of this recipe trains on questions; give questions.units=FILE too")
        self._recipe, self._reward = recipe, Reward(recipe.data)
        self._questions = [] if units is None else read_units(units)
        self._found: dict[str, dict[int, Measured]] = {}
        self._logs: dict[str, str] = {}

    def measured(self, arm: str, seed: int, run: SFT) -> dict[str, float]:
        """The numbers of a run that has ended."""
        policy = load_policy(Path(run.config.out) / f"stage_{len(run.config.stages)}.pt")
        policy.student.to(run.device)
        read = QuestionReader(run.dataset, run.config.samples)
        asked = [] if run.config.questions is None else [p for p in self._questions if read.why_not(p) is None]
        found = measure(policy, run.held_batches(), self._reward, asked, read)
        self._found.setdefault(arm, {})[seed] = found
        self._logs = logs_of(run.dataset)
        write_text(Path(self._recipe.out) / "paradigms.json", _state(self._found))
        return found.numbers()

    def text(self) -> str:
        """See `text`."""
        return text(self._found, self._logs)


def measure(
    policy: Policy, held: Sequence[Batch], reward: Reward, questions: Sequence[Prompt], read: QuestionReader
) -> Measured:
    """Drive held-out scenes, ask held-out questions, and count.

    Args:
        policy: of the end of a run, on its device.
        held: held-out batches with their true thoughts, if the policy thinks.
        reward: scores them.
        questions: to ask, each of which can be asked; none where the policy was not trained on questions.
        read: makes examples of them.
    """
    student = policy.student
    device = next(student.parameters()).device
    table = allow_table(policy.table_stage, device)
    driven = policy_scores(student, held, reward, table, device)
    latents = sum(student.latents.counts.values()) > 0
    ways: list[WayName] = [*WAYS] if latents else ["stage_2", "hidden"]
    said: dict[WayName, dict[Key, Output]] = {way: {} for way in ways}
    for i in range(0, len(questions), BATCH):
        some = questions[i : i + BATCH]
        for way, texts in ask(policy, some, read, ways, choosing="likeliest").items():
            said[way] |= {(p.unit, p.side): Output(text) for p, text in zip(some, texts, strict=True)}
    asked = {way: scoring.score_units(questions, outputs, "official") for way, outputs in said.items()}
    return Measured(driven, asked if questions else {}, _cost(policy, held), _facts(policy, held))


def _cost(policy: Policy, held: Sequence[Batch]) -> dict[str, float]:
    """Of answers to single scenes; each is asked once before it is timed."""
    student = policy.student
    device = next(student.parameters()).device
    table, positions = allow_table(policy.table_stage, device), list[int]()
    batch = held[0]
    singles = [student.prepare(batch[i : i + 1]).to(device) for i in range(min(TIMED, len(batch)))]
    student.answer(singles[0], table)
    hook = student.blocks[0].register_forward_pre_hook(lambda _m, args: positions.append(args[0].shape[1]))
    began = time.perf_counter()
    for one in singles:
        student.answer(one, table)[0].cpu()  # waits for the device
    seconds = time.perf_counter() - began
    hook.remove()
    count = len(singles)
    return {"tokens": sum(positions) / count, "passes": len(positions) / count, "ms": 1000 * seconds / count}


def _facts(policy: Policy, held: Sequence[Batch]) -> float | None:
    student = policy.student
    if not student.thinks or student.words is None:
        return None
    device = next(student.parameters()).device
    right = every = 0
    for batch in held:
        ready = student.prepare(batch).to(device)
        thought = student.sample(ready, allow_table(policy.table_stage, device), temperature=0).thought
        assert thought is not None
        for said, true in zip(student.words.decode(thought), batch.thoughts, strict=True):
            some, all_of_them = facts_said(said, true)
            right, every = right + some, every + all_of_them
    return right / every


COLUMNS = {
    "ade_4": "ADE 4 s",
    "fde_4": "FDE 4 s",
    "score": "PDMS",
    "asked/stage_2": "questions",
    "asked/hidden": "hidden",
    "facts": "facts",
    "tokens": "tokens",
    "passes": "passes",
    "ms": "ms",
}
"""Of the table; PDMS is v1's, 0 to 1."""


def text(found: Found, logs: Mapping[str, str]) -> str:
    """The table; differences to the arm that answers directly, over seeds and over logs; and the questions by kind.

    Args:
        found: of at least one seed each.
        logs: token -> log.
    """
    numbers = {arm: {seed: m.numbers() for seed, m in seeds.items()} for arm, seeds in found.items()}
    shown = [c for c in COLUMNS if any(c in row for rows in numbers.values() for row in rows.values())]
    body = [
        [arm, *(controls.spread([row[c] for row in rows.values() if c in row]) for c in shown)]
        for arm, rows in numbers.items()
    ]
    seeds = sorted({seed for rows in numbers.values() for seed in rows})
    parts = [
        table(["held out", *(COLUMNS[c] for c in shown)], body),
        f"mean +- standard deviation over seeds {seeds}; ms an answer, one scene at once, {torch.get_num_threads()} "
        f"threads, load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores when this was written",
    ]
    pairs = [(DIRECT, arm) for arm in found if arm not in (DIRECT, DRIVES)] + [(ALONE, TEACHERS), (DRIVES, TEACHERS)]
    parts += [
        _difference(name, found[first], found[second], first, second, logs)
        for first, second in pairs
        if first in found and second in found
        for name in ("ade_4", "fde_4", "score")
    ]
    for arm, measured in found.items():
        ways = next(iter(measured.values())).asked if measured else ()
        pooled: dict[str, list[UnitScore]] = {
            way: [unit for m in measured.values() for unit in m.asked[way]] for way in ways
        }
        if pooled:
            parts += [f"{arm}, asked; all seeds, 95 % by whole logs", tables.ways(pooled, "official")]
            parts += _apart(pooled)
    return "\n\n".join(parts)


def _difference(
    name: str, first: Mapping[int, Measured], second: Mapping[int, Measured], a: str, b: str, logs: Mapping[str, str]
) -> str:
    """`second` less `first`, paired by seed and scene."""
    seeds = sorted(first.keys() & second.keys())
    each = [second[s].driven.values(name) - first[s].driven.values(name) for s in seeds]
    if not each:
        return f"{b} less {a}, {COLUMNS[name]}: no seed has both"
    scenes = torch.stack(each).nanmean(0)
    there = (~scenes.isnan()).tolist()
    tokens = [t for t, known in zip(first[seeds[0]].driven.tokens, there, strict=True) if known]
    by_log = clustered(scenes[~scenes.isnan()].tolist(), [logs[t] for t in tokens])
    by_seed = over([e.nanmean().item() for e in each if not e.isnan().all()])
    return f"{b} less {a}, {COLUMNS[name]}: {_ends(by_seed)} over {len(each)} seeds, {_ends(by_log)} over logs"


def _ends(found: Interval | None) -> str:
    return "nothing" if found is None else found.text(1.0, 3)


def _apart(pooled: Mapping[str, Sequence[UnitScore]]) -> list[str]:
    """What an answer loses without latents and without the picture: the same units, paired."""
    out = []
    for way, less in (("stage_1", "stage_1_zeroed"), ("stage_2", "stage_2_zeroed"), ("stage_2", "hidden")):
        if way not in pooled or less not in pooled:
            continue
        full, without = (scoring.by_category(pooled[w], "official") for w in (way, less))
        values, groups = scoring.influence(full)
        others, _ = scoring.influence(without)
        found = clustered([v - o for v, o in zip(values, others, strict=True)], groups)
        out.append(f"{way} less {less}: {_ends(found)} over logs")
    return out


def _state(found: Found) -> str:
    return json.dumps(
        {
            arm: {
                seed: {
                    "numbers": {k: v for k, v in m.numbers().items() if math.isfinite(v)},
                    "tokens": list(m.driven.tokens),
                    "driven": m.driven.state(),
                    "asked": {way: [(u.prompts[0].unit, u.score) for u in units] for way, units in m.asked.items()},
                }
                for seed, m in seeds.items()
            }
            for arm, seeds in found.items()
        }
    )
