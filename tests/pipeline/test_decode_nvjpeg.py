"""The decoder of nvImageCodec beside libjpeg's: the same refusals in the same words, and an identity of its own.

All but the last tests run nvImageCodec without a GPU, where its pixels are libjpeg-turbo's to the bit.
"""

from __future__ import annotations

import io
import json
import logging
import random
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow

from benchmarks import nvjpeg as benchmark
from chaos.world import digests
from jobs.teachers import TeachersConfig
from pipeline import decode_nvjpeg
from pipeline import run as runs
from pipeline import worker as workers
from pipeline.decode import MAX_PIXELS, Decode, decode_jpeg, encode_jpeg, read_header, skim_jpeg
from pipeline.decode_nvjpeg import (
    DecoderName,
    DeviceDecodeError,
    NvJpegDecoder,
    block_difference,
    identity_of,
    open_decoder,
)
from pipeline.images import ShardImages
from pipeline.plan import PlanConfig
from pipeline.samples import SamplesColumn, SamplesConfig
from pipeline.sources.synthetic import SyntheticConfig, drive_of, log_specs
from pipeline.sources.synthetic.render import Renderer
from pipeline.worker import ShardWorker, WorkerConfig
from shards_schema import layout
from shards_schema.errors import ConfigError, MismatchError, SampleError, ShardsError
from teachers.base import column_manifest, fingerprint
from tests.toys import F, H, ToySource, ToyTeacher, write_images


def rendered(width: int, height: int, frames: int = 1) -> list[NDArray[np.uint8]]:
    """Camera images of the synthetic world."""
    world = SyntheticConfig(logs=1, frames=2 * frames + 2, width=width, height=height)
    renderer = Renderer(drive_of(world, log_specs(world)[0]), width, height)
    return [renderer.frame(1.0 * frame, ("CAM_F0",))["CAM_F0"] for frame in range(frames)]


PICTURE = rendered(203, 131)[0]
OPTIONS: dict[str, dict[str, Any]] = {
    "420": {"subsampling": 2},
    "422": {"subsampling": 1},
    "444": {"subsampling": 0},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "rgb": {"keep_rgb": True},
    "grey": {"mode": "L"},
    "grey, progressive": {"mode": "L", "progressive": True},
}


