"""What workers on other machines need of the driver's: its code, some of its environment, its working directory.

Code: our packages (not the working tree: no data, no .git, nothing that lies about), zipped by Ray, kept once a node by
their digest, first on the workers' path, so that a node runs the driver's version whatever its image holds. What they
import (torch, ...) must be on the node. A job that came by ``ray job submit`` with a working_dir or py_modules of its
own has shipped its code already.

Environment: variables are named by patterns and never printed. What a library reads when it is loaded (`_AT_START`)
goes by runtime_env, which Ray writes into its logs; everything else, keys among it, through the object store, which no
log and no dashboard shows, and is set before the worker's pickle is read.
"""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

PACKAGES = ("shards_schema", "pickles", "maps", "scoring", "teachers", "pipeline", "cluster")
"""What a worker may import of ours."""

ENVIRONMENT = (
    "AWS_*",
    "CUBLAS_WORKSPACE_CONFIG",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "HF_*",
    "HUGGING_FACE_HUB_TOKEN",
    "FSSPEC_*",
    "LAST_SHARDS_STORE",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
)
"""Names (`fnmatch` patterns) of the variables that go with a worker unless the config says otherwise."""

_AT_START = ("OMP_*", "MKL_*", "OPENBLAS_*", "CUBLAS_*", "PYTORCH_*", "MALLOC_*", "LD_PRELOAD")
_LEFT_OUT = ("__pycache__", "*.pyc")
_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray's own: the runtime_env of the ``ray job submit`` that started this driver."""


def passed(patterns: Sequence[str]) -> dict[str, str]:
    """The variables of this process that match, less those that have to be there when a worker's process starts."""
    return {k: v for k, v in _matching(patterns).items() if not _any(k, _AT_START)}


def runtime_env(patterns: Sequence[str]) -> dict[str, Any]:
    """Ray's runtime_env of this driver's workers: our packages, and the variables that a process must start with."""
    given = _submitted()
    env: dict[str, Any] = {}
    if "working_dir" not in given and "py_modules" not in given:
        env["py_modules"] = [str(folder) for folder in folders()]
        env["excludes"] = list(_LEFT_OUT)
    there = given.get("env_vars", {})
    at_start = {k: v for k, v in _matching(patterns).items() if _any(k, _AT_START) and k not in there}
    if at_start:
        env["env_vars"] = at_start
    return env


def folders() -> list[Path]:
    """Where the packages lie here."""
    return [Path(str(import_module(name).__file__)).parent for name in PACKAGES]


def size() -> tuple[int, int]:
    """Files and bytes of the packages, before they are zipped."""
    sizes = [
        path.stat().st_size
        for folder in folders()
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    ]
    return len(sizes), sum(sizes)


def _submitted() -> Mapping[str, Any]:
    config = json.loads(os.environ.get(_JOB, "{}"))
    found = config.get("runtime_env") or {}
    return found if isinstance(found, dict) else {}


def _matching(patterns: Sequence[str]) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if _any(k, patterns)}


def _any(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
