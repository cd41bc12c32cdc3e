"""What a stranger meets at the command line: help, usage, refusals that say what to do, and nothing begun by then."""

from __future__ import annotations

import errno
import importlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import pytest
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

import tests.chaos.__main__ as chaos_command
from benchmarks import __main__ as benchmarks_command
from jobs import config as job_config
from jobs import teachers as teachers_job
from jobs import usage
from jobs.export import ExportConfig
from jobs.verify import VerifyConfig
from pipeline.reading.reader import Dataset
from pipeline.sources import registry as sources
from pipeline.stores.disk import replace_file, write_bytes
from pipeline.stores.retry import store_config
from pipeline.stores.volume import Volume
from pipeline.writing.device import refuse_absent
from pipeline.writing.worker import ShardWorker, WorkerConfig
from shards_schema.errors import ConfigError, MismatchError, MissingFileError, StoreError
from shards_schema.inputs.models import StrictModel
from shards_schema.inputs.refusals import annotations_at, problems
from synthetic import MARKER, SyntheticConfig
from synthetic import source as town
from teachers import registry as teachers

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "configs" / "demo.yaml")
RECIPE_JOBS = {
    "plan": "configs/demo.yaml",
    "teachers": "configs/demo.yaml",
    "probe": "configs/demo.yaml",
    "sft": "configs/sft_demo.yaml",
    "experiments": "configs/sft_demo.yaml",
    "grpo": "configs/grpo_demo.yaml",
    "grpo_experiments": "configs/grpo_demo.yaml",
}

Run = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """A `main` under `job_config.run`: exit code, stdout, stderr."""

    def command(main: Callable[[list[str]], object], *arguments: str) -> tuple[Any, str, str]:
        monkeypatch.setattr(sys, "argv", ["job", *arguments])
        with pytest.raises(SystemExit) as left:
            job_config.run(main)
        captured = capsys.readouterr()
        return left.value.code, captured.out, captured.err

    return command


def main_of(job: str) -> Callable[[list[str]], object]:
    return cast(Callable[[list[str]], object], importlib.import_module(f"jobs.{job}").main)


# --- help and usage


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("teachers", ["plan.shard_size", "int, default 256", "worker.device"]),
        ("probe", ["memory_share", "float, default 0.8", "teachers", "plan.seed"]),
        ("sft", ["student.width", "kind tiny | kind hf", "stages", "list of {stage, steps,"]),
        ("experiments", ["seeds", "list of int, default [0, 1, 2]", "student.width"]),
        ("grpo", ["policy", "group"]),
        ("grpo_experiments", ["minutes", "policy"]),
        ("evaluate", ["mlp.all_status", "v1 | v2 | both", "Scenes scored at once"]),
        ("verify", ["str, required. The dataset: a path or an fsspec URL", "threads"]),
        ("inspect", ["path | null, default null"]),
        ("export", ["separator", "Between points"]),
        ("fidelity", ["overrides"]),
        ("data", ["Logs a split", "nuplan_10hz", "folder that becomes OPENSCENE_DATA_ROOT"]),
    ],
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_key(run: Run, job: str, said: list[str], flag: str) -> None:
    main = main_of(job)
    code, out, err = run(main, flag)
    assert (code, err) == (0, "")
    doc = (sys.modules[main.__module__].__doc__ or "").strip()
    assert out.startswith(doc)
    words = " ".join(out[len(doc) :].split())
    assert [text for text in said if text not in words] == []
    assert "Attributes" not in words


def test_a_type_a_default_and_a_meaning_for_each_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")  # a process of pytest-xdist has 80

    class Part(StrictModel):
        """A part."""

        many: tuple[int, ...] = (1, 2)
        """Of it. And more."""
        few: tuple[int, float] | None = None
        path: Path = Path("a/b")
        """Where,
        on two lines; e.g. here."""

    class Whole(BaseModel):
        part: Part = Part(many=(3,))
        name: str
        table: Mapping[str, Part] = {}

    page = usage.page(usage.page, [Whole])
    keys = page.partition("nested in CONFIG:\n\n")[2].splitlines()
    assert keys == [
        "  part.*                     See below.",
        "  part.many                  list of int, default [3]. Of it. And more.",
        "  part.few                   [int, float] | null, default null",
        '  part.path                  path, default "a/b". Where, on two lines; e.g. here.',
        "  name                       str, required",
        "  table                      mapping of {many, few, path}, default {}",
    ]


