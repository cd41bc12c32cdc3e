"""JPEG bytes to pixels by nvJPEG, through nvImageCodec: the same refusals as `decode_jpeg`, other last bits.

    bytes -> read_header, skim_jpeg  (libjpeg: every refusal, and the brightness of each 8x8 block)
          -> nvJPEG, one decoder a thread  -> copied back  -> brightness compared on a grid of blocks -> pixels

nvJPEG has another inverse transform and other roundings, so a dataset made with it is another dataset: `identity_of`
goes into the provenance of every column that is made of decoded pixels.

Whether an image is damaged is libjpeg's to say, here as there. nvImageCodec does not: on the CPU it gave a picture for
1504 of 2193 damaged files, grey or torn from the fault on, and what nvJPEG does with them is not documented. So libjpeg
reads all of the data first, without making a picture, which costs half of what making one does.

nvJPEG gets what cameras write: three channels of YCbCr, 4:2:0, 4:2:2 or 4:4:4. Anything else that `decode_jpeg` takes
(grey, RGB, other samplings) is left to it, and so is an image that nvJPEG refuses while it decodes a plain JPEG of the
same size. Where it refuses that too, or its picture is not libjpeg's, the device is at fault: `DeviceDecodeError`; it
ends the shard and quarantines nothing. So who made an image's pixels follows from its bytes, never from a busy device.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
from typing import Any, Literal

import numpy as np
import torch

from pipeline.decode import Decode, decode_jpeg, encode_jpeg, read_header, skim_jpeg
from shards_schema.errors import ConfigError, ShardsError
from shards_schema.records import Image

DecoderName = Literal["libjpeg", "nvjpeg", "nvjpeg_hardware"]
"""``nvjpeg`` is its CUDA kernels, ``nvjpeg_hardware`` the JPEG engine that some GPUs have (A100, H100, H200)."""

REVISION = 1
"""Raised when the same decoder gives other pixels, by other options or rules of who decodes what."""

OPTIONS = ":fancy_upsampling=1 :num_cuda_streams=1"
"""Interpolated chroma, as libjpeg-turbo does it; that is nvImageCodec's default too, but not nvJPEG's own."""

SAMPLINGS = frozenset({"420", "422", "444"})

BLOCK_TOLERANCE = 8.0
"""Levels by which the mean of a 16x16 block may differ from libjpeg's, in any channel; roundings make less than one."""

_BRIGHTNESS = 3.0
"""Levels by which an 8x8 block's may differ without a closer look; full HD frames of libjpeg's own have up to 1.2."""
_GRID = 24
"""Rows and columns of 8x8 blocks that are compared of each image."""
_WEIGHTS = np.tile(np.array([0.299, 0.587, 0.114], np.float32), 64) / 64
"""Mean luma of 64 RGB pixels; the luma of JFIF (ITU-R BT.601)."""

_log = logging.getLogger(__name__)


class DeviceDecodeError(ShardsError, RuntimeError):
    """The device or its library fails at JPEGs that are good: the machine's trouble, never one image's."""


def identity_of(name: DecoderName) -> dict[str, Any] | None:
    """What a column's provenance says of its decoder; None for libjpeg, so that older datasets stay what they are."""
    return None if name == "libjpeg" else {"name": name, "revision": REVISION}


def open_decoder(name: DecoderName, device: str) -> Decode:
    """The decoder of that name, tried once.

    Args:
        name: see `DecoderName`.
        device: of the worker: "cpu", "cuda", "cuda:1".

    Raises:
        ConfigError: it cannot run here; what to install or to set is named. Nothing else is taken in its place.
    """
    if name == "libjpeg":
        return decode_jpeg
    if not device.startswith("cuda"):
        raise ConfigError(
            f"decoder: {name} decodes on the worker's GPU, and the worker's device is {device!r}; set worker.device to "
            "cuda on a machine that has one, or decoder: libjpeg"
        )
    if not torch.cuda.is_available():
        raise ConfigError(
            f"decoder: {name} wants a CUDA device, and torch {torch.__version__} sees none here; run on a machine that "
            "has one (with its driver and a CUDA build of torch), or set decoder: libjpeg"
        )
    return NvJpegDecoder(device, hardware=name == "nvjpeg_hardware").decode


