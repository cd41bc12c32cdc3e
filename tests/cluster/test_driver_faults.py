"""The driver on a real Ray, with workers that hang and images that end their decoder; a toy teacher, so that they load
at once. `python -m tests.chaos jobs only=[hang,poison]` does the same to the whole job."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import driver, metrics
from cluster.driver import AwakeClock, drive
from cluster.session import ClusterConfig, session
from pipeline.writing import run as runs
from pipeline.writing.task import ColumnReceipt, ShardReceipt
from pipeline.writing.worker import ShardWorker
from reports.run import Work
from tests.blocks import block
from tests.chaos.processes import alive
from tests.chaos.world import World, compare

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterConfig]:
    """A Ray whose processes meet the fault of `tests/chaos/crash`."""
    config = ClusterConfig(cpus=2, workers=1)
    shim = str(ROOT / "tests" / "chaos" / "crash")
    with tempfile.TemporaryDirectory(prefix="df", dir="/tmp") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([shim, str(ROOT)]))
        patch.setattr(sys, "path", [shim, *sys.path])  # for the children of this process
        patch.setenv("CHAOS_CRASH", "yes")
        patch.setenv("RAY_TMPDIR", folder)  # short: Ray's sockets lie in it
        patch.setenv("RAY_metrics_report_interval_ms", "300")
        patch.delenv("RAY_ADDRESS", raising=False)
        with session(config):
            yield config


def undisturbed(world: World, out: Path) -> float:
    """In this process, which has no fault, with children that have: all of it in a sandbox. The seconds of the slowest
    shard: so busy is the machine."""
    run = world.begin(out)
    with world.worker(run) as worker:
        slowest = max(worker.process(replace(task, sandbox=True)).seconds for task in run.todo())
    runs.close(run)
    return slowest


def test_a_worker_that_hangs_is_replaced_and_nothing_differs(ray: ClusterConfig, tmp_path: Path) -> None:
    world = World.make(tmp_path / "world", logs=6)
    seconds = max(5, 4 * round(undisturbed(world, tmp_path / "clean")))
    run = world.begin(tmp_path / "out")
    pids: list[int] = []
    said: list[str] = []
    receipts: list[ShardReceipt] = []

    def received(receipt: ShardReceipt) -> None:
        receipts.append(receipt)
        if len(receipts) == 2:
            os.kill(pids[0], signal.SIGSTOP)

    drive(
        run.todo(),
        functools.partial(world.build, run),
        config=ray.model_copy(update={"shard_seconds": seconds}),
        in_flight=2,
        on_start=pids.append,
        on_receipt=received,
        tell=said.append,
    )
    runs.close(run)
    assert not compare(tmp_path / "out", tmp_path / "clean")
    assert sorted(r.shard for r in receipts) == list(range(run.plan.shards))
    hang = rf"a worker hangs: process {pids[0]} on host \S+ has had shard \d for \d+ s, and {seconds} are given"
    assert [line for line in said if re.match(hang, line)], said
    assert len(set(pids)) == 2
    assert not [pid for pid in pids if alive(pid)], "a worker outlived its run"


def test_a_worker_that_hangs_while_it_loads_is_named_and_replaced(
    ray: ClusterConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one waits for a file that never opens, as on a network disk that does not answer."""
    monkeypatch.setattr(driver, "_SLOW", 1.0)
    monkeypatch.setattr(driver, "_LOOK", 0.5)
    world = World.make(tmp_path / "world", logs=2)
    seconds = max(4, 4 * round(undisturbed(world, tmp_path / "clean")))
    run = world.begin(tmp_path / "out")
    frozen, been = tmp_path / "weights", tmp_path / "been"
    os.mkfifo(frozen)

    def build() -> ShardWorker:
        if not been.exists():
            been.write_text(str(os.getpid()))
            frozen.read_bytes()
        return world.build(run)

    pids: list[int] = []
    said: list[str] = []
    receipts: list[ShardReceipt] = []
    drive(
        run.todo(),
        build,
        config=ray.model_copy(update={"load_seconds": seconds}),
        in_flight=1,
        on_start=pids.append,
        on_receipt=receipts.append,
        tell=said.append,
    )
    runs.close(run)
    assert len(receipts) == run.plan.shards
    assert len(pids) == 1
    hung = int(been.read_text())
    assert hung not in pids
    slow = [line for line in said if line.startswith("workers that still load their teachers")]
    assert re.search(rf": process {hung} on host \S+ for 0 min$", slow[0]), said
    (line,) = (line for line in said if line.startswith("a worker hangs"))
    assert re.match(
        rf"a worker hangs: process {hung} on host \S+ has been loading its teachers for \d+ s, and {seconds} ", line
    )


