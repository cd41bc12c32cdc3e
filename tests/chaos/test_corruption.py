"""A short corruption run over our own files: `verify` names the file, and no reader gives another value."""

from __future__ import annotations

from tests.chaos import corruption


def test_no_fault_is_silent_and_no_value_is_wrong() -> None:
    config = corruption.Config(
        seed=3,
        flips=3,
        with_peers=False,
        only=("column.json", "commit record", "tar", "Zarr chunk", "index, quarantine"),
    )
    found = corruption.measure(config)
    assert list(corruption.bad(found)) == []
    verify = found["ours"]["verify"]
    assert set(verify["tar"]) == set(corruption.FAULTS)
    assert set(verify["tar"]["bit flipped"]) == {"named"}
    for who in ("reader", "reader, digests checked"):
        assert set(found["ours"][who]["tar"]["swapped"]) == {"refused"}
    assert set(found["ours"]["reader"]["tar"]["bit flipped"]) <= {"refused", "true values"}  # headers are not read
    table = corruption.markdown(found)
    assert "| tar | cut at a member, ended anew | named" in table


def test_what_would_be_bad_is_told() -> None:
    found = {
        "ours": {"verify": {"tar": {"cut": {"silent": 1, "named": 2}}}, "reader": {"tar": {"cut": {"WRONG VALUES": 1}}}}
    }
    assert list(corruption.bad(found)) == ["verify: tar, cut: silent", "reader: tar, cut: WRONG VALUES"]
    found = {"ours": {"reader, digests checked": {"tar": {"cut": {"WRONG VALUES": 1}}}}}
    assert len(list(corruption.bad(found))) == 1
