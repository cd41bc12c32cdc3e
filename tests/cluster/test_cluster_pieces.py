"""What the driver does on a cluster, piece by piece: SIGTERM, what is shipped, what a worker must see, timing logs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from cluster import preemption, preflight, session, shipping
from cluster.actor import refuse_doubt
from cluster.dispatch import Dispatcher, Verdict
from cluster.session import ClusterConfig
from cluster.timings import Timings
from pipeline.stores.volume import Volume
from pipeline.writing.task import ShardReceipt
from shards_schema import layout
from shards_schema.errors import ConfigError, MismatchError, StoreError
from shards_schema.plan import PlannedScene
from tests.toys import ToySource, write_images

ROOT = Path(__file__).parents[2]


def test_the_first_sigterm_is_a_request_where_it_is_heeded_and_the_second_is_not() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with preemption.watch() as watched:
        with watched.heed():
            os.kill(os.getpid(), signal.SIGTERM)
            assert watched.asked
            with pytest.raises(SystemExit) as left:
                os.kill(os.getpid(), signal.SIGTERM)
        assert left.value.code == preemption.EXIT == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_leaves_at_once_where_nothing_heeds_it() -> None:
    with preemption.watch() as watched:
        with watched.heed():
            pass
        with pytest.raises(SystemExit, match="143"):
            os.kill(os.getpid(), signal.SIGTERM)


def test_the_exit_code_survives_a_library_that_makes_its_own_of_it() -> None:
    with pytest.raises(SystemExit, match="143"), preemption.watch():  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except SystemExit:
            raise SystemExit(1) from None
    with pytest.raises(SystemExit, match="7"), preemption.watch():
        raise SystemExit(7)


def test_in_a_thread_there_is_nothing_to_watch() -> None:
    seen: list[bool] = []

    def work() -> None:
        with preemption.watch() as watched, watched.heed():
            seen.append(watched.asked)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_variables_go_by_name_and_keys_never_by_runtime_env(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "AWS_SECRET_ACCESS_KEY": "hush",
        "HF_TOKEN": "hush",
        "LAST_SHARDS_STORE": "{}",
        "OMP_NUM_THREADS": "3",
        "SOMETHING_ELSE": "no",
    }.items():
        monkeypatch.setenv(name, value)
    passed = shipping.passed(shipping.ENVIRONMENT)
    assert passed["AWS_SECRET_ACCESS_KEY"] == passed["HF_TOKEN"] == "hush"
    assert "LAST_SHARDS_STORE" in passed
    assert "OMP_NUM_THREADS" not in passed
    assert "SOMETHING_ELSE" not in passed
    env = shipping.runtime_env(shipping.ENVIRONMENT)
    assert env["env_vars"]["OMP_NUM_THREADS"] == "3"
    assert "hush" not in json.dumps(env)
    assert shipping.passed(("SOMETHING_*",)) == {"SOMETHING_ELSE": "no"}


def test_a_submitted_job_has_shipped_its_code_and_its_variables_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    submitted = {"runtime_env": {"working_dir": "gcs://x.zip", "env_vars": {"OMP_NUM_THREADS": "8"}}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(submitted))
    assert shipping.runtime_env(("OMP_NUM_THREADS",)) == {}


def test_the_shipped_packages_are_enough_for_a_worker_and_small(tmp_path: Path) -> None:
    """What Ray would zip, unpacked alone: the driver's own modules are imported from there, and nothing of the tree."""
    for folder in shipping.folders():
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in tmp_path.rglob("*.*"):
            if path.suffix != ".zip":
                packed.write(path)
    assert (tmp_path / "all.zip").stat().st_size < 8 << 20  # of it 6.4 MB the weights that know the town
    files, size = shipping.size()
    assert files > 50
    assert size < 20 << 20
    code = "import cluster.session as c, cluster.preflight as p, teachers.registry as r; print(c.__file__, p.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(line.startswith(str(tmp_path)) for line in done.stdout.split())


@pytest.fixture
def data(tmp_path: Path) -> ToySource:
    write_images(tmp_path / "data", 1, 9)
    return ToySource(str(tmp_path / "data"), logs=1)


