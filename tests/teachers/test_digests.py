"""Digests of files of weights: of the hub's cache by name, of any other by its bytes, once in a process."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from shards_schema.errors import WeightsError
from teachers import registry
from teachers import weights as module
from teachers.base import ColumnConfig, column_manifest, fingerprint
from teachers.cosmos.checkpoint import build_network, describe
from teachers.cosmos.config import CosmosConfig
from teachers.weights import WeightsConfig, commit_of, file_digest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights" * 1000)
    return path


def test_a_file_is_read_once_and_again_when_it_has_changed_however_well_that_is_hidden(weights: Path) -> None:
    def reads() -> int:
        return module._read.cache_info().misses - before_all

    before_all = module._read.cache_info().misses
    link = weights.with_name("link")
    link.symlink_to(weights)
    assert file_digest(weights) == file_digest(weights) == file_digest(link) == sha256(weights)
    assert reads() == 1
    before = weights.stat()
    weights.write_bytes(b"WEIGHTS" * 1000)
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = weights.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    assert file_digest(weights) == file_digest(weights) == sha256(weights)
    assert reads() == 2
    other = weights.with_name("other")
    other.write_bytes(b"another" * 1000)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(weights)
    assert file_digest(weights) == sha256(weights)
    assert reads() == 3
    weights.unlink()
    with pytest.raises(FileNotFoundError):
        file_digest(weights)


@pytest.mark.parametrize("large", [True, False])
def test_the_hubs_cache_names_its_large_files_by_their_sha256(
    weights: Path, large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As huggingface_hub lays it out: a snapshot of links to blobs; small files are blobs of git, named by a sha1."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    snapshot = tmp_path / "models--someone--net" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    blobs = tmp_path / "models--someone--net" / "blobs"
    blobs.mkdir()
    data = weights.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    blob = weights.rename(blobs / (sha256(weights) if large else git))
    (snapshot / "model.safetensors").symlink_to(os.path.relpath(blob, snapshot))
    misses = module._read.cache_info().misses
    found = WeightsConfig(hub="someone/net", revision=COMMIT).provenance("model.safetensors")
    assert found == {"random": False, "file": "model.safetensors", "sha256": hashlib.sha256(data).hexdigest()}
    assert module._read.cache_info().misses - misses == (0 if large else 1)


def test_a_branch_is_pinned_to_the_commit_that_it_is_today(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As huggingface_hub lays its cache out: what a branch was when a file of it was fetched stands in refs/."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--someone--cosmos"
    tiny: dict[str, Any] = {"network": "tiny", "size": (64, 48), "pool": 2}
    drawn = CosmosConfig(weights=WeightsConfig(random=0), **tiny)
    build_network(drawn, describe(drawn))[0].save_pretrained(folder / "snapshots" / COMMIT)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)

    def column(revision: str) -> ColumnConfig:
        return ColumnConfig(kind="cosmos", weights={"hub": "someone/cosmos", "revision": revision}, pool=None)

    said: list[str] = []
    loose, firm = column("main"), column(COMMIT)
    town = ColumnConfig(weights={"town": True}, network="town")
    found = registry.pinned({"a": loose, "b": firm, "vggt": town}, said.append)
    assert found == {"a": firm, "b": firm, "vggt": town}
    assert found["b"] is firm
    assert len(said) == 1
    assert said[0].startswith(f"a: main of someone/cosmos is {COMMIT} today")
    a, b = registry.build_teacher("cosmos", loose), registry.build_teacher("cosmos", found["a"])
    assert fingerprint(a) == fingerprint(b), "the digest outranks how the weights are named"
    manifest = column_manifest(b, found["a"].given)
    assert manifest.config["weights"] == {"hub": "someone/cosmos", "revision": COMMIT}
    assert commit_of("someone/cosmos", "v2") == "v2"
    with pytest.raises(WeightsError, match="nobody knows whether it has"):
        registry.pinned({"a": column("v2")}, said.append)


def test_a_name_elsewhere_tells_nothing(weights: Path) -> None:
    for folder in ("blobs", "models--a--b", "models--a--b/blobs/c"):
        (weights.parent / folder).mkdir(parents=True, exist_ok=True)
        moved = weights.parent / folder / ("0" * 64)
        moved.write_bytes(weights.read_bytes())
        assert file_digest(moved) == sha256(weights)
