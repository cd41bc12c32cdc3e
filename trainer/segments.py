"""Who may look at whom: one segment id a position, one table a stage, and the attention mask that follows from them.

    mask[q, k] = (allow[stage][seg_q, seg_k] & k <= q & k is not padding) | q == k

Rows are queries, columns are keys. The order of a sequence is image, text, wm, geo, answer; padding stands anywhere.
`wm` are the dynamics latents (aligned to Cosmos), `geo` the 3D ones (aligned to VGGT). In stage 1 the answer never
sees the image: what it knows of the scene comes through the latents. The diagonal is always on, so that no row of the
softmax is empty. Source: the method figure of LaST-VLA, read cell by cell.
"""

from __future__ import annotations

from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor

from shards_schema.errors import ConfigError


class Segment(IntEnum):
    """What a position is. Vision start and end tokens are IMAGE, the chat template and the prompt are TEXT."""

    IMAGE = 0
    TEXT = 1
    WM = 2
    GEO = 3
    ANSWER = 4
    PAD = 5


CONTENT = tuple(s for s in Segment if s is not Segment.PAD)
"""The segments that carry something, in the order in which they stand."""

STAGE_1 = (
    # image text wm geo answer
    (1, 0, 0, 0, 0),  # image
    (0, 1, 0, 0, 0),  # text: blind to the image, or the answer would see the image through it
    (1, 1, 1, 0, 0),  # wm
    (1, 1, 0, 1, 0),  # geo: blind to wm
    (0, 1, 1, 1, 1),  # answer: the image only through the latents
)
STAGE_2 = (
    (1, 0, 0, 0, 0),
    (1, 1, 0, 0, 0),
    (1, 1, 1, 0, 0),
    (1, 1, 1, 1, 0),
    (1, 1, 1, 1, 1),
)


_CPU = torch.device("cpu")


def allow_table(stage: int, device: torch.device = _CPU) -> Tensor:
    """The allow table of a stage, bool [6, 6] over (query, key); PAD sees nothing and is seen by nothing.

    One on the CPU goes to a device once, and is told to be causal (`is_causal`) without asking a device.

    Raises:
        ConfigError: a stage other than 1 and 2.
    """
    return _table(stage, device).clone()


@lru_cache
def _table(stage: int, device: torch.device) -> Tensor:
    if stage not in (1, 2):
        raise ConfigError(f"stage: expected 1 or 2, got {stage}")
    table = torch.zeros(len(Segment), len(Segment), dtype=torch.bool)
    table[: len(CONTENT), : len(CONTENT)] = torch.tensor(STAGE_1 if stage == 1 else STAGE_2, dtype=torch.bool)
    return table.to(device)


@lru_cache
def _there(cells: tuple[tuple[bool, ...], ...], device: torch.device) -> Tensor:
    return torch.tensor(cells, device=device)


def _beside(table: Tensor, segments: Tensor) -> Tensor:
    """A table on the device of segments."""
    if table.device == segments.device:
        return table
    return _there(tuple(map(tuple, table.tolist())), segments.device)


def is_causal(table: Tensor) -> bool:
    """Whether a table on the CPU is stage 2's, whose mask without padding is plain causal; False of another device."""
    return table.device == _CPU and torch.equal(table, _table(2, _CPU))


def attention_mask(segments_BL: Tensor, table: Tensor) -> Tensor:
    """The mask of a whole sequence.

    Args:
        segments_BL: int64 [B, L], values of `Segment`.
        table: bool [6, 6], of `allow_table`.

    Returns:
        bool [B, 1, L, L]; True where the query (axis 2) may attend to the key (axis 3).
    """
    length = segments_BL.shape[1]
    table = _beside(table, segments_BL)
    mask_BLL = table[segments_BL.unsqueeze(2), segments_BL.unsqueeze(1)]
    mask_BLL = mask_BLL & (segments_BL != Segment.PAD).unsqueeze(1)
    causal_LL = torch.ones(length, length, dtype=torch.bool, device=segments_BL.device).tril()
    eye_LL = torch.eye(length, dtype=torch.bool, device=segments_BL.device)
    return ((mask_BLL & causal_LL) | eye_LL).unsqueeze(1)


def apart(prompt: int, length: int, group: int, device: torch.device) -> Tensor:
    """Who may look at whom where several answers stand behind one prompt: bool [P + G T, P + G T] over (query, key).

    False where a query of one answer meets a key of another; all else is up to `attention_mask`.

    Args:
        prompt: P, positions before the answers.
        length: T, positions of each answer.
        group: G, answers.
        device: of the mask.
    """
    own = torch.arange(1, group + 1, device=device).repeat_interleave(length)
    own = torch.cat((torch.zeros(prompt, dtype=own.dtype, device=device), own))
    return (own == own.unsqueeze(1)) | (own == 0)


def attention_row(segments_BL: Tensor, table: Tensor) -> Tensor:
    """The last row of `attention_mask`, bool [B, 1, 1, L], without the others."""
    row_BL = _beside(table, segments_BL)[segments_BL[:, -1:], segments_BL] & (segments_BL != Segment.PAD)
    row_BL[:, -1] = True
    return row_BL[:, None, None]


def reachable(table: Tensor, layers: int = len(CONTENT)) -> Tensor:
    """Which segment can influence which through a number of layers: bool [5, 5] over (query, key).

    Each layer adds one step along the table (and the residual none): what the gradients of a student have to look like,
    trained or not. One layer is the table itself; five are its closure, since a path has at most five segments.
    """
    step = table[: len(CONTENT), : len(CONTENT)].tril().float()
    reach = torch.eye(len(CONTENT))
    for _ in range(min(layers, len(CONTENT))):
        reach = ((reach @ step + reach) > 0).float()
    return reach.bool()
