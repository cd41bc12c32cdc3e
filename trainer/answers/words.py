"""Texts as tokens: how a question is read by a student without a tokenizer, and what any student says to one.

A large student has its model's tokenizer. The tiny one has a list of pieces (words, digits, signs): those of the
questions that it was trained on. A piece that is not in it is read as unknown.

Legend: B texts, A tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from shards_schema.errors import ConfigError

_PIECE = re.compile(r"\s?(?:</?[a-z]+>|[^\W\d_]+|\d|[^\w\s]|_)")
_UNKNOWN = "\N{REPLACEMENT CHARACTER}"


class Words:
    """What is said to questions, as `base.Answers` is what is said of drives; texts are encoded, no trajectories.

    Args:
        encoder, decoder: text -> ids, ids -> text.
        vocabulary: V.
        end: the token that ends a text.
        length: A at most.
        pieces: of a list of pieces, all of them; else none.
        reads: whether they suffice to read questions.
    """

    smoothing: Tensor | None = None

    def __init__(
        self,
        encoder: Callable[[str], Sequence[int]],
        decoder: Callable[[Sequence[int]], str],
        vocabulary: int,
        end: int,
        length: int,
        pieces: tuple[str, ...] = (),
        reads: bool = True,
    ) -> None:
        self._encode, self._decode, self.reads = encoder, decoder, reads
        self.vocabulary, self.end, self.length, self.pieces = vocabulary, end, length, pieces

    @classmethod
    def of_tokenizer(cls, tokenizer: Any, length: int = 4096) -> Words:
        """Those of a language model."""
        return cls(
            lambda text: tokenizer(text, add_special_tokens=False).input_ids,
            lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
            vocabulary=len(tokenizer),
            end=int(tokenizer.eos_token_id),
            length=length,
        )

    @classmethod
    def of_pieces(cls, pieces: Iterable[str], length: int = 48, *, reads: bool = True) -> Words:
        """A list of pieces, which stand at 2 and after: 0 is the end, 1 what is unknown."""
        listed = (*pieces,)
        places = {piece: i for i, piece in enumerate(("", _UNKNOWN, *listed))}
        return cls(
            lambda text: [places.get(piece, 1) for piece in _PIECE.findall(text)],
            lambda ids: "".join(("", _UNKNOWN, *listed)[i] for i in ids),
            vocabulary=len(listed) + 2,
            end=0,
            length=length,
            pieces=listed,
            reads=reads,
        )

    @classmethod
    def fit(cls, texts: Iterable[str], length: int = 48, *, reads: bool = True) -> Words:
        """The pieces of these texts."""
        return cls.of_pieces(sorted({piece for text in texts for piece in _PIECE.findall(text)}), length, reads=reads)

    def encode(self, texts: Sequence[str], *, length: int | None = None) -> Tensor:
        """Texts, each with the end token, then -1: int64 [B, A of the longest].

        Args:
            texts: at least one.
            length: at most so many tokens; None is `length`.

        Raises:
            ConfigError: a longer one.
        """
        rows = [[*self._encode(text), self.end] for text in texts]
        longest, most = max(map(len, rows)), self.length if length is None else length
        if longest > most:
            text = max(zip(rows, texts, strict=True), key=lambda pair: len(pair[0]))[1]
            raise ConfigError(f"a text has {longest} tokens, and {most} is the most that this student takes: {text}")
        return torch.tensor([[*row, *[-1] * (longest - len(row))] for row in rows])

    def decode(self, tokens_BA: Tensor) -> list[str]:
        """Texts up to their end; all of one that does not end."""
        rows = ([t for t in row if t >= 0] for row in tokens_BA.tolist())
        return [self._decode(row[: row.index(self.end)] if self.end in row else row) for row in rows]

    def distance(self, logits_BAV: Tensor, future_BS3: Tensor, status_BH7: Tensor) -> Tensor | None:
        """None: texts have no distance."""
        return None

    def state(self) -> dict[str, Any]:
        """The pieces; a tokenizer is the model's. `build.restore_words` is the inverse."""
        return {"pieces": list(self.pieces)}