class NvJpegDecoder:
    """`decode_jpeg` on a GPU. Safe to call from many threads.

    Each thread has a decoder of its own, since one keeps the state of the image at hand, and a stream of its own, since
    on torch's default stream a decode would wait for the teacher's whole batch.

    Args:
        device: "cuda", "cuda:1"; or "cpu": nvImageCodec without a GPU, with libjpeg-turbo's pixels, for tests and
            measurements (no config asks for it).
        hardware: the GPU's JPEG engine in the place of kernels.

    Raises:
        ConfigError: nvImageCodec or nvJPEG is not installed, or the device cannot.
    """

    def __init__(self, device: str, *, hardware: bool = False) -> None:
        self._codec = _library()
        self._device = torch.device(device)
        if self._device.type == "cuda" and self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        # one kind and no other: with none named, nvImageCodec decodes on the CPU what the GPU does not, without a word
        kinds = self._codec.BackendKind
        gpu = kinds.HW_GPU_ONLY if hardware else kinds.HYBRID_CPU_GPU
        self._kind = kinds.CPU_ONLY if self._device.type == "cpu" else gpu
        self._making = threading.Lock()
        self._local = threading.local()
        self._try()
        self._local = threading.local()  # who loads a worker does not decode; give the memory back

    def decode(self, data: bytes, where: str) -> Image:
        """RGB pixels, uint8 [H, W, 3], of a JPEG.

        Raises:
            SampleError: as `decode_jpeg`, in the same words.
            DeviceDecodeError: the device's trouble.
        """
        header = read_header(data, where)
        if header.colorspace != "YCbCr" or header.subsampling not in SAMPLINGS:
            return decode_jpeg(data, where)
        brightness = skim_jpeg(data, where)
        pixels = self._pixels(data, (header.height, header.width))
        if pixels is None or not _vouched(pixels, brightness):
            return self._settled(data, where, pixels)
        return pixels

    def _settled(self, data: bytes, where: str, pixels: Image | None) -> Image:
        """Ask libjpeg for the whole picture: is it the image, or the device?"""
        truth = decode_jpeg(data, where)
        shape = truth.shape[:2]
        if pixels is None:
            if self._pixels(encode_jpeg(truth, 90), shape) is None:
                raise DeviceDecodeError(
                    f"{where}: nvJPEG on {self._device} decodes neither this nor a plain JPEG of the same size "
                    f"({shape[1]}x{shape[0]}); is its memory used up? take fewer decode_threads, a smaller batch, or "
                    "decoder: libjpeg"
                )
            pixels = self._pixels(data, shape)
            if pixels is None:
                _log.warning("%s: nvJPEG does not decode it; its pixels are libjpeg's", where)
                return truth
        if (worst := block_difference(pixels, truth)) > BLOCK_TOLERANCE:
            raise DeviceDecodeError(
                f"{where}: nvJPEG's picture on {self._device} is not libjpeg's: the means of a block differ by "
                f"{worst:.0f} levels, {BLOCK_TOLERANCE:g} are allowed; set decoder: libjpeg, and report this file"
            )
        return pixels

    def _pixels(self, data: bytes, shape: tuple[int, ...]) -> Image | None:
        """What the device makes of a JPEG, in memory of its own; None where it makes nothing of that shape."""
        try:
            if not hasattr(self._local, "engine"):
                with self._making:
                    self._local.engine = _Engine(self._codec, self._device, self._kind)
            pixels: Image | None = self._local.engine.pixels(data)
        except RuntimeError as error:  # nvImageCodec's and torch's CUDA errors
            raise DeviceDecodeError(f"decoding on {self._device}: {error}") from error
        return pixels if pixels is not None and pixels.shape == (*shape, 3) else None

    def _try(self) -> None:
        """Decode one picture.

        Raises:
            ConfigError: see the class.
        """
        ramp = np.linspace(16, 240, 256, dtype=np.float32)
        planes = [*np.meshgrid(ramp, ramp), np.full((256, 256), 128, np.float32)]
        data = encode_jpeg(np.stack(planes, axis=-1).astype(np.uint8), 95)
        found = ""
        try:
            pixels = self._pixels(data, (256, 256))
        except DeviceDecodeError as error:
            pixels, found = None, f" ({error})"
        if pixels is None:
            raise ConfigError(
                f"nvImageCodec {self._codec.__version__} decodes no JPEG on {self._device} ({self._kind.name}){found}: "
                f"is nvJPEG installed ({_install()}), and has the GPU a JPEG engine, if nvjpeg_hardware was asked for?"
            )
        if (worst := block_difference(pixels, decode_jpeg(data, "the trial picture"))) > BLOCK_TOLERANCE:
            raise ConfigError(f"nvJPEG on {self._device}: the trial picture is off by {worst:.0f} levels; take libjpeg")


