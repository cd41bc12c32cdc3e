"""Fuzzing of everything that parses bytes which somebody else may have written.

    python -m tests.chaos.fuzz target=pickle seconds=600 seed=0        one target, mutations of the seeds
    python -m tests.chaos.fuzz target=all seconds=30                   each in turn

A target is a function of bytes that either returns or raises the error that its caller is told to expect. A finding is
any other exception; any of the events below, which no parser of data may cause (audit hooks: a file opened, a process
begun, a socket, code compiled, a class looked up in a module); or an input that takes longer than `SLOW` seconds.

Where atheris is installed (libFuzzer, guided by coverage of our Python), ``engine=atheris`` uses it; else, and in CI,
inputs are seeded mutations without feedback: flips, cuts, splices, numbers that mean something, pieces of other seeds.
The second finds less an hour, needs no compiler, and does the same inputs again for the same seed.
"""

from __future__ import annotations

import codecs
import importlib
import random
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any, Literal

from pydantic import Field

from jobs import config as job_config
from shards_schema.errors import ConfigError
from shards_schema.inputs.models import StrictModel
from tests.chaos.targets import TARGETS, Target

SLOW = 5.0
"""Seconds; the largest seed takes a tenth of one."""

FORBIDDEN = (
    "compile",
    "exec",
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "socket.getaddrinfo",
    "ctypes.dlopen",
    "shutil.rmtree",
    "urllib.Request",
)
"""Audit events that no input may cause."""


class Config(StrictModel):
    """What to fuzz, how long, and with what."""

    target: str = "all"
    """A name of `tests.chaos.targets.TARGETS`, or "all"."""
    seconds: float = Field(default=30, gt=0)
    """Of each target."""
    seed: int = 0
    """Of the mutations."""
    engine: Literal["mutate", "atheris"] = "mutate"
    """Which fuzzer: mutate or atheris."""
    corpus: Path | None = None
    """A folder of further seeds, one a file; atheris keeps there what found new paths."""
    findings: Path = Path("out/fuzz")
    """Where inputs of findings are written."""


@dataclass
class Findings:
    """What a target did with the inputs so far.

    Attributes:
        inputs: tried.
        accepted: that the target returned from; the others raised what they may.
        seconds: that it took.
        found: (input, what happened).
    """

    inputs: int = 0
    accepted: int = 0
    seconds: float = 0.0
    found: list[tuple[bytes, str]] = field(default_factory=list)


_watching: list[str] | None = None


def _audit(event: str, args: tuple[Any, ...]) -> None:
    # Cython and Python compile this constant, and lines of the source, when they build a traceback
    if _watching is None or event not in FORBIDDEN:
        return
    if event != "compile" or not (args[0] == b"_getframe()" or str(args[1]).endswith(".py")):
        _watching.append(f"{event}{args!r:.120}")


def _watch() -> None:
    """Install the hook, once a process: it cannot be removed again."""
    if not getattr(_watch, "done", False):
        for codec in ("utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-32-le"):
            codecs.lookup(codec)  # `json.loads` tries them, and importing one is "exec"
        sys.addaudithook(_audit)
        _watch.done = True  # type: ignore[attr-defined]


def once(target: Target, data: bytes) -> tuple[bool, str | None]:
    """Try one input: whether the target returned, and what it did that it may not."""
    global _watching
    _watch()
    began, accepted, fault = time.process_time(), False, None
    events: list[str] = []
    _watching = events
    try:
        target.run(data)
        accepted = True
    except target.expected:
        pass
    except BaseException as error:  # a finding of any kind, MemoryError and RecursionError too
        if isinstance(error, KeyboardInterrupt):
            raise
        fault = "".join(traceback.format_exception_only(error)).strip() + f" at {_place(error)}"
    finally:
        _watching = None
    if events:
        fault = f"caused {events[0]}"
    elif fault is None and (took := time.process_time() - began) > SLOW:
        fault = f"took {took:.0f} s"
    return accepted, fault


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"


def fuzz(
    target: Target, seeds: Sequence[bytes], inputs: Iterator[bytes], *, stop: Callable[[Findings], bool]
) -> Findings:
    """Every seed, then `inputs`, until `stop`; findings at the same place are kept once."""
    out, places, began = Findings(), set[str](), time.perf_counter()
    queue = iter(seeds)
    while not stop(out):
        seed = next(queue, None)
        data = next(inputs) if seed is None else seed
        accepted, fault = once(target, data)
        out.inputs += 1
        out.accepted += accepted
        out.seconds = time.perf_counter() - began
        if fault is not None and fault.rsplit(" at ", 1)[-1] not in places:
            places.add(fault.rsplit(" at ", 1)[-1])
            out.found.append((data, fault))
    return out


