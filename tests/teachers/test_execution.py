"""Attention kernels and compiled blocks: what is chosen is what runs, or is refused, and stands in the record."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from shards_schema.errors import ConfigError
from teachers import execution
from teachers.base import fingerprint
from teachers.execution import attention_context
from teachers.vggt.checkpoint import fill_random
from teachers.vggt.depth_head import DepthHead
from teachers.vggt.geometry import PRESETS
from teachers.vggt.layers import Block
from tests.teachers.network_toys import apart, compiled_twice, inputs, same, small

ROOT = Path(__file__).parents[2]

CHOOSES = ["vggt", "predict", "vjepa2"]


class Kernels:
    """Counts the flash kernels that run in the block."""

    def __enter__(self) -> Kernels:
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._profile.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._profile.__exit__(*error)
        calls = {event.key: event.count for event in self._profile.key_averages()}
        self.flash = sum(count for key, count in calls.items() if key.startswith("aten::_scaled_dot_product_flash"))


@pytest.mark.parametrize("name", CHOOSES)
def test_the_default_is_in_no_record_and_every_other_choice_is(name: str) -> None:
    teacher = small(name)
    assert not {"attention", "compile"} & teacher.provenance().keys()
    others = [small(name, attention="flash"), small(name, attention="math"), small(name, compile=True)]
    assert len({fingerprint(t) for t in (teacher, *others)}) == 4
    assert fingerprint(small(name, attention="auto", compile=False)) == fingerprint(teacher)
    assert others[1].provenance() == {**teacher.provenance(), "attention": "math"}
    assert others[2].provenance() == {**teacher.provenance(), "compile": True}


@pytest.mark.parametrize("name", CHOOSES)
def test_a_chosen_kernel_and_compiled_blocks_are_one_choice_more(name: str) -> None:
    both = small(name, attention="math", compile=True)
    assert both.provenance() == {**small(name).provenance(), "attention": "math", "compile": True}


def test_what_the_libraries_read_for_themselves_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    execution.refuse_override("cpu")
    for load in (execution.refuse_override, lambda device: attention_context("auto", device, torch.float32, 16)):
        with pytest.raises(ConfigError, match=r"NVIDIA_TF32_OVERRIDE=0 is set here: .* TF32 never"):
            load("cuda:1")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    execution.refuse_override("cuda")


@pytest.mark.parametrize("name", CHOOSES)
def test_the_chosen_kernel_runs(name: str) -> None:
    counted, results = {}, {}
    for attention in ("auto", "flash", "math"):
        teacher = small(name, attention=attention)
        teacher.load("cpu")
        batch = inputs(teacher, [0, 1])
        with Kernels() as kernels:
            results[attention] = teacher.compute(batch)
        counted[attention] = kernels.flash
    assert counted["flash"] == counted["auto"] > 0
    # not asked are VGGT's float32 camera head where flash takes it, and the VAE in front of the transformer
    assert counted["math"] < counted["flash"]
    assert counted["math"] == (4 if name == "predict" else 0)
    assert same(results["flash"], results["auto"]), "on the CPU torch takes flash by itself"
    assert apart(results["math"], results["auto"]) < 2e-3


@pytest.mark.parametrize("name", CHOOSES)
@pytest.mark.parametrize("attention", ["cudnn", "efficient"])
def test_a_kernel_that_the_machine_lacks_is_refused_at_load(name: str, attention: str) -> None:
    teacher = small(name, attention=attention)
    with pytest.raises(ConfigError, match=rf"attention: {attention} does not run .* on cpu .* can be flash, math, or"):
        teacher.load("cpu")


def test_an_unknown_kernel_is_refused() -> None:
    with pytest.raises(ConfigError, match="attention"):
        small("vggt", attention="flash3")


def test_the_context_ends() -> None:
    before = _allowed()
    with attention_context("math", "cpu", torch.float32, 16)():
        assert _allowed() != before
    assert _allowed() == before


def test_auto_on_a_gpu_prefers_flash_and_says_what_it_takes_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    can = {"flash", "efficient", "math"}
    monkeypatch.setattr(execution, "_refusal", lambda kernel, *_: None if kernel in can else "too wide")
    monkeypatch.setattr(execution, "_name", lambda device: "a GPU")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make = attention_context("auto", "cuda:1", torch.bfloat16, 64)
        assert attention_context("auto", "cuda", torch.float32, 64) is attention_context(
            "auto", "cpu", torch.bfloat16, 64
        )
    with make(), Kernels() as kernels:
        tokens = torch.zeros(1, 1, 4, 64)
        scaled_dot_product_attention(tokens, tokens, tokens)
    assert kernels.flash == 1
    can.remove("flash")
    with pytest.warns(UserWarning, match=r"flash does not run .* of 512 channels on a GPU \(too wide\); efficient att"):
        attention_context("auto", "cuda", torch.bfloat16, 512)
    can.remove("efficient")
    with pytest.warns(UserWarning, match=r"\(too wide\); math attention is used") as told:
        make = attention_context("auto", "cuda", torch.bfloat16, 512)
    assert len(told) == 1
    with make(), Kernels() as kernels:
        scaled_dot_product_attention(tokens, tokens, tokens)
    assert kernels.flash == 0
    with pytest.raises(ConfigError, match=r"attention: flash does not run .*; there it can be math, or auto"):
        attention_context("flash", "cuda", torch.bfloat16, 512)


LEFT_BY_SOMEBODY = [
    "pass",
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cudnn.allow_tf32 = False",
    "torch.set_float32_matmul_precision('high')",
    "torch.backends.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = 'tf32'; torch.backends.cudnn.rnn.fp32_precision = 'ieee'",
    "torch.backends.cudnn.benchmark = True",
    "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False",
    "torch.backends.cuda.matmul.allow_fp16_accumulation = True",
]

EXACT = """
import os, sys, torch
from teachers.execution import exact

