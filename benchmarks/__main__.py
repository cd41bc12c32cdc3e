"""`python -m benchmarks [name ...] [name.key=value ...]`: run the measurements, print their tables.

A measurement is a module of this folder with a pydantic `Config` (its knobs) and `run(config) -> None` (prints); its
name is the module's and the first line of its docstring describes it. All take some twenty minutes on two cores.
``python -m benchmarks job writer job.repeats=5`` runs two of them, one with another knob; where one alone is named its
knobs need no name (``light device=cuda``). Only what is named is imported, so `light` runs where Ray is not installed.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, create_model

import benchmarks
from benchmarks.measure import print_machine
from jobs import config as job_config
from jobs.usage import HELP, asks_help
from shards_schema.errors import ConfigError


def measurements() -> dict[str, str]:
    """Every module of this folder that can be run, by name, with the first line of its docstring; none is imported."""
    found = {}
    for module in pkgutil.iter_modules(benchmarks.__path__):
        path = Path(benchmarks.__path__[0]) / module.name
        tree = ast.parse((path / "__init__.py" if module.ispkg else path.with_suffix(".py")).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        if {"Config", "run"} <= names:
            found[module.name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return dict(sorted(found.items()))


def settings_model(modules: Mapping[str, ModuleType]) -> type[BaseModel]:
    """One config with a section a measurement."""
    sections: dict[str, Any] = {name: (module.Config, module.Config()) for name, module in modules.items()}
    return create_model("Settings", __config__=ConfigDict(frozen=True, extra="forbid"), **sections)


def named(overrides: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """`overrides` as ``name.key=value``: where one measurement alone is wanted, a key without a name is its own."""
    if len(wanted) != 1:
        return list(overrides)
    only = wanted[0]
    return [o if o.startswith(f"{only}.") else f"{only}.{o}" for o in overrides]


def main(arguments: list[str]) -> None:
    """Run what is named; everything when nothing is."""
    known = measurements()
    listed = "\n".join(f"  {name:8} {line}" for name, line in known.items())
    given = [a for a in arguments if "=" not in a and a not in HELP]
    if asks_help(arguments) and not given:
        print(f"{__doc__}\n{listed}")
        return
    wanted = given or list(known)
    if unknown := [name for name in wanted if name not in known]:
        raise ConfigError(f"no measurement {', '.join(unknown)}; there are:\n{listed}")
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in wanted}
    overrides = named([a for a in arguments if "=" in a], wanted)
    settings = job_config.load(settings_model(modules), [*overrides, *(a for a in arguments if a in HELP)])
    print_machine()
    for name in wanted:
        print(f"\n\n== {name}: {known[name]}\n", flush=True)
        run = cast(Callable[[BaseModel], None], modules[name].run)
        run(getattr(settings, name))


if __name__ == "__main__":
    job_config.run(main)
