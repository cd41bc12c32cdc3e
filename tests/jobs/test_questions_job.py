"""`python -m jobs.questions`: what the page says to type, and what is said of outputs that are not all there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import config as job_config
from jobs import questions as questions_job
from jobs import teachers as teachers_job
from pipeline.reading.reader import Dataset
from pipeline.sources import registry as sources
from questions import controls, scoring
from questions.outputs import read_outputs
from questions.units import KINDS, PastFrame, Prompt, read_units, refuse_training
from questions.wording import whole
from shards_schema.errors import ConfigError, DatasetError, MissingFileError, StoreError
from tests import made_once
from tests import questions_toys as toys
from tests.blocks import block
from tests.chaos import small
from tests.committed import commit
from tests.inline_job import run_inline
from tests.pages import Page
from tests.questions_toys import SURDS, official_files, write_units
from tests.toys import ToySource, write_images
from trainer.question_rewards import QuestionReward
from trainer.splits import logs_of, split_by_log


def typed(place: Path) -> list[list[str]]:
    """The commands of the page, at a place of the test's."""
    out = []
    for line in block("questions", "questions").splitlines():
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "jobs.questions"]
        out.append(
            [
                w.replace("=SURDS", f"={SURDS}").replace("=units", f"={place}/units").replace("=out", f"={place}/out")
                for w in words[3:]
            ]
        )
    return out


def imported(place: Path) -> Path:
    assert questions_job.main(typed(place)[0]) == 0
    return place / "units.jsonl"