def jpeg(picture: NDArray[np.uint8] = PICTURE, *, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(picture).convert(mode).save(file, "JPEG", quality=90, **options)
    return file.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, with or without a new end; bits flipped, bytes zeroed or put in between."""
    at = rng.randrange(2, len(data))
    match rng.randrange(5):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + b"\xff\xd9"
        case 2:
            return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        case 3:
            return data[:at] + bytes(min(100, len(data) - at)) + data[at + 100 :]
        case _:
            return data[:at] + rng.randbytes(10) + data[at:]


def outcome(decode: Callable[[bytes, str], Any], data: bytes) -> Any:
    """Pixels, or code and words."""
    try:
        return decode(data, "a.jpg")
    except SampleError as error:
        return error.code, error.reason


def same(a: Any, b: Any) -> bool:
    return np.array_equal(a, b) if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) else bool(a == b)


# --- libjpeg alone


@pytest.mark.parametrize("kind", OPTIONS)
def test_skimming_refuses_what_decoding_refuses_in_the_same_words(kind: str) -> None:
    data, rng, refused = jpeg(**OPTIONS[kind]), random.Random(kind), 0
    for _ in range(150):
        bad = damaged(data, rng)
        whole = outcome(decode_jpeg, bad)
        if isinstance(whole, tuple):
            refused += 1
            header = outcome(read_header, bad)
            assert (header if isinstance(header, tuple) else outcome(skim_jpeg, bad)) == whole
        else:
            assert skim_jpeg(bad, "a.jpg").shape == tuple(-(-n // 8) for n in whole.shape[:2])
    assert 40 < refused < 150


def test_skimming_gives_each_blocks_brightness() -> None:
    for data in (jpeg(subsampling=2), jpeg(subsampling=0), jpeg(mode="L")):
        luma = decode_jpeg(data, "").astype(np.float64) @ [0.299, 0.587, 0.114]
        blocks = luma[:128, :200].reshape(16, 8, 25, 8).mean((1, 3))
        assert np.abs(skim_jpeg(data, "")[:16, :25] - blocks).max() < 2


def test_a_block_that_differs_is_found_anywhere() -> None:
    assert block_difference(PICTURE, PICTURE) == 0
    for at in [(0, 0), (70, 100), (130, 202)]:
        wrong = PICTURE.copy()
        wrong[at[0] // 16 * 16 :, at[1] // 16 * 16 :][:16, :16] = 255 - wrong[at]
        assert block_difference(wrong, PICTURE) > 20
    noise = np.random.default_rng(0).integers(-2, 3, PICTURE.shape)
    assert block_difference((PICTURE.astype(int) + noise).clip(0, 255).astype(np.uint8), PICTURE) < 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", ["nvjpeg", "nvjpeg_hardware"])
def test_without_a_gpu_the_option_is_refused_and_nothing_is_taken_instead(name: DecoderName) -> None:
    assert open_decoder("libjpeg", "cpu") is decode_jpeg
    with pytest.raises(ConfigError, match=f"decoder: {name} decodes on the worker's GPU, .* 'cpu'; set worker.device"):
        open_decoder(name, "cpu")
    with pytest.raises(ConfigError, match=f"decoder: {name} wants a CUDA device, and torch .* sees none here"):
        open_decoder(name, "cuda")


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    with pytest.raises(ConfigError, match=r"pip install 'nvidia-nvimgcodec-cu\d+\[nvjpeg\]'"):
        NvJpegDecoder("cpu")


def test_the_config_takes_the_names_and_no_others() -> None:
    recipe: dict[str, Any] = {"out": "x", "source": {}, "teachers": {}}
    assert TeachersConfig(**recipe).decoder == "libjpeg"
    assert TeachersConfig(**recipe, decoder="nvjpeg_hardware").decoder == "nvjpeg_hardware"
    with pytest.raises(ValueError, match="decoder"):
        TeachersConfig(**recipe, decoder="torchvision")
    with pytest.raises(ValueError, match=r"decoder: nvjpeg decodes on the worker's GPU, and worker\.device is cpu"):
        TeachersConfig(**recipe, decoder="nvjpeg", worker=WorkerConfig(device="cpu"))


# --- nvImageCodec on the CPU


@pytest.fixture(scope="module")
def decoder() -> NvJpegDecoder:
    try:
        decode_nvjpeg._library()
    except ConfigError as error:
        pytest.skip(str(error))
    return NvJpegDecoder("cpu")


@pytest.mark.parametrize("kind", OPTIONS)
def test_pixels_and_refusals_are_those_of_libjpeg(decoder: NvJpegDecoder, kind: str) -> None:
    data, rng = jpeg(**OPTIONS[kind]), random.Random(kind)
    pixels = decoder.decode(data, "a.jpg")
    assert np.array_equal(pixels, decode_jpeg(data, "a.jpg"))
    assert pixels.dtype == np.uint8
    pixels[0] = 0  # its own, and writable
    for _ in range(60):
        bad = damaged(data, rng)
        assert same(outcome(decoder.decode, bad), outcome(decode_jpeg, bad))


def test_what_is_no_camera_image_is_refused_in_the_same_words(decoder: NvJpegDecoder) -> None:
    scans = jpeg(np.zeros((9000, 7000, 3), np.uint8), progressive=True) + b"\xff\xda" * 30
    for data in (b"", b"GIF89a", b"\xff\xd8", jpeg()[:400], jpeg(mode="CMYK"), bomb(), scans):
        assert isinstance(outcome(decoder.decode, data), tuple)
        assert outcome(decoder.decode, data) == outcome(decode_jpeg, data)


def bomb() -> bytes:
    """The header of a picture that is too large."""
    data = bytearray(jpeg())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xf0\xff\xf0"
    assert MAX_PIXELS < 0xFFF0**2
    return bytes(data)


def test_exif_orientation_is_ignored(decoder: NvJpegDecoder) -> None:
    exif = Pillow.Exif()
    exif[0x0112] = 6
    data = jpeg(exif=exif)
    assert Pillow.open(io.BytesIO(data)).getexif()[0x0112] == 6
    assert decoder.decode(data, "").shape == PICTURE.shape
    assert np.array_equal(decoder.decode(data, ""), decode_jpeg(data, ""))


def test_many_threads_and_sizes(decoder: NvJpegDecoder) -> None:
    """A thread's decoder and its buffer are its own, and used again for images of another size."""
    sizes = [(131, 203), (64, 96), (17, 8), (3, 5), (100, 101)]
    files = [jpeg(np.ascontiguousarray(PICTURE[:h, :w])) for h, w in sizes]
    truth = [decode_jpeg(data, "") for data in files]
    with ThreadPoolExecutor(4) as pool:
        pixels = list(pool.map(lambda n: decoder.decode(files[n % 5], ""), range(100)))
    assert all(np.array_equal(p, truth[n % 5]) for n, p in enumerate(pixels))


Engine = decode_nvjpeg._Engine


def test_an_image_that_it_alone_refuses_is_libjpegs(
    decoder: NvJpegDecoder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sound = Engine.pixels
    monkeypatch.setattr(Engine, "pixels", lambda self, data: None if b"\xff\xc2" in data else sound(self, data))
    data = jpeg(progressive=True)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(decoder.decode(data, "a.jpg"), decode_jpeg(data, "a.jpg"))
    assert "a.jpg: nvJPEG does not decode it; its pixels are libjpeg's" in caplog.text
    caplog.clear()
    assert np.array_equal(decoder.decode(jpeg(), "b.jpg"), decode_jpeg(jpeg(), "b.jpg"))
    assert not caplog.text


def faulty(monkeypatch: pytest.MonkeyPatch, harm: Callable[[NDArray[np.uint8], int], Any]) -> None:
    """From now on the device does `harm` to what it has decoded, its calls counted from 1."""
    sound, calls = Engine.pixels, iter(range(1, 1000))

    def pixels(self: Any, data: bytes) -> Any:
        found = sound(self, data)
        return None if found is None else harm(found, next(calls))

    monkeypatch.setattr(Engine, "pixels", pixels)


def half_grey(pixels: NDArray[np.uint8], call: int) -> NDArray[np.uint8]:
    pixels[len(pixels) // 2 :] = 128
    return pixels


FAULTS: dict[str, tuple[Callable[[NDArray[np.uint8], int], Any], str]] = {
    "black": (lambda pixels, call: pixels * 0, "is not libjpeg's: the means of a block differ by"),
    "half grey": (half_grey, "is not libjpeg's"),
    "torn": (lambda pixels, call: np.roll(pixels, 40, 0), "is not libjpeg's"),
    "out of memory": (lambda pixels, call: None, "decodes neither this nor a plain JPEG of the same size"),
    "another shape": (lambda pixels, call: pixels[:-1], "decodes neither this nor a plain JPEG"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_device_that_fails_is_no_images_fault(
    decoder: NvJpegDecoder, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    harm, words = FAULTS[kind]
    faulty(monkeypatch, harm)
    with pytest.raises(DeviceDecodeError, match=f"^a.jpg: .*{words}"):
        decoder.decode(jpeg(), "a.jpg")
    assert outcome(decoder.decode, jpeg()[:-9]) == outcome(decode_jpeg, jpeg()[:-9])  # and a bad image still is


def test_a_device_that_fails_is_refused_when_it_is_tried(
    decoder: NvJpegDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        faulty(patch, lambda pixels, call: None)
        with pytest.raises(ConfigError, match=r"decodes no JPEG on cpu \(CPU_ONLY\): is nvJPEG installed"):
            NvJpegDecoder("cpu")
    faulty(monkeypatch, half_grey)
    with pytest.raises(ConfigError, match="the trial picture is off by"):
        NvJpegDecoder("cpu")


def test_a_device_that_recovers_gives_its_own_pixels(decoder: NvJpegDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory was short for a moment: who decodes an image must not depend on it."""
    brighter = decode_jpeg(jpeg(), "").clip(0, 254) + 1
    faulty(monkeypatch, lambda pixels, call: None if call == 1 else pixels.clip(0, 254) + 1)
    assert np.array_equal(decoder.decode(jpeg(), ""), brighter)


def test_colours_that_rgb_has_not_cost_a_second_look_and_no_more(decoder: NvJpegDecoder) -> None:
    """Red and black pixels in turn share a chroma in 4:2:0; the black ones become what RGB has to clip."""
    red = np.indices((64, 64)).sum(0)[:, :, None] % 2 * np.array([255, 0, 0])
    data = jpeg(red.astype(np.uint8), subsampling=2)
    assert not decode_nvjpeg._vouched(decode_jpeg(data, ""), skim_jpeg(data, ""))
    assert np.array_equal(decoder.decode(data, ""), decode_jpeg(data, ""))
    assert decode_nvjpeg._vouched(decode_jpeg(jpeg(), ""), skim_jpeg(jpeg(), ""))


# --- in the pipeline


def test_carefully_libjpeg_has_to_survive_it_first() -> None:
    seen: list[str] = []

    def other(data: bytes, where: str) -> NDArray[np.uint8]:
        seen.append(where)
        return np.full((2, 2, 3), 7, np.uint8)

    read = {"good.jpg": jpeg(), "bad.jpg": jpeg()[:900]}
    images = ShardImages(read.__getitem__, {"a": lambda data, image: image}, careful=True, decode=other)
    for path in read:
        images.want("a", path)
    with ThreadPoolExecutor(1) as pool:
        images.start(pool)
        assert images.take("a", "good.jpg").shape == (2, 2, 3)
        with pytest.raises(SampleError, match=r"bad\.jpg: 900 bytes, truncated"):
            images.take("a", "bad.jpg")
        images.drop()
    assert seen == ["good.jpg"]


class Blind(ToyTeacher):
    """Says that it looks at no image."""

    reads_images = False


def test_only_what_is_made_of_pixels_takes_the_decoder_into_its_identity() -> None:
    toy = ToyTeacher()
    assert identity_of("libjpeg") is None
    assert fingerprint(toy) == fingerprint(toy, decoder=identity_of("libjpeg"))
    names: tuple[DecoderName, ...] = ("libjpeg", "nvjpeg", "nvjpeg_hardware")
    assert len({fingerprint(toy, decoder=identity_of(name)) for name in names}) == 3
    assert len({fingerprint(Blind(), decoder=identity_of(name)) for name in names}) == 1
    for size, identities in ((None, 1), ((24, 16), 3)):
        made = [SamplesColumn(SamplesConfig(size=size), num_history=H, num_future=F, decoder=name) for name in names]
        assert len({samples.manifest({}).identity for samples in made}) == identities
        assert "decoder" not in made[0].manifest({}).provenance


def begin(source: ToySource, out: Path, decoder: DecoderName) -> runs.Run:
    samples = SamplesColumn(SamplesConfig(size=(24, 16)), num_history=H, num_future=F, decoder=decoder)
    manifests = [samples.manifest({}), column_manifest(ToyTeacher(), decoder=identity_of(decoder))]
    return runs.begin(source, str(out), manifests, plan_config=PlanConfig(shard_size=6))


def built(source: ToySource, run: runs.Run, decoder: DecoderName) -> ShardWorker:
    return ShardWorker(
        source=source,
        volume=run.volume,
        teachers=[ToyTeacher()],
        samples=SamplesColumn(SamplesConfig(size=(24, 16)), num_history=H, num_future=F, decoder=decoder),
        manifests=run.columns,
        dataset=run.dataset,
        shard_size=6,
        zarr=False,
        config=WorkerConfig(device="cpu", decode_threads=2),
        decoder=decoder,
    )


def test_a_dataset_of_another_decoder_is_another_dataset(
    decoder: NvJpegDecoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made by nvImageCodec on the CPU: the same values, under another fingerprint; and no way from one to the other."""
    write_images(tmp_path / "data", logs=1, frames=9)
    cut = tmp_path / "data" / "log00" / "006.jpg"
    cut.write_bytes(cut.read_bytes()[:-40])
    source = ToySource(str(tmp_path / "data"), logs=1)
    asked: set[str] = set()

    def on_the_cpu(name: DecoderName, device: str) -> Decode:
        assert (name, device) == ("nvjpeg", "cpu")

        def decode(data: bytes, where: str) -> NDArray[np.uint8]:
            asked.add(where)
            return decoder.decode(data, where)

        return decode

    monkeypatch.setattr(workers, "open_decoder", on_the_cpu)
    for name, careful in (("libjpeg", False), ("nvjpeg", False), ("nvjpeg", True)):
        asked.clear()
        out = tmp_path / f"{name}-{careful}"
        run = begin(source, out, name)
        worker = built(source, run, name)
        worker.load()
        for task in run.todo():
            worker.process(replace(task, careful=careful))
        worker.close()
        totals = {total.column: total.quarantined for total in runs.close(run)}
        assert totals["toy"] == {"image_damaged": 2}
        assert bool(asked) == (name == "nvjpeg")
        assert (str(cut) in asked) == (name == "nvjpeg" and not careful)  # carefully, libjpeg has refused it before
    assert digests(tmp_path / "nvjpeg-True") == digests(tmp_path / "nvjpeg-False")

    ours, theirs = digests(tmp_path / "nvjpeg-False"), digests(tmp_path / "libjpeg-False")
    tars = [path for path in ours if path.endswith(".tar")]
    assert tars
    assert all(ours[path] == theirs[path] for path in tars)
    for column in ("toy", layout.SAMPLES):
        document = json.loads((tmp_path / "nvjpeg-False" / column / "column.json").read_bytes())
        assert document["provenance"].pop("decoder") == identity_of("nvjpeg")
        assert (
            document["provenance"]
            == json.loads((tmp_path / "libjpeg-False" / column / "column.json").read_bytes())["provenance"]
        )

    with pytest.raises(MismatchError, match=r"provenance\.decoder: absent -> .*'nvjpeg'"):
        begin(source, tmp_path / "libjpeg-False", "nvjpeg")
    with pytest.raises(MismatchError, match=r"provenance\.decoder: .*'nvjpeg'.* -> absent"):
        begin(source, tmp_path / "nvjpeg-False", "libjpeg")
    with pytest.raises(MismatchError, match="the driver recorded fingerprint"):
        built(source, begin(source, tmp_path / "nvjpeg-False", "nvjpeg"), "libjpeg").load()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_without_a_gpu_refuses_to_load(tmp_path: Path) -> None:
    write_images(tmp_path / "data", logs=1, frames=9)
    source = ToySource(str(tmp_path / "data"), logs=1)
    run = begin(source, tmp_path / "out", "nvjpeg")
    worker = built(source, run, "nvjpeg")
    with pytest.raises(ConfigError, match="decoder: nvjpeg decodes on the worker's GPU"):
        worker.load()
    with pytest.raises(ShardsError, match="call load"):  # rather than to go on by libjpeg
        worker.process(run.todo()[0])
    worker.close()


def test_the_measurement_says_what_it_could_not_measure(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark.run(benchmark.Config(size=(160, 96), frames=1, images=2, repeats=1, threads=2))
    said = capsys.readouterr().out
    assert "libjpeg-turbo (decoder: libjpeg)  " in said
    if not torch.cuda.is_available():
        assert "nvjpeg: not measured: decoder: nvjpeg wants a CUDA device" in said
        assert "nvjpeg_hardware: not measured" in said


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["nvjpeg", "nvjpeg_hardware"])
def test_on_a_gpu_pixels_are_close_and_refusals_equal(name: DecoderName) -> None:
    """An inverse transform may err by one level (T.83), which is 1 + 1.8 in blue, and 4:2:0's interpolation may round
    twice more: 8 levels at most and less than 1 on the mean. Chroma without interpolation has 14 at 99.9 %, 51 at most.
    """
    try:
        decode = open_decoder(name, "cuda")
    except ConfigError as error:
        if name == "nvjpeg":
            raise
        pytest.skip(str(error))
    pictures = [*rendered(1920, 1080, 2), *rendered(480, 270, 2), PICTURE]
    files = [encode_jpeg(picture, 90) for picture in pictures]
    files += [jpeg(**OPTIONS[kind]) for kind in ("422", "444", "progressive", "restarts")]
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(lambda n: decode(files[n % len(files)], str(n)), range(4 * len(files))))
    for n, pixels in enumerate(several):
        difference = np.abs(pixels.astype(np.int16) - decode_jpeg(files[n % len(files)], ""))
        assert difference.mean() < 1
        assert difference.max() <= 8
        assert np.array_equal(pixels, several[n % len(files)])
    rng = random.Random(0)
    for kind in OPTIONS:
        for _ in range(60):
            bad = damaged(jpeg(**OPTIONS[kind]), rng)
            here, there = outcome(decode, bad), outcome(decode_jpeg, bad)
            assert isinstance(here, tuple) == isinstance(there, tuple)
            assert not isinstance(here, tuple) or here == there
