"""What somebody may send who means harm: refused before anything of it runs, and before memory goes."""

from __future__ import annotations

import builtins
import codecs
import functools
import importlib
import io
import json
import lzma
import os
import pickle
import posix
import random
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.testing
import pytest
import torch
import yaml
from pydantic import BaseModel

from jobs import config as job_config
from jobs import inspect
from pickles.unpickle import load_pickle
from pickles.walk import one_frame
from pipeline.reading.reader import Dataset
from pipeline.reading.verify import verify
from pipeline.sources.files import names
from pipeline.stores.records import read_record
from pipeline.stores.volume import Volume
from scoring.devkit.metric_cache import read_cache
from shards_schema import layout
from shards_schema.codecs import seal
from shards_schema.errors import ConfigError, DatasetError, SampleError, ShardsError
from shards_schema.manifests import ColumnManifest
from tests.chaos.world import World
from tests.pages import Page
from trainer import checkpoint

# --- pickles


class Calls:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


class Builds:
    """Pickles as an object of a class with a state."""

    def __init__(self, kind: type, state: Any) -> None:
        self.parts = kind, state

    def __reduce__(self) -> Any:
        return self.parts[0], (), self.parts[1]


GADGETS: dict[str, Callable[[str], Any]] = {
    "os.system": lambda mark: Calls(os.system, f"touch {mark}"),
    "posix.system": lambda mark: Calls(posix.system, f"touch {mark}"),
    "os.popen": lambda mark: Calls(os.popen, f"touch {mark}"),
    "subprocess": lambda mark: Calls(subprocess.check_output, ["touch", mark]),
    "Popen": lambda mark: Calls(subprocess.Popen, ["touch", mark]),
    "eval": lambda mark: Calls(eval, f"open({mark!r}, 'w')"),
    "exec": lambda mark: Calls(exec, f"open({mark!r}, 'w')"),
    "__import__": lambda mark: Calls(__import__, "os"),
    "importlib": lambda mark: Calls(importlib.import_module, "os"),
    "getattr": lambda mark: Calls(getattr, "", "join"),
    "open": lambda mark: Calls(builtins.open, mark, "w"),
    "runpy": lambda mark: Calls(runpy.run_path, mark),
    "functools.partial": lambda mark: Calls(functools.partial, os.system, f"touch {mark}"),
    "a partial that was built": lambda mark: functools.partial(os.system, f"touch {mark}"),
    "codecs": lambda mark: Calls(codecs.decode, b"x", "zlib"),
    "numpy.testing": lambda mark: Calls(numpy.testing.assert_equal, 1, 2),
    "numpy.load": lambda mark: Calls(np.load, mark),
    "numpy.fromfile": lambda mark: Calls(np.fromfile, mark),
    "numpy.memmap": lambda mark: Calls(np.memmap, mark, "u1", "w+", 0, (4,)),
    "torch.load": lambda mark: Calls(torch.load, mark),
    "torch._utils": lambda mark: torch.zeros(2),
    "torch.hub": lambda mark: Calls(torch.hub.load, "a/b", "c"),
    "shutil.rmtree": lambda mark: Calls(shutil.rmtree, mark),
    "sys.exit": lambda mark: Calls(sys.exit, 3),
    "pickle in a pickle": lambda mark: Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {mark}"))),
    "type": lambda mark: Calls(type, "X", (), {}),
    "BUILD": lambda mark: Builds(Exception, {"x": 1}),
    "an object array": lambda mark: np.array([Calls(os.system, f"touch {mark}"), None], dtype=object),
    "a record array": lambda mark: np.array(
        [(1, Calls(os.system, f"touch {mark}"))], dtype=[("a", int), ("b", object)]
    ),
    "random state": lambda mark: random.Random(0),
}
"""A public family of gadgets each."""


def nested(value: Any) -> list[Any]:
    """The value as it is, and where a log would hold it."""
    return [value, [{"anns": {"gt_boxes": value}}], {"a": (1, [value])}]


