"""What every student can do, written once: teacher-forced logits, sampling under a 4D mask, exact log-probabilities.

A sequence is  [image | text | wm latents | geo latents | answer prefix | answer tokens];  all but the last part is the
*prompt*. The position of the last prompt token says the first answer token. A back-end implements how a batch becomes
a prompt, and how hidden states are had, with and without a cache; masks, losses and policies never see a back-end.

Legend: B batch, P prompt positions, A answer tokens, L = P + A - 1, N latents, D width, V vocabulary of answers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from shards_schema.errors import ConfigError
from trainer import distributed
from trainer.answers.base import Answers
from trainer.answers.words import Words
from trainer.batch import THOUGHT, Batch
from trainer.latents import LATENTS, LatentInputs
from trainer.segments import Segment, apart, attention_mask, attention_row, is_causal


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A batch, made ready: `segments` int64 [B, P], what the back-end needs, and whether words are said to it.

    Behind it stand `group` answers a row, one after the other, each as if it stood there alone. Before each answer may
    stand words that the student has thought: `thought` int64 [B group, T], padded with -1. `padding` is where PAD may
    stand: nowhere, before each row alone, or anywhere; known without asking a device.
    """

    segments: Tensor
    data: Any
    asks: bool = False
    thought: Tensor | None = None
    group: int = 1
    padding: Literal["none", "left", "any"] = "any"

    @property
    def thoughts(self) -> Tensor:
        """`thought`, or int64 [B group, 0]."""
        return self.segments[:, :0].repeat(self.group, 1) if self.thought is None else self.thought

    @property
    def thought_lengths(self) -> Tensor:
        """Words of each thought, int64 [B group, 1]."""
        return (self.thoughts >= 0).sum(1, keepdim=True)


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """Hidden states [B, T, D]: `last` after the final norm, `aligned` of the layer that the adapters read."""

    last: Tensor
    aligned: Tensor


class StudentOutput(NamedTuple):
    """Of a teacher-forced pass. A tuple, since FSDP looks for the tensors of what a forward pass returns.

    Attributes:
        logits: [B, A, V], of each answer token given those before it.
        latents: kind -> [B, N, D], what the adapters read.
        thought: [B, T, words], of each word of the thought; None where none is thought.
    """

    logits: Tensor
    latents: Mapping[str, Tensor]
    thought: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Sampled:
    """Answers: `tokens` int64 [B, A], -1 after the end; `logp` float32 [B, A], 0 there.

    Before them the thoughts, int64 [B, T], theirs, and bool [B], which ones were cut by their length; None of none.
    """

    tokens: Tensor
    logp: Tensor
    thought: Tensor | None = None
    thought_logp: Tensor | None = None
    cut: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """Where a sequence stands while it is said: prompt, segments [B, L] so far, and the state [B, D] that says more."""

    prompt: Prompt
    segments: Tensor
    hidden: Tensor


