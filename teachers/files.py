"""The files of one network in the hub's layout, and its tensors: read strictly, or drawn.

A network is a folder as ``save_pretrained`` of diffusers or transformers writes it, alone or as a subfolder of a
repository: ``config.json`` and a safetensors file, perhaps split in parts that an ``.index.json`` lists. Strictly: no
tensor is missing, unknown or of another shape. Those that the caller names as spare are checked, and never read.

A network is built on the meta device, which holds no values, and filled tensor by tensor on the device where it will
run, in the dtype in which it will: a file is mapped, so this process has one tensor of it at a time in memory of its
own, and the workers of a node share the pages. (8 workers that filled 14 B parameters in bfloat16 on the host first
would need 224 GB of it.) What a constructor computes and no file holds would be lost so, and is refused.

Random weights are drawn by a generator of our own, uniformly (torch's uniform floats are exact multiples of 2^-24, the
same on every instruction set, which its normal ones are not) and scaled by fan-in; norm gains are one.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from shards_schema.errors import WeightsError
from shards_schema.inputs import documents
from teachers.weights import WeightsConfig, file_digest

if TYPE_CHECKING:
    import torch

TENSORS = "diffusion_pytorch_model.safetensors"
INDEX = TENSORS + ".index.json"
"""The names that diffusers gives; transformers' lack the ``diffusion_pytorch_``."""


def beside(weights: WeightsConfig, file: Path, candidates: Iterable[str], name: str) -> Path:
    """The file `name` in the folder of `file`, which ``weights.locate(*candidates)`` found; downloaded if need be.

    Raises:
        WeightsError: there is none.
    """
    if weights.hub is None:
        found = file.with_name(name)
        if not found.is_file():
            raise WeightsError(f"no {name} beside {file}: expected a folder as save_pretrained writes it")
        return found
    names = (weights.file, *candidates)
    inside = next(candidate for candidate in names if candidate and file.as_posix().endswith(candidate))
    return weights.model_copy(update={"file": str(PurePosixPath(inside).with_name(name))}).locate()


def parts(weights: WeightsConfig, file: Path, candidates: Iterable[str]) -> list[Path]:
    """The safetensors files: `file` itself, or those that it lists if it is an index.

    Raises:
        WeightsError: the index is no index, or a part is missing.
    """
    if file.suffix != ".json":
        return [file]
    mapping = read_json(file).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise WeightsError(f"{file}: expected an index with a weight_map, as save_pretrained writes it")
    return [beside(weights, file, candidates, name) for name in sorted(set(mapping.values()))]


def identity(weights: WeightsConfig, *candidates: str) -> dict[str, Any]:
    """JSON for provenance: that of `weights`, but the name and digest of each part where the tensors are split."""
    if weights.random is not None or (file := weights.locate(*candidates)).suffix != ".json":
        return weights.provenance(*candidates)
    digests = {part.name: file_digest(part) for part in parts(weights, file, candidates)}
    return {"random": False, "files": digests}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        WeightsError: the file is something else.
    """
    try:
        content = documents.parse_json(documents.read(path, documents.JSON_BYTES))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except documents.UnreadableError as error:
        raise WeightsError(f"{path} {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: expected a JSON object, got {type(content).__name__}")
    return content


def load(
    network: torch.nn.Module,
    files: Iterable[Path],
    dtype: torch.dtype,
    spare: Mapping[str, tuple[int, ...]] | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Fill `network`, which may be on the meta device, with the tensors of `files`, as `dtype` on `device`.

    Args:
        network: what is filled.
        files: safetensors files, which together hold each tensor once.
        dtype: of every tensor.
        spare: shapes of tensors that the files hold and the network does not; their data are not read.
        device: of every tensor, also of those buffers that no file holds.

    Raises:
        WeightsError: tensors are missing, unexpected or of another shape, or a file is not readable; or the network was
            built on the meta device and has a buffer that no file holds.
    """
    from safetensors import SafetensorError, safe_open

    files = list(files)
    needed = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    want = {**(spare or {}), **needed}
    with ExitStack() as stack:
        try:
            opened = [stack.enter_context(safe_open(file, framework="pt")) for file in files]
            pairs = [(name, file) for file in opened for name in file.keys()]  # noqa: SIM118 (safe_open is no mapping)
            at = dict(pairs)
            if twice := [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]:
                raise WeightsError(f"{_names(files)}: more than one of them holds {_some(twice)}")
            got = {name: tuple(file.get_slice(name).get_shape()) for name, file in at.items()}
            refuse_other_shapes(_names(files), f"{type(network).__name__} of its config.json", want, got)
            tensors = {name: at[name].get_tensor(name).to(device, dtype, copy=True) for name in needed}
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"{_names(files)} is not a readable safetensors file: {error}") from error
    _take(network, tensors, device)


