"""The head of students that say tokens of their own: what embeds them, and what scores them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class AnswerHead(nn.Module):
    """Embeds answer tokens and scores them: tables, plus a small network of what is known of each token.

    Motions that are near each other begin near each other, so that few samples suffice to learn them.
    """

    codebook: Tensor | None

    def __init__(self, vocabulary: int, width: int, codebook: Tensor | None = None) -> None:
        super().__init__()
        self.table_in = nn.Parameter(torch.randn(vocabulary, width) * 0.02)
        self.table_out = nn.Parameter(torch.randn(vocabulary, width) * 0.02)
        self.register_buffer("codebook", None, persistent=False)
        if codebook is not None:
            scale = codebook.std(0).clamp_min(1e-3)
            self.codebook = ((codebook - codebook.mean(0)) / scale).clone()
            self.features = nn.Sequential(nn.Linear(codebook.shape[1], width), nn.GELU(), nn.Linear(width, 2 * width))

    def _tables(self) -> tuple[Tensor, Tensor]:
        if self.codebook is None:
            return self.table_in, self.table_out
        more_in, more_out = self.features(self.codebook).chunk(2, dim=-1)
        return self.table_in + more_in, self.table_out + more_out

    def embed(self, tokens: Tensor) -> Tensor:
        """[..., D] of tokens [...]; padding (< 0) is embedded as token 0, and masked by its segment."""
        return self._tables()[0][tokens.clamp_min(0)]

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] of hidden states [..., D]."""
        return hidden @ self._tables()[1].to(hidden.dtype).T