class Student(nn.Module, ABC):
    """A policy: a batch in, answer tokens out.

    Args:
        answers: what it says.
        latents: learned inputs.
        prefix: answer positions at the end of a prompt (at least the one that says the first token).
        words: what it says to questions; None: it cannot be asked.

    Attributes:
        width: D.
        thinks: words, at most, of the thought that it writes before each trajectory (`trainer.thoughts`); 0: none.
    """

    width: int
    thinks: int = 0

    def __init__(self, answers: Answers, latents: LatentInputs, prefix: int, words: Words | None = None) -> None:
        super().__init__()
        self.answers, self.words = answers, words
        self.latents = latents
        self.prefix = prefix

    def unread(self) -> Iterable[tuple[str, Tensor]]:
        """Weights that lie on a disk while the student has them on the meta device: name, and the whole, mapped."""
        return ()

    def prepare(self, batch: Batch) -> Batch:
        """A batch with what `prompt` needs and the CPU makes: call it once, before the batch goes to the device.

        In any thread, the reading ones too. A student that needs nothing gives the batch as it is; one that does also
        takes a batch that nobody has prepared, and then asks the device for it in each `prompt`.
        """
        return batch

    def spoken(self, batch: Batch) -> Answers | Words:
        """What the answers to a batch are made of: its drives', or its questions' (`speech`)."""
        return self.speech if batch.asked else self.answers

    @property
    def speech(self) -> Words:
        """What it says to questions.

        Raises:
            ConfigError: it cannot be asked.
        """
        if self.words is None or not self.words.reads:
            raise ConfigError(
                "this policy cannot be asked: a tiny student has only the words of the questions that it was trained "
                "on; train one with questions.units=FILE (docs/questions.md)"
            )
        return self.words

    @abstractmethod
    def prompt(self, batch: Batch) -> Prompt:
        """The prompt of a batch."""

    @abstractmethod
    def run(self, prompt: Prompt, answers_BT: Tensor, mask: Tensor | None, cache: Any = None) -> States:
        """Hidden states of the prompt and `answers_BT` int64 [B, T] (T may be 0); mask bool [B, 1, P + T, P + T].

        None is a causal mask, by the back-end's own path (flash), of prompts without padding or padded before each row.

        Of a group each answer has T / G tokens, and places that begin after the prompt. A thought stands before its
        answer, and the mask is larger by it. With a cache (of `new_cache`), keys and values are kept in it.
        """

    @abstractmethod
    def step(self, prompt: Prompt, token_B1: Tensor, index: int, mask: Tensor, cache: Any) -> States:
        """Hidden states [B, 1, D] of answer token `index`; mask bool [B, 1, 1, P + index + 1]."""

    @abstractmethod
    def repeated(self, prompt: Prompt, cache: Any, times: int) -> Prompt:
        """What `step` needs of a prompt, each row `times` times, side by side; the same is done to its cache."""

    @abstractmethod
    def logits(self, hidden: Tensor, asks: bool = False) -> Tensor:
        """[..., V] of last hidden states [..., D]; of the words where questions are answered (`Prompt.asks`)."""

    @abstractmethod
    def new_cache(self) -> Any:
        """An empty cache."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The decoder layers: what FSDP shards one by one, and where `leaks` listens."""

    def forward(self, batch: Batch, answers_BA: Tensor, table: Tensor, words: int = 0) -> StudentOutput:
        """Teacher-forced: logits of every answer token, hidden states of every latent, under an allow table.

        A batch of S scenes may have B = S G answers, those of a scene side by side (as `sample` gives them). They go
        through the network behind one prompt, and see nothing of each other; latents are then [S, N, D].

        So many `words` at the beginning of an answer are its thought, padded with -1 up to there; 0: it has that of
        its scene, if there is one to learn.
        """
        thought_BT, answers_BA = answers_BA[:, :words], answers_BA[:, words:]
        known = thought_BT if words else self.thinking(batch).prepared.get(THOUGHT)
        prompt = replace(self.prompt(batch), thought=known, group=len(answers_BA) // len(batch))
        at, words, shown_BT = self.at(prompt), prompt.thoughts.shape[1], answers_BA[:, :-1]
        behind_BT = torch.cat((prompt.thoughts, shown_BT), 1)
        segments = torch.cat((prompt.segments, _segments(behind_BT).reshape(len(batch), -1)), 1)
        mask = _mask(prompt, segments, table)
        if prompt.group > 1 and mask is not None:
            mask = mask & apart(at + 1, behind_BT.shape[1], prompt.group, mask.device)
        states = self.run(prompt, shown_BT.reshape(len(batch), -1), mask)
        first = states.last[:, at : at + 1].repeat_interleave(prompt.group, 0)  # says what comes first
        hidden = torch.cat((first, states.last[:, at + 1 :].reshape(len(answers_BA), -1, self.width)), 1)
        thought = None
        if prompt.thought is not None:
            thought = self.logits(hidden[:, :words], True)
            first = hidden.gather(1, prompt.thought_lengths.unsqueeze(2).expand(-1, 1, self.width))
            hidden = torch.cat((first, hidden[:, words + 1 :]), 1)
        return StudentOutput(self.logits(hidden, prompt.asks), self._latents(prompt, states), thought)

    def thinking(self, batch: Batch) -> Batch:
        """A batch with the thoughts to learn as words, where this student thinks before it answers; in any thread."""
        if not self.thinks or batch.asked or THOUGHT in batch.prepared:
            return batch
        assert self.words is not None
        words = self.words.encode(batch.thoughts).to(batch.status.device)
        return replace(batch, prepared={**batch.prepared, THOUGHT: words})

    def logp(self, batch: Batch, answers_BA: Tensor, table: Tensor, temperature: float = 1.0, words: int = 0) -> Tensor:
        """Log-probability of each token of given answers, float32 [B, A]; 0 on padding. Answers as in `forward`.

        The policy is softmax(logits / temperature): the same temperature as in `sample`, or it is another policy.
        """
        out = self(batch, answers_BA, table, words)
        return torch.cat([logp for logp, _ in said_logp(out, answers_BA, temperature, words)], 1)

    @torch.no_grad()
    def sample(
        self,
        batch: Batch,
        table: Tensor,
        *,
        group: int = 1,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
        choose: Callable[[Tensor], Tensor] | None = None,
        length: int | None = None,
    ) -> Sampled:
        """Answers drawn from the whole softmax (no top-k, no top-p), by prefill and decode under the same mask.

        Args:
            batch: of S scenes; each is encoded once.
            table: the allow table of a stage.
            group: answers a scene; those of a scene stand side by side, B = S x group.
            temperature: 0 takes the likeliest token; log-probabilities are then those at temperature 1.
            generator: of the batch's device, or None for torch's own.
            choose: instead of drawing an answer: log-probabilities [B, V] of a step -> its token, int64 [B].
            length: tokens at most; None is as many as an answer may have.
        """
        spoken = self.spoken(batch)
        most = min(spoken.length, length or spoken.length)
        prompt, cache = self.prompt(batch), self.new_cache()
        segments = prompt.segments
        hidden_BD = self.run(prompt, segments[:, :0], _mask(prompt, segments, table, cached=True), cache).last[:, -1]
        if group > 1:
            prompt = self.repeated(prompt, cache, group)
            segments, hidden_BD = (x.repeat_interleave(group, 0) for x in (segments, hidden_BD))

        def pick(logits_BV: Tensor, choose: Callable[[Tensor], Tensor] | None = None) -> tuple[Tensor, Tensor]:
            logp_BV = (logits_BV.float() / (temperature or 1.0)).log_softmax(-1)
            if choose is not None:
                token_B = choose(logp_BV)
            else:
                token_B = _drawn(logp_BV, generator) if temperature else logp_BV.argmax(-1)
            return token_B, logp_BV.gather(1, token_B.unsqueeze(1)).squeeze(1)

        place = _Place(prompt, segments, hidden_BD)
        thought = thought_logp = cut = None
        if self.thinks and not batch.asked:
            assert self.words is not None
            asks, end = replace(place, prompt=replace(prompt, asks=True)), self.words.end
            place, thought, thought_logp = self._say(asks, table, cache, pick, end, self.thinks, onward=True)
            place, cut = replace(place, prompt=replace(prompt, thought=thought)), (thought != end).all(1)
        choosing = partial(pick, choose=choose)
        place, tokens, logps = self._say(place, table, cache, choosing, spoken.end, most)
        pad = tokens.new_full((len(tokens), most - tokens.shape[1]), -1)
        logp = torch.cat((logps, torch.zeros_like(pad, dtype=torch.float32)), 1)
        return Sampled(torch.cat((tokens, pad), 1), logp, thought, thought_logp, cut)

    def _say(
        self,
        place: _Place,
        table: Tensor,
        cache: Any,
        pick: Callable[[Tensor], tuple[Tensor, Tensor]],
        end: int | None,
        most: int,
        *,
        onward: bool = False,
    ) -> tuple[_Place, Tensor, Tensor]:
        """Token after token, until each row has ended or `most` are said: where that leads, tokens, log-probabilities.

        With `onward` more is said after it: what is last said goes through the network too, and a row that has ended
        waits in the state at its end.
        """
        prompt, segments, hidden_BD = place.prompt, place.segments, place.hidden
        alive_B = torch.ones(len(segments), dtype=torch.bool, device=segments.device)
        tokens, logps = [], []
        for index in range(most):
            token_B, logp_B = pick(self.logits(hidden_BD, prompt.asks))
            tokens.append(torch.where(alive_B, token_B, -torch.ones_like(token_B)))
            logps.append(torch.where(alive_B, logp_B, torch.zeros_like(logp_B)))
            if index == most - 1 and not onward:
                break
            said_B, more = alive_B, True
            if end is not None:
                alive_B = alive_B & (token_B != end)
                more = distributed.anywhere(alive_B.any(), self)
            if not more and not onward:
                break
            token_B1 = tokens[-1].unsqueeze(1)
            segments = torch.cat((segments, _segments(token_B1)), 1)
            states_BD = self.step(prompt, token_B1, index, attention_row(segments, table), cache).last[:, -1]
            hidden_BD = torch.where(said_B.unsqueeze(1), states_BD, hidden_BD) if onward else states_BD
            if not more:
                break
        return _Place(prompt, segments, hidden_BD), torch.stack(tokens, 1), torch.stack(logps, 1)

    def answer(self, batch: Batch, table: Tensor) -> tuple[Tensor, Tensor]:
        """The one trajectory that the policy stands for (nothing is drawn): float32 [B, S, 3], and bool [B], it parses.

        The likeliest token each time, or where the answers say so the expected motions; see `trainer.answers`.
        """
        expected = self.answers.expectation(batch.status)
        if expected is None:
            return self.answers.decode(self.sample(batch, table, temperature=0).tokens, batch.status)
        self.sample(batch, table, temperature=0, choose=expected)
        return expected.trajectory, torch.ones(len(batch), dtype=torch.bool, device=batch.status.device)

    def at(self, prompt: Prompt) -> int:
        """The position that says the first answer token."""
        return int(prompt.segments.shape[1]) - 1

    def _latents(self, prompt: Prompt, states: States) -> dict[str, Tensor]:
        out, counts = {}, self.latents.counts
        begin = self.at(prompt) + 1 - self.prefix - sum(counts.values())
        for kind in LATENTS:
            out[kind] = states.aligned[:, begin : begin + counts[kind]]
            begin += counts[kind]
        return out


def _mask(prompt: Prompt, segments: Tensor, table: Tensor, *, cached: bool = False) -> Tensor | None:
    """The mask of a pass over a prompt and what stands behind it; None: a back-end's own causal path is the same.

    With a cache what is padded stays masked: the cache is gone on with.
    """
    alone = prompt.group == 1 and prompt.thought is None
    fits = prompt.padding == "none" or (prompt.padding == "left" and not cached)
    return None if alone and fits and is_causal(table) else attention_mask(segments, table)


def _drawn(logp_BV: Tensor, generator: torch.Generator | None) -> Tensor:
    """One token a row, int64 [B]: the race of exponentials by which `torch.multinomial` draws one, number for number.

    That asks the device, at each token, whether these are probabilities; here a policy that has none is found by the
    gradient that is not finite (`optimiser.clipped`).
    """
    race_BV = torch.empty_like(logp_BV).exponential_(1, generator=generator)
    return (logp_BV.exp() / race_BV).argmax(-1)


def said_logp(
    out: StudentOutput, answers_BA: Tensor, temperature: float, words: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """Log-probabilities of softmax(logits / temperature), of the thought (see `Student.forward`), if any, and of what
    comes after it: of its tokens, float32 [B, A], 0 on padding (-1), and of every token, float32 [B, A, V].
    """
    parts = [(out.logits, answers_BA[:, words:])]
    if words and out.thought is not None:
        parts.insert(0, (out.thought, answers_BA[:, :words]))
    found = []
    for logits_BAV, said_BA in parts:
        logp_BAV = (logits_BAV.float() / temperature).log_softmax(-1)
        chosen_BA = logp_BAV.gather(-1, said_BA.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        found.append((torch.where(said_BA >= 0, chosen_BA, 0.0), logp_BAV))
    return found


def _segments(answers_BT: Tensor) -> Tensor:
    """ANSWER where there is a token, PAD after the end."""
    return torch.where(answers_BT >= 0, int(Segment.ANSWER), int(Segment.PAD))


def layer_index(layer: int, depth: int) -> int:
    """A layer of hidden states 0 (embeddings) .. depth, negative from the end.

    Raises:
        ConfigError: there is no such layer.
    """
    index = layer if layer >= 0 else depth + 1 + layer
    if not 0 < index <= depth:
        raise ConfigError(f"align_layer: expected 1..{depth} or -{depth}..-1, got {layer}")
    return index