def test_help_shows_the_keys_of_a_kind_that_is_chosen(run: Run) -> None:
    """Of a student from the hub: not those of the tiny one alone, which is what is taken where nothing is said."""
    for job, given in (("sft", ["student.kind=hf"]), ("sft", ["configs/sft_demo.yaml", "student={kind: hf}"])):
        code, out, _ = run(main_of(job), *given, "--help")
        assert code == 0
        assert {f"student.{key}" for key in ("model", "freeze_vision", "tiles", "lora.rank")} <= set(out.split())
    assert "student.model" not in run(main_of("sft"), "--help")[1].split()
    assert run(main_of("sft"), "student.kind=tiny", "--help")[1].split().count("student.width") == 1


@pytest.mark.parametrize("job", ["teachers", "plan", "probe"])
def test_help_after_a_config_shows_the_keys_of_its_kinds(run: Run, job: str) -> None:
    """Of built-in kinds; what another package's kind takes, only that package knows."""
    code, out, err = run(main_of(job), DEMO, "--help", "teachers.world.kind=cosmos_predict", "teachers.radar={a: 1}")
    assert (code, err) == (0, "")
    keys = [line.split()[0] for line in out.partition("nested in CONFIG:\n\n")[2].splitlines() if line[2:3].strip()]
    assert {
        "source.filter.frame_interval", "source.manoeuvres", "teachers.vggt.pools", "teachers.vggt.storage",
        "teachers.vggt.weights.random", "teachers.pdm.maps_root", "teachers.world.token_pool", "teachers.radar.*",
    } <= set(keys)  # fmt: skip
    assert "teachers.cosmos.token_pool" not in keys
    assert len(keys) == len(set(keys))
    assert "another package" in out.partition("teachers.radar.*")[2].splitlines()[0]
    for registry in (sources, teachers):
        assert registry.CONFIGS.keys() == registry.BUILT_IN.keys()


@pytest.mark.parametrize(("job", "recipe"), RECIPE_JOBS.items())
def test_no_arguments_where_a_recipe_is_needed(run: Run, job: str, recipe: str) -> None:
    code, _, err = run(main_of(job))
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert f"usage: python -m jobs.{job} CONFIG" in err
    assert f"e.g. python -m jobs.{job} {recipe}; --help lists every key" in err


def test_no_arguments_where_no_recipe_would_do(run: Run) -> None:
    code, _, err = run(main_of("verify"))
    assert code == 2
    assert "out is needed; usage: python -m jobs.verify out=DIR [threads=2]; --help" in err
    assert "configs/" not in err


def test_arguments_without_the_recipe(run: Run) -> None:
    code, _, err = run(main_of("teachers"), "out=x")
    assert code == 2
    assert "source: Field required\n" in err
    assert "a recipe has them, e.g. configs/demo.yaml" in err


def test_options_are_told_from_files(run: Run) -> None:
    code, _, err = run(main_of("verify"), "--verbose", "out=x")
    assert code == 2
    assert "no option --verbose: keys are set by key=value, and --help lists them" in err


def test_help_of_benchmarks_and_chaos(run: Run) -> None:
    code, out, _ = run(benchmarks_command.main, "--help")
    assert code == 0
    assert "python -m benchmarks" in out
    assert "  writer " in out
    code, out, _ = run(benchmarks_command.main, "light", "-h")
    assert code == 0
    assert "light.repeats" in out
    code, out, _ = run(chaos_command.main, "--help")
    assert code == 0
    assert "python -m tests.chaos" in out


# --- unknown keys


