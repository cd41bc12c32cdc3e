"""JPEGs to pixels: libjpeg-turbo against nvImageCodec on the CPU and nvJPEG on a GPU, in images/s and in levels.

Rendered full HD camera images, or those of `folder`. Rates are of whole decodes as the job does them, with libjpeg's
verdict and the copy back to the host; CPU time is that of the whole process, what a GPU is to relieve. Differences are
against `decode_jpeg`, at full size and after the resize of VGGT. Without nvImageCodec or a GPU, rows say so.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.measure import interleaved, spread
from jobs.report import table
from pipeline.decode import Decode, decode_jpeg, encode_jpeg, skim_jpeg
from pipeline.decode_nvjpeg import NvJpegDecoder, open_decoder
from pipeline.sources.synthetic import SyntheticConfig, drive_of, log_specs
from pipeline.sources.synthetic.render import Renderer
from shards_schema.errors import ConfigError
from shards_schema.records import Image
from teachers.vggt.preprocess import preprocess

WIDTH = 518
"""Of VGGT's input."""
NOT_MEASURED = "not measured"


class Config(BaseModel):
    """Knobs.

    Attributes:
        folder: of JPEGs (``*.jpg``) to take; None renders `frames` of three cameras of the synthetic world.
        frames: of each camera.
        size: width and height of the rendered images.
        quality: of their JPEGs.
        threads: of the second round; 0 is one a core.
        images: decoded in each measured piece.
        repeats: pieces.
        device: of the GPU rows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path | None = None
    frames: int = Field(default=3, ge=1)
    size: tuple[int, int] = (1920, 1080)
    quality: int = Field(default=90, ge=1, le=100)
    threads: int = Field(default=0, ge=0)
    images: int = Field(default=24, ge=1)
    repeats: int = Field(default=5, ge=1)
    device: str = "cuda"


def run(config: Config) -> None:
    files = list(_files(config))
    threads = config.threads or len(os.sched_getaffinity(0))
    height, width = decode_jpeg(files[0], "").shape[:2]
    size = sum(map(len, files)) / len(files) / 1e3
    print(f"{len(files)} JPEGs, the first {width}x{height}, {size:.0f} kB each on the mean\n")
    decoders = _decoders(config.device)
    print(table(["", "threads", "images/s", "CPU ms an image"], _rates(config, files, decoders, threads)))
    plain = "libjpeg-turbo, plain chroma and fast transform, for scale"
    compared: dict[str, Decode | str] = {**decoders, plain: _fast}
    head = ["levels, against decode_jpeg", "mean", "99.9 %", "max", f"{WIDTH} px wide: mean", "99.9 %", "max"]
    print("\n" + table(head, [_difference(name, made, files) for name, made in compared.items()]))
    for name, why in decoders.items():
        if isinstance(why, str):
            print(f"\n{name}: {NOT_MEASURED}: {why}")


def _files(config: Config) -> Iterator[bytes]:
    if config.folder is not None:
        paths = sorted(config.folder.glob("*.jpg"))[: 3 * config.frames]
        if not paths:
            raise ConfigError(f"nvjpeg.folder: no *.jpg in {config.folder}")
        yield from (path.read_bytes() for path in paths)
        return
    width, height = config.size
    world = SyntheticConfig(logs=1, frames=2 * config.frames + 2, width=width, height=height)
    renderer = Renderer(drive_of(world, log_specs(world)[0]), width, height)
    for frame in range(config.frames):
        images = renderer.frame(1.0 * frame, ("CAM_F0", "CAM_L0", "CAM_R0"))
        yield from (encode_jpeg(image, config.quality) for image in images.values())


def _decoders(device: str) -> dict[str, Decode | str]:
    """By what the report calls them; one that cannot run here is why."""
    return {
        "libjpeg-turbo (decoder: libjpeg)": decode_jpeg,
        "nvImageCodec on the CPU": _opened(lambda: NvJpegDecoder("cpu").decode),
        "nvjpeg": _opened(lambda: open_decoder("nvjpeg", device)),
        "nvjpeg_hardware": _opened(lambda: open_decoder("nvjpeg_hardware", device)),
    }


def _opened(make: Callable[[], Decode]) -> Decode | str:
    try:
        return make()
    except ConfigError as error:
        return str(error)


def _rates(
    config: Config, files: Sequence[bytes], decoders: Mapping[str, Decode | str], threads: int
) -> list[list[str]]:
    work: dict[str, Decode] = {name: made for name, made in decoders.items() if not isinstance(made, str)}
    work["libjpeg's verdict alone (skim_jpeg)"] = skim_jpeg
    cpu: dict[str, list[float]] = {}
    actions: dict[str, Callable[[], float]] = {}
    kinds: dict[str, tuple[str, int]] = {}
    with ThreadPoolExecutor(threads, "decode") as pool, ThreadPoolExecutor(1, "decode") as alone:
        for name, decode in work.items():
            for count, workers in ((1, alone), (threads, pool)):
                if (key := f"{name} {count}") not in kinds:
                    kinds[key], cpu[key] = (name, count), []
                    actions[key] = _piece(decode, files, config.images, workers, cpu[key])
        results = interleaved(actions, config.repeats)
    rows = [
        [name, str(count), spread(results[key]), f"{1e3 * float(np.median(cpu[key])):.1f}"]
        for key, (name, count) in kinds.items()
    ]
    return rows + [[name, "", NOT_MEASURED, ""] for name, made in decoders.items() if isinstance(made, str)]


def _piece(
    decode: Decode, files: Sequence[bytes], images: int, workers: ThreadPoolExecutor, cpu: list[float]
) -> Callable[[], float]:
    """Images/s of `images` decodes; the processor time of one goes into `cpu`."""

    def piece() -> float:
        began, used = time.perf_counter(), time.process_time()
        for _ in workers.map(lambda n: decode(files[n % len(files)], "a measured image") is None, range(images)):
            pass
        cpu.append((time.process_time() - used) / images)
        return images / (time.perf_counter() - began)

    return piece


def _fast(data: bytes, where: str) -> Image:
    image: Image = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=True, fastupsample=True)
    return image


def _difference(name: str, made: Decode | str, files: Sequence[bytes]) -> list[str]:
    if isinstance(made, str):
        return [name, NOT_MEASURED, "", "", "", "", ""]
    full, small = [], []
    for data in files:
        here, there = made(data, name), decode_jpeg(data, name)
        full.append(_levels(here, there))
        small.append(_levels(preprocess(here, WIDTH), preprocess(there, WIDTH)))
    return [name, *_figures(full), *_figures(small)]


def _levels(a: Image, b: Image) -> NDArray[np.int64]:
    """How many values differ by 0, 1, .. 255 levels."""
    difference = np.abs(a.astype(np.int16) - b.astype(np.int16))
    return np.bincount(difference.ravel(), minlength=256)


def _figures(histograms: Sequence[NDArray[np.int64]]) -> list[str]:
    """Mean, 99.9th percentile, maximum."""
    counts = np.sum(histograms, axis=0)
    share = np.cumsum(counts) / counts.sum()
    mean = float((counts * np.arange(len(counts))).sum() / counts.sum())
    return [f"{mean:.3f}", str(int(np.searchsorted(share, 0.999))), str(int(np.nonzero(counts)[0][-1]))]