def _take(network: torch.nn.Module, tensors: Mapping[str, torch.Tensor], device: str | torch.device) -> None:
    """Put all tensors of a network's state in place, and see to it that it is whole and on one device."""
    import torch

    network.load_state_dict(tensors, strict=True, assign=True)
    named = chain(network.named_parameters(), network.named_buffers())
    empty = [name for name, tensor in named if tensor.is_meta]
    if empty and torch.device(device).type != "meta":
        raise WeightsError(
            f"{type(network).__name__} as installed computes {_some(empty)} when it is built: no checkpoint holds it, "
            "and a network built on the meta device lacks it; install the version that is pinned"
        )
    torch.nn.Module.to(network, device=device)  # ModelMixin.to logs a warning at every cast


def refuse_other_shapes(
    where: str, network: str, want: Mapping[str, tuple[int, ...]], got: Mapping[str, tuple[int, ...]]
) -> None:
    """Hold a checkpoint's tensors against a network's, by name.

    Raises:
        WeightsError: some are missing, more than the network has, or of another shape.
    """
    problems = [f"missing {_some(want.keys() - got.keys())}"] if want.keys() - got.keys() else []
    problems += [f"unexpected {_some(got.keys() - want.keys())}"] if got.keys() - want.keys() else []
    reshaped = {f"{k} {got[k]} for {want[k]}" for k in want.keys() & got.keys() if want[k] != got[k]}
    problems += [f"of another shape {_some(reshaped)}"] if reshaped else []
    if problems:
        raise WeightsError(f"{where} does not fit {network}: " + "; ".join(problems))


def _names(files: list[Path]) -> str:
    return str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"


def _some(names: Iterable[str]) -> str:
    found = sorted(names)
    first = ", ".join(found[:5])
    return f"{first} and {len(found) - 5} more" if len(found) > 5 else first


def draw(
    network: torch.nn.Module,
    seed: int,
    *,
    by_name: bool = False,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
) -> None:
    """Fill `network`, which may be on the meta device, with random weights: drawn on the CPU, the same on any device.

    Args:
        network: what is filled.
        seed: of the generator.
        by_name: one generator a parameter, seeded by its name too, so that a part of a network is drawn as the whole.
        dtype: to which the float32 values are rounded; None leaves each as the network has it.
        device: where they go, one at a time.

    Raises:
        WeightsError: the network was built on the meta device, and has a buffer.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    state, tied = network.state_dict(), dict[int, str]()
    for name, parameter in sorted(network.named_parameters(remove_duplicate=False)):
        if (same := tied.setdefault(id(parameter), name)) != name:
            state[name] = state[same]
            continue
        if by_name:
            generator.manual_seed(zlib.crc32(f"{seed}:{name}".encode()))
        drawn = torch.ones(parameter.shape, dtype=parameter.dtype)
        if name.endswith("bias"):
            drawn.uniform_(0.0, 1.0, generator=generator).sub_(0.5).mul_(0.1)
        elif name.endswith("weight") and parameter.ndim > 1:
            scale = math.sqrt(12.0 / parameter[0].numel())  # unit variance out, for unit variance in
            drawn.uniform_(0.0, 1.0, generator=generator).sub_(0.5).mul_(scale)
        state[name] = drawn.to(device, dtype)
    _take(network, state, device)
