"""The same faults in the files of other libraries, read by their own readers with their own defaults.

webdataset (its tar reader), MosaicML Streaming (as it is; and from a remote with `validate_hash`, over hashes that its
writer was asked for), litdata, and plain Zarr v3 (sharded, zarr-python's defaults). Twenty samples in four shards,
arrays of noise and some bytes. Each trial is a process of its own, which reads every sample: what it got is held
against what was written. A library that is not installed is left out, which the table then shows by its absence.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import io
import json
import multiprocessing
import os
import random
import shutil
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

SAMPLES, A_SHARD = 20, 5
LIMIT_S = 60
Digests = dict[str, str]
"""Token -> sha256 of its array and its bytes."""


def _sample(i: int, seed: int) -> tuple[str, Any, bytes]:
    rng = np.random.default_rng([seed, i])
    return f"{i:06d}", rng.standard_normal((2, 16, 32)).astype(np.float16), rng.bytes(1500)


def _digest(array: Any, data: bytes) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes() + bytes(data)).hexdigest()


class _StandIn(ModuleType):
    """A package with every name in it, none of which does anything."""

    __path__ = []  # noqa: RUF012 (what makes a module a package)

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def import_streaming() -> Any:
    """MosaicML Streaming imports torchvision for classes that nothing here uses; the project never installs it."""
    if importlib.util.find_spec("torchvision") is not None:
        return importlib.import_module("streaming")
    if importlib.util.find_spec("transformers") is not None:
        importlib.import_module("transformers")  # before the stand-in, which it would take for the real one
    parts = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")
    sys.modules |= {name: _StandIn(name) for name in parts}
    try:
        return importlib.import_module("streaming")
    finally:
        for name in parts:
            del sys.modules[name]


class _Peer:
    """A format: how it is written, how it is read, which files hold samples and which describe them."""

    def __init__(self, name: str, needs: str, data: str, index: str) -> None:
        self.name, self.needs, self.data, self.index = name, needs, data, index

    def write(self, folder: Path, seed: int) -> None:
        raise NotImplementedError

    def read(self, folder: Path) -> Digests:
        raise NotImplementedError


class _WebDataset(_Peer):
    def write(self, folder: Path, seed: int) -> None:
        import webdataset

        for shard in range(SAMPLES // A_SHARD):
            with webdataset.TarWriter(str(folder / f"{shard:06d}.tar")) as writer:
                for i in range(shard * A_SHARD, (shard + 1) * A_SHARD):
                    token, array, data = _sample(i, seed)
                    writer.write({"__key__": token, "npy": array, "bin": data})

    def read(self, folder: Path) -> Digests:
        import webdataset

        urls = [str(folder / f"{shard:06d}.tar") for shard in range(SAMPLES // A_SHARD)]
        dataset = webdataset.WebDataset(urls, shardshuffle=False).decode()
        return {sample["__key__"]: _digest(sample["npy"], sample["bin"]) for sample in dataset}


class _Mosaic(_Peer):
    validate: str | None = None

    def write(self, folder: Path, seed: int) -> None:
        streaming = import_streaming()
        columns = {"token": "str", "bin": "bytes", "npy": "ndarray:float16:2,16,32"}
        limit = A_SHARD * (2048 + 1500 + 60)
        hashes = ["sha256"] if self.validate else None
        options: dict[str, Any] = {"columns": columns, "size_limit": limit, "hashes": hashes, "progress_bar": False}
        with streaming.MDSWriter(out=str(folder), **options) as writer:
            for i in range(SAMPLES):
                token, array, data = _sample(i, seed)
                writer.write({"token": token, "bin": data, "npy": array})

    def read(self, folder: Path) -> Digests:
        streaming = import_streaming()
        streaming.base.util.clean_stale_shared_memory()
        places: dict[str, str] = {"local": str(folder)}
        if self.validate:  # it checks what it downloads, and nothing that is there already
            places = {"remote": str(folder), "local": tempfile.mkdtemp(dir=folder.parent)}
        dataset = streaming.StreamingDataset(
            **places, shuffle=False, batch_size=1, num_canonical_nodes=1, validate_hash=self.validate
        )
        return {s["token"]: _digest(s["npy"], s["bin"]) for s in (dataset[i] for i in range(len(dataset)))}


class _MosaicChecked(_Mosaic):
    validate = "sha256"


class _LitData(_Peer):
    def write(self, folder: Path, seed: int) -> None:
        import torch
        from litdata.streaming.writer import BinaryWriter  # type: ignore[import-not-found]

        writer = BinaryWriter(str(folder), chunk_size=A_SHARD)
        for i in range(SAMPLES):
            token, array, data = _sample(i, seed)
            writer[i] = {"token": token, "bin": data, "npy": torch.from_numpy(array)}
        writer.done()
        writer.merge()

    def read(self, folder: Path) -> Digests:
        import litdata  # type: ignore[import-not-found]

        dataset = litdata.StreamingDataset(str(folder), shuffle=False)
        return {s["token"]: _digest(s["npy"].numpy(), s["bin"]) for s in (dataset[i] for i in range(len(dataset)))}


class _PlainZarr(_Peer):
    def write(self, folder: Path, seed: int) -> None:
        import zarr

        samples = [_sample(i, seed) for i in range(SAMPLES)]
        group = zarr.create_group(str(folder))
        for name, rows in (
            ("npy", np.stack([array for _, array, _ in samples])),
            ("bin", np.stack([np.frombuffer(data, np.uint8) for _, _, data in samples])),
        ):
            made = group.create_array(
                name, shape=rows.shape, chunks=(1, *rows.shape[1:]), shards=(A_SHARD, *rows.shape[1:]), dtype=rows.dtype
            )
            made[:] = rows

    def read(self, folder: Path) -> Digests:
        import zarr

        group = zarr.open_group(str(folder), mode="r")
        arrays, data = np.asarray(group["npy"]), np.asarray(group["bin"])
        return {f"{i:06d}": _digest(arrays[i], data[i].tobytes()) for i in range(len(arrays))}


PEERS = (
    _WebDataset("webdataset", "webdataset", "*.tar", ""),
    _Mosaic("MosaicML Streaming", "streaming", "*.mds", "index.json"),
    _MosaicChecked("MosaicML Streaming, validate_hash", "streaming", "*.mds", "index.json"),
    _LitData("litdata", "litdata", "*.bin", "index.json"),
    _PlainZarr("plain Zarr", "zarr", "**/c/**/*", "**/zarr.json"),
)


def measure(seed: int, flips: int, packages: Path | None) -> dict[str, dict[str, dict[str, int]]]:
    """Peer -> fault -> outcome -> count."""
    if packages is not None:
        sys.path.append(str(packages))
    out = {}
    for peer in PEERS:
        if importlib.util.find_spec(peer.needs) is None:
            continue
        # once, not in each child
        import_streaming() if peer.needs == "streaming" else importlib.import_module(peer.needs)
        with tempfile.TemporaryDirectory(prefix="peer-") as folder:
            out[peer.name] = _measure(peer, Path(folder), seed, flips)
    return out


def _measure(peer: _Peer, root: Path, seed: int, flips: int) -> dict[str, dict[str, int]]:
    clean, other, corrupted = root / "clean", root / "other", root / "corrupted"
    for folder, which in ((clean, seed), (other, seed + 1)):
        folder.mkdir()
        if (code := _apart(lambda folder=folder, which=which: peer.write(folder, which))[0]) != "ok":  # type: ignore[misc]
            raise RuntimeError(f"{peer.name} cannot write: {code}")
    truth = {token: _digest(array, data) for token, array, data in (_sample(i, seed) for i in range(SAMPLES))}
    data = sorted(p.relative_to(clean) for p in clean.glob(peer.data) if p.is_file())
    index = sorted(p.relative_to(clean) for p in clean.glob(peer.index) if p.is_file()) if peer.index else []
    rng = random.Random(seed)
    found: dict[str, Counter[str]] = {}

    def trial(fault: str, name: Path, harm: Callable[[Path], None]) -> None:
        shutil.rmtree(corrupted, ignore_errors=True)
        shutil.copytree(clean, corrupted)
        harm(corrupted / name)
        found.setdefault(fault, Counter())[_outcome(peer, corrupted, truth)] += 1

    trial("nothing", data[0], lambda path: None)
    if set(found["nothing"]) != {"true values"}:
        raise RuntimeError(f"{peer.name} does not read what it wrote: {found}")
    for n in range(flips):
        trial("bit flipped", data[n % len(data)], lambda path: _flip(path, rng))
    for name in data[:4]:
        trial("cut", name, lambda path: os.truncate(path, rng.randrange(path.stat().st_size)))
        if name.suffix == ".tar":
            trial("cut at a member, ended anew", name, _cut_member)
        trial("deleted", name, lambda path: path.unlink())
        trial("another run's", name, lambda path, name=name: shutil.copy(other / name, path) and None)  # type: ignore[misc]
    for a, b in list(pairwise(data))[:3]:
        trial("swapped", a, lambda path, b=b: _swap(path, corrupted / b))  # type: ignore[misc]
    for n in range(flips if index else 0):
        trial("bit flipped, index", index[n % len(index)], lambda path: _flip(path, rng))
    del found["nothing"]
    return {fault: dict(counts) for fault, counts in found.items()}


def _outcome(peer: _Peer, folder: Path, truth: Digests) -> str:
    what, got = _apart(lambda: peer.read(folder))
    if what != "ok":
        return "refused" if what.startswith("error") else what
    assert got is not None
    if got == truth:
        return "true values"
    if wrong := sum(token not in truth or truth[token] != digest for token, digest in got.items()):
        return "WRONG VALUES" if wrong else "true values"
    return "SAMPLES LOST"


def _apart(work: Callable[[], Digests | None]) -> tuple[str, Digests | None]:
    """Run in a forked process: ("ok", value), ("error", None), ("hangs", None) or ("process dies", None)."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)
        try:
            sender.send(("ok", work()))
        except Exception as error:
            sender.send((f"error: {error!r:.200}", None))
        os._exit(0)

    process = context.Process(target=child)
    process.start()
    sender.close()
    answer: tuple[str, Digests | None] = ("hangs", None)
    if receiver.poll(LIMIT_S):
        try:
            answer = receiver.recv()
        except EOFError:
            answer = ("process dies", None)
    process.kill()
    process.join()
    return answer


def _flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def _cut_member(path: Path) -> None:
    data = path.read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        places = [member.offset for member in archive]
    path.write_bytes(data[: places[len(places) // 2 // 2 * 2]] + bytes(1024))


def _swap(a: Path, b: Path) -> None:
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


if __name__ == "__main__":
    print(json.dumps(measure(0, 4, Path(sys.argv[1]) if len(sys.argv) > 1 else None), indent=1))
