"""Sources by kind: a stranger's by entry point, and what is said of one that cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint

import pytest

from pipeline.sources import registry
from shards_schema.errors import ConfigError
from shards_schema.inputs import kinds
from tests.toys import ToySource

Install = Callable[..., None]


def toy(config: dict[str, str], progress: registry.Progress) -> ToySource:
    """What an entry point of another package names."""
    progress("looking")
    return ToySource(config["root"])


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    def entries(*points: tuple[str, str]) -> None:
        found = [EntryPoint(name, value, registry.GROUP) for name, value in points]
        monkeypatch.setattr(kinds, "entry_points", lambda group: [p for p in found if p.group == group])

    return entries


def test_a_source_of_another_package_is_built(install: Install) -> None:
    install(("mine", f"{__name__}:toy"), ("navsim", f"{__name__}:nothing"))
    said: list[str] = []
    source = registry.build({"kind": "mine", "root": "/data"}, said.append)
    assert source == ToySource("/data")
    assert said == ["looking"]
    assert registry.available()["navsim"] == registry.BUILT_IN["navsim"]  # no other package can take its name


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([("mine", "json:loads"), ("mine", "json:dumps")], r"source\.kind 'mine' is claimed by more than one package: "
         r"json:dumps \| json:loads; uninstall all but one"),
        ([("mine", "nobody_has_it:build")], r"source\.kind 'mine' cannot be imported from nobody_has_it:build: Module"),
        ([("mine", "json:nothing")], r"source\.kind 'mine' cannot be imported from json:nothing: AttributeError: "),
        ([], "source.kind must be one of navsim, nuplan, synthetic, got 'mine'"),
    ],
)  # fmt: skip
def test_what_cannot_be_had_is_told_by_name(install: Install, points: list[tuple[str, str]], message: str) -> None:
    install(*points)
    with pytest.raises(ConfigError, match=message):
        registry.build({"kind": "mine"})
