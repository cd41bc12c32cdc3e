"""Outputs of any model, joined to the prompts that they answer.

==================  =====================================================  ======================================
whose               a row                                                  joined by
==================  =====================================================  ======================================
ours                ``{"unit", "side", "output"}``                         unit and side
SURDS' own scripts  ``{"vqa_idx", "image", "prompt", "output"}``           category in the file's name, `vqa_idx`
ms-swift            ``{"messages", "response", "labels"}``                 unit and side where the row has them,
                                                                           else the file's name, the row's place
LLaMA-Factory       ``{"prompt", "predict", "label"}``                     likewise
OpenAI's batches    ``{"custom_id", "response": {"body"}, "error"}``       `custom_id`: ``unit/side``
==================  =====================================================  ======================================

Rows of a trainer that kept neither unit nor side are joined by their place, where there is one for each question that
was exported and each holds the text of its own. Files are JSON lists or JSON lines; a folder is all of its ``.json``
and ``.jsonl``. A row that answers nothing that was asked, or a second answer, is an error. What a row says of the
question (image, options, label) is held against the unit: a file of other questions, or of other draws, is refused and
not scored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from questions.answers import extract, normalised
from questions.units import KINDS, Prompt, read_rows
from shards_schema.errors import DatasetError, MissingFileError

Key = tuple[str, int]
"""Unit and side."""

_TEXTS = ("output", "response", "predict", "generated_text", "completion", "prediction")
_WITHIN = ("body", "choices", "message", "content", "text")
"""Where the answer of a server, or a message, has its text."""
_OPTIONS = re.compile(r"Options:.*?\n(.*?)(?=\n\n|\Z)", re.DOTALL)
_OPTION = re.compile(r"-\s*(.*)")
_CATEGORY = re.compile(rf"({'|'.join(sorted(KINDS, key=len, reverse=True))})_vqas")


@dataclass(frozen=True)
class Output:
    """What a model said to one prompt.

    Attributes:
        text: all of it; None where there is none.
        reason: why there is none, in a word or two.
        input_size: width, height [px] of the image that the model's processor made, where the row says so.
    """

    text: str | None
    reason: str | None = None
    input_size: tuple[int, int] | None = None


def read_outputs(path: Path, prompts: Sequence[Prompt]) -> dict[Key, Output]:
    """The outputs of a file, or of the files of a folder, by the prompt that they answer.

    Raises:
        MissingFileError, StoreError: there is no such file, or it cannot be read.
        DatasetError: a row answers no prompt, or one that has an answer, or another question than ours.
    """
    known: dict[Key, Prompt] = {(p.unit, p.side): p for p in prompts}
    official = {(p.category, p.index): p for p in prompts if p.index is not None}
    found: dict[Key, Output] = {}
    for file in _files(path):
        named = _CATEGORY.search(file.name)
        rows = [*read_rows(file)]
        in_order = [] if named else _in_order([row for _, row in rows], prompts)
        for place, (number, row) in enumerate(rows):
            where = f"{file}, entry {number}"
            if "unit" in row or "custom_id" in row:
                prompt, wanted = _named(row, where, known)
            elif named is not None:
                index = row.get("vqa_idx", place)
                prompt = official.get((named[1], index)) if isinstance(index, int) else None
                wanted = f"{named[1]} question {index!r}"
            elif in_order:
                prompt, wanted = in_order[place], f"question {place}"
            else:
                raise DatasetError(
                    f"{where}: says not what it answers: expected unit and side, a file named as SURDS' own "
                    "(00_yaw_vqas_output.json), or a row with its prompt for each question that was exported, in order"
                )
            if prompt is None:
                raise DatasetError(
                    f"{where}: answers {wanted}, which is not among the units; give the units that were asked"
                )
            _hold(prompt, row, where)
            key = (prompt.unit, prompt.side)
            if key in found:
                raise DatasetError(f"{where}: answers {wanted} a second time; keep one answer")
            found[key] = _output(row, where)
    return found


def _named(row: Mapping[str, Any], where: str, known: Mapping[Key, Prompt]) -> tuple[Prompt | None, str]:
    """The prompt of the unit and the side that a row says, and what it says; numbers may be texts, as in a table."""
    unit, side = row.get("unit"), row.get("side")
    if "unit" not in row:
        unit, _, side = str(row["custom_id"]).rpartition("/")
    said = f"unit {unit!r}, side {side!r}"
    if not isinstance(unit, str) or (unit, 1) not in known:
        return None, said
    if side is None and (unit, 2) in known:
        raise DatasetError(f"{where}: says not which prompt of unit {unit!r} it answers: give side 1 or 2")
    number = {"1": 1, "1.0": 1, "2": 2, "2.0": 2}.get(str(1 if side is None else side))
    return (None if number is None else known.get((unit, number))), said


def _in_order(rows: Sequence[Mapping[str, Any]], prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """What rows answer that name no unit: one for each exported prompt, each with its text; () where it is not so."""
    asked = [p for p in prompts if p.left_out is None]
    texts = [_asked(row) or "" for row in rows]
    for exported in (asked, [p for p in asked if p.kind.part != "observed"]):
        if len(exported) == len(texts) and all(
            (p.text or p.question) in t for p, t in zip(exported, texts, strict=True)
        ):
            return exported
    return ()


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    listed = (file for file in path.iterdir() if file.suffix in (".json", ".jsonl"))
    files = sorted(file for file in listed if file.is_file() and not file.name.startswith("."))
    if not files:
        raise MissingFileError(f"{path}: a folder without outputs (.json or .jsonl)")
    return files


def _output(row: Mapping[str, Any], where: str) -> Output:
    texts = {name: _text(row[name]) for name in _TEXTS if name in row}
    text = next(iter(texts.values()), None)
    if not texts or not isinstance(text, str | None) or len({*map(str, texts.values())}) > 1:
        shown = {name: type(said).__name__ for name, said in texts.items()} or sorted(row)
        raise DatasetError(f"{where}: expected a text under {', '.join(_TEXTS)}; found {shown}")
    size = row.get("input_size")
    if size is not None and not (
        isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)
    ):
        raise DatasetError(f"{where}: input_size is {size!r}, expected [width, height]")
    reason = str(row.get("reason") or row.get("error") or "null").encode(errors="backslashreplace").decode()
    return Output(text, reason if text is None else None, None if size is None else (size[0], size[1]))


def _text(said: Any) -> Any:
    """The text of an answer as OpenAI's servers give it, of a message, or of the parts of one; else what is there."""
    if isinstance(said, dict):
        inner = next((name for name in _WITHIN if name in said), None)
        return said if inner is None else _text(said[inner])
    if isinstance(said, list) and said and all(isinstance(part, dict) and "type" in part for part in said):
        return "".join(part["text"] for part in said if isinstance(part.get("text"), str))
    return _text(said[0]) if isinstance(said, list) and len(said) == 1 else said


