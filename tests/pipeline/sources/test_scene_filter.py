"""The scene filter: the devkit's fields, defaults and YAML files as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.sources.scene_filter import SceneFilter
from shards_schema.errors import ConfigError

FILTER = """\
_target_: navsim.common.dataclasses.SceneFilter
_convert_: 'all'
num_history_frames: 4
num_future_frames: 8
frame_interval: 1
has_route: true
max_scenes: null
include_synthetic_scenes: true
log_names:
  - '2021.05.25.14.16.10_veh-35_01100_01664'
tokens:
  - '00016f8b45c25a1d'
  - '1234567890123456'
reactive_synthetic_initial_tokens:
- 0005b7348b80106e2
- 000f000f000f000f0
"""
SPLIT = """\
defaults:
- scene_filter: hard
data_split: test
reactive_all_mapping:
- - '4a919f7ea2f65200'
  - 'd715fbc6ea0551f8'
  - - - '0005b7348b80106e2'
      - '000f000f000f000f0'
"""


@pytest.fixture
def split(tmp_path: Path) -> Path:
    (tmp_path / "scene_filter").mkdir()
    (tmp_path / "scene_filter" / "hard.yaml").write_text(FILTER)
    (tmp_path / "hard.yaml").write_text(SPLIT)
    return tmp_path / "hard.yaml"


def test_defaults_are_the_devkits() -> None:
    found = SceneFilter()
    assert (found.num_history_frames, found.num_future_frames, found.num_frames, found.stride) == (4, 10, 14, 14)
    assert found.has_route
    assert (found.max_scenes, found.log_names, found.tokens, found.data_split) == (None, None, None, None)
    assert SceneFilter.load({}) == found


def test_a_scene_filter_file(split: Path) -> None:
    found = SceneFilter.load(split.parent / "scene_filter" / "hard.yaml")
    assert (found.num_frames, found.stride, found.data_split) == (12, 1, None)
    assert found.tokens == ("00016f8b45c25a1d", "1234567890123456")
    assert found.log_names == ("2021.05.25.14.16.10_veh-35_01100_01664",)
    assert found.second_stage == {"0005b7348b80106e2", "000f000f000f000f0"}


def test_a_train_test_split_file_names_the_filter_beside_it(split: Path) -> None:
    found = SceneFilter.load(str(split))
    inner = SceneFilter.load(split.parent / "scene_filter" / "hard.yaml")
    assert found.data_split == "test"
    assert found.reactive_all_mapping[0][1:] == ["d715fbc6ea0551f8", [["0005b7348b80106e2", "000f000f000f000f0"]]]
    assert found.model_copy(update={"data_split": None, "reactive_all_mapping": None}) == inner


def test_the_second_stage_is_empty_unless_wanted(split: Path) -> None:
    assert SceneFilter.load({"synthetic_scene_tokens": ["a" * 17]}).second_stage == frozenset()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"frame_intervall": 1}, r"frame_intervall: unknown key; did you mean frame_interval\?"),
        ({"frame_interval": 0}, "frame_interval.*greater than or equal to 1, got 0"),
        ({"num_history_frames": 0}, "num_history_frames"),
        ({"num_future_frames": -1}, "num_future_frames"),
        ({"max_scenes": 0}, "max_scenes"),
        ({"tokens": ["a", 1234567890123456]}, r"tokens\.1.*got 1234567890123456 \(put quotes"),
        ({"tokens": "abc"}, "tokens"),
    ],
)
def test_impossible_filters(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SceneFilter.load(fields)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tokens: [", "cannot be used"),
        ("- a\n", "expected a mapping"),
        ("", "expected a mapping"),
        ("1: 2\n", "expected a mapping"),
        ("data_split: x\ndata_split: y\n", "gives the key 'data_split' twice .line 1."),
        ("tokens: " + "[" * 100_000, "nested more than 100 levels deep"),
        ("a: &a [x, x]\nb: &b [*a, *a]\ntokens: [*b, *b]\n", "aliases"),
        ("tokens: !!python/object/apply:os.system [id]\n", "cannot be used.*python/object"),
        ("defaults: [scene_filter: missing]\n", "cannot read the scene filter .*missing.yaml"),
        ("defaults: [scene_filter: ../../secret]\n", "expected defaults"),
        ("defaults: [a, b]\n", "expected defaults"),
        ("defaults: [scene_filter: hard]\nnum_future_frames: 8\n", "both set num_future_frames"),
    ],
)
def test_impossible_files(split: Path, text: str, message: str) -> None:
    split.write_text(text)
    with pytest.raises(ConfigError, match=message):
        SceneFilter.load(split)


def test_stars_and_ampersands_in_strings_are_no_aliases(split: Path) -> None:
    split.write_text("tokens: ['*&a']\n")
    assert SceneFilter.load(split).tokens == ("*&a",)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the scene filter .*nope\.yaml"):
        SceneFilter.load(tmp_path / "nope.yaml")


def test_as_many_tokens_as_navtrain(tmp_path: Path) -> None:
    path = tmp_path / "navtrain.yaml"
    path.write_text("tokens:\n" + "".join(f"  - '{i:016x}'\n" for i in range(103_288)))
    found = SceneFilter.load(path)
    assert found.tokens is not None
    assert len(found.tokens) == 103_288


def test_the_page_has_every_field_with_its_default() -> None:
    page = (Path(__file__).parents[3] / "docs" / "sources.md").read_text()
    rows = [row.split("|")[1:3] for row in page.split("| field | default |")[1].split("\n\n")[0].splitlines()[2:]]
    told = {name: yaml.safe_load(default) for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    assert told == {name: field.default for name, field in SceneFilter.model_fields.items()}
