"""The closing report's throughput, from receipts as workers send them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.writing.task import ColumnReceipt, ShardReceipt
from reports.run import Throughput
from teachers import registry


def receipt(shard: int, **columns: tuple[int, float]) -> ShardReceipt:
    made = tuple(
        ColumnReceipt(column=name, planned=9, written=written, quarantined={}, size=1, teacher_seconds=seconds)
        for name, (written, seconds) in columns.items()
    )
    return ShardReceipt(shard=shard, columns=made, decodes=1, images=1, seconds=1.0, host="here", device="cpu")


def test_each_teachers_own_rate_and_share() -> None:
    vggt = registry.build("vggt", {"weights": {"random": 0}, "network": "tiny"})

    class Rules:
        name = "rules"
        config = None

    rules: Any = Rules()
    meter = Throughput()
    meter.add(receipt(0, samples=(9, 0.0), vggt=(8, 2.0), rules=(9, 1.0)))
    meter.add(receipt(1, samples=(9, 0.0), vggt=(4, 4.0)))
    head, _, first, second = meter.text([vggt, rules], seconds=10.0, workers=2).strip("\n").splitlines()
    assert head.split("  ")[0] == "teacher"
    assert first.split() == ["vggt", "2.00", "30%"]
    assert second.split() == ["rules", "9.00", "5%"]


def test_nothing_is_said_of_a_teacher_that_was_not_at_work() -> None:
    vggt = registry.build("vggt", {"weights": {"random": 0}, "network": "tiny"})
    meter = Throughput()
    meter.add(receipt(0, samples=(9, 0.0)))
    assert meter.text([vggt], seconds=10.0, workers=1) == ""


def test_the_devices_share_is_of_teachers_in_phases_alone() -> None:
    meter = Throughput()
    meter.add(receipt(0, rules=(9, 9.0)))
    assert meter.device_busy(seconds=10.0, workers=1) == ""
    (column,) = receipt(1, vggt=(8, 4.0)).columns
    meter.add(replace(receipt(1), columns=(replace(column, launched=True),)))
    assert meter.device_busy(seconds=10.0, workers=2) == ", device busy 20%"
