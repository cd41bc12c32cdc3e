"""The GPU's script: what a part prints is kept, whatever becomes of it and of the next one."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from benchmarks import __main__ as suite
from benchmarks import gpu, parity
from jobs import config as job_config
from shards_schema.errors import ConfigError

QUICK = ["width=154", "clip.size=[64, 64]", "image=[160, 90]", "job_repeats=1", "seconds=0.001", "shards=2"]


def test_a_part_that_fails_or_hangs_leaves_what_it_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def code(text: str) -> list[str]:
        return [sys.executable, "-u", "-c", text]

    made = {
        "fails": (60, code("print('one'); 1 / 0")),
        "hangs": (3, code("print('two', flush=True); import time; time.sleep(600)")),
        "dies": (60, code("print('three', flush=True); import os; os.kill(os.getpid(), 9)")),
        "works": (60, code("print('four')")),
    }
    monkeypatch.setattr(gpu, "parts", lambda config: made)
    assert gpu.main(["device=cpu", f"out={tmp_path}"]) == 1
    assert [path.read_text().split()[0] for path in sorted(tmp_path.glob("[1-4]_*.txt"))] == [
        "one",
        "two",
        "three",
        "four",
    ]
    told = capsys.readouterr().out
    for said in ("ZeroDivisionError", "exit code 1", "stopped at its limit", "exit code -9", "well"):
        assert said in told
    assert (tmp_path / "summary.txt").read_text() in told


def test_the_limits_come_to_under_ten_minutes() -> None:
    for device in ("cuda", "cpu"):
        assert sum(limit for limit, _ in gpu.parts(gpu.GpuConfig(device=device)).values()) < 600


def test_the_measurements_have_the_keys_that_it_gives_them() -> None:
    for _, command in gpu.parts(gpu.GpuConfig(device="cpu")).values():
        if command[2] == "benchmarks":
            name, *keys = command[3:]
            model = suite.settings_model({name: import_module(f"benchmarks.{name}")})
            job_config.load(model, suite.named(keys, [name]))


def test_without_cuda_it_says_so_before_any_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"device cuda: torch .* sees no CUDA; device=cpu runs anywhere"):
        gpu.main([f"out={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "not here" not in gpu.facts()
    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name in ("yaml", "zarr") else object())
    assert "not here: pip install PyYAML zarr" in gpu.facts()


def test_the_differences_are_the_worst_targets() -> None:
    want = [{"a": np.array([1.0, -2.0, np.nan]), "b": np.array([10.0, 0.0])}]
    got = [{"a": np.array([1.0, -1.5, np.nan]), "b": np.array([10.0, 0.1])}]
    largest, middle, cosine = parity.differences(got, want)
    assert largest == 0.25
    assert middle == pytest.approx(0.005)
    assert cosine == pytest.approx(4 / (5**0.5 * 3.25**0.5))
    assert parity.differences(want, want) == (0.0, 0.0, pytest.approx(1.0))
    assert parity.differences([{"a": np.array([1.0, np.nan, np.nan]), "b": want[0]["b"]}], want)[0] == np.inf


def test_a_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    kind, published, fields = parity.NETWORKS["VGGT"]
    small = {**fields, "width": 84, "height": 42, "pools": {"grid": {"rows": 2, "cols": 3}}}
    broken = (kind, published, {**small, "weights": {"path": "nowhere"}})
    monkeypatch.setattr(parity, "NETWORKS", {"VGGT": (kind, published, small), "gone": broken})
    parity.run(parity.Config(device="cpu", scenes=1))
    table = capsys.readouterr().out.splitlines()[-2:]
    assert table[0].startswith("VGGT tiny")
    assert "0.0e+00" in table[0]
    assert table[0].endswith("equal")
    assert "not measured: " in table[1]
    assert "nowhere" in table[1]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_network_has_its_row(capsys: pytest.CaptureFixture[str]) -> None:
    parity.run(parity.Config(device="cpu", scenes=1))
    told = capsys.readouterr().out
    table = told[told.index("cpu against the CPU") :].splitlines()[2:]
    assert [line.split("  ")[0] for line in table] == [f"{name} tiny" for name in parity.NETWORKS]
    assert all("0.0e+00" in line and line.endswith("equal") for line in table), told


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_script_on_the_cpu(tmp_path: Path) -> None:
    assert gpu.main(["device=cpu", f"out={tmp_path}", f"light={[*QUICK, 'shard_size=4']}"]) == 0
    assert "job over bare loop" in (tmp_path / "5_light.txt").read_text()
