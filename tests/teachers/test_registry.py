"""The registry: built-ins without metadata, third parties by entry point, errors that name what is at fault."""

from __future__ import annotations

import importlib
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from shards_schema.errors import ConfigError
from shards_schema.inputs import kinds
from teachers import registry

TINY: dict[str, Any] = {"weights": {"random": 0}, "network": "tiny"}

GOOD = """
from teachers import cosmos

def build(config):
    return cosmos.build({"name": "mine", **config})

def not_a_teacher(config):
    return {"name": "mine"}

def misnamed(config):
    return cosmos.build({**config, "name": "other"})

def raw_validation(config):
    from teachers.cosmos.config import CosmosConfig
    return CosmosConfig.model_validate(config)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package `third_party` of real modules, and entry points for it."""
    package = tmp_path / "third_party"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "good.py").write_text(GOOD)
    (package / "broken.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def entries(**points: str | list[str]) -> None:
        found = [
            EntryPoint(name, value, registry.GROUP)
            for name, values in points.items()
            for value in ([values] if isinstance(values, str) else values)
        ]
        monkeypatch.setattr(kinds, "entry_points", lambda group: [p for p in found if p.group == group])

    yield entries
    for name in [name for name in sys.modules if name.split(".")[0] == "third_party"]:
        del sys.modules[name]


def test_the_built_ins_are_there_without_metadata(install: Any) -> None:
    install()
    assert registry.available() == {
        "cosmos": "teachers.cosmos:build",
        "cosmos_predict": "teachers.cosmos:build_predict",
        "pdm": "teachers.pdm:build",
        "vggt": "teachers.vggt:build",
        "vjepa2": "teachers.vjepa2:build",
    }
    assert registry.build("cosmos", TINY).name == "cosmos"


def test_every_built_in_is_where_the_list_says_and_there_is_no_second_list() -> None:
    for target in registry.BUILT_IN.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert registry.GROUP not in project.get("entry-points", {})


def test_entry_points_are_read_from_installed_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through importlib.metadata itself, with a distribution on disk."""
    info = tmp_path / "third_party-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\nradar = third_party.good:build\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.available()["radar"] == "third_party.good:build"


def test_a_third_party_teacher_is_built(install: Any) -> None:
    install(mine="third_party.good:build")
    assert registry.build("mine", TINY).name == "mine"


def test_an_unknown_kind_lists_what_there_is(install: Any) -> None:
    install(mine="third_party.good:build")
    with pytest.raises(ConfigError, match="no teacher 'dino'; there are: cosmos, cosmos_predict, mine, pdm, vggt, "):
        registry.build("dino", {})


def test_a_broken_package_is_named_when_asked_for_and_breaks_nothing_else(install: Any) -> None:
    install(broken="third_party.broken:build", absent="third_party.nowhere:build", mine="third_party.good:build")
    assert set(registry.available()) == {"broken", "absent", "mine", *registry.BUILT_IN}
    assert registry.build("mine", TINY).name == "mine"
    with pytest.raises(ConfigError, match=r"'broken' cannot be imported from third_party\.broken:build.*nobody_has"):
        registry.build("broken", {})
    with pytest.raises(ConfigError, match="'absent' cannot be imported"):
        registry.build("absent", {})


def test_an_attribute_that_is_not_there_is_named(install: Any) -> None:
    install(mine="third_party.good:nothing")
    with pytest.raises(ConfigError, match=r"third_party\.good:nothing: AttributeError"):
        registry.build("mine", {})


def test_a_built_in_name_cannot_be_taken(install: Any) -> None:
    install(cosmos="third_party.broken:build")
    assert registry.available()["cosmos"] == "teachers.cosmos:build"
    assert registry.build("cosmos", TINY).name == "cosmos"


def test_a_kind_claimed_twice_is_refused(install: Any) -> None:
    install(mine=["third_party.good:build", "third_party.good:misnamed"])
    with pytest.raises(ConfigError, match="claimed by more than one package"):
        registry.build("mine", TINY)


@pytest.mark.parametrize(
    ("point", "message"),
    [("not_a_teacher", "returned a dict, which is not a Teacher"), ("misnamed", "the teacher is named 'other'")],
)
def test_what_is_no_teacher_is_refused(install: Any, point: str, message: str) -> None:
    install(mine=f"third_party.good:{point}")
    with pytest.raises(ConfigError, match=message):
        registry.build("mine", TINY)


def test_the_column_names_the_teacher() -> None:
    assert registry.build("cosmos", TINY, column="cosmos").name == "cosmos"
    assert registry.build("cosmos", TINY, column="cosmos_c").name == "cosmos_c"
    assert registry.build("cosmos", TINY | {"name": "cosmos_c"}).name == "cosmos_c"
    assert registry.build("vggt", {"weights": {"random": 0}, "network": "tiny"}, column="vggt_b").name == "vggt_b"
    with pytest.raises(ConfigError, match="column must match"):
        registry.build("cosmos", TINY, column="Cosmos.C")
    with pytest.raises(ConfigError, match="the config's name is 'a', but the column is 'b'"):
        registry.build("cosmos", TINY | {"name": "a"}, column="b")


def test_the_config_is_not_changed() -> None:
    config = dict(TINY)
    registry.build("cosmos", config, column="other")
    assert config == TINY


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (TINY | {"weights": {"random": "x"}}, r"teacher cosmos: weights\.random: .*got 'x'"),
        (TINY | {"colour": 1}, "teacher cosmos: colour: "),
        ({}, "weights: Field required"),
        (TINY | {"batch_size": 0, "pool": 0}, "pool: .*; batch_size: "),
    ],
)
def test_an_impossible_config_names_the_field(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.build("cosmos", config)


def test_a_third_party_validation_error_is_a_config_error_too(install: Any) -> None:
    install(mine="third_party.good:raw_validation")
    with pytest.raises(ConfigError, match="teacher mine: size"):
        registry.build("mine", TINY | {"size": "large"})
