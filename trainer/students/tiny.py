"""A student of half a million weights that trains from scratch on a CPU in minutes.

A convolutional stem turns each image into patches, and a pre-norm transformer with scaled-dot-product attention under
the boolean mask does the rest. Text tokens are the command, a summary of all status, and each history step. Every
position has a learned embedding of its own, so that nothing depends on an offset; answer positions begin with the
summary of status too (text, which they may see in both stages), so that attention is left to what is seen. A question
is read piece by piece (`answers.words`), in the place of command and status. It shares mask, latents, losses and
sampling with the large students: what is true of it by construction (exact zeros, equal log-probabilities) is true of
them by the same code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pipeline.stores.decode import Side
from questions.units import Prompt as Question
from shards_schema.inputs.models import StrictModel
from shards_schema.records import COMMANDS
from trainer.answers.base import Answers
from trainer.answers.head import AnswerHead
from trainer.answers.words import Words
from trainer.batch import Batch
from trainer.latents import LatentInputs
from trainer.segments import Segment
from trainer.students.base import Prompt, States, Student, layer_index

STATUS_SCALE = (10.0, 10.0, 0.5, 10.0, 10.0, 2.0, 2.0)
"""Metres, metres, radians, m/s, m/s, m/s^2, m/s^2: what makes a usual value about 1."""
OCTAVES = 5
"""Sines and cosines of each status number: speeds that differ by centimetres a second have to look different."""
MOST_READ = 160
"""Pieces that a question has at most."""
_READ = "read"
"""In `Batch.prepared`: the pieces of the questions, int64 [B, T], padded with -1."""


class TinyConfig(StrictModel):
    """The tiny student."""

    kind: Literal["tiny"] = "tiny"
    width: int = Field(default=96, ge=8, le=65_536)
    """Of the transformer."""
    depth: int = Field(default=4, ge=1, le=1024)
    """Layers of the transformer."""
    heads: int = Field(default=4, ge=1, le=1024)
    """Attention heads of the transformer."""
    image: tuple[Side, Side] = (112, 64)
    """(width, height) that images are resized to; multiples of `patch`."""
    patch: Literal[16, 32] = 16
    """Pixels along a side of what becomes one position. With 32 the convolutions see twice as far for the same length
    of sequence: at 64 lines a traffic light is one pixel."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of attention and MLP outputs, while training."""
    answer_dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of the answer tokens that are hidden from those after them while training. Without it the student learns to
    repeat the motion before, which is right nearly always, and not to look at the scene."""
    shift: int = Field(default=8, ge=0)
    """Images are moved by up to so many pixels while training: a few hundred scenes are otherwise learnt by heart."""
    jitter: float = Field(default=0.15, ge=0)
    """Gain and offset of the images' channels are changed by up to such a share while training."""
    patch_dropout: float = Field(default=0.3, ge=0, lt=1)
    """Share of the patches that are hidden while training."""
    align_layer: int = -1
    """Hidden layer that the adapters read, 1..depth or negative; -1 is the last, after the final norm."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads must divide width, got {self.heads} and {self.width}")
        if any(side % self.patch for side in self.image):
            raise ValueError(f"image must be multiples of patch {self.patch}, got {list(self.image)}")
        return self


class _Cache:
    """Layer -> keys and values so far. No plain dict, which FSDP would take apart and hand on as a copy."""

    def __init__(self) -> None:
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of a layer, [B, heads, T, D / heads], with the new ones at the end."""
        if layer in self._layers:
            before = self._layers[layer]
            keys, values = torch.cat((before[0], keys), 2), torch.cat((before[1], values), 2)
        self._layers[layer] = (keys, values)
        return keys, values

    def repeat(self, times: int) -> None:
        """Each row `times` times, side by side."""
        for layer, (keys, values) in self._layers.items():
            self._layers[layer] = (keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0))