def told():
    found = []
    for name in ("fp32_precision", "cuda.matmul.fp32_precision", "cudnn.conv.fp32_precision",
                 "cudnn.rnn.fp32_precision", "cudnn.deterministic", "cudnn.benchmark", "cudnn.allow_tf32",
                 "cuda.matmul.allow_bf16_reduced_precision_reduction",
                 "cuda.matmul.allow_fp16_reduced_precision_reduction", "cuda.matmul.allow_fp16_accumulation"):
        value = torch.backends
        try:
            for part in name.split("."):
                value = getattr(value, part)
        except RuntimeError:
            value = "contradiction"
        found.append(value)
    both = torch._C._get_cublas_allow_bf16_reduced_precision_reduction()  # and whether a sum may be split
    return [*found, torch.backends.cuda.preferred_blas_library(), both]

def check():
    before = told()
    for convolutions in ("ieee", "tf32"):
        with exact(torch.device("cuda"), convolutions):
            inside = told()
            assert inside[1:7] == ["ieee", convolutions, convolutions, True, False, convolutions == "tf32"], inside
            assert inside[7:11] == [True, True, False, torch._C._BlasBackend.Cublas], inside
            # what a compiler of blocks reads must not contradict itself
            assert torch._C._get_cublas_allow_tf32() is False
            assert torch.get_float32_matmul_precision() == "highest"
        assert told() == before, (before, told())
    with exact(torch.device("cpu")):
        assert told() == before

for left in sys.argv[1:]:
    if not (child := os.fork()):
        exec(left)
        check()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"after {left!r}")
"""


@pytest.mark.parametrize("override", ["", "1"])
def test_float32_is_float32_whatever_was_set_and_is_set_again(override: str) -> None:
    """Each in a process of its own, since the flags are the process's, and the variable is read at its start."""
    environment = {**os.environ, "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": override}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", EXACT, *LEFT_BY_SOMEBODY],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_tf32_is_for_the_depth_head_and_in_its_record() -> None:
    plain, tensor_cores = small("vggt", dtype="bfloat16"), small("vggt", dtype="bfloat16", depth_precision="tf32")
    assert tensor_cores.provenance() == {**plain.provenance(), "depth_precision": "tf32"}
    with pytest.raises(ConfigError, match="depth_precision: tf32 is for dtype: bfloat16"):
        small("vggt", depth_precision="tf32")


def rounded_to_tf32(x: torch.Tensor) -> torch.Tensor:
    """To 10 bits behind the point, ties to even, as a tensor core reads a factor."""
    bits = x.contiguous().view(torch.int32)
    return (bits + 0xFFF + ((bits >> 13) & 1) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("preset", ["small", pytest.param("1b", marks=pytest.mark.slow)])
def test_tf32_costs_the_depth_about_what_float16_does(preset: str) -> None:
    """Emulated: the factors of every convolution rounded, the sums in float32. At 1b: median 3e-4, at most 2.3e-3."""
    assert rounded_to_tf32(torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 1.5])).tolist() == [1, 1 + 2**-9, 1.5]
    config = PRESETS[preset]
    assert config.depth_head is not None
    with torch.device("meta"):
        head = DepthHead(2 * config.embed_dim, config.depth_head)
    fill_random(head, 0, "cpu")
    draw = torch.Generator().manual_seed(0)
    levels = [3 * torch.randn(1, 21 * 37, 2 * config.embed_dim, generator=draw) for _ in range(4)]
    with torch.inference_mode():
        exact, _ = head(levels, 21, 37)
        for module in head.modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.ConvTranspose2d):
                module.weight = torch.nn.Parameter(rounded_to_tf32(module.weight), requires_grad=False)
                module.register_forward_pre_hook(lambda _, args: (rounded_to_tf32(args[0]),))
        rounded, _ = head(levels, 21, 37)
    apart = (rounded.log() - exact.log()).abs()
    assert 0 < apart.median() < 1e-3
    assert apart.max() < 5e-3 < exact.log().std()