class A(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["a"] = "a"
    size: int = 1


class B(BaseModel):
    model_config = ConfigDict(extra="forbid")
    kind: Literal["b"] = "b"
    width: int = 1


class Tree(BaseModel):
    model_config = ConfigDict(extra="forbid")
    tagged: Annotated[A | B, Field(discriminator="kind")] = A()
    either: A | B = A()
    named: Mapping[str, A] = {}
    listed: tuple[A, ...] = ()
    maybe: A | None = None
    text: str = ""


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"txet": 1}, "txet: unknown key; did you mean text?"),
        ({"qqqq": 1}, "qqqq: unknown key; there are: tagged, either, named, listed, maybe, text"),
        ({"tagged": {"kind": "b", "widht": 1}}, "tagged.widht: unknown key; did you mean tagged.width?"),
        ({"named": {"x": {"sise": 1}}}, "named.x.sise: unknown key; did you mean named.x.size?"),
        ({"listed": [{}, {"sise": 1}]}, "listed.1.sise: unknown key; did you mean listed.1.size?"),
        ({"maybe": {"zzz": 1}}, "maybe.zzz: unknown key; there are: kind, size"),
        ({"tagged": {"kind": "b", "width": "x"}}, "tagged.width: Input should be a valid integer"),
        ({"listed": "vggt"}, "listed: expected a list, of one here: [vggt], got 'vggt'"),
        ({"maybe": 3}, "maybe: expected a mapping, got 3"),
    ],
)
def test_an_unknown_key_has_a_neighbour(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Tree.model_validate(values)
    (line,) = problems(error.value.errors(), Tree)
    assert line.startswith(said)
    (nobody_knows,) = problems(error.value.errors())
    assert "did you mean" not in nobody_knows


def test_a_union_tells_each_member_once() -> None:
    with pytest.raises(ValidationError) as error:
        Tree.model_validate({"either": {"kind": "a", "sise": 1}})
    lines = problems(error.value.errors(), Tree)
    assert "either.sise: unknown key; did you mean either.size?" in lines
    assert len(lines) == len(set(lines))


def test_where_a_key_leads() -> None:
    assert annotations_at(Tree, ["text"]) == [str]
    assert annotations_at(Tree, ["maybe", "size"]) == [int]
    assert annotations_at(Tree, ["either", "width"]) == [int]
    assert annotations_at(Tree, ["nowhere", "size"]) == []


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["worker.devise=cpu"], "worker.devise: unknown key; did you mean worker.device?"),
        (["device=cpu"], "device: unknown key; did you mean worker.device?"),
        (["source.rooot=x"], "source.rooot: unknown key; did you mean source.root?"),
        (["source.filter.frame_intervall=1"], "frame_intervall: unknown key; did you mean frame_interval?"),
        (["teachers.vggt.batchsize=1"], "teachers.vggt.batchsize: unknown key; did you mean teachers.vggt.batch_size?"),
        (
            ["teachers.vggt.weights.randm=1"],
            "vggt.weights.randm: unknown key; did you mean teachers.vggt.weights.random?",
        ),
        (["teachers.vgtt.batch_size=1"], "no teacher 'vgtt'"),
        (["teachers.cosmos.storage.latennt=int8"], "storage: there is no target 'latennt'"),
        (["source.kind=navsin"], "source.kind must be one of navsim"),
    ],
)
def test_a_misspelt_key_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], said: str
) -> None:
    monkeypatch.setattr(town, "generate", lambda *_, **__: pytest.fail("it generates"))
    places = [f"out={tmp_path / 'out'}", f"source.root={tmp_path / 'data'}"]
    with pytest.raises(ConfigError) as error:
        teachers_job.main([DEMO, *places, *overrides])
    assert said in str(error.value)
    assert "Extra inputs" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_what_teachers_refuse_is_told_with_all_that_a_recipe_has_wrong(run: Run) -> None:
    """Before an unmeasured batch size is, and before a kind of another package is asked for."""
    wrong = [
        "teachers.vggt.netwrok=tiny",
        "teachers.vggt.batch_size=auto",
        "teachers.late={kind: cosmos, weights: {random: 0}, size: [100, 50]}",
        "teachers.pdm.storag={}",
        "teachers.radar={range: 80}",
    ]
    for job in ("teachers", "plan", "probe"):
        code, _, err = run(main_of(job), DEMO, *wrong, "zar=false")
        assert code == 2
        assert [line.strip() for line in err.splitlines() if line.strip()] == [
            f"ConfigError: {DEMO}: 4 values cannot be:",
            "zar: unknown key; did you mean zarr?",
            "teachers.vggt.netwrok: unknown key; did you mean teachers.vggt.network?",
            "teachers.pdm.storag: unknown key; did you mean teachers.pdm.storage?",
            "teachers.late: size: width and height must be multiples of 16 [px], got [100, 50]",
        ]
    code, _, err = run(main_of("plan"), DEMO, *wrong[:1])
    assert (code, err.count("\n  ")) == (2, 1)


