"""Sums become means of what they are sums over; what was not counted has none."""

from __future__ import annotations

import pytest
import torch

from trainer.tally import Tally, known, mean, mean_known


def test_each_number_is_a_mean_over_what_it_counts() -> None:
    tally = Tally()
    tally.add({"scenes": 2, "answers": 8, "spread": 1.0, "unparsed": 4, "reward/score": 6, "kl": 3, "tokens": 30})
    tally.add({"scenes": 2, "answers": 8, "spread": 3.0, "unparsed": 0, "reward/score": 2, "loss": 5, "updates": 2})
    assert tally.take(torch.device("cpu")) == pytest.approx(
        {"spread": 1.0, "unparsed": 0.25, "reward/score": 0.5, "kl": 0.1, "loss": 2.5}
    )
    tally.add({"scenes": 1, "answers": 4, "dropped": 1, "loss": 7})
    assert tally.take(torch.device("cpu")) == {"dropped": 1.0}  # begun anew; no update, so no loss


def test_a_mean_over_none_is_no_number() -> None:
    nan = float("nan")
    assert mean(3.0, 2.0) == 1.5
    assert mean(0.0, 0.0) is None
    assert mean_known(torch.tensor([1.0, nan, 4.0])) == 2.5
    assert mean_known(torch.tensor([nan])) is None
    assert mean_known(torch.zeros(0)) is None
    assert known({"a": 0.0, "b": None}) == {"a": 0.0}
