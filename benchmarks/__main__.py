"""`python -m benchmarks [name ...] [name.key=value ...]`: run the measurements, print their tables.

A measurement is a module of this folder with a pydantic `Config` (its knobs) and `run(config) -> None` (prints); its
name is the module's and the first line of its docstring describes it. All of them take some ten minutes on two cores.
``python -m benchmarks job writer job.repeats=5`` runs two of them, one with another knob.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, create_model

import benchmarks
from benchmarks.measure import print_machine
from jobs import config as job_config
from shards_schema.errors import ConfigError


def measurements() -> dict[str, ModuleType]:
    """Every module of this folder that can be run, by name."""
    names = [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if m.name != "__main__"]
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in sorted(names)}
    return {name: module for name, module in modules.items() if hasattr(module, "Config") and hasattr(module, "run")}


def settings_model(modules: Mapping[str, ModuleType]) -> type[BaseModel]:
    """One config with a section a measurement."""
    sections: dict[str, Any] = {name: (module.Config, module.Config()) for name, module in modules.items()}
    return create_model("Settings", __config__=ConfigDict(frozen=True, extra="forbid"), **sections)


def main(arguments: list[str]) -> None:
    """Run what is named; everything when nothing is."""
    modules = measurements()
    wanted = [a for a in arguments if "=" not in a] or list(modules)
    if unknown := [name for name in wanted if name not in modules]:
        known = "\n".join(f"  {name:8} {(module.__doc__ or '').splitlines()[0]}" for name, module in modules.items())
        raise ConfigError(f"no measurement {', '.join(unknown)}; there are:\n{known}")
    settings = job_config.load(settings_model(modules), [a for a in arguments if "=" in a])
    print_machine()
    for name in wanted:
        print(f"\n\n== {name}: {(modules[name].__doc__ or '').splitlines()[0]}\n", flush=True)
        run = cast(Callable[[BaseModel], None], modules[name].run)
        run(getattr(settings, name))


if __name__ == "__main__":
    job_config.run(main)