def _hold(prompt: Prompt, row: Mapping[str, Any], where: str) -> None:
    """Hold what a row says of its question against the unit."""
    image, asked, label = row.get("image"), _asked(row), row.get("labels", row.get("label"))
    if isinstance(image, str) and prompt.images and PurePosixPath(image).name != PurePosixPath(prompt.images[0]).name:
        raise DatasetError(f"{where}: answers about {image}; unit {prompt.unit} is about {prompt.images[0]}")
    options = options_in(asked) if asked else ()
    if options and prompt.options and sorted(options) != sorted(prompt.options):
        raise DatasetError(f"{where}: chose among {options}; unit {prompt.unit} has {prompt.options}: other draws")
    if isinstance(label, str) and prompt.options:
        truth = extract(label, "xiaomi") or ""
        if normalised(truth) != normalised(prompt.answer):
            raise DatasetError(f"{where}: its label is {truth!r}; that of unit {prompt.unit} is {prompt.answer!r}")


def _asked(row: Mapping[str, Any]) -> str | None:
    turns = row.get("messages")
    if isinstance(turns, list):
        said = [t.get("content") for t in turns if isinstance(t, dict) and t.get("role") == "user"]
        return said[0] if said and isinstance(said[0], str) else None
    asked = row.get("prompt")
    return asked if isinstance(asked, str) else None


def options_in(text: str) -> tuple[str, ...]:
    """The options that a prompt lists: lines behind "Options:" up to an empty one."""
    found = _OPTIONS.search(text)
    return tuple(option.strip() for option in _OPTION.findall(found[1])) if found else ()


def unanswered(prompts: Iterable[Prompt], outputs: Mapping[Key, Output]) -> Iterator[tuple[Prompt, str]]:
    """Prompts without an answer, each with its reason: that of its row, or `NO_OUTPUT` where there is no row."""
    for prompt in prompts:
        output = outputs.get((prompt.unit, prompt.side))
        if output is None or output.text is None:
            yield prompt, NO_OUTPUT if output is None else output.reason or "null"


NO_OUTPUT = "no_output"
"""The only reason that is none: nobody says why."""