class _Engine:
    """What one thread decodes with."""

    def __init__(self, codec: Any, device: torch.device, kind: Any) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        index = codec.NVIMGCODEC_DEVICE_CPU_ONLY
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread; nvImageCodec allocates on the current one
            self._stream, index = torch.cuda.Stream(device), device.index  # type: ignore[no-untyped-call]
        # one thread, the caller's: more would each hold buffers for images that never come
        self._decoder = codec.Decoder(
            device_id=index, max_num_cpu_threads=1, backends=[codec.Backend(kind)], options=OPTIONS
        )
        self._params = codec.DecodeParams(apply_exif_orientation=False, color_spec=codec.ColorSpec.SRGB)
        self._image: Any = None

    def pixels(self, data: bytes) -> Image | None:
        """A copy of what comes out; the buffer on the device is used again."""
        stream = self._stream.cuda_stream if self._stream is not None else 0
        image = self._decoder.decode(data, image=self._image, params=self._params, cuda_stream=stream)
        if image is None:
            return None
        self._image = image
        if self._stream is None:
            return np.array(image)
        # not `Image.cpu()`: it pins and frees memory each time, for which the teacher's kernels would have to wait
        with torch.cuda.stream(self._stream):
            pixels: Image = torch.as_tensor(image, device=self._device).cpu().numpy()
        return pixels


def block_difference(pixels: Image, truth: Image, side: int = 16) -> float:
    """The largest difference, in any channel, of the means of two images over blocks of `side` pixels [levels].

    Roundings and other chroma interpolations cancel out in it; a grey or torn part does not.
    """
    both = torch.from_numpy(np.stack([pixels, truth])).permute(0, 3, 1, 2).float()
    means = torch.nn.functional.avg_pool2d(both, side, ceil_mode=True)
    return float((means[0] - means[1]).abs().max())


def _vouched(pixels: Image, brightness: Image) -> bool:
    """Whether a grid of 8x8 blocks is as bright as libjpeg found them. (Colours that RGB has not make it no, too.)"""
    rows, cols = pixels.shape[0] // 8, pixels.shape[1] // 8
    if not rows or not cols:
        return False
    at_R1, at_C = _spread(rows)[:, None], _spread(cols)
    blocks_RC8x = pixels[: rows * 8, : cols * 8].reshape(rows, 8, cols, 24)[at_R1, :, at_C]
    seen_RC = blocks_RC8x.reshape(len(at_R1), len(at_C), -1).astype(np.float32) @ _WEIGHTS
    return bool(np.abs(seen_RC - brightness[at_R1, at_C]).max() <= _BRIGHTNESS)


def _spread(count: int) -> Any:
    return np.unique(np.linspace(0, count - 1, _GRID).round().astype(np.intp))


def _library() -> Any:
    """nvImageCodec, without its messages: it reports extensions that nobody needs, and tells us by values."""
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
    try:
        return importlib.import_module("nvidia.nvimgcodec")
    except ImportError as error:
        raise ConfigError(f"decoding by nvJPEG needs nvImageCodec ({error}): {_install()}") from error


def _install() -> str:
    major = (torch.version.cuda or "13").partition(".")[0]
    return f"pip install 'nvidia-nvimgcodec-cu{major}[nvjpeg]'"
