"""Units made of a dataset's labels: what `jobs.questions make` does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from exports.tracks import Tracks
from pipeline.reading.reader import Dataset
from pipeline.stores.decode import decode_jpeg
from pipeline.stores.disk import open_folder, write_text
from pipeline.stores.places import LocalPath, OutPath, Place
from questions.making import candidates as spatial
from questions.making import dynamic
from questions.making.candidates import Candidate, Refused, look_at
from questions.making.choosing import choose, prompts
from questions.making.describing import Look, colour_of
from questions.making.rules import Rules
from questions.making.seeing import see
from questions.units import KINDS, Prompt, units_text
from reports import questions as tables
from reports.progress import bar
from shards_schema import layout
from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel
from synthetic import is_synthetic, truth
from trainer.splits import split_by_log

FILES = {"shards-spatial": "{split}.jsonl", "shards-dynamics": "dynamics_{split}.jsonl"}


class MakeConfig(StrictModel):
    """What to make."""

    data: Place
    """The dataset: a path or an fsspec URL."""
    out: OutPath
    """Folder of train.jsonl, evaluation.jsonl, the same of dynamics_, and examples.html."""
    rules: Rules = Rules()
    """Of what may be asked, and how."""
    looks: Literal["auto", "town", "pixels", "labels"] = "auto"
    """How things look, by: town (its painter says it exactly), pixels (a colour where a crop has one), labels (the
    class alone); auto is town where the dataset is of one whose folder is there, else pixels.
    """
    town: LocalPath | None = None
    """The folder of the town; null is the one that the dataset names."""
    source: dict[str, Any] = Field(default_factory=dict)
    """Where the logs are now, for what moved: keys in the place of those that the dataset names (root; of nuPlan
    maps_root)."""
    drawn: int = Field(default=4, ge=0, le=10_000)
    """Units of each kind on the page of examples; 0 is no page."""
    columns: tuple[str, ...] = ()
    """Teacher columns that training joins; they decide which logs are held out."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Of the split by whole logs, as in training."""
    split_seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the split by whole logs, as in training."""


Looks = Mapping[tuple[str, str], Mapping[str, truth.Shown]]
"""Token and channel -> track -> what the town knows."""


def make(config: MakeConfig) -> int:
    """Make units; returns the exit code.

    Raises:
        ConfigError: a town is asked for, and is not there.
        StoreError: `out` cannot be written to.
    """
    open_folder(config.out)
    dataset = Dataset(config.data, columns=[layout.SAMPLES, *config.columns])
    notices = [*dataset.manifest.notices]
    training, held = split_by_log(dataset, config.held_out, config.split_seed)
    town, tracks = _town(config, dataset), Tracks(dataset, config.source)
    if town is None:
        notices.append("label-derived: the truth is what the log's labels say; what hides what is told by their boxes.")
    if town is None and dataset.manifest.source.get("synthetic") and config.looks == "auto":
        notices.append(
            f"looks=pixels: the town is not at {dataset.manifest.source.get('root')}; town=DIR says where it is."
        )
    unmade = len(dataset.plan.table) - len(dataset.tokens(layout.SAMPLES)) - len(dataset.quarantined(layout.SAMPLES))
    if unmade:
        notices.append(f"{unmade} planned scenes are not made yet; which logs are held out may change when they are.")
    for notice in (*notices, *([tracks.note] if tracks.note else [])):
        print(f"NOTE: {notice}")
    nothing, drawn = False, []
    for name, tokens in (("train", training), ("evaluation", held)):
        refused: Refused = Counter()
        found = list(_candidates(dataset, tokens, config, town, tracks, refused))
        split: Literal["train", "evaluation"] = "train" if name == "train" else "evaluation"
        for benchmark, file in FILES.items():
            ours = [c for c in found if _benchmark(c.category) == benchmark]
            chosen, left = choose(ours, config.rules)
            made = [p for c in chosen for p in prompts(c, config.rules, benchmark, split)]
            write_text(config.out / file.format(split=name), units_text(made))
            print(f"\n{benchmark}, {name}: {len(chosen)} units of {len(tokens)} scenes")
            why = Counter({key: n for key, n in refused.items() if _benchmark(key[0]) == benchmark})
            print(f"{tables.blind(made)}\n{tables.still_and_closer(chosen)}{tables.refused(why + left)}")
            nothing |= not chosen and benchmark == "shards-spatial"
            drawn += made if split == "evaluation" else []
    files = [file.format(split=split) for file in FILES.values() for split in ("train", "evaluation")]
    if drawn and config.drawn:
        page = tables.examples(drawn, config.drawn, lambda p: _image(dataset, p), notices)
        write_text(config.out / "examples.html", page)
        files.append("examples.html")
    print(f"\n{config.out.resolve()}: {', '.join(files)}")
    if nothing:
        print("NOTHING ASKED in one of them, as told above; more scenes or views may help, or other rules (--help).")
    return int(nothing)


def _benchmark(category: str) -> str:
    """Which benchmark a kind is of; of a whole image the first."""
    return "shards-dynamics" if category in KINDS and KINDS[category].part else "shards-spatial"


def _image(dataset: Dataset, prompt: Prompt) -> bytes:
    """The picture of an evaluation unit."""
    member = f"{prompt.views[0]}.jpg"
    data: bytes = dataset.read(prompt.token, {layout.SAMPLES: [member]})[layout.SAMPLES][member]
    return data


def _town(config: MakeConfig, dataset: Dataset) -> Path | None:
    """The folder of the town, where its painter is to be asked.

    Raises:
        ConfigError: it is asked for, and is not there.
    """
    root = config.town or Path(str(dataset.manifest.source.get("root", "")))
    there = bool(dataset.manifest.source.get("synthetic")) and is_synthetic(root)
    if (config.looks == "town" or config.town) and not there:
        raise ConfigError(
            f"{'looks=' * (config.looks == 'town')}town: {root} is not the folder of a town that {config.data} was "
            "made of; give town=DIR"
        )
    return root if there and config.looks in ("auto", "town") else None


def _candidates(
    dataset: Dataset,
    tokens: Sequence[str],
    config: MakeConfig,
    town: Path | None,
    tracks: Tracks,
    refused: Refused,
) -> Iterator[Candidate]:
    names = [m.removesuffix(".jpg") for m in dataset.members(layout.SAMPLES) if m.endswith(".jpg")]
    views = [name for name in names if not layout.camera_of(name)[1]]
    images = [f"{view}.jpg" for view in views]
    known = _known(town, tokens, views)
    pixels = town is None and config.looks in ("auto", "pixels")
    for token in bar(tokens, unit="scene"):
        members = dataset.read(token, {layout.SAMPLES: ["json", *(images if pixels else ())]})[layout.SAMPLES]
        document, motion = members["json"], tracks.of(token)
        refused["ego_speed", "log_unreadable"] += motion is None
        for view in views:
            shown = known.get((token, view.upper()), {})
            hidden = None if town is None else {t: shown[t].hidden if t in shown else 1.0 for t in _tracks(document)}
            looks = {track: Look(row.kind, row.colour) for track, row in shown.items()}
            if pixels and document["annotations"] is not None:
                image = decode_jpeg(members[f"{view}.jpg"], f"{token}.{view}.jpg")
                looks = {seen.track: Look(None, colour_of(image, seen)) for seen in see(document, view)}
            pictured = look_at(document, view, config.rules, refused, looks=looks, hidden=hidden, motion=motion)
            if pictured is not None:
                yield from spatial.of_image(pictured)
                yield from dynamic.of_image(pictured)


def _tracks(document: Mapping[str, Any]) -> Sequence[str]:
    return [] if document["annotations"] is None else document["annotations"]["track_tokens"]


def _known(town: Path | None, tokens: Sequence[str], views: Sequence[str]) -> Looks:
    out: dict[tuple[str, str], dict[str, truth.Shown]] = {}
    if town is not None:
        for row in truth.shown(truth.config_of(town), {*tokens}, [view.upper() for view in views]):
            out.setdefault((row.token, row.channel), {})[row.track] = row
    return out
