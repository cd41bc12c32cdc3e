"""Units as rows of another trainer's: what `jobs.questions export` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from exports.rows import Format, Row, formats, row, write
from pipeline.reading.reader import Dataset
from pipeline.stores.disk import write_bytes
from pipeline.stores.places import LocalPath, OutPath, Place, apart
from questions.units import PastFrame, Prompt, read_units, refuse_training
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

    @field_validator("answer")
    @classmethod
    def _says_it(cls, value: str) -> str:
        if formats(value, {"answer": "Yes"}).format(answer="Yes") == value.format(answer="No"):
            raise ValueError("no template over answer: it says the same whatever the answer is; write {answer} in it")
        return value


def export(config: ExportConfig) -> int:
    """Write rows and images; returns the exit code.

    Raises:
        ConfigError: train, and a unit is for evaluation; not one of `data` and `surds`; `to` is the unit file.
        MissingFileError: an image is not there.
    """
    apart(config.to, config.units)
    prompts = [p for p in read_units(config.units) if p.left_out is None]
    if config.use == "train":
        refuse_training(prompts, str(config.units))
    if (config.data is None) == (config.surds is None):
        raise ConfigError("give one of data=DATASET and surds=DIR: where the images of the units are")
    dataset = None if config.data is None else Dataset(config.data, columns=[layout.SAMPLES])
    written = frozenset() if dataset is None else frozenset(dataset.tokens(layout.SAMPLES))

    def has(frame: PastFrame) -> bool:
        return frame.token in written or (dataset is not None and _own(frame, dataset))

    shown = {n: p for n, p in enumerate(prompts) if p.kind.part != "observed" or p.shown_past(has) is not None}
    write(config.format, config.to, _rows(config, shown, dataset, has))
    print(f"{config.to.resolve()}: {len(shown)} prompts for {config.format}, to {config.use}")
    if len(shown) < len(prompts):
        print(f"left out: {len(prompts) - len(shown)} prompts of observed kinds, since no sample has the frames before")
    return 0 if shown else 1


def _own(frame: PastFrame, dataset: Dataset) -> bool:
    """Whether the scene itself has the picture of a frame before now."""
    stored: int = dataset.columns[layout.SAMPLES].provenance.get("history", 0)
    return 0 < (frame.back or 0) <= stored


def _rows(
    config: ExportConfig, shown: Mapping[int, Prompt], dataset: Dataset | None, has: Callable[[PastFrame], bool]
) -> Iterator[Row]:
    """`shown` are prompts by their place among all that are asked, by which verl's reward finds them.

    `has` says of which frames before now there is a picture: the scene's own, or that of a sample of theirs.
    """
    fresh: set[Path] = set()
    for index, prompt in bar(shown.items(), unit="prompt"):
        past = prompt.shown_past(has) or ()
        images = _of_surds(config, prompt) if dataset is None else _of_dataset(config, prompt, past, dataset, fresh)
        before = "" if config.format.startswith("trl") else "<image>\n" * len(images)
        said = [
            {"role": "user", "content": before + whole(prompt)},
            {"role": "assistant", "content": config.answer.format(answer=prompt.answer)},
        ]
        kept = {} if config.format == "verl" else {"unit": prompt.unit, "side": prompt.side}
        solution = {"solution": prompt.answer} if config.format == "trl-grpo" else {}
        yield {**row(config.format, said, images, prompt.token, index), **kept, **solution}


def _of_dataset(
    config: ExportConfig, prompt: Prompt, past: Sequence[PastFrame], dataset: Dataset, fresh: set[Path]
) -> list[str]:
    """The pictures of each view, in the order of time; `fresh` are those of this export; others are written anew."""
    folder = config.to.absolute().with_name(f"{config.to.stem}_images")
    shown = [(prompt.token, frame.back or 0) if _own(frame, dataset) else (frame.token, 0) for frame in past]
    paths = [
        folder / f"{token}.{layout.past_image(view, back)}.jpg"
        for view in prompt.views
        for token, back in (*shown, (prompt.token, 0))
    ]
    for path in paths:
        if path not in fresh:
            token, _, member = path.name.partition(".")
            write_bytes(path, dataset.read(token, {layout.SAMPLES: [member]})[layout.SAMPLES][member])
    fresh.update(paths)
    return [*map(str, paths)]


def _of_surds(config: ExportConfig, prompt: Prompt) -> list[str]:
    if not prompt.images:
        raise ConfigError(f"{config.units}: unit {prompt.unit} is of a dataset, and not of SURDS: give data=DATASET")
    paths = [Path(config.surds or "").absolute() / image for image in prompt.images]
    if gone := [path for path in paths if not path.is_file()]:
        raise MissingFileError(f"unit {prompt.unit}: there is no image {gone[0]}")
    return [*map(str, paths)]
