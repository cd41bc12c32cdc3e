"""The process that Ray starts for a worker: it takes the driver's environment and folder, and hosts a `ShardWorker`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch

from cluster.ends import Process, end_with_parent, this_process
from pipeline.writing.task import ShardReceipt, ShardTask
from pipeline.writing.worker import ShardWorker
from shards_schema.errors import ConfigError


@ray.remote
class TeacherActor:
    """A `ShardWorker` in a process of its own.

    Args:
        env: reference to the variables to set before anything else is read.
        folder: the driver's working directory, taken where this machine has it too, so that a relative path means here
            what it means there.
        make: reference to what builds the worker. (Both in lists: Ray would read them before the variables are set.)
        alone: whether the run has this worker alone.
    """

    def __init__(self, env: list[Any], folder: str, make: list[Any], alone: bool) -> None:
        end_with_parent()
        self._env, self._folder, self._make, self._alone = env, folder, make, alone

    def place(self) -> tuple[str, Process]:
        """Id of the node that it was put on, and its process there; asked before `load`, which may never end."""
        return str(ray.get_runtime_context().get_node_id()), this_process()

    def load(self) -> int:
        """Build the worker and load the weights (here, since Ray hides what a constructor raises); the process id."""
        os.environ.update(ray.get(self._env[0]))
        if os.path.isdir(self._folder):
            os.chdir(self._folder)
        make: Callable[[], ShardWorker] = ray.get(self._make[0])
        self._worker = make()
        refuse_doubt(self._worker.device, ray.get_gpu_ids(), torch.cuda.device_count(), self._alone)
        self._worker.load()
        return os.getpid()

    def process(self, task: ShardTask) -> ShardReceipt:
        """See `ShardWorker.process`."""
        return self._worker.process(task)

    def close(self) -> None:
        """See `ShardWorker.close`; nothing more is asked of it then."""
        self._worker.close()


def refuse_doubt(device: str, reserved: Sequence[Any], there: int, alone: bool) -> None:
    """Where the device is left open, Ray and torch must agree on whether there is a GPU.

    Workers that reserved none and see some would all take the first. One that reserved some and sees none would
    compute on its CPU, into the columns of the others' GPUs.

    Args:
        device: as configured.
        reserved: the GPUs that Ray has given to this worker.
        there: GPUs that torch sees in this process.
        alone: whether the run has this worker alone.

    Raises:
        ConfigError: they do not agree.
    """
    if device != "auto":
        return
    if reserved and not there:
        raise ConfigError(
            f"worker.device is auto, and this worker has reserved {len(reserved)} GPU, of which torch "
            f"{torch.__version__} (CUDA {torch.version.cuda or 'not built in'}) sees none: is the node's driver too "
            "old for it? See nvidia-smi there; or set cluster.gpus_per_worker: 0 and worker.device: cpu"
        )
    if there and not reserved and not alone:
        raise ConfigError(
            f"worker.device is auto, and each of several workers sees {there} GPUs and has reserved none, so all of "
            "them would take the first: set cluster.gpus_per_worker (1: a GPU each), or worker.device: cpu"
        )
