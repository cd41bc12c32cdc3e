"""Every block of the pages that names a library, run by that library: two steps of a random tiny VLM each.

`make test-trainers` runs it, and prints what ran with which versions, the losses, and the rewards. A block is the
page's own text; the model's and the columns' names are replaced, and what bounds the run (steps, tokens) is added.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs import export, score
from jobs import questions as questions_job
from pipeline.reading.reader import Dataset
from questions.controls import said
from questions.units import read_units
from tests.blocks import block
from tests.questions_toys import write_units
from tests.trainer.reward_toys import write_reward_dataset
from tests.trainer.test_asked import question
from tests.trainers import tiny_vlm, venvs

pytestmark = [pytest.mark.trainers, pytest.mark.timeout(1800)]

TINY = "--model_type qwen2_5_vl --template qwen2_5_vl"  # ms-swift knows hub names by heart, and no folder
FEW = "--max_steps 2 --logging_steps 1 --save_strategy no --report_to none"
SWIFT = f"{TINY} {FEW} --dataset_num_proc 1 --dataloader_num_workers 0 --split_dataset_ratio 0"
STEPS = "max_steps=2, logging_steps=1, save_strategy='no', report_to=[], use_cpu=True, bf16=False, "

TABLE: list[tuple[str, str, str, str]] = []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the commands run: a dataset at `out/demo`, a model at `model`, and the files that the pages export."""
    root = tmp_path_factory.mktemp("trainers")
    data = write_reward_dataset(root / "data")
    (root / "out").mkdir()
    (root / "out" / "demo").symlink_to(data)
    (root / "trainer").symlink_to(venvs.ROOT / "trainer")
    tiny_vlm.write(root / "model")
    for to, kind in (
        ("train.jsonl", "ms-swift"),
        ("sft.jsonl", "trl-sft"),
        ("grpo.jsonl", "trl-grpo"),
        ("verl.parquet", "verl"),
    ):
        export.main([f"out={data}", f"to={root / to}", f"format={kind}", "columns=[toy]"])
    yield root
    rows = [("library", "what ran", "loss", "reward"), *TABLE]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    print("\n\n" + "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows))


def told(text: str) -> str:
    """A block with the names that are here in place of the page's."""
    for page, here in (("Qwen/Qwen2.5-VL-3B-Instruct", "model"), ("vggt", "toy"), ("l3_tok12", "grid")):
        text = text.replace(page, here)
    return text


def shell(name: str, page: str, which: str, folder: Path, more: str) -> str:
    return venvs.run(name, ["bash", "-ec", told(block(page, which)).rstrip() + " " + more], folder)


def python(name: str, text: str, folder: Path) -> str:
    (folder / "block.py").write_text(text)
    return venvs.run(name, [str(venvs.VENVS / name / "bin" / "python"), "block.py"], folder)


def logged(printed: str, key: str) -> list[float]:
    """The values of a key in the dicts that a trainer prints, in order."""
    return [float(value) for value in re.findall(rf"'{re.escape(key)}': '?(-?[0-9.e-]+)'?", printed)]


def answers(folder: Path) -> tuple[list[str], list[str]]:
    """The human's drives as they are exported, and their tokens."""
    rows = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return [row["messages"][-1]["content"] for row in rows], [row["token"] for row in rows]


def by_the_scorer(folder: Path, texts: list[str], tokens: list[str], version: str = "v1") -> list[float]:
    """What `jobs.score` says of them."""
    from trainer.answers.text import parse_waypoints

    wanted = {token: {"human": parse_waypoints(text, 8)} for text, token in zip(texts, tokens, strict=True)}
    (folder / "wanted.json").write_text(json.dumps(wanted))
    files = ["--trajectories", str(folder / "wanted.json"), "--out", str(folder / "scores.json")]
    score.main(["--data", str(folder / "out/demo"), *files, "--version", version])
    found = json.loads((folder / "scores.json").read_text())
    return [found[token]["human"]["score"] for token in tokens]


def rewards(name: str, text: str, folder: Path) -> list[float]:
    """The list of numbers that a program prints last."""
    found: list[float] = json.loads(python(name, text, folder).strip().splitlines()[-1])
    return found


def note(name: str, ran: str, losses: list[float], reward: str = "") -> None:
    version = next(one for one in venvs.versions()[name] if one.partition("==")[2] and not one.startswith("torch=="))
    TABLE.append((version, ran, ", ".join(f"{loss:.4g}" for loss in losses), reward))


def test_ms_swift_sft_with_latents(folder: Path) -> None:
    printed = shell("ms-swift", "streaming", "ms-swift-sft", folder, SWIFT)
    losses, aligned = logged(printed, "loss"), logged(printed, "align_toy_grid")
    assert len(losses) == len(aligned) == 2
    # 11.9 is the logarithm of the vocabulary; a sum over accumulated passes would be twice that
    assert all(11 < loss - 0.1 * align < 13 for loss, align in zip(losses, aligned, strict=True))
    note("ms-swift", "swift sft, latents, 2 x 2 rows a step", losses)


def test_ms_swift_grpo(folder: Path) -> None:
    printed = shell("ms-swift", "grpo", "ms-swift-grpo", folder, f"{SWIFT} --max_completion_length 8")
    found = logged(printed, "rewards/SwiftReward/mean") or logged(printed, "reward")
    assert found[:2] == [0, 0]  # a random model says nothing that parses
    texts, tokens = answers(folder)
    text = (
        "import json\nfrom swift.utils.utils import import_external_file\nfrom swift.rewards import orms\n"
        "import os\nos.environ['LAST_SHARDS_DATA'] = 'out/demo'\nimport_external_file('trainer/plugins/ms_swift.py')\n"
        f"print(json.dumps(orms['pdms'](args=None)({texts!r}, token={tokens!r}, messages=[])))\n"
    )
    own = rewards("ms-swift", text, folder)
    assert own == by_the_scorer(folder, texts, tokens)
    note("ms-swift", "swift rlhf, GRPO", logged(printed, "loss"), f"{sum(own) / len(own):.6f} = jobs.score")


def test_trl_sft_with_latents(folder: Path) -> None:
    text = told(block("streaming", "trl-sft")).replace(
        "SFTConfig(", f"SFTConfig({STEPS}per_device_train_batch_size=2, "
    )
    look = (
        "\nbatch = trainer.data_collator([dict(rows[0])])\n"
        "print('TRAINED', trainer.processing_class.tokenizer.decode(batch['labels'][0][batch['labels'][0] != -100]))\n"
    )
    printed = python("trl", text + look, folder)
    losses = logged(printed, "loss")
    assert len(losses) == 2
    assert all(11 < loss < 13.5 for loss in losses)
    trained = printed.partition("TRAINED ")[2].strip()
    assert trained.startswith(answers(folder)[0][0])  # the answer, and neither the prompt nor an image
    assert "drive" not in trained
    assert "image_pad" not in trained
    note("trl", "SFTTrainer, latents", losses)


def test_trl_grpo(folder: Path) -> None:
    bounds = f"GRPOConfig({STEPS}per_device_train_batch_size=2, num_generations=2, "
    text = told(block("grpo", "trl-grpo")).replace("GRPOConfig(", bounds).replace("length=256", "length=8")
    printed = python("trl", text, folder)
    assert logged(printed, "reward") == [0, 0]
    assert logged(printed, "pdms/unparsed") == [1, 1]
    texts, tokens = answers(folder)
    own = rewards(
        "trl",
        "import json\nfrom trainer.reward import Reward\nfrom trainer.reward_functions import TRLReward\n"
        f"print(json.dumps(TRLReward(Reward('out/demo'))({texts!r}, token={tokens!r})))\n",
        folder,
    )
    assert own == by_the_scorer(folder, texts, tokens)
    note("trl", "GRPOTrainer, images", logged(printed, "loss"), f"{sum(own) / len(own):.6f} = jobs.score")


def asked(folder: Path, kind: str, to: str) -> tuple[list[str], dict[str, list[object]]]:
    """The page's units and its rows of them for a library; right answers, and the columns that say what was asked."""
    tokens = Dataset(str(folder / "out/demo"), columns=["samples"]).tokens("samples")
    (folder / "out/questions").mkdir(exist_ok=True)
    units = write_units(folder / "out/questions/train.jsonl", [question(token, n) for n, token in enumerate(tokens)])
    places = [f"units={units}", f"data={folder}/out/demo", f"to={folder}/{to}", f"format={kind}"]
    assert questions_job.main(["export", *places, "use=train"]) == 0
    prompts = read_units(units)
    columns: dict[str, list[object]] = {"unit": [p.unit for p in prompts], "side": [p.side for p in prompts]}
    return [f"<think>so</think>{said(p.answer)}" for p in prompts], columns


def test_trl_grpo_on_questions(folder: Path) -> None:
    texts, columns = asked(folder, "trl-grpo", "asked.jsonl")
    bounds = f"GRPOConfig({STEPS}per_device_train_batch_size=2, num_generations=2, "
    text = told(block("questions", "trl-questions")).replace("GRPOConfig(", bounds).replace("length=256", "length=8")
    printed = python("trl", text, folder)
    assert logged(printed, "reward") == [0, 0]  # a random model says nothing that is an answer
    assert logged(printed, "questions/accuracy") == [0, 0]
    call = (
        "import json\nfrom trainer.question_rewards import QuestionReward, TRLQuestionReward\n"
        "reward = TRLQuestionReward(QuestionReward('out/questions/train.jsonl'))\n"
        f"print(json.dumps(reward({texts!r}, **{columns!r})))\n"
    )
    assert rewards("trl", call, folder) == [1.5] * len(texts)
    note("trl", "GRPOTrainer, questions", logged(printed, "loss"), "1.5 = form and accuracy")


def test_ms_swift_grpo_on_questions(folder: Path) -> None:
    texts, columns = asked(folder, "ms-swift", "asked.jsonl")
    printed = shell("ms-swift", "questions", "ms-swift-questions", folder, f"{SWIFT} --max_completion_length 8")
    found = logged(printed, "rewards/SwiftQuestionReward/mean") or logged(printed, "reward")
    assert found[:2] == [0, 0]
    call = (
        "import json\nfrom swift.utils.utils import import_external_file\nfrom swift.rewards import orms\n"
        "import os\nos.environ['LAST_SHARDS_UNITS'] = 'out/questions/train.jsonl'\n"
        "import_external_file('trainer/plugins/ms_swift.py')\nreward = orms['questions'](args=None)\n"
        f"print(json.dumps(reward({texts!r}, **{columns!r})))\n"
    )
    assert rewards("ms-swift", call, folder) == [1.5] * len(texts)
    note("ms-swift", "swift rlhf, GRPO on questions", logged(printed, "loss"), "1.5 = form and accuracy")


def test_llama_factory(folder: Path) -> None:
    exported, _, trained = told(block("streaming", "llama-factory")).partition("\n")
    export.main(shlex.split(exported.replace("out/demo", str(folder / "out/demo")).replace("to=", f"to={folder}/"))[3:])
    more = f"{FEW} --use_cpu --bf16 false --per_device_train_batch_size 2 --overwrite_output_dir --cutoff_len 4096"
    printed = venvs.run(
        "llama-factory", ["bash", "-ec", f"{trained.rstrip()} {more}"], folder, DISABLE_VERSION_CHECK="1"
    )
    losses = logged(printed, "loss")
    assert len(losses) == 2
    assert all(11 < loss < 13 for loss in losses)
    note("llama-factory", "llamafactory-cli train", losses)


def test_verl(folder: Path) -> None:
    texts, tokens = answers(folder)
    own = rewards("verl", by_verl(told(block("grpo", "verl")), texts), folder)
    # one by one, as verl asks: a scene alone need not have the last bit of the same scene in a batch
    assert own == [by_the_scorer(folder, [t], [k])[0] for t, k in zip(texts, tokens, strict=True)]
    note("verl", "RLHFDataset, custom_reward_function", [], f"{sum(own) / len(own):.6f} = jobs.score")


def test_verl_on_questions(folder: Path) -> None:
    texts, _ = asked(folder, "verl", "asked.parquet")
    assert rewards("verl", by_verl(block("questions", "verl-questions"), texts), folder) == [1.5] * len(texts)
    note("verl", "RLHFDataset, custom_reward_function, questions", [], "1.5 = form and accuracy")


def by_verl(flags: str, texts: list[str]) -> str:
    """A program that reads a block's rows and scores texts as verl does, one a row."""
    return f"""
import json
from omegaconf import OmegaConf
from transformers import AutoProcessor
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.dataset.rl_dataset import RLHFDataset

config = OmegaConf.from_dotlist([flag.lstrip("+") for flag in {shlex.split(flags)!r}])
config.data.filter_overlong_prompts_workers = 1
config.data.max_prompt_length = 4096
processor = AutoProcessor.from_pretrained("model")
rows = RLHFDataset(config.data.train_files, processor.tokenizer, config.data, processor)
scored = get_custom_reward_fn(config)
found = []
for row, text in zip(rows, {texts!r}, strict=True):
    assert any(part.get("type") == "image" for part in row["raw_prompt"][0]["content"]), row
    found.append(scored(data_source=row["data_source"], solution_str=text, extra_info=row["extra_info"],
                        ground_truth=row["reward_model"]["ground_truth"])["score"])
print(json.dumps(found))
"""


LIGHTNING = """
import lightning, torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from pipeline.stream import Dataset, ShardStream, StreamConfig

SEEN = []
class Mean(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(16, 1)
    def forward(self, batch):
        SEEN.extend(batch["token"])
        if len(SEEN) == STOP:
            raise KeyboardInterrupt
        return self.layer(batch["x"]).square().mean()

def example(sample):
    return {"token": sample["token"], "x": sample["toy"]["grid"].float().flatten(0, -2).mean(0)}

STOP = -1
model = Mean()
dataset = Dataset("out/demo", columns=["toy"])
stream = ShardStream(dataset, {"toy": ["grid"]}, StreamConfig(batch_size=4), transform=example)
"""


def test_lightning(folder: Path) -> None:
    """Stopped in the second epoch and resumed, it trains on what is left, and on nothing twice."""
    body = block("streaming", "lightning").replace("stream.advance(8", "stream.advance(4")
    quiet = "accelerator='cpu', logger=False, enable_progress_bar=False, enable_model_summary=False, "
    keep = "callbacks=[ModelCheckpoint('kept', every_n_train_steps=1, save_top_k=-1)], "
    body = LIGHTNING + body.replace("lightning.Trainer(", f"lightning.Trainer({quiet}{keep}")
    whole = "\ntrainer.fit(Policy())\nimport json\nprint(json.dumps(SEEN))\n"
    seen = json.loads(python("lightning", body + whole, folder).strip().splitlines()[-1])
    assert len(seen) == 2 * len(set(seen))
    steps = -(-len(seen) // 2 // 4)
    kept = f"kept/epoch=1-step={steps + 1}.ckpt"
    assert (folder / kept).exists(), sorted((folder / "kept").iterdir())
    again = whole.replace("Policy()", f"Policy(), ckpt_path={kept!r}, weights_only=False")
    rest = json.loads(python("lightning", body.replace("'kept'", "'again'") + again, folder).strip().splitlines()[-1])
    assert rest == seen[len(seen) // 2 + 4 :]
    note("lightning", "fit, stopped and resumed", [])


def test_the_pages_name_the_versions() -> None:
    """The table of the page is that of versions.txt."""
    page = (venvs.ROOT / "docs" / "streaming.md").read_text()
    for wanted in venvs.versions().values():
        name, _, version = next(one for one in wanted if "==" in one and not one.startswith("torch==")).partition("==")
        assert re.search(rf"\| {version} \|", page), (name, version)