def answer(units: Path, place: Path, *, skip: int = 0) -> None:
    rows = [{"unit": p.unit, "side": p.side, "output": controls.oracle(p)} for p in read_units(units)[skip:]]
    (place / "outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_the_page_says_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    units = imported(tmp_path)
    said = capsys.readouterr().out
    assert ["yaw", "16", "16", "0"] in [line.split() for line in said.splitlines()]
    assert ["dis", "16", "13", "3"] in [line.split() for line in said.splitlines()]
    assert "the prompts' wording is ours" in said
    answer(units, tmp_path)
    assert questions_job.main(typed(tmp_path)[1]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in said.splitlines() if line}
    assert rows["xy2d"][:5] == ["xy2d", "16", "1.0000", "1.0000", "1.0000"]
    assert rows["lr"][1] == "13"  # three units are ambiguous
    assert "rules: official, coordinates: pixels" in said
    assert "the widest option always: 1.0000: the options alone give the answer away" in said
    assert "planned 142 = scored 142 + unanswered 0" in said
    assert "descriptions are ambiguous: 9 (ambiguous=keep has them)" in said
    assert "CAM_BACK_LEFT" in rows


def test_a_prompt_without_a_row_is_not_accounted_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(imported(tmp_path), tmp_path, skip=2)
    command = [*typed(tmp_path)[1], f"out={tmp_path}/scores.json"]
    assert questions_job.main(command) == 1
    said = capsys.readouterr().out
    assert "planned 142 = scored 140 + unanswered 2 (no_output 2)" in said
    assert "NOT ACCOUNTED FOR" in said
    document = json.loads((tmp_path / "scores.json").read_text())
    assert document["official"]["units"][0]["score"] == 0.0
    assert document["official"]["units"][0]["prompts"] == [None, None]
    assert document["official"]["categories"]["yaw"]["score"] == 15 / 16


def test_an_output_that_says_why_it_is_none_is_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = imported(tmp_path)
    answer(units, tmp_path, skip=1)
    row = {"unit": read_units(units)[0].unit, "side": 1, "output": None, "reason": "out_of_memory"}
    with (tmp_path / "outputs.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    assert questions_job.main(typed(tmp_path)[1]) == 0
    assert "unanswered 1 (out_of_memory 1)" in capsys.readouterr().out


def test_ambiguous_units_are_scored_where_that_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(imported(tmp_path), tmp_path)
    assert questions_job.main([*typed(tmp_path)[1], "ambiguous=keep"]) == 0
    assert "planned 160 = scored 160" in capsys.readouterr().out


def test_both_rules_and_the_blind_control_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    units = imported(tmp_path)
    answer(units, tmp_path)
    rows = [{"unit": p.unit, "side": p.side, "output": p.answer} for p in read_units(units)]  # without the tag
    (tmp_path / "blind.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [w.replace("rules=official", "rules=both") for w in typed(tmp_path)[1]]
    assert questions_job.main([*command, f"blind={tmp_path}/blind.jsonl"]) == 0
    said = capsys.readouterr().out
    yaws = [line.split() for line in said.splitlines() if line.startswith("yaw ")]
    assert [(row[3], row[-1]) for row in yaws[1:]] == [("1.0000", "0.0000"), ("1.0000", "1.0000")]
    assert said.count("rules: ") == 2


def test_a_blind_control_that_is_not_all_there_is_not_accounted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(imported(tmp_path), tmp_path)
    (tmp_path / "blind.jsonl").touch()
    assert questions_job.main([*typed(tmp_path)[1], f"blind={tmp_path}/blind.jsonl"]) == 1
    assert f"NOT ACCOUNTED FOR: 142 prompts have no row in {tmp_path}/blind.jsonl" in capsys.readouterr().out


def test_scores_are_not_written_over_what_was_said(tmp_path: Path) -> None:
    answer(imported(tmp_path), tmp_path)
    before = (tmp_path / "outputs.jsonl").read_bytes()
    for place in ("outputs.jsonl", "units.jsonl"):
        with pytest.raises(ConfigError, match=f"{place} is, or lies in, .*, which this command reads"):
            questions_job.main([*typed(tmp_path)[1], f"out={tmp_path}/{place}"])
    assert (tmp_path / "outputs.jsonl").read_bytes() == before
    with pytest.raises(ConfigError, match=r"units.jsonl is, or lies in, .*, which this command reads"):
        questions_job.main(["export", f"units={tmp_path}/units.jsonl", f"to={tmp_path}/units.jsonl", "use=ask"])


def test_official_files_are_held_against_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = official_files(tmp_path / "qa")
    assert questions_job.main([*typed(tmp_path)[0], f"official={folder}", "order=file"]) == 0
    assert f"every image, option and answer is that of {folder}" in capsys.readouterr().out
    assert (
        read_units(tmp_path / "units.jsonl")[0].text
        == "Word for word 0\nOptions: \n"
        + "".join(f"- {option}\n" for option in read_units(tmp_path / "units.jsonl")[0].options)
        + "\nTags, please."
    )


def test_help_and_no_command() -> None:
    with pytest.raises(job_config.HelpAskedError) as asked:
        questions_job.main(["--help"])
    assert len(asked.value.models) == 4
    for arguments in ([], ["sing"]):
        with pytest.raises(ConfigError, match=r"usage: python -m jobs.questions score"):
            questions_job.main(arguments)
    with pytest.raises(ConfigError, match="model_input"):
        questions_job.main(["score", "units=a", "outputs=b", "rules=official", "coordinates=metres"])


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of a small town: 2 logs of 5 scenes, two cameras."""
    source = sources.build(small.source(made_once.drive(tmp_path_factory)))
    out = tmp_path_factory.mktemp("town") / "data"
    commit(source, out, [], zarr=False)
    return out


@pytest.fixture(scope="module")
def made(town: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Units of it."""
    out = tmp_path_factory.mktemp("made")
    assert questions_job.main(["make", f"data={town}", f"out={out}", "rules.seconds=0", "rules.image=20"]) == 0
    return out


def test_units_of_a_town(town: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(block("questions", "made"))
    assert words[:5] == ["python", "-m", "jobs.questions", "make", "data=out/demo"]
    assert questions_job.main(["make", f"data={town}", f"out={tmp_path}", "rules.seconds=0", "rules.image=20"]) == 0
    said = capsys.readouterr().out
    assert "The frames are generated" in said
    assert "label-derived" not in said
    train, held = (read_units(tmp_path / f"{name}.jsonl") for name in ("train", "evaluation"))
    assert {p.split for p in train} == {"train"}
    assert {p.log for p in train}.isdisjoint({p.log for p in held})  # whole logs, as training holds them out
    dataset = Dataset(str(town), columns=["samples"])
    assert {p.log for p in held} == {logs_of(dataset)[t] for t in split_by_log(dataset)[1]}
    assert any("white" in o.desc or "red" in o.desc for p in train for o in p.objects)
    assert {p.benchmark for p in train} == {"shards-spatial"}
    moving = read_units(tmp_path / "dynamics_train.jsonl")
    assert {(p.benchmark, p.split) for p in moving} == {("shards-dynamics", "train")}
    assert {p.log for p in moving} <= {p.log for p in train}
    assert "where_later" in {p.category for p in moving}
    assert all([f.seconds for f in p.past] == pytest.approx([-1.5, -1.0, -0.5], abs=1e-4) for p in moving)
    for rule, right in ((controls.oracle, 1.0), (controls.chosen(lambda listed: listed[0]), None)):
        rows = [{"unit": p.unit, "side": p.side, "output": rule(p)} for p in held]
        (tmp_path / "outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        where = [
            f"units={tmp_path}/evaluation.jsonl",
            f"outputs={tmp_path}/outputs.jsonl",
            f"out={tmp_path}/scores.json",
        ]
        assert questions_job.main(["score", *where, "rules=official", "coordinates=pixels"]) == 0
        overall = json.loads((tmp_path / "scores.json").read_text())["official"]["overall"]
        assert overall == pytest.approx(right) if right else overall < 0.4
    page = Page((tmp_path / "examples.html").read_text())
    assert all(load.startswith("data:image/jpeg;base64,") for load in page.loads)
    assert page.tags.count("svg") == len(page.loads) > 0
    assert held[0].question in page.text
    assert page.tags.count("rect") >= page.tags.count("svg")
    refuse_training(train, "train.jsonl")
    with pytest.raises(ConfigError, match="shards-spatial evaluation"):
        refuse_training(held, "evaluation.jsonl")


@pytest.mark.slow
def test_a_town_with_turns_is_asked_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_inline(monkeypatch)
    places = {"=out/": f"={tmp_path}/", "=data/turns": f"={tmp_path}/town"}
    smaller = {
        "source.logs=28": "source.logs=7",
        "rules.seconds=1": "rules.seconds=0",
        "rules.image=20": "rules.image=100",
    }
    text = block("questions", "turns")
    for old, new in (places | smaller).items():
        assert old in text
        text = text.replace(old, new)
    made, asked = (shlex.split(line)[3:] for line in text.splitlines())
    small = ["source.width=96", "source.height=54", "source.filter.frame_interval=1", "samples.size=null"]
    teachers_job.main([*made, *small])
    assert questions_job.main([*asked, "drawn=1"]) == 0
    units = [p for file in (tmp_path / "turns_questions").glob("*.jsonl") for p in read_units(file)]
    told = scoring.by_category(scoring.answered_by(controls.oracle, units), "official")
    assert {name: category.score for name, category in told.items()} == dict.fromkeys(KINDS, pytest.approx(1.0))


def test_the_same_units_again(town: Path, made: Path, tmp_path: Path) -> None:
    questions_job.main(["make", f"data={town}", f"out={tmp_path}", "rules.seconds=0", "rules.image=20"])
    for name in ("train.jsonl", "evaluation.jsonl", "dynamics_train.jsonl", "examples.html"):
        assert (made / name).read_bytes() == (tmp_path / name).read_bytes()


def test_labels_alone_are_said_to_be_that(town: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for looks in ("labels", "pixels"):
        assert questions_job.main(["make", f"data={town}", f"out={tmp_path}", f"looks={looks}"]) == 0
        assert "label-derived" in capsys.readouterr().out
    for looks in ("town", "auto"):
        with pytest.raises(ConfigError, match=r"town: .* is not the folder of a town"):
            questions_job.main(["make", f"data={town}", f"out={tmp_path}", f"looks={looks}", f"town={tmp_path}"])


def test_what_cannot_be_made_is_said_at_the_start(town: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file: File exists"):
        questions_job.main(["make", f"data={town}", f"out={tmp_path}/file"])
    with pytest.raises(ConfigError, match=r"rules: depth is \[60, 2\], expected the lesser one first"):
        questions_job.main(["make", f"data={town}", f"out={tmp_path}", "rules.depth=[60, 2]"])


def test_a_dataset_that_is_not_whole_is_said_to_be_that(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images", 3, 9)
    source = ToySource(str(tmp_path / "images"), logs=3)
    commit(source, tmp_path / "data", [], zarr=False, shard_size=5, shards=2)
    assert questions_job.main(["make", f"data={tmp_path}/data", f"out={tmp_path}/out", "drawn=0"]) == 1
    assert "5 planned scenes are not made yet; which logs are held out may change" in capsys.readouterr().out
    commit(source, tmp_path / "one", [], zarr=False, shard_size=5, shards=1)
    with pytest.raises(DatasetError, match="1 logs, of 3 that are planned, have a scene that can be used"):
        questions_job.main(["make", f"data={tmp_path}/one", f"out={tmp_path}/out"])


@pytest.mark.parametrize("kind", ["ms-swift", "llama-factory", "trl-sft", "trl-grpo", "verl"])
def test_units_as_rows_of_a_trainer(town: Path, made: Path, tmp_path: Path, kind: str) -> None:
    units = read_units(made / "train.jsonl")
    to = tmp_path / "rows" / ("train.parquet" if kind == "verl" else "train.jsonl")
    places = {
        "units=": f"units={made}/train.jsonl",
        "data=": f"data={town}",
        "to=": f"to={to}",
        "format=": f"format={kind}",
    }
    words = shlex.split(block("questions", "exported"))
    assert words[:3] == ["python", "-m", "jobs.questions"]
    assert questions_job.main([places.get(f"{w.partition('=')[0]}=", w) for w in words[3:]]) == 0
    rows = (
        pq.read_table(to).to_pylist() if kind == "verl" else [json.loads(line) for line in to.read_text().splitlines()]
    )
    assert len(rows) == len(units)
    first, unit = rows[0], units[0]
    image = first["images"][0]["image"] if kind == "verl" else first["images"][0]
    members = Dataset(str(town), columns=["samples"]).read(unit.token, {"samples": ["cam_f0.jpg"]})["samples"]
    assert Path(image).read_bytes() == members["cam_f0.jpg"]
    asked = first["messages" if "messages" in first else "prompt"][0]["content"]
    assert asked == ("" if kind.startswith("trl") else "<image>\n") + whole(unit)
    if kind == "verl":
        assert first["reward_model"]["ground_truth"] == f"<answer>{unit.answer}</answer>"
    else:
        assert (first["unit"], first["side"]) == (unit.unit, unit.side)


def test_a_question_about_motion_has_the_pictures_before_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path / "images", 1, 9)
    commit(ToySource(str(tmp_path / "images"), logs=1), tmp_path / "data", [], zarr=False)
    dataset = Dataset(str(tmp_path / "data"), columns=["samples"])
    first, second = dataset.tokens("samples")[:2]  # of the first the frame before is no sample

    def asked(category: str, token: str, before: str) -> Prompt:
        past = (PastFrame(token=before, seconds=-0.5),)
        given = {"unit": f"{category}-{token}", "objects": (), "views": ("cam_f0",), "split": "train"}
        return toys.prompt(category, ("Yes", "No"), "Yes", token=token, past=past, **given)

    every = [
        asked(category, *tokens)
        for category in ("ego_turn", "ego_next")
        for tokens in ((first, "0" * 16), (second, first))
    ]
    units = write_units(tmp_path / "units.jsonl", every)
    export = ["export", f"units={units}", f"data={tmp_path}/data", f"to={tmp_path}/rows.jsonl", "use=train"]
    assert questions_job.main(export) == 0
    assert "left out: 1 prompts of observed kinds" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    shown = [[Path(image).name.partition(".")[0] for image in row["images"]] for row in rows]
    assert [row["unit"] for row in rows] == [every[1].unit, every[2].unit, every[3].unit]
    assert shown == [[first, second], [first], [first, second]]
    assert rows[0]["messages"][0]["content"].count("<image>") == 2
    stored = dataset.read(first, {"samples": ["cam_f0.jpg"]})["samples"]["cam_f0.jpg"]
    assert Path(rows[0]["images"][0]).read_bytes() == stored
    Path(rows[0]["images"][0]).write_bytes(b"of a dataset that was there before")
    assert questions_job.main(export) == 0
    assert Path(rows[0]["images"][0]).read_bytes() == stored
    assert questions_job.main([*export[:-2], f"to={tmp_path}/rows.parquet", "use=train", "format=verl"]) == 0
    found = pq.read_table(tmp_path / "rows.parquet").column("extra_info").to_pylist()
    assert [QuestionReward(units).asked[info["index"]].unit for info in found] == [row["unit"] for row in rows]


@pytest.mark.parametrize("answer", ["{answer", "{answr}", "{answer.text}", "hello"])
def test_an_answer_that_does_not_say_the_answer(answer: str) -> None:
    with pytest.raises(ConfigError, match="answer: no template over answer"):
        questions_job.main(["export", "units=a", "to=b", "use=train", f"answer={answer}"])


def test_units_of_a_dataset_have_no_picture_in_surds(made: Path, tmp_path: Path) -> None:
    where = [f"units={made}/train.jsonl", f"surds={SURDS}", f"to={tmp_path}/rows.jsonl"]
    with pytest.raises(ConfigError, match=r"unit .* is of a dataset, and not of SURDS: give data=DATASET"):
        questions_job.main(["export", *where, "use=train"])


def test_nothing_is_exported_to_train_on_that_is_for_evaluation(tmp_path: Path) -> None:
    units = imported(tmp_path)
    command = ["export", f"units={units}", f"to={tmp_path}/rows.jsonl", f"surds={tmp_path}"]
    with pytest.raises(ConfigError, match="surds evaluation; nothing may be trained on these"):
        questions_job.main([*command, "use=train"])
    with pytest.raises(ConfigError, match="give one of data=DATASET and surds=DIR"):
        questions_job.main([*command[:-1], "use=ask"])
    with pytest.raises(MissingFileError, match="there is no image"):
        questions_job.main([*command, "use=ask"])
    assert not (tmp_path / "rows.jsonl").exists()
    for prompt in read_units(units):
        image = tmp_path / prompt.images[0]
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
    assert questions_job.main([*command, "use=ask"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == 142  # without those that are left out
    said = [{**row, "response": row["messages"][1]["content"]} for row in rows]
    (tmp_path / "outputs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    assert len(read_outputs(tmp_path / "outputs.jsonl", read_units(units))) == 142
