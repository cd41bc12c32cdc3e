"""Units as rows of another trainer's: what `jobs.questions export` does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from exports.rows import Format, Row, row, write
from pipeline.reading.reader import Dataset
from pipeline.stores.disk import write_bytes
from pipeline.stores.places import LocalPath, OutPath, Place
from questions.units import Prompt, read_units, refuse_training
from questions.wording import whole
from reports.progress import bar
from shards_schema import layout
from shards_schema.errors import ConfigError, MissingFileError
from shards_schema.inputs.models import StrictModel


class ExportConfig(StrictModel):
    """What to write."""

    units: LocalPath
    """The unit file."""
    to: OutPath
    """The file: JSON lines, or Parquet for verl."""
    use: Literal["train", "ask"]
    """train refuses units that are for evaluation; ask is for a trainer's own inference."""
    format: Format = "ms-swift"
    """Whose file: ms-swift, trl-sft, trl-grpo, llama-factory or verl."""
    data: Place | None = None
    """The dataset that the units were made of; its images are written beside the file."""
    surds: LocalPath | None = None
    """The folder of SURDS, for its units; its images are named where they lie."""
    answer: str = "<answer>{answer}</answer>"
    """What the assistant says. Field: answer."""


def export(config: ExportConfig) -> int:
    """Write rows and images; returns the exit code.

    Raises:
        ConfigError: train, and a unit is for evaluation; not one of `data` and `surds`.
        MissingFileError: an image is not there.
    """
    prompts = [p for p in read_units(config.units) if p.left_out is None]
    if config.use == "train":
        refuse_training(prompts, str(config.units))
    if (config.data is None) == (config.surds is None):
        raise ConfigError("give one of data=DATASET and surds=DIR: where the images of the units are")
    write(config.format, config.to, _rows(config, prompts))
    print(f"{config.to.resolve()}: {len(prompts)} prompts for {config.format}, to {config.use}")
    return 0


def _rows(config: ExportConfig, prompts: list[Prompt]) -> Iterator[Row]:
    dataset = None if config.data is None else Dataset(config.data, columns=[layout.SAMPLES])
    for index, prompt in enumerate(bar(prompts, unit="prompt")):
        images = _of_surds(config, prompt) if dataset is None else _of_dataset(config, prompt, dataset)
        before = "" if config.format.startswith("trl") else "<image>\n" * len(images)
        said = [
            {"role": "user", "content": before + whole(prompt)},
            {"role": "assistant", "content": config.answer.format(answer=prompt.answer)},
        ]
        kept = {} if config.format == "verl" else {"unit": prompt.unit, "side": prompt.side}
        solution = {"solution": prompt.answer} if config.format == "trl-grpo" else {}
        yield {**row(config.format, said, images, prompt.token, index), **kept, **solution}


def _of_dataset(config: ExportConfig, prompt: Prompt, dataset: Dataset) -> list[str]:
    folder = config.to.absolute().with_name(f"{config.to.stem}_images")
    paths = [folder / f"{prompt.token}.{view}.jpg" for view in prompt.views]
    for path in paths:
        if not path.exists():
            member = path.name.partition(".")[2]
            write_bytes(path, dataset.read(prompt.token, {layout.SAMPLES: [member]})[layout.SAMPLES][member])
    return [*map(str, paths)]


def _of_surds(config: ExportConfig, prompt: Prompt) -> list[str]:
    paths = [Path(config.surds or "").absolute() / image for image in prompt.images]
    if gone := [path for path in paths if not path.is_file()]:
        raise MissingFileError(f"unit {prompt.unit}: there is no image {gone[0]}")
    return [*map(str, paths)]