@pytest.mark.parametrize("in_flight", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_image_that_ends_its_decoder_costs_one_attempt_and_is_quarantined(
    ray: ClusterConfig, tmp_path: Path, in_flight: int
) -> None:
    world = World.make(tmp_path / "world", logs=6)
    bad = tmp_path / "world" / "log02" / "005.jpg"
    bad.write_bytes(bad.read_bytes() + b"chaos: crash")
    undisturbed(world, tmp_path / "clean")
    run = world.begin(tmp_path / "out")
    pids: list[int] = []
    said: list[str] = []
    receipts: list[ShardReceipt] = []
    looks: list[tuple[int, int]] = []
    drive(
        run.todo(),
        functools.partial(world.build, run),
        config=ray,
        in_flight=in_flight,
        on_start=pids.append,
        on_receipt=receipts.append,
        on_look=lambda ready, retried: looks.append((ready, retried)),
        tell=said.append,
    )
    totals = {t.column: t for t in runs.close(run)}
    assert not compare(tmp_path / "out", tmp_path / "clean")
    assert len(pids) == 2, said
    assert [line for line in said if line.startswith("a worker is gone: its worker died")] == said
    assert len(said) == 1
    assert looks[0] == (0, 0)
    assert looks[-1] == (1, in_flight), "what the worker that died had was tried again"
    assert totals["samples"].quarantined["decoder_crash"] == 1
    assert totals["toy"].quarantined["decoder_crash"] >= 1
    shutil.rmtree(tmp_path / "world")


def test_a_driver_that_slept_takes_nobody_for_hung() -> None:
    at = [100.0]
    now = AwakeClock(lambda: at[0])
    assert now() == 0
    at[0] += 3
    assert now() == 3
    at[0] += 7200
    assert now() == 13
    at[0] += 1
    assert now() == 14


def receipt(shard: int, reason: str) -> ShardReceipt:
    """Of four scenes, one of which was left out."""
    column = ColumnReceipt(
        column="vggt", planned=4, written=3, quarantined={reason: 1}, size=70, teacher_seconds=1e-6, launched=True
    )
    return ShardReceipt(shard=shard, columns=(column,), decodes=4, images=4, seconds=1.0, host="here", device="cpu")


def test_prometheus_has_every_figure_of_a_run(ray: ClusterConfig) -> None:
    """What the page says to type, at this Ray's own endpoint."""
    if not importlib.util.find_spec("opencensus"):
        assert metrics.told().startswith("metrics: none")
        pytest.skip("this Ray has no agent: ray[default] has it")
    work = Work(5, 1, 2, with_bar=False, show=metrics.Metrics("s3://key:secret@bucket/navtrain").show)
    work.started(1)
    work.add(receipt(0, "image_missing"))
    work.add(receipt(1, "image_damaged"))
    work.look(2, 3)
    figures = work.figures()
    address = metrics.told().removeprefix("metrics: http://").removesuffix("/metrics")
    asked = block("clusters", "scrape").replace("HOST:PORT", address)
    until = time.monotonic() + 60
    while (found := served(asked)).keys() != metrics.EXPORTED and time.monotonic() < until:
        time.sleep(0.2)
    assert found.keys() == metrics.EXPORTED
    assert {label for of in found.values() for label, _ in of} == {"s3://...@bucket/navtrain"}
    assert {reason: n for (_, reason), n in found["ray_last_shards_quarantined_total"].items()} == {
        "image_missing": 1,
        "image_damaged": 1,
    }
    for name in ("scenes", "bytes", "retries"):
        assert [*found[f"ray_last_shards_{name}_total"].values()] == [figures[name]]
    for name in ("shards_left", "workers"):
        assert [*found[f"ray_last_shards_{name}"].values()] == [figures[name]]
    assert (figures["scenes"], figures["bytes"], figures["retries"], figures["shards_left"]) == (8, 140, 3, 2)
    assert figures["device_utilisation"] is not None


def served(asked: str) -> dict[str, dict[tuple[str, str], float]]:
    """Metric -> dataset and reason -> value, as the shell has them."""
    shown = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=False).stdout
    found: dict[str, dict[tuple[str, str], float]] = {}
    for name, labels, value in re.findall(r"^(ray_last_shards_\w+)\{(.*)\} (\S+)$", shown, re.MULTILINE):
        told = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        found.setdefault(name, {})[told["dataset"], told.get("reason", "")] = float(value)
    return found


def test_the_dashboard_asks_for_what_is_exported_and_for_all_of_it() -> None:
    board = json.loads((ROOT / "deploy" / "grafana.json").read_text())
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert {name for text in asked for name in re.findall(r"ray_\w+", text)} == metrics.EXPORTED
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(board["panels"]))) == variables


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_image_that_its_decoder_never_ends_with_is_a_hang_and_then_quarantined(
    ray: ClusterConfig, tmp_path: Path
) -> None:
    """The second attempt has twice the 100 s, and takes 30 s of processor time for the image."""
    world = World.make(tmp_path / "world", logs=3)
    bad = tmp_path / "world" / "log01" / "005.jpg"
    bad.write_bytes(bad.read_bytes() + b"chaos: spin")
    run = world.begin(tmp_path / "out")
    said: list[str] = []
    drive(
        run.todo(),
        functools.partial(world.build, run),
        config=ray.model_copy(update={"shard_seconds": 100.0}),
        in_flight=2,
        on_start=lambda pid: None,
        on_receipt=lambda receipt: None,
        tell=said.append,
    )
    totals = {t.column: t for t in runs.close(run)}
    assert said, "nobody was taken for hung"
    assert all(line.startswith("a worker hangs") for line in said), said
    assert totals["samples"].quarantined["decoder_timeout"] == 1
    assert sum(totals["samples"].quarantined.values()) + totals["samples"].written == totals["samples"].planned
