"""How a network is run: float32 that is float32; and, by choice, which attention kernel, and compiled blocks or not.

A choice may change the last bits of a target, so what is chosen stands in the provenance, and what is left alone does
not: `provenance` of the defaults is empty. What a global flag of torch would choose is chosen here (`exact`): TF32,
reduced-precision sums, the BLAS, cuDNN's algorithms. NVIDIA_TF32_OVERRIDE, which the libraries read for themselves, is
refused (`refuse_override`). Not chosen: the sizes of cuBLAS' workspaces (CUBLAS_WORKSPACE_CONFIG,
CUBLASLT_WORKSPACE_SIZE), torch's own DISABLE_ADDMM_CUDA_LT, and the versions of libraries and drivers, which
`column.json` tells; workers that are to give one dataset equal bits have these alike.

A kernel that is asked for and cannot run is refused when the teacher is loaded, on the machine that lacks it; only
``auto``, which promises no kernel, takes another, and says which.

Measured on a GPU: nothing yet (see docs/teachers.md). CUDA graphs are left out until somebody has one to try them on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from shards_schema.errors import ConfigError

Attention = Literal["auto", "flash", "cudnn", "efficient", "math"]
"""``auto``: flash for bfloat16 on CUDA, where it can run; elsewhere what torch takes. The others: that kernel."""

_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_ELSE = ("efficient", "math")
"""For the float32 parts of a network in bfloat16, which flash and cuDNN do not take."""

Precision = Literal["ieee", "tf32"]
"""Of float32 products: all 24 bits of a factor, or 11 of them by Ampere's and later tensor cores (torch's names)."""

Context = Callable[[], contextlib.AbstractContextManager[None]]


def provenance(attention: Attention, compiled: bool) -> dict[str, Any]:
    """What of the two is not the default, JSON."""
    return ({} if attention == "auto" else {"attention": attention}) | ({"compile": True} if compiled else {})


def refuse_override(device: str | torch.device) -> None:
    """Refuse what NVIDIA's libraries would do behind torch's back.

    Raises:
        ConfigError: NVIDIA_TF32_OVERRIDE is set, and `device` is a GPU.
    """
    if torch.device(device).type == "cuda" and (value := os.environ.get("NVIDIA_TF32_OVERRIDE")):
        often = "never" if value == "0" else "always"
        raise ConfigError(
            f"NVIDIA_TF32_OVERRIDE={value} is set here: cuBLAS and cuDNN would take TF32 {often}, "
            "whatever a column's record says; unset it where workers start"
        )


def attention_context(attention: Attention, device: str, dtype: torch.dtype, head_width: int) -> Context:
    """Makes the context in which a network is to run, so that its attention takes the chosen kernel.

    The kernel is tried once, here, on a few tokens of the network's dtype and head width.

    Args:
        attention: the choice.
        device: where the network is.
        dtype: of the queries, keys and values.
        head_width: channels of a head.

    Raises:
        ConfigError: the chosen kernel cannot run them on this device; see `refuse_override` too.
    """
    refuse_override(device)
    if attention == "auto":
        if torch.device(device).type != "cuda" or dtype is not torch.bfloat16:
            return contextlib.nullcontext
        wanted = "flash"
        if (why := _refusal(wanted, device, dtype, head_width)) is not None:
            instead = next(k for k in _ELSE if _refusal(k, device, dtype, head_width) is None)
            warnings.warn(
                f"attention: flash does not run {dtype} heads of {head_width} channels on {_name(device)} ({why}); "
                f"{instead} attention is used, and is slower. Set attention: {instead} to have that in the provenance",
                stacklevel=2,
            )
            wanted = instead
    else:
        wanted = attention
        if (why := _refusal(wanted, device, dtype, head_width)) is not None:
            can = [kernel for kernel in _KERNELS if _refusal(kernel, device, dtype, head_width) is None]
            raise ConfigError(
                f"attention: {wanted} does not run {dtype} heads of {head_width} channels on {_name(device)} ({why}); "
                f"there it can be {', '.join(can)}, or auto"
            )
    order = [_KERNELS[kernel] for kernel in dict.fromkeys((wanted, *(() if wanted == "math" else _ELSE)))]
    return lambda: sdpa_kernel(order, set_priority=True)


def steady_attention(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """For small attention that no config speaks of: on CUDA the same kernels always, whatever torch would prefer."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel([_KERNELS[kernel] for kernel in _ELSE], set_priority=True)


def _refusal(kernel: str, device: str, dtype: torch.dtype, head_width: int) -> str | None:
    """Why `kernel` cannot run; None where it has."""
    try:
        with torch.inference_mode(), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            tokens = torch.zeros(1, 2, 16, head_width, dtype=dtype, device=device)
            with sdpa_kernel([_KERNELS[kernel]]):
                scaled_dot_product_attention(tokens, tokens, tokens)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reasons = [str(w.message).split(" (Triggered")[0].strip() for w in told]
        return "; ".join(dict.fromkeys(r for r in reasons if "not used because" not in r)) or str(error).split("\n")[0]
    return None


