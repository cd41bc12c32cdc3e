"""Where something is: understood, or refused, and never a folder called ``~`` or ``s3:``."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import config as job_config
from jobs import score as score_job
from jobs.export import ExportConfig
from jobs.inspect import InspectConfig
from pipeline.sources import registry as sources
from pipeline.stores.volume import Volume
from reports.evaluation.config import EvaluateConfig
from shards_schema.errors import ConfigError
from shards_schema.inputs.places import local_place, place

STRANGE = {
    "s3:/bucket/run": "write s3://bucket/run",
    "S3:bucket": "write S3://bucket",
    "memory:x": "write memory://x",
    "file:/tmp/x": "write file://tmp/x",
    "a::b": "whose last link 'b' is no URL",
    "simplecache::s3:/x": "write s3://x",
    "file://tmp/x": "names a machine, 'tmp'; write file:///tmp/x",
    "s3://": "names no bucket",
    "~nobody-of-that-name/x": "there is no user 'nobody-of-that-name'",
    "": "is empty",
    " ": "is empty",
}


@pytest.mark.parametrize(("text", "said"), STRANGE.items())
def test_what_is_no_place(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for understood in (place, Volume):
        with pytest.raises(ConfigError) as error:
            understood(text)
        assert said in str(error.value)
    for model, arguments in (
        (ExportConfig, [f"out={text}", "to=x"]),
        (ExportConfig, ["out=x", f"to={text}"]),
        (InspectConfig, ["out=x", f"page={text}"]),
        (EvaluateConfig, ["policy=p", "data=x", f"out={text}"]),
    ):
        if text:
            with pytest.raises(ConfigError, match="command line: 1 value cannot be"):
                job_config.load(model, arguments)
    with pytest.raises(ConfigError):
        sources.build({"kind": "synthetic", "root": text, "logs": 1, "frames": 1})
    assert list(tmp_path.iterdir()) == []


def test_what_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place("~") == str(tmp_path)
    assert place("~/x #3") == f"{tmp_path}/x #3"
    assert place("file:///data/x") == "/data/x"
    for plain in (
        "data/x",
        "/data/a:b",
        "a:b",
        "./~",
        "./s3:/x",
        "s3://b/x",
        "hf://datasets/a/b",
        "memory://x",
        "C:\\x",
    ):
        assert place(plain) == plain
    assert place("simplecache::s3://b/x") == "simplecache::s3://b/x"
    assert job_config.load(ExportConfig, ["out=~/data", "to=~/x.jsonl"]).to == tmp_path / "x.jsonl"
    assert Volume("file:///data/x").url == "/data/x"


def test_files_that_are_written_here_have_no_url(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="is a URL, and this goes to a file system of this machine"):
        local_place("s3://bucket/x.jsonl")
    with pytest.raises(ConfigError, match=r"to: s3://b/x.jsonl: is a URL"):
        job_config.load(ExportConfig, ["out=x", "to=s3://b/x.jsonl"])
    with pytest.raises(SystemExit):
        score_job.parse(["--data", "x", "--trajectories", "t", "--version", "v1", "--out", "s3:/x"])
    assert "write s3://x" in capsys.readouterr().err
