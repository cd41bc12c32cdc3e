"""Trajectories as rows of another trainer's: what `jobs.export` does, and its words."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from math import hypot
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from exports.rows import Format, Row, formats, row, write
from pipeline.reading.materialise import materialise
from pipeline.reading.reader import Dataset
from pipeline.stores.places import OutPath, Place
from pipeline.stream import SampleTable
from questions.wording import taken
from reports.progress import bar
from shards_schema import layout
from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel
from trainer.answers.text import Written, parse_waypoints
from trainer.data import refuse_other_rate
from trainer.reward import POSES

PROMPT = (
    "You drive the ego vehicle. Speed {speed:.1f} m/s, acceleration ({ax:.1f}, {ay:.1f}) m/s^2, command: {command}. "
    "Poses (x,y,heading) of the last {past:.1f} s, 0.5 s apart: {history}. "
    "Give the {steps} poses of the next {seconds:.1f} s, 0.5 s apart, in the same way; x is forward and y is left in "
    "metres, heading is to the left in radians."
)
STEP = 0.5
"""Seconds from one pose to the next."""


class ExportConfig(StrictModel):
    """What to write, and in which words."""

    out: Place
    """The dataset: a path or an fsspec URL."""
    to: OutPath
    """The file: JSON lines, or Parquet for verl."""
    format: Format | Literal["zarr"] = "ms-swift"
    """Whose file: ms-swift, trl-sft, trl-grpo, llama-factory or verl. `zarr`: `targets.zarr` of a dataset that was made
    with ``zarr: view``, written out into the folder `to`; no other key says anything of it."""
    images: OutPath | None = None
    """Folder for the images; None is the file's name with ``_images``."""
    views: tuple[str, ...] | None = None
    """Image members of `samples` that are shown, in order; None is all of them, those of a camera in the order of time,
    () none."""
    columns: tuple[str, ...] = ()
    """Teacher columns whose latents will be fetched; samples that one of them lacks are left out."""
    steps: int | None = Field(default=None, ge=1)
    """Future poses of the answer; None is the 8 that the reward reads, or all where the samples have fewer."""
    placeholder: str | None = "<image>\n"
    """Stands before the prompt, once an image; None is nothing. TRL puts in its own, so its formats have none unless it
    is given."""
    prompt: str = PROMPT
    """Of the user. Fields: speed [m/s], ax, ay [m/s^2], command, history (points), past [s], steps, seconds [s]."""
    point: str = "({x:.2f},{y:.2f},{heading:.3f})"
    """One position of the answer and of the history. Fields: x, y [m], heading [rad]."""
    separator: str = " "
    """Between points."""
    relative: bool = False
    """Write image paths relative to the folder of the JSONL file."""

    @field_validator("point")
    @classmethod
    def _point(cls, value: str) -> str:
        return formats(value, {"x": 0.0, "y": 0.0, "heading": 0.0})

    @field_validator("prompt")
    @classmethod
    def _prompt(cls, value: str) -> str:
        numbers = dict.fromkeys(("speed", "ax", "ay", "past", "seconds"), 0.0)
        return formats(value, {**numbers, "command": "", "history": "", "steps": 0})

    @property
    def stands_for_image(self) -> str:
        """What the user's text has for each image."""
        given = "placeholder" in self.model_fields_set or not self.format.startswith("trl")
        return (self.placeholder or "") if given else ""

    @property
    def image_folder(self) -> Path:
        """Where the images go."""
        return self.to.with_name(f"{self.to.stem}_images") if self.images is None else self.images


def export(config: ExportConfig) -> tuple[int, Mapping[str, str]]:
    """Write the file and the images, or `targets.zarr`.

    Returns:
        Lines written; tokens that were left out -> why.

    Raises:
        IncompleteError: the dataset is not finished.
        DatasetError: it is damaged.
        ConfigError: it has no such view or column, or a sample has fewer future poses than `steps`.
    """
    if config.format == "zarr":
        return materialise(Dataset(config.out), str(config.to)), {}
    kind = config.format
    dataset = Dataset(config.out, columns=[layout.SAMPLES, *config.columns])
    refuse_other_rate(dataset)
    for notice in dataset.manifest.notices:
        print(f"NOTE {notice}")
    views = _in_time(dataset.members(layout.SAMPLES)) if config.views is None else config.views
    # [] of a teacher's column: it must have the sample, and none of it is read
    table = SampleTable(dataset, {layout.SAMPLES: ["json"], **{column: [] for column in config.columns}})
    folder = config.image_folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)

    def rows() -> Iterator[Row]:
        for index, token in enumerate(bar(table.tokens, unit="sample")):
            members = dataset.read(token, {layout.SAMPLES: ["json", *views]})[layout.SAMPLES]
            paths = [folder / f"{token}.{view}" for view in views]
            for view, path in zip(views, paths, strict=True):
                path.write_bytes(members[view])
            names = [os.path.relpath(path, config.to.parent) if config.relative else str(path) for path in paths]
            said = messages(members["json"], config, len(views), taken([_place(view)[1] for view in views]))
            if index == 0 and parse_waypoints(said[-1]["content"], POSES) is None:
                print(
                    f"NOTE the reward does not read such an answer: {said[-1]['content']}. It reads {POSES} poses as "
                    "(x,y,heading); see steps=, point= and separator="
                )
            yield row(kind, said, names, token, index)

    write(kind, config.to, rows())
    return len(table), table.left_out


def _in_time(members: Sequence[str]) -> list[str]:
    """The images among these, camera by camera, each in the order of time."""

    def order(member: str) -> tuple[str, int]:
        camera, back = _place(member)
        return camera, -back

    return sorted((m for m in members if m.endswith(".jpg")), key=order)


def _place(member: str) -> tuple[str, int]:
    return layout.camera_of(member.removesuffix(".jpg"))


def messages(record: Mapping[str, Any], config: ExportConfig, images: int, times: str = "") -> list[dict[str, str]]:
    """The user's turn (ego status, history, command) and the assistant's (the future) of one `<token>.json`.

    `times` stands before the prompt: which image is of when (`questions.wording.taken`).

    Raises:
        ConfigError: the record has fewer future poses than are asked for.
    """
    future: Sequence[Sequence[float]] = record["future"]["trajectory"]
    if "original" in record and not future:
        raise ConfigError(f"sample {record['token']} is a synthetic scene in which nobody drove on: it has no answer")
    steps = min(POSES, len(future)) if config.steps is None else config.steps
    if steps > len(future):
        raise ConfigError(f"steps is {steps}, sample {record['token']} has {len(future)} future poses")
    ego, past = record["ego"], record["history"]["trajectory"]
    prompt = config.prompt.format(
        speed=hypot(*ego["velocity"]),
        ax=Written(ego["acceleration"][0]),
        ay=Written(ego["acceleration"][1]),
        command=ego["command"],
        history=config.separator.join(_points(past, config)),
        past=STEP * (len(past) - 1),
        steps=steps,
        seconds=STEP * steps,
    )
    answer = config.separator.join(_points(future[:steps], config))
    return [
        {"role": "user", "content": config.stands_for_image * images + times + prompt},
        {"role": "assistant", "content": answer},
    ]


def _points(poses: Sequence[Sequence[float]], config: ExportConfig) -> Iterator[str]:
    for x, y, heading in poses:
        yield config.point.format(**{k: Written(round(v, 6)) for k, v in (("x", x), ("y", y), ("heading", heading))})
