"""SURDS (spatial questions on nuScenes images), from the user's own copy of the published folder.

    DIR/validation/metadata.jsonl
    DIR/validation/image/CAM_FRONT/nuscenes_0007_CAM_FRONT.webp

One line of the metadata is one image; its lists run parallel over the image's objects. Questions are not published, but
made from it by a script with a seed: here in the same order of draws, so that the units are the official ones, with the
official places in the files ``00_yaw_vqas.json`` .. ``05_fb_vqas.json``. Whoever has those files gives them too: each
image, option and answer is held against ours, and the prompts are taken word by word. The images' licence is nuScenes'
(not commercial); nothing of them comes with us.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from questions import options, wording
from questions.answers import normalised
from questions.options import Answers
from questions.outputs import options_in
from questions.units import KINDS, Prompt, Target, read_rows
from shards_schema.errors import DatasetError, MissingFileError

SEED = 42
SIZE = (1600, 900)
METADATA = "metadata.jsonl"
FILES = {category: f"{i:02d}_{category}_vqas.json" for i, category in enumerate(list(KINDS)[:6])}
AMBIGUOUS = "ambiguous"

Split = Literal["train", "validation"]
_LEGACY = {"descriptions", "location2D", "location3D"}


class Image(BaseModel):
    """A line of the metadata; unknown keys are let pass."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    file_name: str
    descs: tuple[str, ...]
    xy2Ds: tuple[tuple[float, float], ...] = Field()  # noqa: N815 (SURDS' own names)
    xyz3Ds: tuple[tuple[float, float, float], ...]  # noqa: N815
    bboxes2D: tuple[tuple[float, float, float, float], ...]  # noqa: N815
    yaw_descs: tuple[str, ...]
    depths: tuple[float, ...]
    distances: tuple[float, ...]

    @model_validator(mode="after")
    def _parallel(self) -> Image:
        lists = (self.xy2Ds, self.xyz3Ds, self.bboxes2D, self.yaw_descs, self.depths, self.distances)
        if {len(values) for values in lists} != {len(self.descs)}:
            raise ValueError(f"lists of {len(self.descs)} and of {sorted({len(v) for v in lists})} objects")
        return self

    @property
    def name(self) -> str:
        """Without folder and ending."""
        return PurePosixPath(self.file_name).stem

    def target(self, index: int) -> Target:
        """One of its objects."""
        return Target(desc=self.descs[index], box2d=self.bboxes2D[index], p_cam=self.xyz3Ds[index])


def read_images(root: Path, split: Split) -> list[Image]:
    """The images of a split, in the file's order.

    Raises:
        MissingFileError, StoreError: there is no metadata, or it cannot be read.
        DatasetError: it is not SURDS', or it is that of the older set that had the same name.
    """
    path = root / split / METADATA
    try:
        rows = [*read_rows(path)]
    except MissingFileError:
        there = ", ".join(sorted(str(p.parent.relative_to(root)) for p in root.glob(f"*/{METADATA}")))
        raise MissingFileError(
            f"no {path}; splits there: {there or 'none, so this is no folder of SURDS'}; give the folder that has "
            f"{split}/{METADATA}, unpacked"
        ) from None
    out: dict[str, Image] = {}
    for number, row in rows:
        if row.keys() & _LEGACY:
            raise DatasetError(
                f"{path}: is DriveMLLM's first benchmark (keys {', '.join(sorted(row.keys() & _LEGACY))}), which is "
                "another one: other tasks, other scores, and its front is the nearer object; give SURDS' files"
            )
        try:
            image = Image.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            raise DatasetError(
                f"{path}, line {number}: not SURDS' metadata: {'.'.join(map(str, first['loc']))} {first['msg']}"
            ) from error
        if image.name in out:
            raise DatasetError(f"{path}, line {number}: the image {image.name} is there twice; give SURDS' own file")
        out[image.name] = image
    return [*out.values()]