def test_the_recipe_around_a_recipe(run: Run) -> None:
    for overrides, said in (
        (["growht=1"], "growht: unknown key; did you mean growth?"),
        (["growth=[1"], "override growth=[1: is not YAML"),
        (["memory_share=2"], "memory_share: Input should be less than or equal to 0.95, got 2"),
    ):
        code, _, err = run(main_of("probe"), DEMO, *overrides)
        assert code == 2
        assert said in err


def test_the_stores_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAST_SHARDS_STORE", '{"attemps": 3}')
    with pytest.raises(ConfigError, match=r"attemps: unknown key; did you mean attempts\?"):
        store_config()


# --- blanks


TEXTS = [
    "/data/run #3",
    "Camera # 1. {speed:.1f}",
    " | ",
    " ",
    "2026-02-30",
    "yes",
    "1e3",
    "a: b",
    "*x",
    "[1",
    "~x",
    "#",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_arrives_as_it_was_given(text: str) -> None:
    place = not text.startswith((" ", "~"))
    for key in ("separator", "placeholder", *(("out", "to") if place else ())):  # str, str | None, Path
        given = {"out": "x", "to": "y"} | {key: text}
        config = job_config.load(ExportConfig, [f"{k}={v}" for k, v in given.items()])
        assert str(getattr(config, key)) == str(type(getattr(config, key))(text))


@pytest.mark.parametrize("text", TEXTS)
def test_text_within_a_mapping_of_anything_is_not_cut(text: str) -> None:
    """What `source.root` takes, only its source knows; YAML would keep what stands before a "#"."""
    try:
        config = job_config.load(teachers_job.TeachersConfig, ["out=x", f"source.root={text}", "teachers={}"])
    except ConfigError:
        return  # no YAML: said, and quotes are advised
    assert config.source["root"] in (text, True, {"a": "b"})  # of no other kind than text, its source refuses it
    quoted = job_config.load(teachers_job.TeachersConfig, ["out=x", f'source.root="{text}"', "teachers={}"])
    assert quoted.source["root"] == text


def test_nothing_is_null_and_quotes_that_would_stay_are_refused() -> None:
    arguments = ["out=x", "to=y"]
    assert job_config.load(ExportConfig, [*arguments, "placeholder="]).placeholder is None
    assert job_config.load(ExportConfig, [*arguments, "placeholder=null"]).placeholder is None
    with pytest.raises(ConfigError, match="out: Input should be a valid string"):
        job_config.load(ExportConfig, ["to=y", "out="])  # out=$UNSET is not the working directory
    with pytest.raises(ConfigError, match="separator takes text as it is; leave out the quotes"):
        job_config.load(ExportConfig, [*arguments, "separator=' '"])


@pytest.mark.parametrize(
    "arguments", [["out=b"], ["source={kind: a}", "source.kind=b"], ["plan.seed=1", "plan={seed: 2}"]]
)
def test_a_key_is_given_once(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match="is given twice on the command line"):
        job_config.load(teachers_job.TeachersConfig, ["out=a", "teachers={}", *arguments])


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("worker.queue_memory_mb=.inf", "worker.queue_memory_mb: inf is no number"),
        ("max_quarantined=.nan", "max_quarantined: nan is no number"),
        ("plan.shard_size=1" + "0" * 20, "plan.shard_size: a number of 21 digits"),
        ("source.root=/data/\udcff", "source.root: '/data/\\udcff' holds bytes that are no UTF-8"),
        ('source.root="a\\0b"', "or a NUL"),
    ],
)
def test_what_no_record_can_hold_is_refused(argument: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        job_config.load(teachers_job.TeachersConfig, ["out=a", "teachers={}", argument])
    assert said in str(error.value)


def test_what_stands_in_the_place_of_a_config(tmp_path: Path) -> None:
    def told(*arguments: object) -> str:
        with pytest.raises(ConfigError) as error:
            job_config.load(VerifyConfig, [str(a) for a in arguments])
        return str(error.value)

    (tmp_path / "demo.yaml").write_text("out: x\nout: y\n")
    assert f"did you mean {tmp_path / 'demo.yaml'}?" in told(tmp_path / "dmo.yaml")
    assert "gives the key 'out' twice (line 1); keep one" in told(tmp_path / "demo.yaml")
    (made := tmp_path / "made").mkdir()
    assert "is a folder, and a config is a file; --help lists the keys" in told(made)
    (made / "dataset.json").touch()
    assert f"is a folder, and a config is a file: write out={made}" in told(made)
    (tmp_path / "binary.yaml").write_bytes(b"out: \xff")
    assert "is no UTF-8 (byte 0xff at 5)" in told(tmp_path / "binary.yaml")
    assert "has more than the 16 MiB" in told("/dev/zero")
    (within := tmp_path / "lr=3").mkdir()
    (within / "recipe.yaml").write_text("out: x\n")
    assert job_config.load(VerifyConfig, [str(within / "recipe.yaml")]).out == "x"


# --- clusters


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "http://127.0.0.1:{port}"])
def test_a_ray_that_does_not_answer_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", address.format(port=port))
    monkeypatch.setattr(town, "generate", lambda *_, **__: pytest.fail("it generates"))
    with pytest.raises(
        ConfigError, match=r"and no Ray answers there \((.*Connection refused|Invalid address).*unset RAY"
    ):
        teachers_job.main([DEMO, f"out={tmp_path / 'out'}", f"source.root={tmp_path / 'data'}"])
    assert list(tmp_path.iterdir()) == []


