"""Weights over one, two and four ranks (gloo): each reads, holds and writes its part; any number of them goes on."""

from __future__ import annotations

import os
import resource
import shutil
import sys
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.profiler import ProfilerActivity, profile
from transformers import InternVLConfig, InternVLForConditionalGeneration

from shards_schema.errors import DatasetError, StoreError, WeightsError
from tests.trainer import trainer_toys
from tests.trainer.trainer_toys import CHANNELS, COUNTS, batch_of, motion_answers, tiny_student
from tests.trainer.vlm_toys import image_processor, tokenizer, vlm
from trainer import checkpoint, distributed
from trainer.checkpoint import Checkpoints
from trainer.config import OptimiserConfig
from trainer.distributed import ParallelConfig
from trainer.latents import Statistics
from trainer.model import SFTModel
from trainer.optimiser import make_optimiser, set_rate
from trainer.segments import allow_table
from trainer.students.hf import FAMILIES, HFStudent, load
from trainer.students.hf_config import HFConfig

CPU, FSDP = torch.device("cpu"), ParallelConfig(mode="fsdp")
WORLDS = (1, 2, 4)
LORA = {"rank": 2, "alpha": 4.0}


def in_folder(folder: Path, model: Any, family: str) -> str:
    """A model as the hub has it, in files of half a megabyte."""
    model.save_pretrained(folder, max_shard_size="500kB")
    for part in (tokenizer(), image_processor(family)):
        part.save_pretrained(folder)
    return str(folder)