def make_units(images: Sequence[Image], split: Split, where: str = "SURDS") -> list[Prompt]:
    """The official units, category by category, in the official order.

    Units whose objects cannot be told apart by what they are called keep their place, as ``left_out``.

    Raises:
        DatasetError: no pair of objects; fewer images with one object than pairs, which the official script cannot
            draw from either; a direction that is none.
    """
    made: dict[str, list[tuple[Image, tuple[int, ...], Answers, float | None]]] = {name: [] for name in FILES}
    for image in images:
        for i, j in combinations(range(len(image.descs)), 2):
            first, second = image.descs[i], image.descs[j]
            pairs = {
                "dis": options.distances(first, second, image.distances[i], image.distances[j]),
                "lr": options.columns(first, second, image.xy2Ds[i][0], image.xy2Ds[j][0]),
                "fb": options.rows(image.depths[i], image.depths[j]),
            }
            for category, answers in pairs.items():
                made[category].append((image, (i, j), answers, None))
    count, singles = len(made["dis"]), [image for image in images if len(image.descs) == 1]
    if not count:
        raise DatasetError(
            f"{where}: none of {len(images)} images has two objects, so there is no question: is it whole?"
        )
    if len(singles) < count:
        raise DatasetError(
            f"{where}: {count} pairs of objects, and {len(singles)} images with one object: SURDS draws as many of "
            "these as there are pairs, so this is a part of it; give all of a split"
        )
    generator = random.Random(SEED)
    for place in sorted(generator.sample(range(len(singles)), count)):
        image = singles[place]
        word = image.yaw_descs[0].strip().capitalize()
        if word not in options.COMPASS:
            raise DatasetError(f"{where}: {image.file_name}: yaw_descs is {word!r}, expected a word of the compass")
        made["yaw"].append((image, (0,), options.facings(word, generator), None))
        made["xy2d"].append((image, (0,), Answers((), ("[{:g}, {:g}]".format(*image.xy2Ds[0]),)), None))
        texts = [options.range_text(ends) for ends in options.depth_ranges(image.depths[0], generator)]
        answers = Answers(tuple(generator.sample(texts, 3)), (texts[0],))
        made["depth"].append((image, (0,), answers, image.depths[0]))
    return [
        _prompt(category, side, split, index, *unit)
        for category, units in made.items()
        for index, (unit, side) in enumerate(
            (unit, side) for unit in units for side in range(1, KINDS[category].sides + 1)
        )
    ]


def _prompt(
    category: str,
    side: int,
    split: Split,
    index: int,
    image: Image,
    objects: tuple[int, ...],
    answers: Answers,
    value: float | None,
) -> Prompt:
    descs = [image.descs[i] for i in objects]
    names = Counter(normalised(desc) for desc in image.descs)
    return Prompt(
        unit="-".join([category, image.name, *map(str, objects)]),
        side=1 if side == 1 else 2,
        category=category,
        benchmark="surds",
        style="official",
        split="train" if split == "train" else "evaluation",
        token=image.name,
        views=(PurePosixPath(image.file_name).parent.name,),
        images=(f"{split}/{image.file_name}",),
        size=SIZE,
        objects=tuple(map(image.target, objects)),
        question=wording.question(category, side, *descs),
        options=answers.options,
        answer=answers.right[side - 1],
        value=value,
        index=index,
        left_out=AMBIGUOUS if any(names[normalised(desc)] > 1 for desc in descs) else None,
    )


def with_official(prompts: Sequence[Prompt], folder: Path) -> list[Prompt]:
    """The same units, each held against the user's own official files, with the prompts as these have them.

    Raises:
        MissingFileError, StoreError: a file is not there, or cannot be read.
        DatasetError: an image, an option or an answer is another one; the first is named.
    """
    return list(_with_official(prompts, folder))


def _with_official(prompts: Sequence[Prompt], folder: Path) -> Iterator[Prompt]:
    for category, name in FILES.items():
        ours = [p for p in prompts if p.category == category]
        rows = [row for _, row in read_rows(folder / name)]
        if len(rows) != len(ours):
            raise DatasetError(f"{folder / name}: {len(rows)} questions, and the metadata makes {len(ours)}")
        for prompt, row in zip(ours, rows, strict=True):
            for what, (found, wanted) in _compared(prompt, row).items():
                if found != wanted:
                    raise DatasetError(
                        f"{folder / name}, question {prompt.index}: {what} is {found!r}, and the metadata makes "
                        f"{wanted!r}: these files are of another split, or of a copy in another order"
                    )
            yield prompt.model_copy(update={"text": str(row["prompt"])})


def _compared(prompt: Prompt, row: Mapping[str, Any]) -> dict[str, tuple[object, object]]:
    """What -> theirs, ours."""
    image, asked, answer = (str(row.get(key)) for key in ("image_path", "prompt", "answer"))
    out: dict[str, tuple[object, object]] = {
        "the image": (PurePosixPath(image).name, PurePosixPath(prompt.images[0]).name),
        "the answer": (answer, prompt.answer),
        "the size": (row.get("image_pixel"), "{}x{}".format(*prompt.size)),
        "there being a prompt": ("prompt" in row, True),
    }
    if prompt.category != "xy2d":
        listed = options_in(asked)
        if prompt.category != "fb" or listed:
            out["the options"] = (listed, prompt.options)
    if "obj_bbox" in row:
        out["the box"] = (row["obj_bbox"], [*prompt.objects[0].box2d])
    return out