# --- devices


def test_a_device_that_is_not_here_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [DEMO, f"out={tmp_path / 'out'}", f"source.root={tmp_path / 'data'}", "worker.device=cuda:99"]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=r"worker\.device is cuda:99, and on .* sees \d+ GPUs"):
        teachers_job.main(arguments)
    monkeypatch.setenv("RAY_ADDRESS", "ray://nowhere")  # the driver of a cluster needs none: it goes on to the teachers
    with pytest.raises(ConfigError, match="no teacher 'nobody'"):
        teachers_job.main([*arguments, "teachers.nobody.batch_size=1"])
    assert list(tmp_path.iterdir()) == []


def test_a_worker_refuses_it_by_host_and_build(tmp_path: Path) -> None:
    nothing: Any = None
    worker = ShardWorker(
        source=nothing,
        volume=Volume(str(tmp_path)),
        teachers=[],
        samples=nothing,
        manifests={},
        dataset="",
        shard_size=1,
        zarr=False,
        config=WorkerConfig(device="cuda:99"),
    )
    try:
        with pytest.raises(ConfigError) as error:
            worker.load()
    finally:
        worker.close()
    for told in (socket.gethostname(), torch.__version__, torch.version.cuda or "not built in", "set worker.device"):
        assert told in str(error.value)


@pytest.mark.parametrize(
    ("built", "there", "device", "said"),
    [
        (None, 0, "cuda", "(CUDA not built in) sees 0 GPUs: install a torch that is built with CUDA"),
        ("13.0", 0, "cuda", "(CUDA 13.0) sees 0 GPUs: does nvidia-smi show one"),
        ("13.0", 1, "cuda:1", "sees 1 GPUs: a worker sees only the GPUs that Ray reserved"),
        ("13.0", 1, "gpu", "expected auto, cpu, cuda or cuda:N, got 'gpu'"),
        ("13.0", 1, "cuda", None),
        ("13.0", 2, "cuda:1", None),
        (None, 0, "auto", None),
        (None, 0, "cpu", None),
    ],
)
def test_what_is_said_of_a_device(
    monkeypatch: pytest.MonkeyPatch, built: str | None, there: int, device: str, said: str | None
) -> None:
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    if said is None:
        refuse_absent(device)
        return
    with pytest.raises(ConfigError) as error:
        refuse_absent(device)
    assert said in str(error.value)


# --- data and datasets that are not the right ones


