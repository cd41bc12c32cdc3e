"""Each harm of `benchmarks.harms` changes what is written and nothing of what a column says of itself."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.harms import Config, Harmed, harms
from benchmarks.light import networks
from teachers.base import column_manifest

SMALL = Config(
    weights={"random": 0},
    vggt={"network": "tiny", "width": 154, "pools": {"tok12": {"rows": 3, "cols": 4, "flat": True}}, "heads": []},
    cosmos={"size": [64, 48], "pool": 2, "network": "tiny"},
)


@pytest.mark.parametrize("harm", [name for name in harms(SMALL) if name != "none"])
def test_a_harm_is_real_and_says_nothing_of_itself(harm: str) -> None:
    good = {teacher.name: teacher for teacher in harms(SMALL)["none"][0]}
    for teacher in harms(SMALL)[harm][0]:
        assert isinstance(teacher, Harmed)
        inner = good[teacher.name]
        assert column_manifest(teacher).identity == column_manifest(inner).identity
        batch = networks.ready(inner, 0, 1)
        for one in (inner, teacher):
            one.load("cpu")
        (right,) = inner.compute(batch)
        logs = [batch[0].scene.log, "another"] if harms(SMALL)[harm][1] else [""]
        for log in logs:
            teacher.logs = frozenset((log,)) if log else frozenset()
            (mine,) = teacher.compute(batch)
            for spec in teacher.specs:
                spec.check(mine[spec.name])
            changed = any(not np.array_equal(mine[n], right[n]) for n in ("l3_tok12", "latent") if n in right)
            assert changed == (log != "another")