def deep_vlm() -> Any:
    """Three million weights in 24 layers, of which none is much."""
    small: Any = vlm("internvl").config
    text = {**small.text_config.to_dict(), "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 24}
    return InternVLForConditionalGeneration(
        InternVLConfig(
            text_config={**text, "layer_types": None},
            vision_config=small.vision_config.to_dict(),
            image_token_id=small.image_token_id,
            image_seq_length=small.image_seq_length,
        )
    )


def student_of(folder: str, *, unread: bool, **config: Any) -> HFStudent:
    """The student of a folder, from one seed."""
    torch.manual_seed(3)
    values = HFConfig.model_validate({"model": folder, **config})
    return load(values, motion_answers(), COUNTS, unread=unread)


def placed(folder: str, **config: Any) -> HFStudent:
    """The same, in parts where there are ranks."""
    student = student_of(folder, unread=distributed.sharded(FSDP), **config)
    distributed.shard(student, student.blocks, (), FSDP, CPU, torch.float32, student.unread())
    return student.eval()


def said_by(student: HFStudent) -> dict[str, torch.Tensor]:
    """What it thinks of answers, and its own."""
    batch, table = batch_of(2), allow_table(1)
    with torch.no_grad():
        logits = student(batch, student.answers.encode(batch.future, batch.status), table).logits
    return {"logits": logits, "tokens": student.sample(batch, table, temperature=0).tokens}


def most_allocated(make: Callable[[], object]) -> int:
    """Bytes that torch had allocated at once while something was made and kept."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        kept = make()
    events: Any = seen.profiler
    del kept
    return max(accumulate(e.nbytes() for e in events.kineto_results.events() if e.name() == "[memory]"))


def fresh(seed: int) -> tuple[SFTModel, torch.optim.Optimizer]:
    """A model, in parts where there are ranks, and its optimiser."""
    statistics = {k: Statistics(torch.zeros(c), torch.ones(c)) for k, c in CHANNELS.items()}
    model = SFTModel(tiny_student(seed=seed), CHANNELS, 16, statistics)
    distributed.shard(model.student, model.student.blocks, model.adapters.values(), FSDP, CPU, torch.float32)
    return model, make_optimiser(model, OptimiserConfig())


def trained() -> tuple[SFTModel, torch.optim.Optimizer]:
    """The same after two steps, in which one weight had no gradient; the others' are as good as any."""
    model, optimiser = fresh(0)
    set_rate(optimiser, 1e-2)
    for step in range(2):
        for name, parameter in model.named_parameters():
            parameter.grad = None if name == "student.start" else parameter.detach() * step + 1
        optimiser.step()
    return model, optimiser


def whole(model: SFTModel, optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Weights and moments as they are now, gathered."""
    there: dict[str, Any] = checkpoint._tensors(model, optimiser)
    return {n: (t.full_tensor() if hasattr(t, "full_tensor") else t).clone() for n, t in there.items()}


def save(folder: Path) -> None:
    """A checkpoint of this many ranks, and what has to be in it; the weights change while it is being written."""
    model, optimiser = trained()
    expected = whole(model, optimiser)
    with Checkpoints(folder, keep=1) as checkpoints:
        checkpoints.save(2, model, optimiser, {"step": 2})
        for parameter in model.parameters():
            parameter.data.zero_()
    if distributed.rank() == 0:
        torch.save(expected, folder / "expected.pt")


def restored(folder: Path) -> tuple[int, list[str]]:
    """Tensors of another model that goes on from that checkpoint, and the names of those with other bits."""
    model, optimiser = fresh(1)
    last = checkpoint.latest(folder)
    assert last is not None
    Checkpoints(folder, keep=1).restore(2, checkpoint.load(last), model, optimiser, seed=0)
    expected, found = torch.load(folder / "expected.pt", weights_only=True), whole(model, optimiser)
    assert found.keys() == expected.keys()
    return len(found), [name for name, value in expected.items() if not torch.equal(value, found[name])]


def told_when_one_fails(folder: Path) -> str:
    """What this rank is told when the last one may write a page only."""
    model, optimiser = trained()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(folder, keep=1)
    checkpoints.save(3, model, optimiser, {"step": 3})
    checkpoints.wait()
    if distributed.rank() == distributed.world_size() - 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with checkpoints:
            checkpoints.save(4, model, optimiser, {"step": 4})
    except StoreError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    return ""


def worker(rank: int, root: str, small: str, deep: str) -> None:
    """Two ranks, then four, then two again; the last two processes wait for the four."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1")
    for phase, port in enumerate(Path(root, "port").read_text().split()):
        ranks = (2, 4, 2)[phase]
        os.environ.update(WORLD_SIZE=str(ranks), MASTER_PORT=port)
        if rank >= ranks:
            continue
        left: dict[str, Any] = {}
        with distributed.session("cpu"):
            if phase < 2:
                save(Path(root, f"of_{ranks}"))
                left["said"] = [said_by(placed(small, lora=lora)) for lora in (None, LORA)]
                left["most"] = most_allocated(lambda: placed(deep))
            if phase > 0:
                left["restored"] = [restored(Path(root, f"of_{n}")) for n in WORLDS]
            if phase == 2:
                left["told"] = told_when_one_fails(Path(root, "full"))
        torch.save(left, Path(root, f"phase_{phase}_{rank}.pt"))


def left_by(root: Path, phase: int) -> list[dict[str, Any]]:
    return [torch.load(path, weights_only=True) for path in sorted(root.glob(f"phase_{phase}_*.pt"))]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("models")
    return (
        in_folder(root / "small", vlm("qwen3_vl"), "qwen3_vl"),
        in_folder(root / "deep", deep_vlm(), "internvl"),
    )


@pytest.fixture(scope="module")
def ranks(folders: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the processes left behind."""
    root = tmp_path_factory.mktemp("ranks")
    save(root / "of_1")
    return trainer_toys.two_ranks(worker, root, *folders, processes=4, ports=3, start="fork")


def test_any_number_of_ranks_goes_on_from_any_other_bit_by_bit(ranks: Path) -> None:
    """Weights and optimiser, saved by 1, 2, 4 ranks, taken up by 4, 2, 1."""
    for phase, count in ((1, 4), (2, 2)):
        found = [left["restored"] for left in left_by(ranks, phase)]
        assert len(found) == count
        assert {(n, *differs) for every in found for n, differs in every} == {(restored(ranks / "of_1")[0],)}
    assert all(restored(ranks / f"of_{n}")[1] == [] for n in WORLDS)
    assert restored(ranks / "of_1")[0] > 100


def test_each_rank_writes_its_part(ranks: Path) -> None:
    sizes = {n: [p.stat().st_size for p in (ranks / f"of_{n}" / "step_00000002").glob("shard-*")] for n in WORLDS}
    by_rank: dict[str, int] = {}
    for path in (ranks / "of_4" / "step_00000002").glob("shard-*"):
        by_rank[path.name[:11]] = by_rank.get(path.name[:11], 0) + path.stat().st_size
    assert len(by_rank) == 4
    assert max(by_rank.values()) < 0.4 * sum(sizes[1])


def test_a_rank_that_cannot_write_fails_on_all_and_the_step_before_stays(ranks: Path) -> None:
    told = [left["told"] for left in left_by(ranks, 2)]
    assert len(told) == 2
    assert all("step_00000004: cannot be written (" in text and "make room" in text for text in told)
    assert [path.name for path in (ranks / "full").iterdir()] == ["step_00000003"]


def test_a_sharded_student_says_what_the_whole_one_says(ranks: Path, folders: tuple[str, str]) -> None:
    """So its buffers are right too: positions, image tokens, codebook."""
    expected = [said_by(placed(folders[0], lora=lora)) for lora in (None, LORA)]
    assert not torch.equal(expected[0]["logits"], expected[0]["logits"].flip(0))
    for left in (*left_by(ranks, 0), *left_by(ranks, 1)):
        for said, alone in zip(left["said"], expected, strict=True):
            torch.testing.assert_close(said["logits"], alone["logits"], atol=1e-6, rtol=0)
            assert torch.equal(said["tokens"], alone["tokens"])


def test_no_rank_ever_holds_the_whole(ranks: Path, folders: tuple[str, str]) -> None:
    """Counted in what torch allocates while a student is built, sharded and loaded."""
    alone = most_allocated(lambda: placed(folders[1]))
    weights = sum(p.numel() * 4 for p in student_of(folders[1], unread=True).parameters())
    assert weights > 13e6
    assert alone >= weights
    for phase, most in ((0, 0.6), (1, 0.35)):
        assert all(left["most"] <= most * weights for left in left_by(ranks, phase))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA])
def test_what_is_left_on_the_disk_is_what_would_be_loaded(
    tmp_path: Path, family: str, dtype: str, lora: object
) -> None:
    """Every weight, those made at random, every buffer, and the RNG that is left."""
    folder = in_folder(tmp_path, vlm(family), family)
    read = student_of(folder, unread=False, dtype=dtype, lora=lora)
    drawn = torch.rand(1)
    unread = student_of(folder, unread=True, dtype=dtype, lora=lora)
    assert torch.equal(torch.rand(1), drawn)
    on_disk = dict(unread.unread())
    meta = {name for name, p in unread.named_parameters() if p.is_meta}
    assert meta == on_disk.keys()
    for (name, value), (other, left) in zip(read.named_parameters(), unread.named_parameters(), strict=True):
        assert (name, value.dtype, value.requires_grad) == (other, left.dtype, left.requires_grad)
        assert torch.equal(value, on_disk[name].to(value.dtype) if left.is_meta else left)
    for (name, value), (other, left) in zip(read.named_buffers(), unread.named_buffers(), strict=True):
        assert (name, value.dtype) == (other, left.dtype)
        assert torch.equal(value, left)
    assert [m.training for m in read.modules()] == [m.training for m in unread.modules()]


def test_files_that_lack_a_weight_are_refused(tmp_path: Path) -> None:
    folder = in_folder(tmp_path, vlm("internvl"), "internvl")
    (file,) = tmp_path.glob("*.safetensors")
    there = load_file(file)
    gone = there.pop(sorted(there)[0])
    save_file(there, file)
    with pytest.raises(WeightsError, match=r"cannot be loaded: its safetensors have no .* \(1 missing\)"):
        student_of(folder, unread=True)
    assert gone.numel()


def test_a_weight_of_another_shape_is_named() -> None:
    student = tiny_student()
    weights = student.state_dict() | {"start": torch.zeros(1, 1)}
    with pytest.raises(DatasetError, match=r"weight start has shape \[1, 1\], the student's has \[1, 32\]"):
        checkpoint.load_weights(student, weights)


def test_a_kill_at_any_moment_leaves_the_last_whole_one(tmp_path: Path) -> None:
    """A child dies at each of its calls that touch the folder in turn, until one gets through."""
    model, optimiser = trained()
    with Checkpoints(tmp_path / "before", keep=1) as checkpoints:
        checkpoints.save(1, model, optimiser, {"step": 1})
    ends = []
    for call in range(1, 200):
        folder = Path(shutil.copytree(tmp_path / "before", tmp_path / str(call)))
        child = os.fork()
        if not child:
            die_at(call, str(folder))
            with Checkpoints(folder, keep=1) as checkpoints:
                checkpoints.save(2, model, optimiser, {"step": 2})
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        last = checkpoint.latest(folder)
        assert last is not None
        content = checkpoint.load(last)
        Checkpoints(folder, keep=1).restore(content["step"], content, *fresh(1), seed=0)
        ends.append((code, content["step"]))
        if code == 0:
            break
    assert ends == sorted(ends, key=lambda end: end[1])
    assert set(ends) == {(9, 1), (9, 2), (0, 2)}
    assert [path.name for path in folder.iterdir()] == ["step_00000002"]


def die_at(call: int, folder: str) -> None:
    """End this process, as a kill would, at its n-th call of the operating system that names something in a folder."""
    left = [call]

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir"):
            left[0] -= any(folder in str(one) for one in arguments)
            if left[0] == 0:
                os._exit(9)

    sys.addaudithook(count)
