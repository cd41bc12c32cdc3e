"""The allow tables, cell by cell, and the mask that follows from them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shards_schema.errors import ConfigError
from trainer.segments import Segment, allow_table, attention_mask, attention_row, reachable

IMG, TXT, W, G, A = "image", "text", "wm", "geo", "answer"
NAMES = (IMG, TXT, W, G, A)

SEES = {
    1: {IMG: {IMG}, TXT: {TXT}, W: {IMG, TXT, W}, G: {IMG, TXT, G}, A: {TXT, W, G, A}},
    2: {IMG: {IMG}, TXT: {IMG, TXT}, W: {IMG, TXT, W}, G: {IMG, TXT, W, G}, A: {IMG, TXT, W, G, A}},
}
REACHES = {1: SEES[1] | {A: {IMG, TXT, W, G, A}}, 2: SEES[2]}


@pytest.mark.parametrize("stage", [1, 2])
def test_the_table_is_the_issues(stage: int) -> None:
    table = allow_table(stage)
    for q, query in enumerate(NAMES):
        for k, key in enumerate(NAMES):
            assert bool(table[q, k]) == (key in SEES[stage][query]), (query, key)
    assert not table[Segment.PAD].any()
    assert not table[:, Segment.PAD].any()


@pytest.mark.parametrize("stage", [1, 2])
def test_what_can_reach_what_through_layers(stage: int) -> None:
    reach = reachable(allow_table(stage))
    for q, query in enumerate(NAMES):
        assert {NAMES[k] for k in range(5) if reach[q, k]} == REACHES[stage][query]


def test_no_other_stage() -> None:
    with pytest.raises(ConfigError, match="expected 1 or 2, got 3"):
        allow_table(3)


@given(st.lists(st.sampled_from(list(Segment)), min_size=1, max_size=12), st.sampled_from([1, 2]))
def test_mask_is_the_rule_at_every_cell(segments: list[Segment], stage: int) -> None:
    table = allow_table(stage)
    mask = attention_mask(torch.tensor([segments]).long(), table)
    assert mask.shape == (1, 1, len(segments), len(segments))
    assert mask.dtype == torch.bool
    for q, query in enumerate(segments):
        for k, key in enumerate(segments):
            allowed = k <= q and key is not Segment.PAD and bool(table[query, key])
            assert bool(mask[0, 0, q, k]) == (allowed or q == k)
    assert torch.equal(attention_row(torch.tensor([segments]).long(), table), mask[:, :, -1:])


def test_stage_2_without_padding_is_plain_causal() -> None:
    segments = torch.tensor([[0, 0, 1, 2, 2, 3, 4, 4]])
    assert torch.equal(attention_mask(segments, allow_table(2))[0, 0], torch.ones(8, 8).tril().bool())