def _name(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


@contextlib.contextmanager
def exact(device: torch.device, convolutions: Precision = "ieee") -> Iterator[None]:
    """For the time of the block: products of float32 in float32, by the same algorithm every time.

    torch allows TF32 in convolutions unless told otherwise, and in matrix products where somebody said so, be it by
    the environment (TORCH_ALLOW_TF32_CUBLAS_OVERRIDE) or by one of two sets of global flags, which must not contradict
    each other; so both are set, and put back. What else decides the sums of a product (reduced precision in bfloat16,
    cuBLAS or cuBLASLt) is set to torch's defaults. All hold for the whole process: one thread at a time.

    Args:
        device: of the network; on the CPU nothing is done.
        convolutions: what is allowed to convolutions of float32.
    """
    if device.type != "cuda":
        yield
        return
    backends: Any = torch.backends  # its modules make their flags when asked, so a type checker does not see them
    cudnn = backends.cudnn
    flags = (backends.cuda.matmul, backends.mkldnn.matmul, cudnn.conv, cudnn.rnn)
    products, legacy = _legacy(torch.get_float32_matmul_precision), _legacy(lambda: cudnn.allow_tf32)
    now = [flag.fp32_precision for flag in flags]
    steady = cudnn.deterministic, cudnn.benchmark
    sums, library = _sums(), backends.cuda.preferred_blas_library()
    try:
        for name, value in _SUMS.items():
            setattr(backends.cuda.matmul, name, value)
        backends.cuda.preferred_blas_library("cublas")
        torch.set_float32_matmul_precision("highest")  # of every backend, or torch (and Inductor) cannot read it
        cudnn.allow_tf32 = convolutions == "tf32"
        for flag, precision in zip(flags, ("ieee", "ieee", convolutions, convolutions), strict=True):
            flag.fp32_precision = precision
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    finally:
        if products is not None:
            torch.set_float32_matmul_precision(products)
        if legacy is not None:
            cudnn.allow_tf32 = legacy
        for flag, precision in zip(flags, now, strict=True):
            flag.fp32_precision = precision
        cudnn.deterministic, cudnn.benchmark = steady
        for name, value in sums.items():
            setattr(backends.cuda.matmul, name, value)
        backends.cuda.preferred_blas_library(library)


_SUMS = {
    "allow_bf16_reduced_precision_reduction": True,
    "allow_fp16_reduced_precision_reduction": True,
    "allow_fp16_accumulation": False,
}
"""Torch's defaults."""


def _sums() -> dict[str, Any]:
    """As they are; of a reduction the newer torches have two, the second whether it may be split."""
    matmul: Any = torch.backends.cuda.matmul
    found = {}
    for name in _SUMS:
        split = getattr(matmul, f"{name}_split_k", None)
        found[name] = getattr(matmul, name) if split is None else (getattr(matmul, name), split)
    return found


def _legacy(read: Callable[[], Any]) -> Any:
    """An older flag; None where the newer ones were set to what it cannot say, and torch refuses to read it."""
    try:
        return read()
    except RuntimeError:
        return None


def narrow(network: nn.Module) -> None:
    """Hold the weights of linear maps and convolutions in bfloat16, for a network that autocast runs so anyway.

    The same bits: autocast would cast each of them at each use, since it keeps the casts of none but those that need a
    gradient. All else (norms, gains, tokens, positions) stays float32.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            module.to(torch.bfloat16)


def compile_blocks(blocks: Iterable[nn.Module], attention: Context = contextlib.nullcontext) -> None:
    """Have each block compiled when it is first run; whole, and for the shapes that it meets and no others.

    Blocks of one class share what is compiled, in all columns of a process: so the kernel of attention is chosen inside
    of it, where a block of another choice is seen to be another. Inductor is not to time its kernels and take the
    fastest, for two workers could take two. A block with a graph break, or a ninth shape, is an error and does not run
    uncompiled.

    Args:
        blocks: of one network.
        attention: what `attention_context` gave for it.

    Raises:
        ConfigError: this machine has no C compiler.
    """
    if not any(shutil.which(name) for name in (os.environ.get("CC"), "cc", "gcc", "clang") if name):
        raise ConfigError(
            "compile: true builds code where a teacher is loaded, and this machine has no C compiler (cc, gcc, clang, "
            "CC); install one there (Debian: gcc libc6-dev), or set compile: false"
        )
    import torch._inductor.config as inductor

    options: dict[str, Any] = {"deterministic": True} if hasattr(inductor, "deterministic") else {}
    for block in blocks:
        if attention is not contextlib.nullcontext:
            block.forward = _under(attention, block.forward)
        block.compile(fullgraph=True, dynamic=False, options=options)


def _under(context: Context, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **names: Any) -> Any:
        with context():
            return forward(*args, **names)

    return run
