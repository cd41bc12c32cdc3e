"""`python -m jobs.questions score|import|make|export key=value ...`: questions about pictures.

    python -m jobs.questions import surds=DIR split=validation out=units.jsonl [official=DIR_OF_QA_FILES]
    python -m jobs.questions make data=DATASET out=DIR [rules.style=fair|official]
    python -m jobs.questions export units=FILE data=DATASET to=FILE use=train [format=ms-swift]
    python -m jobs.questions score units=units.jsonl outputs=FILE_OR_DIR rules=official coordinates=pixels

`import` makes SURDS' units from the user's own copy, `make` units of the same kinds from the labels of a dataset.
`export` writes them as rows of another trainer's. `score` scores the outputs of any model by the rules of SURDS or of
Xiaomi (docs/questions.md). Exit code: 0; 1 where a prompt has no output and nobody says why, or a file is at fault; 2
(config).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from exports.questions import ExportConfig, export
from exports.units import MakeConfig, make
from jobs import config as job_config
from jobs import usage
from pipeline.stores.decode import Side
from pipeline.stores.disk import write_text
from pipeline.stores.places import LocalPath, OutPath, apart
from questions import scoring
from questions.answers import RULES, Coordinates, Rules
from questions.outputs import NO_OUTPUT, Key, Output, read_outputs, unanswered
from questions.scoring import UnitScore
from questions.surds import METADATA, Split, make_units, read_images, with_official
from questions.units import read_units, units_of, units_text
from reports import questions as tables
from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel


class ScoreConfig(StrictModel):
    """What to score, and how."""

    units: LocalPath
    """The unit file that was asked."""
    outputs: LocalPath
    """What a model said: a file, or a folder of files."""
    rules: Literal["official", "xiaomi", "both"]
    """official (SURDS' evaluator), xiaomi (that of XEmbodied), or both: a table each, not to be mixed."""
    coordinates: Coordinates
    """Of the model's points: pixels of the image, unit (0..1), thousand (0..1000), or model_input."""
    blind: LocalPath | None = None
    """What the same model said without the pictures (grey ones): a column beside its score."""
    input_size: tuple[Side, Side] | None = None
    """Width and height of the image that the processor made, for model_input."""
    ambiguous: Literal["drop", "keep"] = "drop"
    """Drop or keep units whose objects cannot be told apart by their descriptions; the official score has them."""
    out: OutPath | None = None
    """JSON of every unit's score; null is none."""


class ImportConfig(StrictModel):
    """What to import."""

    surds: LocalPath
    """The folder of SURDS, which holds `split`/metadata.jsonl."""
    split: Split
    """train or validation; nothing is trained on the latter."""
    out: OutPath
    """The unit file."""
    official: LocalPath | None = None
    """A folder with SURDS' own question files; they are held against ours, and give the prompts' words."""
    order: Literal["file", "name"] = "file"
    """Of the images: that of the file, or by name."""


def score(config: ScoreConfig) -> int:
    """Score outputs; returns the exit code."""
    apart(config.out, config.units, config.outputs, config.blind)
    every = read_units(config.units)
    asked = [p for p in every if p.left_out is None or config.ambiguous == "keep"]
    keys = {(p.unit, p.side) for p in asked}

    def outputs_of(path: Path) -> dict[Key, Output]:
        return {key: output for key, output in read_outputs(path, every).items() if key in keys}

    said = {path: outputs_of(path) for path in (config.outputs, config.blind) if path is not None}
    outputs = said[config.outputs]

    def scored(outputs: Mapping[Key, Output], rules: Rules) -> list[UnitScore]:
        return scoring.score_units(asked, outputs, rules, config.coordinates, config.input_size)

    document: dict[str, Any] = {}
    for rules in RULES if config.rules == "both" else (config.rules,):
        units = scored(outputs, rules)
        print(f"\n{', '.join(sorted({f'{p.benchmark} {p.split}' for p in every}))}: {len(units)} units")
        print(f"rules: {rules}, coordinates: {config.coordinates}\n")
        print(tables.scores(units, rules, scored(said[config.blind], rules) if config.blind else ()))
        accounts = scoring.accounts(units, outputs)
        print(tables.accounted(accounts, len(units_of(every)) - len(units)))
        document[rules] = tables.document(units, rules)
    if config.out is not None:
        write_text(config.out, json.dumps(document, indent=1))
    missing = {path: sum(why == NO_OUTPUT for _, why in unanswered(asked, found)) for path, found in said.items()}
    for path in filter(missing.__getitem__, missing):
        print(f"NOT ACCOUNTED FOR: {missing[path]} prompts have no row in {path} that says why they have no output.")
    return int(any(missing.values()) or not accounts.scored)


def import_(config: ImportConfig) -> int:
    """Make SURDS' units from a copy of it; returns the exit code."""
    apart(config.out, config.surds / config.split / METADATA)
    images = read_images(config.surds, config.split)
    if config.order == "name":
        images.sort(key=lambda image: image.file_name)
    prompts = make_units(images, config.split, str(config.surds / config.split))
    if config.official is not None:
        prompts = with_official(prompts, config.official)
    write_text(config.out, units_text(prompts))
    print(tables.made(prompts))
    if config.official is None:
        print("NOTE: the prompts' wording is ours; official=DIR takes that of SURDS' own question files.")
    else:
        print(f"every image, option and answer is that of {config.official}, whose prompts are used")
    if config.split == "validation":
        print("NOTE: these units are for evaluation; nothing trains on them.")
    print(f"{config.out.resolve()}: {len(prompts)} prompts of {len(images)} images")
    return 0


def main(arguments: list[str]) -> int:
    """Run a command; returns the exit code."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command == "score":
        return score(job_config.load(ScoreConfig, rest))
    if command == "import":
        return import_(job_config.load(ImportConfig, rest))
    if command == "make":
        return make(job_config.load(MakeConfig, rest))
    if command == "export":
        return export(job_config.load(ExportConfig, rest))
    if usage.asks_help(arguments):
        raise job_config.HelpAskedError(ScoreConfig, ImportConfig, MakeConfig, ExportConfig)
    given = f"no command {command!r}" if command else "no command is given"
    raise ConfigError(
        f"{given}; usage: python -m jobs.questions score|import|make|export key=value ...; --help lists the keys"
    )


if __name__ == "__main__":
    job_config.run(main)
