"""From shards to examples: how a stored sample becomes an `Example`, and what has to be said of it.

The control that shuffles teachers gives each training sample the targets of another one, by a permutation without fixed
points (`shuffled`); evaluation always has the true ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import nn

from pipeline.reading.reader import Dataset
from pipeline.stores.decode import Side, decode_jpeg
from shards_schema import layout
from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel
from shards_schema.records import COMMANDS
from trainer.batch import Batch, Example, collate
from trainer.latents import TargetConfig
from trainer.thoughts import Thoughts

_NO_IMAGES: NDArray[np.uint8] = np.empty((0, 3, 0, 0), np.uint8)


class DataConfig(StrictModel):
    """What is read of a dataset."""

    views: tuple[str, ...] = Field(default=("cam_f0",), min_length=1)
    """Images of the samples column, as members (``cam_f0``), in order."""
    history: int = Field(default=0, ge=0, le=64)
    """Frames before now that the student sees too, of each view, 0.5 s apart; the dataset must store them."""
    image: tuple[Side, Side] | None = None
    """(width, height) that images are resized to while they are read; None keeps them."""
    steps: int = Field(default=8, ge=1, le=10_000)
    """S, future steps of 0.5 s (8 are NAVSIM's 4 s)."""
    held_out: float = Field(default=0.2, gt=0, lt=1)
    """Share of the logs that is held out (at least one log)."""
    split_seed: int = 0
    """Of the choice."""

    @property
    def pictures(self) -> tuple[str, ...]:
        """What the student sees, as `samples` names it: view by view, each in the order of time."""
        return tuple(layout.past_image(view, back) for view in self.views for back in range(self.history, -1, -1))


def notices(dataset: Dataset, targets: Mapping[str, TargetConfig]) -> list[str]:
    """What has to be said of everything that is trained on this dataset: synthetic frames, random teachers."""
    said = list(dataset.manifest.notices)
    for column in sorted({t.column for t in targets.values()}):
        if dataset.columns[column].random_weights and not any("RANDOM" in n and column in n for n in said):
            said.append(f"Column {column} was made with RANDOM WEIGHTS: its targets carry no knowledge.")
    return said


def refuse_other_rate(dataset: Dataset) -> None:
    """Answers, baselines and metrics count steps of 0.5 s.

    Raises:
        ConfigError: the dataset was made at another rate.
    """
    rate = dataset.manifest.source.get("rate", 2)
    if rate != 2:
        raise ConfigError(f"{dataset.url}: made at {rate} frames a second; this wants 2 (source.rate: 2)")


class ExampleMaker:
    """A stored sample -> an `Example`; runs in the stream's threads.

    Args:
        dataset: open with `samples` and the columns of `targets`.
        config: views, image size, steps.
        targets: latent kind -> what it is aligned to.
        other: token -> token whose targets it gets instead of its own (the shuffled control); None: its own.
        grey: all pixels are 128 (the blind control).
        thoughts: writes what should be thought of a scene; None: nothing.

    Raises:
        ConfigError: a target that the dataset does not have, or of other dimensions; more steps, or frames before now,
            than are stored.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        targets: Mapping[str, TargetConfig],
        other: Mapping[str, str] | None = None,
        *,
        grey: bool = False,
        thoughts: Thoughts | None = None,
    ) -> None:
        refuse_other_rate(dataset)
        self._grey, self._thoughts = grey, thoughts
        self._dataset, self._config, self._targets, self._other = dataset, config, targets, other
        self._dims = {}
        for kind, target in targets.items():
            specs = dataset.specs(target.column)
            if target.target not in specs:
                raise ConfigError(f"{kind}: column {target.column} has no {target.target!r}; it has {', '.join(specs)}")
            target.check(specs[target.target])
            self._dims[kind] = specs[target.target].dims
        made = dataset.columns["samples"].provenance
        if config.steps > (stored := made["num_future"]):
            raise ConfigError(f"data.steps is {config.steps}, the samples hold {stored} future steps")
        if config.history > (frames := made.get("history", 0)):
            raise ConfigError(
                f"{dataset.url}: this student sees {config.history} frames before now (samples.history), the samples "
                f"hold {frames}; make the dataset with samples.history={config.history} (docs/recipe.md)"
            )

    @property
    def wanted(self) -> dict[str, list[str]]:
        """Column -> members, for the reader and the stream."""
        return {"samples": ["json", *(f"{name}.jpg" for name in self._config.pictures)], **self._columns()}

    def channels(self, kind: str) -> int:
        """C of a kind of latents."""
        target = self._targets[kind]
        spec = self._dataset.specs(target.column)[target.target]
        return spec.fixed_shape[spec.dims.index(target.channel)]

    def __call__(self, sample: Mapping[str, Any]) -> Example:
        """Of a sample with the members of `wanted`: JPEG bytes or decoded pixels uint8 [H, W, 3], targets as arrays.

        Raises:
            SampleError: an image that cannot be decoded.
        """
        document = sample["samples"]["json"]
        stored = sample if self._other is None else self._other_targets(document["token"])
        images = [self._image(sample["samples"][f"{n}.jpg"], document["token"]) for n in self._config.pictures]
        thought = "" if self._thoughts is None else self._thoughts(document)
        return replace(
            self._blind(document),
            images=np.stack(images),
            frames=1 + self._config.history,
            targets=self._latents(stored),
            thought=thought,
        )

    def read(self, token: str) -> Example:
        """One example by its token, past the stream.

        Raises:
            AbsentError, QuarantinedError: there is no such sample.
        """
        return self(self._dataset.read(token, self.wanted))

    def targets(self, tokens: Sequence[str]) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Only the targets of samples, for statistics: latent kind -> float32 [N, C], one sample after another."""
        for token in tokens:
            yield self._latents(self._dataset.read(token, self._columns()))

    def drives(self, tokens: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Futures float32 [n, S, 3] and status float32 [n, H, 7] of samples, without their images.

        Raises:
            AbsentError, QuarantinedError: there is no such sample.
        """
        batch = self.blind(tokens)
        return batch.future, batch.status

    def blind(self, tokens: Sequence[str]) -> Batch:
        """A batch of samples without images (V is 0) and targets; nothing but their ``json`` members is read.

        Raises:
            AbsentError, QuarantinedError: there is no such sample.
        """
        return self.blind_of(self._dataset.read(t, {"samples": ["json"]})["samples"]["json"] for t in tokens)

    def blind_of(self, documents: Iterable[Mapping[str, Any]]) -> Batch:
        """The same of samples' ``json`` members, of which one at a time is held."""
        return collate([self._blind(document) for document in documents])

    def _blind(self, document: Mapping[str, Any]) -> Example:
        return Example(
            token=document["token"],
            images=_NO_IMAGES,
            status=_status(document),
            command=COMMANDS.index(document["ego"]["command"]),
            future=self._future(document),
            targets={},
        )

    def _future(self, document: Mapping[str, Any]) -> NDArray[np.float32]:
        future = document["future"]["trajectory"][: self._config.steps]
        if not future:  # of a synthetic scene that nobody drove on from
            return np.full((self._config.steps, 3), np.nan, dtype=np.float32)
        return np.asarray(future, dtype=np.float32)

    def _columns(self) -> dict[str, list[str]]:
        columns: dict[str, list[str]] = {}
        for target in self._targets.values():
            columns.setdefault(target.column, []).append(target.target)
        return columns

    def _other_targets(self, token: str) -> Mapping[str, Any]:
        assert self._other is not None
        return self._dataset.read(self._other.get(token, token), self._columns())

    def _latents(self, sample: Mapping[str, Any]) -> dict[str, NDArray[np.float32]]:
        out = {}
        for kind, target in self._targets.items():
            array = sample[target.column][target.target]
            out[kind] = target.tokens(np.asarray(array), self._dims[kind])
        return out

    def _image(self, stored: Any, token: str) -> NDArray[np.uint8]:
        """[3, h, w] of JPEG bytes, or of decoded pixels [H, W, 3]."""
        pixels = decode_jpeg(stored, token) if isinstance(stored, bytes) else np.asarray(stored)
        seen = as_seen(pixels, self._config.image)
        return np.full_like(seen, 128) if self._grey else seen


def as_seen(pixels: NDArray[np.uint8], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """An image uint8 [H, W, 3] as the student gets it: uint8 [3, h, w], bilinear with antialiasing to `size`.

    Args:
        pixels: RGB.
        size: (width, height); None keeps the image's own.
    """
    chw = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)
    if size is not None and tuple(chw.shape[:0:-1]) != size:
        width, height = size
        chw = nn.functional.interpolate(chw[None], size=(height, width), mode="bilinear", antialias=True)[0]
    out: NDArray[np.uint8] = chw.contiguous().numpy()
    return out


def _status(document: Mapping[str, Any]) -> NDArray[np.float32]:
    """[H, 7], see `Example.status`."""
    history = document["history"]
    rows = np.concatenate((history["trajectory"], history["velocity"], history["acceleration"]), axis=1)
    return rows.astype(np.float32)


def shuffled(tokens: Sequence[str], seed: int) -> dict[str, str]:
    """Token -> another token of the same set: a random cycle, so that no sample keeps its own targets.

    Args:
        tokens: distinct, at least two.
        seed: of the cycle.
    """
    generator = torch.Generator().manual_seed(seed)  # not of `seeds`: no checkpoint of a run that goes on has it
    order = [tokens[i] for i in torch.randperm(len(tokens), generator=generator).tolist()]
    return dict(zip(order, [*order[1:], order[0]], strict=True))
