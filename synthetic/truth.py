"""What the town knows of each thing in each image, and no log says: its kind, its colour, and how much of it is hidden.

Hidden is told by the painter itself (`synthetic.pixels`): each actor's pixels are counted once in the whole picture and
once as if it stood alone. Things that nobody annotates (houses, trees, lamps) hide too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from loky import ProcessPoolExecutor

from pipeline.stores.disk import wrap_read_errors
from shards_schema.errors import DatasetError
from shards_schema.inputs import documents
from synthetic import MARKER
from synthetic.config import GENERATOR, SyntheticConfig
from synthetic.logs import LogSpec, drive_of, frame_tokens, log_specs, timestamps, track_token
from synthetic.pixels import truth
from synthetic.render import Renderer

_FRAMES = 32
"""Frames of a process at least: it takes as long to begin as some of them to be painted."""


@dataclass(frozen=True)
class Shown:
    """An actor in an image.

    Attributes:
        token: of the frame.
        channel: of the camera.
        track: its token in the log.
        kind: a word for what it is; None: its class says all.
        colour: a name; None where it has none that is plain.
        pixels: that it would cover if it stood alone, in an image of the config's size.
        hidden: the share of them that others cover, 0..1.
    """

    token: str
    channel: str
    track: str
    kind: str | None
    colour: str | None
    pixels: float
    hidden: float


def config_of(root: Path) -> SyntheticConfig:
    """The config of a generated folder.

    Raises:
        MissingFileError, StoreError: it has no marker, or that cannot be read.
        DatasetError: it is of another version of the generator.
    """
    path = root / MARKER
    with wrap_read_errors(str(path)):
        marker = documents.parse_json(documents.read(path, documents.JSON_BYTES))
    config = dict(marker.get("config", {}))
    if config.pop("generator", None) != GENERATOR:
        raise DatasetError(f"{path}: is of another generator than {GENERATOR!r}, which cannot tell what it painted")
    return SyntheticConfig.model_validate(config)


def shown(config: SyntheticConfig, tokens: Collection[str], channels: Collection[str]) -> Iterator[Shown]:
    """Every actor in the images of some frames, as far as a pixel of it would be in the image.

    Log by log, in their order; in `config.processes`, where there is work for them.
    """
    asked: list[tuple[LogSpec, list[tuple[str, float]]]] = []
    for spec in log_specs(config):
        frames = zip(frame_tokens(config, spec), timestamps(config, spec), strict=True)
        if wanted := [(token, (stamp - spec.start) / 1e6) for token, stamp in frames if token in tokens]:
            asked.append((spec, wanted))
    one = partial(_of_log, config, channels)
    processes = min(config.processes, len(asked), sum(len(wanted) for _, wanted in asked) // _FRAMES)
    if processes <= 1:
        yield from chain.from_iterable(map(one, asked))
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from chain.from_iterable(pool.map(one, asked))


def _of_log(
    config: SyntheticConfig, channels: Collection[str], asked: tuple[LogSpec, Sequence[tuple[str, float]]]
) -> list[Shown]:
    spec, frames = asked
    renderer = Renderer(drive_of(config, spec), config.width, config.height)
    return [row for token, t in frames for row in _of_frame(config, spec, renderer, token, t, channels)]


def _of_frame(
    config: SyntheticConfig, spec: LogSpec, renderer: Renderer, token: str, t: float, channels: Collection[str]
) -> Iterator[Shown]:
    for channel in channels:
        for seen in truth(renderer, t, channel).objects:
            yield Shown(
                token=token,
                channel=channel,
                track=track_token(config, spec, seen.actor),
                kind=seen.kind,
                colour=seen.colour,
                pixels=seen.alone,
                hidden=1.0 - seen.share,
            )