@pytest.mark.parametrize("name", GADGETS)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_gadget_is_refused_before_anything_runs(tmp_path: Path, name: str, protocol: int) -> None:
    mark = tmp_path / "ran"
    for value in nested(GADGETS[name](str(mark))):
        data = pickle.dumps(value, protocol)
        with pytest.raises(SampleError):
            load_pickle(data, "a log")
        cache = tmp_path / "metric_cache.pkl"
        cache.write_bytes(lzma.compress(data, preset=0))
        with pytest.raises(SampleError):
            read_cache(cache)
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"Pid\n.",  # a persistent id, as text
        b"\x80\x02X\x01\x00\x00\x00aQ.",
        b"\x80\x02\x82\x01.",  # the extension registry
        b"(ios\nsystem\n.",
        b"\x80\x05\x97.",  # a buffer from outside
        b"\x80\x02Nr\xff\xff\xff\xff.",  # a memo place: 64 GB
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",  # a byte array of a terabyte
        b"\x80\x04\x95" + (1 << 60).to_bytes(8, "little") + b".",  # a frame
        b"\x80\x02cos\n",
        b"\x80\x04\x8c\x01\n\x93c\x8c",  # the walk once went back to the newline, for ever
    ],
)  # fmt: skip
def test_opcodes_that_need_no_class(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(SampleError):
        load_pickle(data, "a log")
    cache = tmp_path / "metric_cache.pkl"
    cache.write_bytes(lzma.compress(data))
    with pytest.raises(SampleError):
        read_cache(cache)


def test_what_is_run_is_what_was_walked() -> None:
    """Where a frame ends within an opcode, CPython drops what it had read of it, and runs what the walk saw as text."""
    string = b"K\x07.!"
    frame = b"\x95" + (4).to_bytes(8, "little") + b"C\x0aAA"
    body = b"\x80\x04" + frame + b"A" * 8 + b"\x8c\x04" + string + b"."
    assert pickle.Unpickler(io.BytesIO(body)).load() in (7, string.decode())  # 7 in CPython 3.11
    assert load_pickle(body, "a log") == string.decode()
    log = pickle.dumps(list(range(1000)), 4)
    assert pickle.Unpickler(one_frame(log)).load() == list(range(1000))


def test_a_file_name_with_a_nul() -> None:
    """Found by fuzzing nuPlan databases, whose image names are looked for in folders: it ended the scan."""
    assert names("/tmp/a\0b") == set()


# --- datasets


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    World.make(root / "world", logs=2).job(root / "out")
    return root / "out"


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def reseal(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads(path.read_bytes())
    document.pop("sha256")
    change(document)
    path.write_bytes(seal(document, compact=True))


TAR = layout.tar("toy", 0)
RECORDS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a path out of the dataset": lambda d: d["files"].update({"../../etc/passwd": d["files"][TAR]}),
    "an absolute path": lambda d: d["files"].update({"/etc/passwd": d["files"][TAR]}),
    "a URL": lambda d: d["files"].update({"http://x/y": d["files"][TAR]}),
    "a column out of the dataset": lambda d: d.update(column="../../x"),
    "another shard": lambda d: d.update(shard=1),
    "a shard that is text": lambda d: d.update(shard="0"),
    "an offset beyond the end": lambda d: d["members"]["mean.npy"].__setitem__(0, [1 << 40, 8, 0]),
    "a size beyond the end": lambda d: d["members"]["mean.npy"].__setitem__(0, [512, 1 << 50, 0]),
    "a negative offset": lambda d: d["members"]["mean.npy"].__setitem__(0, [-1024, 512, 0]),
    "an offset that is no integer": lambda d: d["members"]["mean.npy"].__setitem__(0, [0.5, 8, 0]),
    "an offset that is a list": lambda d: d["members"]["mean.npy"].__setitem__(0, [[0], 8, 0]),
    "a token that is a path": lambda d: d["tokens"].__setitem__(0, "../x"),
    "a token that is a list": lambda d: d["tokens"].__setitem__(0, ["x"]),
    "a size that is text": lambda d: d["files"][TAR].update(size="all"),
    "files that are a list": lambda d: d.update(files=[TAR]),
    "members that are a number": lambda d: d.update(members=7),
    "no checksum": lambda d: d["members"]["mean.npy"].__setitem__(0, [512, 8]),
    "a checksum that is null": lambda d: d["members"]["mean.npy"][0].__setitem__(2, None),
    "a checksum that is text": lambda d: d["members"]["mean.npy"][0].__setitem__(2, "ff"),
    "a checksum that is no integer": lambda d: d["members"]["mean.npy"][0].__setitem__(2, 0.5),
    "a checksum of 33 bits": lambda d: d["members"]["mean.npy"][0].__setitem__(2, 1 << 32),
    "a negative checksum": lambda d: d["members"]["mean.npy"][0].__setitem__(2, -1),
    "two checksums": lambda d: d["members"]["mean.npy"][0].append(0),
    "another schema version": lambda d: d.update(schema_version=2),
    "a row beyond 64 bits": lambda d: d["rows"].__setitem__(0, 1 << 70),
}


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_with_a_good_seal_and_bad_words(out: Path, kind: str) -> None:
    reseal(out / layout.record("toy", 0), RECORDS[kind])
    with pytest.raises(DatasetError, match=r"toy/000000\.json"):
        read_record(Volume(str(out)), "toy", 0)
    with pytest.raises(DatasetError):
        Dataset(str(out))
    assert layout.record("toy", 0) in {fault.path for fault in verify(str(out)).faults}


def test_rows_beyond_the_shard_are_a_fault_and_not_the_end_of_verify(out: Path) -> None:
    """Found by fuzzing: an IndexError."""
    reseal(out / layout.record("toy", 0), lambda d: d["rows"].__setitem__(0, 129))
    assert layout.record("toy", 0) in {fault.path for fault in verify(str(out)).faults}


def test_a_column_that_names_another_folder(out: Path) -> None:
    reseal(out / "toy" / "column.json", lambda d: d.update(column="../elsewhere"))
    with pytest.raises(DatasetError, match="a column is named"):
        Dataset(str(out))
    with pytest.raises(DatasetError):
        ColumnManifest.from_bytes((out / "toy" / "column.json").read_bytes(), "x")


def test_deep_and_endless_json(out: Path) -> None:
    for text in (
        b"[" * 100_000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b'{"a":' + b"9" * 100_000 + b"}",
        b'{"a":1e999}',
    ):
        (out / layout.record("toy", 0)).write_bytes(text)
        with pytest.raises(DatasetError):
            Dataset(str(out))


def _member(archive: tarfile.TarFile, name: str, kind: bytes, link: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    archive.addfile(info)


def test_a_tar_is_never_unpacked_and_never_believed(out: Path, tmp_path: Path) -> None:
    """Members are cut out by the record; names, links, sizes and doubles of the tar itself lead nowhere."""
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as archive:
        _member(archive, "../../escaped", tarfile.REGTYPE)
        _member(archive, "/tmp/escaped", tarfile.REGTYPE)
        _member(archive, "link", tarfile.SYMTYPE, "/etc/passwd")
        _member(archive, "hard", tarfile.LNKTYPE, "/etc/passwd")
        _member(archive, "device", tarfile.CHRTYPE)
        for _ in range(2):
            _member(archive, "twice.npy", tarfile.REGTYPE)
    before = set(tmp_path.rglob("*"))
    shutil.copy(evil, out / TAR)
    assert TAR in {fault.path for fault in verify(str(out)).faults}
    dataset = Dataset(str(out))
    for token in dataset.tokens("toy"):
        if dataset.plan.shards and token in {*read_record(Volume(str(out)), "toy", 0).tokens}:
            with pytest.raises(ShardsError):
                dataset.read(token, {"toy": None})
    assert set(tmp_path.rglob("*")) == before


# --- configs and checkpoints


class Anything(BaseModel):
    """A config that takes what comes."""

    a: Any = None


def test_yaml_bombs(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    for text, said in (
        ("\n".join(lines), "aliases"),
        ("a: " + "[" * 20_000, "nested more than 100 levels deep"),
        ("a: !!python/name:os.system", "not YAML"),
    ):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ConfigError, match=said):
            job_config.load(Anything, [str(tmp_path / "c.yaml")])
    assert yaml.__version__


def test_checkpoints_run_nothing_and_do_not_unfold(tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "step_00000001.pt"
    torch.save({"version": 1, "model": Calls(os.system, f"touch {mark}")}, path)
    with pytest.raises(DatasetError, match="not a checkpoint"):
        checkpoint.load(path)
    assert not mark.exists()
    path.write_bytes(pickle.dumps(Calls(os.system, f"touch {mark}")))
    with pytest.raises(DatasetError, match="not a checkpoint"):
        checkpoint.load(path)
    assert not mark.exists()
    good = tmp_path / "good.pt"
    torch.save({"version": 1, "x": torch.zeros(3)}, good)
    assert checkpoint.load(good)["x"].shape == (3,)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, bytes(1 << 26) if "data/" in entry.filename else old.read(entry))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(DatasetError, match="unpack to"):
        checkpoint.load(path)


# --- what people are shown

SECRET = "AKIASECRET"


@pytest.mark.parametrize(
    "url", [f"s3://{SECRET}:pw@bucket/x", f"https://host/x?sig={SECRET}", f"simplecache::s3://{SECRET}@b/x"]
)
def test_credentials_of_a_url_are_in_no_message(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Volume(url)
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        job_config.load(Job, [f"out={url}", "number=many"])
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        job_config.load(Job, [f"number={url}"])
    assert SECRET not in str(caught.value)


class Job(BaseModel):
    """A config with a URL."""

    out: str = ""
    number: int = 0


EVIL = "</code><script>alert(1)</script><img src=x onerror=alert(2)>\" ' &"


def test_the_inspection_page_shows_a_hostile_dataset_as_text(out: Path, tmp_path: Path) -> None:
    """All that a document may say: notices, source, config, provenance, specs, reasons; and the records' JSON."""
    reseal(out / "dataset.json", lambda d: (d.update(notices=[EVIL], code_version=EVIL), d["source"].update(kind=EVIL)))
    seal_now = json.loads((out / "dataset.json").read_bytes())["sha256"]

    def column(d: dict[str, Any]) -> None:
        d.update(config={EVIL: EVIL}, environment={EVIL: EVIL})
        for spec in d["targets"]:
            spec.update(unit=EVIL, meaning=EVIL)
        if d["column"] == "toy":
            d.update(provenance={EVIL: EVIL})

    prints = {}
    for name in ("samples", "toy"):
        reseal(out / name / "column.json", column)
        prints[name] = ColumnManifest.from_bytes((out / name / "column.json").read_bytes(), name).fingerprint
    for path in [*out.glob("samples/0*.json"), *out.glob("toy/0*.json")]:
        reseal(
            path,
            lambda d, path=path: (  # type: ignore[misc]
                d.update(dataset=seal_now, fingerprint=prints[path.parent.name]),
                [q.update(reason=EVIL, code=EVIL) for q in d["quarantined"]],
            ),
        )
    for tar in out.glob("samples/0*.tar"):  # the log's name, in place and of the same length
        data = tar.read_bytes()
        assert b'"map":"toy"' in data
        tar.write_bytes(data.replace(b'"log":"log0', b'"log":"<u>&'))
    inspect.main([f"out={out}", f"page={tmp_path / 'page.html'}", "scenes=3"])
    html = (tmp_path / "page.html").read_text()
    assert "<script" not in html
    assert "<u>&" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert {"script", "u", "iframe", "link"}.isdisjoint(Page(html).tags)