def test_an_older_synthetic_dataset(tmp_path: Path, run: Run) -> None:
    (tmp_path / MARKER).write_text(json.dumps({"config": SyntheticConfig(logs=4).identity()}))
    with pytest.raises(MismatchError) as error:
        sources.build({"kind": "synthetic", "root": str(tmp_path), "logs": 3})
    for told in ("logs is 4 there, 3 here", "(source.root=DIR)", "move this one away"):
        assert told in str(error.value)
    code, _, err = run(main_of("data"), f"out={tmp_path}", "logs=3")
    assert code == 1
    assert "(out=DIR)" in err
    (tmp_path / MARKER).rename(tmp_path / "mine")
    with pytest.raises(MismatchError, match=r"is not empty \(mine\).*\(source\.root=DIR\)"):
        sources.build({"kind": "synthetic", "root": str(tmp_path)})


@pytest.mark.parametrize(
    ("job", "arguments"),
    [
        ("verify", ["out={}"]),
        ("inspect", ["out={}"]),
        ("export", ["out={}", "to={}.jsonl"]),
        ("fidelity", ["data={}"]),
    ],
)
def test_no_dataset_says_how_to_make_one(run: Run, tmp_path: Path, job: str, arguments: list[str]) -> None:
    place = tmp_path / "none"
    code, _, err = run(main_of(job), *(a.format(place) for a in arguments))
    assert code == 1
    assert f"{place}/dataset.json is not there, so {place} is no dataset; make it with" in err
    assert f"`python -m jobs.teachers CONFIG out={place}`" in err


def test_nor_does_a_reader(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"jobs\.teachers CONFIG out="):
        Dataset(str(tmp_path))


def test_no_message_names_a_package_that_is_on_no_index() -> None:
    for room in ("teachers", "pipeline", "jobs", "trainer"):
        for path in (ROOT / room).rglob("*.py"):
            assert "pip install 'last-shards" not in path.read_text(), path


def test_no_meaning_names_a_page_that_users_do_not_have() -> None:
    teacher = teachers.build("pdm", {"maps_root": "nowhere"})
    assert teacher.specs
    assert [spec.name for spec in teacher.specs if "spec/" in spec.meaning] == []


# --- a reader that has gone (`| head`)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("print('x' * 100_000)", 141),  # the write fails
        ("print('x')", 141),  # the last flush fails
        ("print('x'); raise SystemExit(3)", 141),
        ("print('x', flush=True)", 141),
        ("pass", 0),
        ("r, w = os.pipe(); os.close(r); os.write(w, b'x')", 1),  # another pipe: no affair of the output's
    ],
)
def test_nobody_reads_the_output(body: str, expected: int) -> None:
    code = f"import os\nfrom jobs import config\ndef main(arguments):\n    {body}\nconfig.run(main)"
    read, write = os.pipe()
    closed_early = expected != 1
    if closed_early:
        os.close(read)
    child = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
    )
    os.close(write)
    if not closed_early:
        os.close(read)
    assert child.returncode == expected, child.stderr
    assert ("BrokenPipeError" in child.stderr) == (expected == 1), child.stderr
    assert bool(child.stderr) == (expected == 1)


# --- output that cannot be written


@pytest.mark.parametrize("body", ["print('x' * 100_000)", "print('x')", "print('x', flush=True)"])
@pytest.mark.parametrize("output", ["/dev/full", "&-"])
def test_output_that_cannot_be_written_is_told(body: str, output: str) -> None:
    code = f"from jobs import config\ndef main(arguments):\n    {body}\nconfig.run(main)"
    child = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" >{output}', sys.executable, code],
        stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    said = "stdout is closed" if output == "&-" else "the output cannot be written (No space left on device)"
    assert child.returncode == 1
    assert child.stderr.strip().startswith(said)
    assert "Traceback" not in child.stderr


def test_a_file_that_cannot_be_written_is_as_it_was(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    write_bytes(page, b"first")

    def full(draft: Path) -> None:
        draft.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StoreError, match=r"page.html: No space left on device .the disk.*is full"):
        replace_file(page, full)
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]
    assert page.read_bytes() == b"first"
    with pytest.raises(StoreError, match=r"below\.html: File exists"):
        write_bytes(page / "below.html", b"x")