def test_what_diffusers_would_take_instead_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """As DIFFUSERS_ATTN_BACKEND would have it: a kernel that is not here fails, and ours runs."""
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    teacher = small("predict")
    teacher.load("cpu")
    batch = inputs(teacher, [0])
    want = teacher.compute(batch)
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", AttentionBackendName.SAGE)
    assert same(teacher.compute(batch), want)
    assert _AttentionBackendRegistry._active_backend is AttentionBackendName.SAGE


def test_the_sums_of_vjepas_blocks_are_float32_under_autocast() -> None:
    teacher = small("vjepa2", dtype="bfloat16")
    teacher.load("cpu")
    seen = set()
    for block in teacher._encoder.layer:
        block.register_forward_pre_hook(lambda _, args: seen.add(args[0].dtype))
        block.register_forward_hook(lambda _, args, out: seen.add(out[0].dtype))
    teacher.compute(inputs(teacher, [0]))
    assert seen == {torch.float32}


@pytest.mark.parametrize("name", ["vggt", "vjepa2"])
def test_weights_in_bfloat16_are_autocasts_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit, in half the memory: norms, gains and tokens, and VGGT's heads, are float32 as they were."""
    narrow = small(name, dtype="bfloat16")
    narrow.load("cpu")
    monkeypatch.setattr(execution, "narrow", lambda network: None)
    cast = small(name, dtype="bfloat16")
    cast.load("cpu")
    batch = inputs(narrow, [0, 1])
    assert same(narrow.compute(batch), cast.compute(batch))
    part, wide = (
        {n: p.dtype for n, p in (t._network if name == "vggt" else t._encoder).named_parameters()}
        for t in (narrow, cast)
    )
    assert set(wide.values()) == {torch.float32}
    kept = {n for n, dtype in part.items() if dtype == torch.float32}
    assert any("norm" in n for n in kept)
    if name == "vggt":
        assert {n for n in part if "head" in n} < kept
        assert {"aggregator.camera_token", "aggregator.frame_blocks.0.ls1.gamma"} < kept
    assert sum("norm" not in n and "head" not in n for n in part.keys() - kept) > 0


def test_a_machine_that_cannot_compile_refuses_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ConfigError, match=r"compile: true .* no C compiler"):
        small("vggt", compile=True).load("cpu")


def test_only_ours_is_compiled() -> None:
    with pytest.raises(ConfigError, match="compile: only our implementation"):
        small("vggt", compile=True, implementation="upstream")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CHOOSES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_compiled_blocks_compute_the_same(name: str, dtype: str) -> None:
    """Within the rounding; a batch with a hole takes the same code, and a scene in its place has the same bits."""
    if name == "predict" and dtype == "bfloat16":
        pytest.skip("bfloat16 needs a GPU there")
    plain, fast = small(name, dtype=dtype), small(name, dtype=dtype, compile=True)
    for teacher in (plain, fast):
        teacher.load("cpu")
    batch = inputs(plain, [0, 1, 2])
    got = fast.compute(batch)
    assert apart(got, plain.compute(batch)) < (2e-3 if dtype == "float32" else 2e-2)
    assert same(fast.compute(batch), got)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    assert same(fast.compute(batch[:1]), got[:1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs, "a hole is another shape"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "dtype"), [("vggt", "bfloat16"), ("vjepa2", "float32")])
def test_two_processes_compile_to_the_same_bytes(name: str, dtype: str, tmp_path: Path) -> None:
    first, second = compiled_twice(name, dtype, "cpu", tmp_path)
    assert first == second


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CHOOSES)
def test_compiled_columns_of_one_process_run_the_kernel_that_each_names(name: str) -> None:
    """Their blocks are of one class, and share what is compiled: but not the kernel."""
    counted = []
    for attention in ("flash", "math", "flash"):
        teacher = small(name, attention=attention, compile=True)
        teacher.load("cpu")
        batch = inputs(teacher, [0, 1, 2])
        teacher.compute(batch)
        with Kernels() as kernels:
            teacher.compute(batch)
        counted.append(kernels.flash)
    outside = 4 if name == "predict" else 0
    assert counted[0] == counted[2] > counted[1] == outside


@pytest.mark.slow
def test_one_shape_too_many_is_an_error() -> None:
    block = Block(8, 2)
    execution.compile_blocks([block])
    with torch.inference_mode(), torch._dynamo.config.patch(recompile_limit=2):
        block(torch.zeros(1, 2, 8))
        block(torch.zeros(1, 3, 8))
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit, match="fullgraph"):
            block(torch.zeros(1, 4, 8))


def _allowed() -> tuple[bool, ...]:
    backend = torch.backends.cuda
    return backend.flash_sdp_enabled(), backend.mem_efficient_sdp_enabled(), backend.math_sdp_enabled()
