"""One YAML, then key=value: what the command line says is what the job gets, or it is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, Field

from jobs.config import load
from jobs.recipe import TeachersConfig
from reports.tables import bytes_text, table
from shards_schema.errors import ConfigError
from teachers import registry


class Inner(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    size: int = Field(default=3, ge=1)
    names: tuple[str, ...] = ()


class Outer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    out: str
    inner: Inner = Inner()
    maybe: float | None = 1.0


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "recipe.yaml").write_text("out: ${SHARDS_TEST_HOME}/x\ninner: {size: 5}\n")
    return str(tmp_path / "recipe.yaml")


def test_overrides_are_yaml_and_nest(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDS_TEST_HOME", "/somewhere")
    config = load(Outer, [recipe, "inner.names=[a, b]", "maybe=null"])
    assert config == Outer(out="/somewhere/x", inner=Inner(size=5, names=("a", "b")), maybe=None)
    assert load(Outer, ["out=a=b"]).out == "a=b"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["out=x", "inner.size=0"], "inner.size: Input should be greater than or equal to 1, got 0"),
        (["out=x", "innner.size=1"], "innner"),
        (["inner.size=1"], "out: Field required"),
        (["inner=[1"], "is not YAML"),
        (["out=x", "out.y=1"], "out.y is given twice on the command line (also as out)"),
        (["a.yaml", "b.yaml"], "expected one config file"),
        (["nowhere.yaml"], "/configs` shows the recipes"),
        (["out=${SHARDS_TEST_UNSET}"], "SHARDS_TEST_UNSET"),
        (["inner=!!python/object/apply:os.system [id]"], "not YAML"),
    ],
)
def test_refusals_name_the_key(arguments: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(Outer, arguments)
    assert said in str(error.value)


def test_an_empty_variable_is_refused_as_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """``out: ${ROOT}/x`` would lie at the top of the disk, and ``out: ${ROOT}`` would be the working directory."""
    monkeypatch.setenv("SHARDS_TEST_EMPTY", "")
    for text in ("${SHARDS_TEST_EMPTY}", "${SHARDS_TEST_EMPTY}/x"):
        with pytest.raises(ConfigError, match="SHARDS_TEST_EMPTY}, which is empty in the environment"):
            load(Outer, [f"out={text}"])


def test_the_recipes_can_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from jobs.recipe import TeachersConfig

    monkeypatch.setenv("OPENSCENE_DATA_ROOT", str(tmp_path))
    recipes = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    assert recipes
    for recipe in recipes:
        if "teachers:" in recipe.read_text():
            assert load(TeachersConfig, [str(recipe)]).teachers


def test_tables() -> None:
    assert table(["a", "bb"], [["x", "1"], ["long", "22"]]).splitlines() == [
        "a     bb",
        "----  --",
        "x      1",
        "long  22",
    ]
    assert [bytes_text(n) for n in (0, 999, 1000, 2_500_000, 3e12)] == ["0 B", "999 B", "1.0 kB", "2.5 MB", "3.0 TB"]


def test_our_recipes_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(TeachersConfig, ["configs/demo.yaml"]).out == "out/demo"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.yaml").write_text("out: mine\nsource: {kind: synthetic}\nteachers: {}\n")
    assert load(TeachersConfig, ["configs/demo.yaml"]).out == "mine"


def test_the_recipes_for_cuda_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """With each other in how networks are run; with themselves in threads and cores, shards and batches."""
    monkeypatch.setenv("OPENSCENE_DATA_ROOT", "/data")
    kept = set()
    for name in ("navtrain", "openscene", "nuplan"):
        config = load(TeachersConfig, [f"configs/{name}.yaml"])
        vggt, cosmos = (config.teachers[column].of_kind for column in ("vggt", "cosmos"))
        assert (vggt["depth_precision"], vggt["compile"]) == ("tf32", True)
        kept.add((vggt["batch_size"], cosmos["batch_size"], vggt["dtype"], cosmos["dtype"]))
        assert config.worker.decode_threads <= config.cluster.cpus_per_worker
        assert all(config.plan.shard_size % fields["batch_size"] == 0 for fields in (vggt, cosmos))
        assert registry.refused("vggt", vggt) == registry.refused("cosmos", cosmos) == []
    assert len(kept) == 1