class Asking(nn.Module):
    """What only questions need: their words in and out, the places of words, and the gist of a question.

    Args:
        words: that are read and said.
        width: D.
    """

    def __init__(self, words: Words, width: int) -> None:
        super().__init__()
        self.head = AnswerHead(words.vocabulary, width)
        nn.init.normal_(self.head.table_in, std=0.5)  # as loud as their places: words are read, not motions
        self.read_place = nn.Parameter(torch.randn(MOST_READ, width) * 0.5)
        self.said_place = nn.Parameter(torch.randn(words.length, width) * 0.5)
        self.mark = nn.Parameter(torch.randn(width) * 0.5)
        self.gist = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, read_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Questions int64 [B, T], padded with -1 -> embeddings [B, 2 + T, D], and bool [B, 2 + T], what is no padding.

        A mark that something is asked, the gist of it, then its pieces.
        """
        there = read_BT >= 0
        words = self.head.embed(read_BT)
        mean = (words * there.unsqueeze(-1)).sum(1) / there.sum(1, keepdim=True)
        first = torch.stack((self.mark.expand_as(mean), self.gist(mean)), 1)
        return torch.cat((first, words + self.read_place[: read_BT.shape[1]]), 1), nn.functional.pad(
            there, (2, 0), value=True
        )


def told(question: Question) -> str:
    """A question as the tiny student reads it: alone, with its options."""
    return " | ".join((question.question, *question.options))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, mask: Tensor | None, cache: _Cache | None, key: int) -> Tensor:
        b, t, d = x_BTD.shape
        q, k, v = self.qkv(self.norm_1(x_BTD)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.extend(key, k, v)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        x_BTD = x_BTD + self.drop(self.out(mixed.transpose(1, 2).reshape(b, t, d)))
        out: Tensor = x_BTD + self.drop(self.down(nn.functional.gelu(self.up(self.norm_2(x_BTD)))))
        return out


class TinyStudent(Student):
    """See the module.

    Args:
        config: sizes.
        answers: what it says.
        counts: latents of each kind.
        views: V, images a sample.
        history: H, status steps a sample.
        words: of the questions that it is trained on; None: it is not asked.
    """

    status_scale: Tensor

    def __init__(
        self,
        config: TinyConfig,
        answers: Answers,
        counts: Mapping[str, int],
        *,
        views: int,
        history: int,
        words: Words | None = None,
    ) -> None:
        super().__init__(answers, LatentInputs(counts, config.width, scale=0.5), prefix=1, words=words)
        self.config, self.width = config, config.width
        w, (columns, rows) = config.width, (config.image[0] // config.patch, config.image[1] // config.patch)
        self.stem = _stem(config.patch, w)
        self.patch_place = nn.Parameter(torch.randn(views * rows * columns, w) * 0.5)
        self.status = nn.Sequential(nn.Linear(7 * (1 + 2 * OCTAVES), w), nn.GELU(), nn.Linear(w, w))
        self.status_place = nn.Parameter(torch.randn(history, w) * 0.5)
        self.command = nn.Embedding(len(COMMANDS), w)
        self.summary = nn.Sequential(
            nn.Linear(7 * history + w, 2 * w), nn.GELU(), nn.Linear(2 * w, 2 * w), nn.GELU(), nn.Linear(2 * w, w)
        )
        self.start = nn.Parameter(torch.randn(1, w) * 0.5)
        self.answer_place = nn.Parameter(torch.randn(answers.length, w) * 0.5)
        self.layers = nn.ModuleList(_Block(w, config.heads, config.dropout) for _ in range(config.depth))
        self.norm = nn.LayerNorm(w)
        self.head = AnswerHead(answers.vocabulary, w, answers.codebook)
        self._align = layer_index(config.align_layer, config.depth)
        self.register_buffer("status_scale", torch.tensor(STATUS_SCALE), persistent=False)
        self.asking = None if words is None else Asking(words, w)  # last: what came before draws as it did without

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks."""
        return list(self.layers)

    def prepare(self, batch: Batch) -> Batch:
        """With the pieces of its questions."""
        if not batch.asked or _READ in batch.prepared:
            return batch
        self.spoken(batch)
        assert self.words is not None
        read = self.words.encode([told(question) for question in batch.asked], length=MOST_READ)
        return replace(batch, prepared={**batch.prepared, _READ: read.to(batch.images.device)})

    def prompt(self, batch: Batch) -> Prompt:
        """Embeddings [B, P, D] of patches, command and status (or a question), latents, and the start of the answer."""
        b = len(batch)
        pixels = batch.images.flatten(0, 1).float() / 127.5 - 1
        if pixels.shape[-2:] != self.config.image[::-1]:
            pixels = nn.functional.interpolate(pixels, size=self.config.image[::-1], mode="bilinear", antialias=True)
        if self.training:
            pixels = _disturbed(pixels, self.config.shift, self.config.jitter, batch.frames)
        patches = self.stem(pixels).flatten(2).transpose(1, 2).reshape(b, -1, self.width) + self.patch_place
        if self.training and self.config.patch_dropout:
            hidden = torch.rand(*patches.shape[:2], 1, device=patches.device) < self.config.patch_dropout
            patches = patches.masked_fill(hidden, 0.0)
        text, there = self._text(batch)
        latents, start = self.latents(b), self.start.expand(b, 1, -1) + text[:, 1:2]
        segments = [
            torch.full((b, patches.shape[1]), int(Segment.IMAGE), device=batch.images.device),
            torch.where(there, int(Segment.TEXT), int(Segment.PAD)),
        ]
        for segment, kind in ((Segment.WM, "wm"), (Segment.GEO, "geo")):
            segments.append(segments[0].new_full((b, self.latents.counts[kind]), int(segment)))
        segments.append(segments[0].new_full((b, 1), int(Segment.ANSWER)))
        inputs = torch.cat((patches, text, latents, start), 1)
        return Prompt(torch.cat(segments, 1), inputs, bool(batch.asked), padding="any" if batch.asked else "none")

    def _text(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings [B, T, D] of the text, whose second is its summary; and bool [B, T], what is no padding."""
        if batch.asked:
            batch = self.prepare(batch)
            assert self.asking is not None
            asked: tuple[Tensor, Tensor] = self.asking(batch.prepared[_READ])
            return asked
        scaled, command = batch.status / self.status_scale, self.command(batch.command)
        summary = self.summary(torch.cat((scaled.flatten(1), command), 1))
        text = torch.cat((torch.stack((command, summary), 1), self.status(_waves(scaled)) + self.status_place), 1)
        return text, torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)

    def run(self, prompt: Prompt, answers_BT: Tensor, mask: Tensor | None, cache: Any = None) -> States:
        """One pass over the whole sequence."""
        head, place = self._speech(prompt.asks)
        answers, summary = head.embed(answers_BT), self._summary(prompt)
        if self.training and self.config.answer_dropout and not prompt.asks:
            hidden = torch.rand(*answers_BT.shape, 1, device=answers.device) < self.config.answer_dropout
            answers = answers.masked_fill(hidden, 0.0)
        answers = answers + place[: answers_BT.shape[1] // prompt.group].repeat(prompt.group, 1) + summary
        if prompt.thought is not None and self.asking is not None:
            words = self.asking.head.embed(prompt.thought) + self.asking.said_place[: prompt.thought.shape[1]]
            words = words + summary.repeat_interleave(prompt.group, 0)
            answers = torch.cat((words, answers.reshape(len(words), -1, self.width)), 1)
            answers = answers.reshape(len(summary), -1, self.width)
        return self._layers(torch.cat((prompt.data, answers), 1), mask, cache)

    def step(self, prompt: Prompt, token_B1: Tensor, index: int, mask: Tensor, cache: Any) -> States:
        """One token."""
        head, place = self._speech(prompt.asks)
        return self._layers(head.embed(token_B1) + place[index] + self._summary(prompt), mask, cache)

    def repeated(self, prompt: Prompt, cache: Any, times: int) -> Prompt:
        """The embeddings, of which `step` takes the summary."""
        cache.repeat(times)
        segments, data = (x.repeat_interleave(times, 0) for x in (prompt.segments, prompt.data))
        return replace(prompt, segments=segments, data=data)

    def _speech(self, asks: bool) -> tuple[AnswerHead, Tensor]:
        """Tokens in and out, and their places: of the drives, or of the words."""
        if asks and self.asking is not None:
            return self.asking.head, self.asking.said_place
        return self.head, self.answer_place

    def _summary(self, prompt: Prompt) -> Tensor:
        """[B, 1, D]: the second text token."""
        at = len(self.patch_place) + 1
        summary: Tensor = prompt.data[:, at : at + 1]
        return summary

    def _layers(self, x_BTD: Tensor, mask: Tensor | None, cache: Any) -> States:
        aligned = x_BTD
        for i, block in enumerate(self.layers):
            x_BTD = block(x_BTD, mask, cache, i)
            aligned = x_BTD if i + 1 == self._align else aligned
        last = self.norm(x_BTD)
        return States(last, last if self._align == len(self.layers) else aligned)

    def logits(self, hidden: Tensor, asks: bool = False) -> Tensor:
        """Of the answer head, or of the words'."""
        return self._speech(asks)[0].logits(hidden)

    def new_cache(self) -> Any:
        """Keys and values of each layer."""
        return _Cache()


def _stem(patch: int, width: int) -> nn.Sequential:
    """Images [N, 3, h, w] -> [N, width, h / patch, w / patch]: convolutions that halve, after one that quarters."""
    sizes = [24, 48, 96][: 2 if patch == 16 else 3]
    layers: list[nn.Module] = [nn.Conv2d(3, sizes[0], 5, stride=4, padding=2)]
    for before, after in pairwise([*sizes, width]):
        layers += [nn.GELU(), nn.GroupNorm(4, before), nn.Conv2d(before, after, 3, stride=2, padding=1)]
    return nn.Sequential(*layers)


def _disturbed(pixels_N3hw: Tensor, shift: int, jitter: float, frames: int) -> Tensor:
    """Images, each moved by its own whole pixels (edges repeated) and with its own gain and offset a channel.

    `frames` that follow each other are of one view: all of them alike, or what moves in them would be lost.
    """
    n, (height, width) = len(pixels_N3hw) // frames, pixels_N3hw.shape[-2:]
    padded = nn.functional.pad(pixels_N3hw, (shift,) * 4, mode="replicate")
    corners = torch.randint(0, 2 * shift + 1, (n, 2)).repeat_interleave(frames, 0).tolist()
    moved = [image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, corners, strict=True)]
    drawn = torch.empty(2, n, 3, 1, 1, device=padded.device).uniform_(-jitter, jitter)
    gain, offset = drawn.repeat_interleave(frames, 1).unbind(0)
    return torch.stack(moved) * (1 + gain) + offset


def _waves(x: Tensor) -> Tensor:
    """[..., n] -> [..., n (1 + 2 OCTAVES)]: the numbers, and sine and cosine of pi/2, pi, 2 pi .. times each."""
    angles = [x * (torch.pi / 2 * 2**k) for k in range(OCTAVES)]
    return torch.cat((x, *(f(a) for a in angles for f in (torch.sin, torch.cos))), -1)