_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)


def mutations(seeds: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Endless inputs, the same for the same seeds."""
    rng = random.Random(seed)
    while True:
        data = bytearray(rng.choice(seeds))
        for _ in range(1 << rng.randrange(5)):
            _mutate(data, rng, seeds)
        yield bytes(data)


def _mutate(data: bytearray, rng: random.Random, seeds: Sequence[bytes]) -> None:
    if not data:
        data += rng.randbytes(rng.randrange(1, 40))
        return
    at = rng.randrange(len(data))
    end = min(len(data), at + 1 + int(rng.expovariate(1 / 12)))
    match rng.randrange(8):
        case 0:
            data[at] ^= 1 << rng.randrange(8)
        case 1:
            data[at] = rng.randrange(256)
        case 2:
            del data[at:end]
        case 3:
            data[at:at] = data[at:end]
        case 4:
            other = rng.choice(seeds)
            place = rng.randrange(len(other)) if other else 0
            data[at:end] = other[place : place + end - at]
        case 5:
            width = rng.choice((1, 2, 4, 8))
            number = (rng.choice(_NUMBERS) + rng.randrange(-1, 2)) % (1 << 8 * width)
            order: Literal["little", "big"] = rng.choice(("little", "big"))
            data[at : at + width] = number.to_bytes(width, order)
        case 6:
            data[at:end] = rng.randbytes(end - at)
        case _:
            if rng.random() < 0.2:
                del data[at:]
            else:
                data[at : at + 8] = struct.pack("<d", rng.choice((float("nan"), float("inf"), -1e308, 5e-324, -0.0)))


def run(config: Config) -> dict[str, Findings]:
    """Fuzz as `config` says, by mutations."""
    names = list(TARGETS) if config.target == "all" else [config.target]
    if unknown := [name for name in names if name not in TARGETS]:
        raise ConfigError(f"target: no {unknown[0]!r}, there are {', '.join(TARGETS)}")
    results = {}
    for name in names:
        target = TARGETS[name]()
        try:
            seeds = [*target.seeds, *_files(config.corpus)]
            results[name] = fuzz(
                target, seeds, mutations(seeds, config.seed), stop=lambda found: found.seconds >= config.seconds
            )
        finally:
            target.close()
    return results


def _files(folder: Path | None) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())] if folder is not None and folder.is_dir() else []


def _atheris(config: Config) -> None:
    """Hand over to libFuzzer, which ends the process; a finding ends it too and leaves a file ``crash-...``."""
    atheris: Any = importlib.import_module("atheris")
    kind = TARGETS[config.target]
    for name in kind.modules:  # their functions get the code that counts
        for function in _functions(sys.modules[name]):
            function.__code__ = atheris.patch_code(function.__code__, trace_dataflow=True)
    target = kind()
    corpus = config.corpus or config.findings / f"{config.target}-corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds):
        (corpus / f"seed-{number:03d}").write_bytes(data)

    def one(data: bytes) -> None:
        _, fault = once(target, data)
        if fault is not None:
            raise RuntimeError(f"{config.target}: {fault}")

    limits = [f"-max_total_time={int(config.seconds)}", f"-seed={config.seed + 1}", "-rss_limit_mb=3000", "-timeout=20"]
    limits += [f"-max_len={2 * max(map(len, target.seeds))}", f"-artifact_prefix={config.findings}/{config.target}-"]
    atheris.Setup(["fuzz", str(corpus), *limits, "-print_final_stats=1"], one)
    atheris.Fuzz()


def _functions(module: Any) -> Iterator[Any]:
    """The functions of a module and of its classes."""
    for holder in (
        module,
        *(v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__),
    ):
        for value in vars(holder).values():
            value = getattr(value, "__func__", getattr(value, "fget", value))
            if isinstance(value, FunctionType) and value.__module__ == module.__name__:
                yield value


def main(arguments: Sequence[str]) -> int:
    """The command line; 1 where something was found."""
    config = job_config.load(Config, arguments)
    config.findings.mkdir(parents=True, exist_ok=True)
    if config.engine == "atheris":
        _atheris(config)
    bad = 0
    for name, result in run(config).items():
        rate = result.inputs / max(result.seconds, 1e-9)
        print(
            f"{name:10} {result.inputs:9,} inputs in {result.seconds:6.1f} s ({rate:,.0f}/s), "
            f"{result.accepted:,} accepted, {len(result.found)} findings"
        )
        for number, (data, what) in enumerate(result.found):
            path = config.findings / f"{name}-{config.seed}-{number}"
            path.write_bytes(data)
            print(f"  {path}: {what}")
        bad += len(result.found)
    return int(bad > 0)


if __name__ == "__main__":
    job_config.run(lambda arguments: main(arguments))