def test_a_worker_that_sees_the_same_is_let_in_and_any_other_is_named(
    data: ToySource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = Volume(str(tmp_path / "out"))
    volume.put(layout.DATASET, b"{}")
    planned = PlannedScene(data.scan().refs[0], 0)
    seen = preflight.take(data, volume, planned)
    assert seen.found.startswith("image ")
    preflight.compare(seen, data, volume)

    # an older dataset of the same plan, at the same path of another disk
    shutil.copytree(tmp_path / "out", tmp_path / "other", ignore=shutil.ignore_patterns(".tmp"))
    monkeypatch.setattr(preflight, "_PROPAGATION", 0.1)
    with pytest.raises(MismatchError, match=r"mark is not there.*network file"):
        preflight.compare(seen, data, Volume(str(tmp_path / "other")))
    with pytest.raises(MismatchError, match=r"dataset.json there is nothing"):
        preflight.compare(seen, data, Volume(str(tmp_path / "nowhere")))
    assert not (tmp_path / "nowhere").exists()

    # images are not mounted; nor the logs
    elsewhere = ToySource(str(tmp_path / "unmounted"), logs=1)
    with pytest.raises(MismatchError, match=r"has the error log_unreadable, the driver has image"):
        preflight.compare(seen, elsewhere, volume)
    image = Path(data.scenes("log00", [planned.ref])[0].at(0).cameras["CAM_F0"].image)  # type: ignore[union-attr]
    image.rename(image.with_suffix(".away"))
    with pytest.raises(MismatchError, match=r"has the error image_missing"):
        preflight.compare(seen, data, volume)
    # and where the driver cannot have it either, it is the data's own fault
    preflight.compare(preflight.take(data, volume, planned), data, volume)
    assert volume.sweep() == 2


def receipt(shard: int) -> ShardReceipt:
    return ShardReceipt(shard=shard, columns=(), decodes=0, images=0, seconds=0.0, host="here", device="cpu")


class SlowVolume(Volume):
    """No write ends before the store answers; shard 3 is refused."""

    def __init__(self, url: str, answers: bool = True) -> None:
        super().__init__(url)
        self.answer = threading.Event()
        if answers:
            self.answer.set()

    def put(self, name, data):  # type: ignore[no-untyped-def]
        self.answer.wait()
        if name.endswith("000003.json"):
            raise StoreError("403")
        return super().put(name, data)


def test_timing_logs_do_not_hold_up_the_driver_and_all_are_there_at_the_end(tmp_path: Path) -> None:
    volume = SlowVolume(str(tmp_path), answers=False)
    with Timings(volume) as timings:
        for shard in range(10, 60):
            timings.put(receipt(shard))  # for ever, if the driver waited for the store
        assert Volume(str(tmp_path)).names(layout.LOGS) == []
        volume.answer.set()
    assert len(Volume(str(tmp_path)).names(layout.LOGS)) == 50


def test_a_refused_timing_log_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="403"), Timings(SlowVolume(str(tmp_path))) as timings:
        timings.put(receipt(3))
    timings = Timings(SlowVolume(str(tmp_path)))
    timings.put(receipt(3))
    with pytest.raises(StoreError, match="403"):
        list(map(timings.put, map(receipt, itertools.count(4))))  # one of the next: none waits for the third


def test_the_error_of_a_run_is_not_hidden_by_a_timing_log(tmp_path: Path) -> None:
    timings = Timings(SlowVolume(str(tmp_path)))
    timings.put(receipt(3))
    timings.__exit__(KeyError, KeyError(), None)


def test_uneven_nodes_hold_what_each_has_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"NodeID": "head", "Alive": True, "Resources": {"CPU": 4.0, "memory": 1e9}},
        {"NodeID": "big", "Alive": True, "Resources": {"CPU": 64.0, "GPU": 8.0}},
        {"NodeID": "few-cpus", "Alive": True, "Resources": {"CPU": 16.0, "GPU": 8.0}},
        {"NodeID": "dead", "Alive": False, "Resources": {}},
    ]
    monkeypatch.setattr("cluster.session.ray.nodes", lambda: nodes)
    whole = ClusterConfig(gpus_per_worker=1, cpus_per_worker=8)
    assert session.room(whole) == {"head": 0, "big": 8, "few-cpus": 2}
    assert session.worker_count(whole) == 10
    shared = ClusterConfig(gpus_per_worker=0.4, cpus_per_worker=1)  # two a GPU; no worker lies across two GPUs
    assert session.room(shared) == {"head": 0, "big": 16, "few-cpus": 16}
    assert session.room(ClusterConfig(gpus_per_worker=2, cpus_per_worker=0)) == {"head": 0, "big": 4, "few-cpus": 4}
    assert session.worker_count(ClusterConfig()) == 1
    assert session.worker_count(ClusterConfig(workers=3)) == 3


def test_workers_that_reserved_no_gpu_do_not_all_take_the_first() -> None:
    with pytest.raises(ConfigError, match=r"sees 8 GPUs and has reserved none.*gpus_per_worker"):
        refuse_doubt("auto", [], 8, alone=False)
    refuse_doubt("auto", [], 8, alone=True)
    for device, reserved, there in (("auto", [3], 1), ("auto", [], 0), ("cpu", [], 8), ("cuda:1", [], 8)):
        refuse_doubt(device, reserved, there, alone=False)


@pytest.mark.parametrize("alone", [False, True])
def test_a_worker_with_a_gpu_that_torch_does_not_see_does_not_compute_on_its_cpu(alone: bool) -> None:
    with pytest.raises(ConfigError, match=r"has reserved 1 GPU, of which torch .* sees none.*driver too old"):
        refuse_doubt("auto", [3], 0, alone)
    refuse_doubt("cpu", [3], 0, alone)


def test_a_seat_that_is_away_gets_nothing_and_one_that_is_closed_gives_back() -> None:
    dispatch = Dispatcher(6, 2, in_flight=2, max_attempts=1)
    dispatch.loaded(0)
    dispatch.loaded(1)
    assert dispatch.assign(0) == [(0, 0), (1, 1), (0, 2), (1, 3)]
    dispatch.away(1)
    dispatch.completed(0, 0, 1)
    assert dispatch.assign(1) == [(0, 4)]
    assert dispatch.lost(1, "its node is gone", charge=False) is Verdict.REPLACE
    assert dispatch.failed_tasks == {}
    assert dispatch.close(1) is Verdict.CLOSE
    assert (dispatch.open, dispatch.ready, dispatch.left) == (1, 1, 5)
    now = 1.0
    dispatch.completed(0, 2, now)
    running = {4}
    while not dispatch.finished:
        running |= {task for _, task in dispatch.assign(now)}
        dispatch.completed(0, running.pop(), now)
    assert dispatch.done == 6
    assert dispatch.close(0) is Verdict.CLOSE


def test_a_task_that_takes_its_nodes_with_it_is_found_in_the_end() -> None:
    dispatch = Dispatcher(1, 1, in_flight=1, max_attempts=3)
    deaths = 0
    while not dispatch.finished:
        dispatch.loaded(0)
        assert dispatch.assign(deaths) == [(0, 0)]
        dispatch.lost(0, "its node is gone", charge=False)
        deaths += 1
    assert dispatch.failed_tasks == {0: "its node is gone"}
    assert deaths == 30 + 3
