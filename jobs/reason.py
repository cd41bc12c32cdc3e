"""`python -m jobs.reason policy=FILE units=FILE data=DATASET out=DIR [key=value ...]`: what a policy knows, asked.

Asks a policy the questions of a unit file in five ways: under the mask of stage 1, where the answer sees the latents
and not the picture, under that of stage 2, under both with the latents at zero, and with the pictures hidden. Leaves
in `out` what it said (``<way>.jsonl``, which `jobs.questions score` reads), ``scores.json``, and ``examples.html``,
some of each kind drawn with the answers. Exit code: 0; 1 where nothing could be asked, 2 when the config cannot be.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
from pydantic import Field

from jobs import config as job_config
from pipeline.reading.reader import Dataset
from pipeline.stores.decode import encode_jpeg
from pipeline.stores.disk import open_folder, write_text
from pipeline.stores.places import LocalPath, OutPath, Place
from questions import scoring
from questions.answers import Fixed, Rules
from questions.outputs import Key, Output
from questions.units import Prompt, read_units, units_of
from reports import questions as tables
from reports.progress import bar
from shards_schema import layout
from shards_schema.errors import ConfigError, SampleError
from shards_schema.inputs.models import StrictModel
from trainer.asked import WAYS, Choosing, WayName, ask
from trainer.build import Policy, load_policy
from trainer.questions import QuestionReader
from trainer.splits import spread


class ReasonConfig(StrictModel):
    """Who is asked what."""

    policy: LocalPath
    """A policy file that a run left (``stage_2.pt``)."""
    units: LocalPath
    """The unit file."""
    out: OutPath
    """Folder of what is written."""
    data: Place | None = None
    """The dataset that the units were made of."""
    surds: LocalPath | None = None
    """The folder of SURDS, for its units."""
    ways: tuple[WayName, ...] = Field(default=tuple(WAYS), min_length=1)
    """Which masks; ``_zeroed``: the latents' states are zero; hidden: stage 2, every pixel grey."""
    choosing: Choosing = "said"
    """said: what the policy writes counts; likeliest: of a choice the option that it finds likeliest."""
    rules: Rules = "official"
    """Whose scoring: official (SURDS' evaluator) or xiaomi (that of XEmbodied)."""
    coordinates: Fixed = "pixels"
    """Of the policy's points: pixels of the image, unit (0..1), thousand (0..1000)."""
    length: int = Field(default=256, ge=1)
    """Tokens that are written at most; an answer that is cut is none."""
    batch_size: int = Field(default=16, ge=1)
    """Questions at once."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many units, spread evenly; null: all."""
    drawn: int = Field(default=4, ge=0, le=10_000)
    """Units of each kind on the page; 0 is no page."""
    device: str | None = None
    """cpu, cuda; null: cuda where there is one."""


def main(arguments: list[str]) -> int:
    """Run the job; returns the exit code."""
    config = job_config.load(ReasonConfig, arguments)
    if (config.data is None) == (config.surds is None):
        raise ConfigError("give one of data=DATASET and surds=DIR: where the images of the units are")
    open_folder(config.out)
    policy = load_policy(config.policy)
    policy.student.to(config.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dataset = None if config.data is None else Dataset(config.data, columns=[layout.SAMPLES])
    read = QuestionReader(dataset, policy.config.samples, surds=config.surds)
    some = spread((*units_of(read_units(config.units)).values(),), config.limit)
    prompts = [p for sides in some for p in sides if p.left_out is None]
    said = _asked(config, policy, prompts, read)
    for way, outputs in said.items():
        rows = [_row(p, outputs[p.unit, p.side]) for p in prompts]
        write_text(config.out / f"{way}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    outputs = said[config.ways[0]]
    asked = [p for p in prompts if outputs[p.unit, p.side].text is not None]
    notices = [*policy.notices, *_trained_on(policy, asked)]
    found = {way: scoring.score_units(asked, its, config.rules, config.coordinates) for way, its in said.items()}
    document = {way: tables.document(scored, config.rules) for way, scored in found.items()}
    write_text(config.out / "scores.json", json.dumps(document, indent=1))
    if config.drawn and asked:
        drawn = tables.examples(asked, config.drawn, lambda p: encode_jpeg(read.picture(p), 90), notices, said)
        write_text(config.out / "examples.html", drawn)
    for notice in notices:
        print(f"NOTE: {notice}")
    if asked:
        print(f"\nrules: {config.rules}, coordinates: {config.coordinates}, what counts: {config.choosing}\n")
        print(tables.ways(found, config.rules))
    every = scoring.score_units(prompts, outputs, config.rules, config.coordinates)
    print(tables.accounted(scoring.accounts(every, outputs), len(some) - len(every)))
    page = ", examples.html" * bool(config.drawn and asked)
    print(f"\n{config.out.resolve()}: {', '.join(f'{way}.jsonl' for way in said)}, scores.json{page}")
    return 0 if asked else 1


def _asked(
    config: ReasonConfig, policy: Policy, prompts: Sequence[Prompt], read: QuestionReader
) -> dict[str, dict[Key, Output]]:
    """Way -> what was said to each prompt, or why nothing was."""
    none: dict[Key, Output] = {
        (p.unit, p.side): Output(None, why) for p in prompts if (why := read.why_not(p)) is not None
    }
    said: dict[str, dict[Key, Output]] = {way: dict(none) for way in config.ways}
    usable = [p for p in prompts if (p.unit, p.side) not in none]
    for i in bar(range(0, len(usable), config.batch_size), unit="batch"):
        some = usable[i : i + config.batch_size]
        for way, found in _answers(config, policy, some, read).items():
            said[way] |= {(p.unit, p.side): output for p, output in zip(some, found, strict=True)}
    return said


def _answers(
    config: ReasonConfig, policy: Policy, some: Sequence[Prompt], read: QuestionReader
) -> dict[WayName, list[Output]]:
    """Of one batch; a picture that cannot be decoded costs its own question alone."""
    try:
        answers = ask(policy, some, read, config.ways, choosing=config.choosing, length=config.length)
    except SampleError as error:
        if len(some) == 1:
            return {way: [Output(None, error.code)] for way in config.ways}
        alone = [_answers(config, policy, [prompt], read) for prompt in some]
        return {way: [output for answer in alone for output in answer[way]] for way in config.ways}
    return {way: [*map(Output, texts)] for way, texts in answers.items()}


def _row(prompt: Prompt, output: Output) -> dict[str, object]:
    row: dict[str, object] = {"unit": prompt.unit, "side": prompt.side, "output": output.text}
    return row if output.text is not None else {**row, "reason": output.reason}


def _trained_on(policy: Policy, prompts: Sequence[Prompt]) -> list[str]:
    """What has to be said where a unit is of a scene that the policy learnt from."""
    held = frozenset(policy.held_out)
    seen = {p.unit for p in prompts if p.log is not None and p.token not in held}
    return [f"{len(seen)} units are of scenes that this policy did not hold out: it may know them."] if seen else []


if __name__ == "__main__":
    job_config.run(main)
