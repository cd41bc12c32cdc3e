"""`python -m tests.chaos [PART] [key=value ...]`: faults on purpose. Exit code 1: something was lost, doubled or left.

A part is a module of this folder with a pydantic `Config` and `run(config) -> int`, or with a `main(settings) -> int`:

faults   every call of the write path fails in turn, or is where the process dies; then resume, verify, compare
jobs     the real job on a real local Ray: kill -9, SIGTERM, hangs, poison, full disks, clocks, a second driver
leavings 50 runs of the real job, half of them interrupted: processes, memory and temp files that they leave
soak     half an hour of small shards in one process
report   docs/results/reliability.md from what the others wrote into out/chaos/

Nothing is imported from here by the product, which is touched only as a user, a kernel or a disk would.
Without a part: everything that takes minutes, and then the report. CHAOS=50 in the environment makes it longer.
"""

from __future__ import annotations

import importlib
import pkgutil

import tests.chaos
from jobs import config as job_config
from jobs.usage import HELP, asks_help
from shards_schema.errors import ConfigError

MINUTES = ("faults", "jobs", "corruption", "report")
"""What runs when nothing is named, in this order, where it is there."""


def parts() -> list[str]:
    """The modules that can be run."""
    names = [m.name for m in pkgutil.iter_modules(tests.chaos.__path__) if not m.name.startswith(("__", "test_"))]
    modules = {name: importlib.import_module(f"tests.chaos.{name}") for name in names}
    return [name for name, module in modules.items() if hasattr(module, "Config") and hasattr(module, "run")]


def main(arguments: list[str]) -> int:
    """Run a part; the exit code."""
    names = [a for a in arguments if "=" not in a and a not in HELP]
    settings = [a for a in arguments if a not in names]
    if asks_help(arguments) and not names:
        print(__doc__)
        return 0
    there = parts()
    if len(names) > 1 or not set(names) <= set(there) or (settings and not names):
        raise ConfigError(
            f"expected one of {', '.join(there)} (settings are a part's), got {' '.join(arguments)}\n\n{__doc__}"
        )
    code = 0
    for name in names or [name for name in MINUTES if name in there]:
        part = importlib.import_module(f"tests.chaos.{name}")
        if hasattr(part, "main"):
            code = max(code, int(part.main(settings)))
        else:
            code = max(code, int(part.run(job_config.load(part.Config, settings))))
    return code


if __name__ == "__main__":
    job_config.run(main)
