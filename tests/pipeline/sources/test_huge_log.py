"""A log of 64 GiB (a sparse file, a wrong name) is one log that cannot be read, and not the end of the machine."""

from __future__ import annotations

from pathlib import Path

from pipeline.sources.registry import build


def test_a_huge_log_is_refused_by_its_size(tmp_path: Path) -> None:
    (tmp_path / "navsim_logs/mini").mkdir(parents=True)
    with open(tmp_path / "navsim_logs/mini/huge.pkl", "wb") as file:
        file.truncate(64 << 30)
    scan = build({"kind": "navsim", "root": str(tmp_path), "split": "mini"}).scan()
    assert "68719476736 bytes, at most 1073741824 are read" in scan.unreadable["huge"]
