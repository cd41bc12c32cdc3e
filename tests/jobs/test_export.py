"""The JSONL export, and a step of TRL's trainer on it with latents that a collate function fetched by token."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest
import torch

from exports.rows import Format
from jobs import config as job_config
from jobs.export import ExportConfig, export, main, messages
from pipeline.reading.reader import Dataset
from pipeline.stream import LatentCollator
from shards_schema.errors import ConfigError, DatasetError, QuarantinedError
from tests.pipeline.stream.stream_toys import make
from trainer.answers.text import parse_waypoints
from trainer.reward import POSES

BAD = "0000000100000003"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make(tmp_path_factory.mktemp("export"), poison=BAD)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_readable_sample_becomes_a_line(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "a/train.jsonl"
    assert main([f"out={out}", f"to={to}", "columns=[toy]"]) == 0
    printed = capsys.readouterr().out
    assert "14 samples, 1 left out" in printed
    assert f"left out {BAD}: toy: non_finite" in printed
    assert "NOTE" in printed
    dataset = Dataset(out)
    written = lines(to)
    assert [line["token"] for line in written] == list(dataset.tokens("samples", "toy"))
    for line in written:
        assert set(line) == {"messages", "images", "token"}
        sample = dataset.read(line["token"], {"samples": ["json", "cam_f0.jpg"]})["samples"]
        assert [Path(p).read_bytes() for p in line["images"]] == [sample["cam_f0.jpg"]]
        assert Path(line["images"][0]).is_absolute()
        user, assistant = line["messages"]
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert user["content"].startswith("<image>\nYou drive")
        assert user["content"].count("<image>") == len(line["images"])
        assert "Speed 4.0 m/s, acceleration (0.0, 0.0) m/s^2, command: straight." in user["content"]
        assert "next 1.5 s" in user["content"]
        points = [float(n) for n in re.findall(r"-?\d+\.\d+", assistant["content"])]
        wanted = [n for pose in sample["json"]["future"]["trajectory"] for n in pose]
        assert points == pytest.approx(wanted, abs=0.0051)
    assert sorted(p.name for p in to.parent.iterdir()) == ["train.jsonl", "train_images"]
    assert len(list((tmp_path / "a/train_images").iterdir())) == 14


def test_words_are_configurable(out: str, tmp_path: Path) -> None:
    arguments = ["images=" + str(tmp_path / "pictures"), "placeholder=null", "relative=true", "steps=2", "separator=;"]
    config = job_config.load(
        ExportConfig,
        [f"out={out}", f"to={tmp_path / 'b.jsonl'}", *arguments, "prompt={command} {speed:.0f}", "point={x:.1f}"],
    )
    written, left_out = export(config)
    assert (written, dict(left_out)) == (15, {})  # no teacher's column is asked for
    line = lines(tmp_path / "b.jsonl")[0]
    assert line["messages"][0]["content"] == "straight 4"
    assert re.fullmatch(r"\d\.\d;\d\.\d", line["messages"][1]["content"])
    assert line["images"] == [f"pictures/{line['token']}.cam_f0.jpg"]


@pytest.mark.parametrize(
    ("argument", "message"),
    [("point={z}", "point: no template over x, y, heading"), ("steps=4", "steps is 4, sample .* has 3"),
     ("columns=[nobody]", "nobody"), ("views=[cam_b0.jpg]", "cam_b0.jpg")],
)  # fmt: skip
def test_impossible_wishes(out: str, tmp_path: Path, argument: str, message: str) -> None:
    to = tmp_path / "c.jsonl"
    with pytest.raises((ConfigError, DatasetError), match=message):
        main([f"out={out}", f"to={to}", argument])
    assert not list(tmp_path.glob("*.jsonl*"))


DRIVE = [[4.0 * k, 0.0, 0.0] for k in range(1, 11)]  # what navtrain and the demo store: 10 poses, 5 s


def test_the_answer_is_what_the_reward_reads(tmp_path: Path) -> None:
    """The reward gives 0 to what it cannot read, so a policy that learns other words never gets a point."""
    record = {
        "token": "0", "ego": {"velocity": [8.0, 0.0], "acceleration": [0.0, 0.0], "command": "straight"},
        "history": {"trajectory": [[-4.0, 0.0, 0.0], [0.0, 0.0, 0.0]]}, "future": {"trajectory": DRIVE},
    }  # fmt: skip
    for kind in get_args(Format):
        user, assistant = messages(record, job_config.load(ExportConfig, ["out=a", "to=b", f"format={kind}"]), 1)
        assert parse_waypoints(assistant["content"], POSES) == DRIVE[:POSES]
        assert "Give the 8 poses of the next 4.0 s" in user["content"]
        assert user["content"].count("<image>") == (not kind.startswith("trl"))
    config = job_config.load(ExportConfig, ["out=a", "to=b", "steps=10", "format=trl-sft", "placeholder=<image>"])
    user, assistant = messages(record, config, 2)
    assert len(assistant["content"].split()) == 10
    assert user["content"].startswith("<image><image>You")


def test_a_row_is_what_each_library_reads(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def exported(kind: str, name: str) -> list[dict[str, Any]]:
        assert main([f"out={out}", f"to={tmp_path / name}", f"format={kind}"]) == 0
        if name.endswith("parquet"):
            rows: list[dict[str, Any]] = pq.read_table(tmp_path / name).to_pylist()
            return rows
        return lines(tmp_path / name)

    swift = exported("ms-swift", "a.jsonl")
    user, assistant = swift[3]["messages"]
    bare = {"role": "user", "content": user["content"].removeprefix("<image>\n")}
    assert exported("llama-factory", "b.jsonl")[3]["messages"] == [user, assistant]
    sft, grpo = exported("trl-sft", "c.jsonl")[3], exported("trl-grpo", "d.jsonl")[3]
    assert (sft["prompt"], sft["completion"], sft["token"]) == ([bare], [assistant], swift[3]["token"])
    assert grpo.keys() == {"prompt", "images", "token"}
    assert grpo["prompt"] == [bare]
    verl = exported("verl", "e.parquet")
    assert len(verl) == len(swift)
    assert verl[3]["prompt"] == [user]
    assert verl[3]["extra_info"] == {"token": swift[3]["token"], "index": 3}
    assert verl[3]["reward_model"] == {"style": "rule", "ground_truth": assistant["content"]}
    assert [Path(image["image"]).read_bytes() for image in verl[3]["images"]] == [
        Path(image).read_bytes() for image in swift[3]["images"]
    ]
    assert "NOTE the reward does not read such an answer" in capsys.readouterr().out  # 3 poses, of a toy
    assert not list(tmp_path.glob(".*"))


def test_llama_factorys_list_keeps_its_other_entries(out: str, tmp_path: Path) -> None:
    info = tmp_path / "dataset_info.json"
    info.write_text('{"other": {"file_name": "other.json"}}')
    arguments = [f"out={out}", f"to={tmp_path / 'drive.jsonl'}", "format=llama-factory"]
    main(arguments)
    found = json.loads(info.read_text())
    assert found["other"] == {"file_name": "other.json"}
    assert found["drive"]["file_name"] == "drive.jsonl"
    for damaged in ("[]", "{"):
        info.write_text(damaged)
        with pytest.raises(ConfigError, match=r"dataset_info.json.*move it"):
            main(arguments)


def test_latents_are_fetched_by_token(out: str) -> None:
    dataset = Dataset(out)
    collate = LatentCollator(dataset, {"toy": ["mean", "path"]}, lambda features: {"n": [f["n"] for f in features]})
    tokens = dataset.tokens("toy")[3:6]
    batch = collate([{"token": token, "n": i} for i, token in enumerate(tokens)])
    assert batch["n"] == [0, 1, 2]
    for row, token in enumerate(tokens):
        assert batch["latents"]["toy"]["mean"][row].tolist() == dataset.read(token)["toy"]["mean"].tolist()
    assert batch["latents"]["toy"]["path_mask"].sum(1).tolist() == [int(t, 16) % 5 for t in tokens]
    with pytest.raises(QuarantinedError, match="non_finite"):
        collate([{"token": BAD, "n": 0}])
    with pytest.raises(DatasetError, match="remove_unused_columns=False"):
        collate([{"n": 0}])


CHAT = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(["<|end|>", "<|pad|>", "<|user|>", "<|assistant|>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", pad_token="<|pad|>", chat_template=CHAT)


def test_a_step_of_trls_trainer(out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    to = tmp_path / "train.jsonl"
    main([f"out={out}", f"to={to}", "columns=[toy]", "placeholder=null"])
    rows = [{k: v for k, v in line.items() if k != "images"} for line in lines(to)]  # a language model sees none
    words = _tokenizer()
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(words), num_key_value_heads=1, max_position_embeddings=1024, **shape)
    )
    model.adapter = torch.nn.Linear(16, 3)
    seen: list[torch.Tensor] = []

    class Aligned(trl.SFTTrainer):  # type: ignore[misc,name-defined]
        """What docs/streaming.md shows: latents out of the batch, one more term in the loss."""

        def compute_loss(self, model: Any, inputs: dict[str, Any], **kwargs: Any) -> Any:
            means = inputs.pop("latents")["toy"]["mean"]
            outputs = model(**inputs, output_hidden_states=True)
            align = 1 - torch.cosine_similarity(model.adapter(outputs.hidden_states[-1][:, -1]), means).mean()
            seen.append(means)
            loss = outputs.loss + align
            return (loss, outputs) if kwargs.get("return_outputs") else loss

    before = model.adapter.weight.detach().clone()
    trainer = Aligned(
        model=model,
        args=trl.SFTConfig(
            output_dir=str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=3, report_to=[], use_cpu=True,
            remove_unused_columns=False, learning_rate=0.1, warmup_steps=0, bf16=False, max_length=512,
            gradient_checkpointing=False, save_strategy="no",
        ),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=words,
        data_collator=LatentCollator(
            Dataset(out), {"toy": ["mean"]}, DataCollatorForLanguageModeling(pad_token_id=words.pad_token_id)
        ),
    )  # fmt: skip
    trainer.train()
    assert not torch.equal(before, model.adapter.weight)
    dataset = Dataset(out)
    stored = {tuple(dataset.read(row["token"])["toy"]["mean"].tolist()) for row in rows}
    assert len(seen) == 2
    assert {tuple(mean.tolist()) for means in seen for mean in means} <= stored


def test_a_zero_has_no_sign_whatever_the_template(tmp_path: Path) -> None:
    record = {
        "token": "a",
        "ego": {"velocity": [0.0, 0.0], "acceleration": [-0.04, -0.0], "command": "straight"},
        "history": {"trajectory": [[-0.001, -0.0, -0.0004], [0.0, 0.0, 0.0]]},
        "future": {"trajectory": [[-0.004, 0.2, -0.00001], [-0.006, -0.2, 0.0]]},
    }
    given = {"out": "somewhere", "to": tmp_path / "a.jsonl", "prompt": "{ax:.1f} {ay} {history}"}
    for point, history, answer in (
        ("({x:.2f}, {y:.2f})", "(0.00, 0.00)", "(0.00, 0.20)"),
        ("{x:+.1f}/{heading:.3f}", "+0.0/0.000", "+0.0/0.000"),
        ("{heading}", "-0.0004", "-1e-05"),
    ):
        user, assistant = messages(record, ExportConfig(**given, point=point), 0)
        assert user["content"].split("\n")[-1].startswith(f"0.0 0.0 {history}")
        assert assistant["content"].startswith(answer)
        assert not re.search(r"-0(\.0+)?(?![\d.])", user["content"] + assistant["content"])
