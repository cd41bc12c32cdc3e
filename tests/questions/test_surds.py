"""SURDS' units from its published layout: those of an independent implementation, draw for draw."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from questions import options
from questions.options import SAME, SAME_ROW
from questions.surds import FILES, make_units, read_images, with_official
from questions.units import read_units, refuse_training, units_of
from questions.wording import whole
from shards_schema.errors import ConfigError, DatasetError, MissingFileError, StoreError
from tests.questions_toys import SURDS, official_files, official_units, write_units


def lines(folder: Path, rows: list[dict[str, Any]]) -> Path:
    (folder / "validation").mkdir(parents=True)
    (folder / "validation" / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def metadata() -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SURDS / "validation" / "metadata.jsonl").read_text().splitlines()]


# --- the rules


def test_ties_at_their_limits() -> None:
    assert options.distances("a", "b", 12.0, 13.0).right == (SAME, SAME)
    assert options.distances("a", "b", 12.0, 13.01).right == ("The a", "The b")
    assert options.distances("a", "b", 13.01, 12.0).right == ("The b", "The a")
    assert options.columns("a", "b", 700, 799).right == (SAME, SAME)
    assert options.columns("a", "b", 700, 800).right == ("The a", "The b")
    assert options.rows(20.0, 20.49).right == (SAME_ROW, SAME_ROW)
    assert options.rows(20.0, 20.5).right == ("No", "Yes")
    assert options.rows(20.5, 20.0).right == ("Yes", "No")


def test_an_option_has_one_capital() -> None:
    assert options.option("white BMW X5") == "The white bmw x5"


@pytest.mark.parametrize(
    ("depth", "right", "drawn"),
    [
        (2.0, (1, 5), ((6, 10), (11, 15))),
        (6.9, (4, 10), ((12, 16), (17, 21))),
        (7.0, (4, 10), ((1, 3), (12, 15))),
        (12.5, (9, 16), ((4, 8), (18, 21))),
        (15.0, (12, 18), ((8, 11), (20, 23))),
        (15.1, (12, 18), ((7, 10), (1, 5))),
        (30.0, (27, 33), ((21, 25), (16, 20))),
    ],
)
def test_depth_ranges(depth: float, right: tuple[int, int], drawn: tuple[tuple[int, int], ...]) -> None:
    """The draw of the table is among 3,000; the right one holds the truth and is by far the widest from 2.6 m on."""
    generator, seen = random.Random(0), set()
    for _ in range(3000):
        found, *others = options.depth_ranges(depth, generator)
        seen.add((found, tuple(others)))
        assert found[0] <= depth <= found[1]
        assert depth < 2.6 or found[1] - found[0] > max(end - start for start, end in others)
    assert (right, drawn) in seen


def test_a_range_of_one_metre() -> None:
    assert options.range_text((1, 5)) == "Between 1 meter and 5 meters"


def test_the_compass() -> None:
    for degrees, word in (
        (0, "North"),
        (-90, "West"),
        (180, "South"),
        (90, "East"),
        (-30, "Northwest"),
        (22.4, "North"),
    ):
        x, z = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
        assert options.compass(x, z) == word
    assert options.OPPOSITE["Northeast"] == "Southwest"


# --- the units


def test_units_are_the_official_ones_draw_for_draw() -> None:
    gold = json.loads((SURDS / "official.json").read_text())
    prompts = official_units()
    for category in FILES:
        found = [sides for sides in units_of(prompts).values() if sides[0].category == category]
        ours = [
            {
                "image": Path(sides[0].images[0]).name,
                "options": list(sides[0].options),
                "answers": [p.answer for p in sides],
                "box": list(sides[0].objects[0].box2d) if len(sides[0].objects) == 1 else None,
            }
            for sides in found
        ]
        assert ours == gold[category]
        assert [p.index for p in prompts if p.category == category] == list(range(sum(len(s) for s in found)))


def test_the_users_own_files_give_the_words(tmp_path: Path) -> None:
    prompts = with_official(official_units(), official_files(tmp_path / "qa"))
    assert [whole(p)[:15] for p in prompts[:2]] == ["Word for word 0", "Word for word 1"]
    assert len(prompts) == len(official_units())


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("answer", "North", "the answer is 'North'"), ("image_path", "x/other.webp", "the image is 'other.webp'")],
)
def test_other_official_files_are_refused(tmp_path: Path, key: str, value: str, said: str) -> None:
    folder = official_files(tmp_path / "qa")
    path = folder / FILES["yaw"]
    rows = json.loads(path.read_text())
    wrong = next(row for row in rows if row[key] != value)
    wrong[key] = value
    path.write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match=said):
        with_official(official_units(), folder)


@pytest.mark.parametrize(
    ("change", "said"), [({"obj_bbox": 3}, "the box is 3"), ({"prompt": None}, "a prompt is False")]
)
def test_official_files_that_lack_something(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    path = official_files(tmp_path / "qa") / FILES["xy2d"]
    rows = json.loads(path.read_text())
    rows[0] = {key: value for key, value in {**rows[0], **change}.items() if value is not None}
    path.write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match=said):
        with_official(official_units(), path.parent)


def test_a_shuffle_in_another_order_is_found(tmp_path: Path) -> None:
    folder = official_files(tmp_path / "qa")
    path = folder / FILES["depth"]
    rows = json.loads(path.read_text())
    first, second, *rest = rows[3]["prompt"].split("\n- ")[1:]
    rows[3]["prompt"] = rows[3]["prompt"].replace(f"- {first}\n- {second}", f"- {second}\n- {first}")
    assert rest
    path.write_text(json.dumps(rows))
    with pytest.raises(DatasetError, match="question 3: the options is"):
        with_official(official_units(), folder)


def test_two_objects_of_one_description_are_left_out_and_keep_their_place() -> None:
    prompts = official_units()
    image = next(row for row in metadata() if [d.lower() for d in row["descs"]].count("white car") == 2)
    out = {p.unit for p in prompts if p.left_out == "ambiguous"}
    assert len(image["descs"]) == 3  # each of its three pairs holds one of the two
    assert len(out) == 9
    assert {p.token for p in prompts if p.left_out} == {Path(image["file_name"]).stem}


def test_a_unit_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    prompts = official_units()
    assert read_units(write_units(tmp_path / "units.jsonl", prompts)) == prompts


def test_evaluation_units_are_not_trained_on(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="surds evaluation; nothing may be trained on these"):
        refuse_training(official_units(), "units.jsonl")
    refuse_training(make_units(read_images(SURDS, "validation"), "train"), "units.jsonl")


# --- folders that are not SURDS


def test_the_older_benchmark_is_refused_by_its_name(tmp_path: Path) -> None:
    row = {"file_name": "image/a.png", "descriptions": ["car"], "location2D": [[1, 2]], "location3D": [[1, 2, 3]]}
    with pytest.raises(DatasetError, match=r"DriveMLLM's first benchmark .*front is the nearer object"):
        read_images(lines(tmp_path / "old", [row]), "validation")


def test_a_split_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="splits there: validation"):
        read_images(SURDS, "train")
    with pytest.raises(MissingFileError, match=r"splits there: none.*; give the folder that has train/metadata.jsonl"):
        read_images(tmp_path, "train")
    (tmp_path / "train" / "metadata.jsonl").mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be read"):  # and not: is not there
        read_images(tmp_path, "train")


def test_lists_that_do_not_run_parallel(tmp_path: Path) -> None:
    rows = metadata()
    rows[1]["depths"] = []
    with pytest.raises(DatasetError, match=r"metadata.jsonl, line 2: .*objects"):
        read_images(lines(tmp_path / "s", rows), "validation")


def test_an_image_twice_and_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    rows = metadata()
    with pytest.raises(DatasetError, match=r"line 36: the image nuscenes_0000_CAM_FRONT is there twice"):
        read_images(lines(tmp_path / "twice", [*rows, rows[0]]), "validation")
    rows[2]["depths"] = [float("nan")]
    with pytest.raises(DatasetError, match=r"line 3: .*depths.0 Input should be a finite number"):
        read_images(lines(tmp_path / "nan", rows), "validation")


def test_a_set_without_a_question_is_refused() -> None:
    single = [image for image in read_images(SURDS, "validation") if len(image.descs) == 1]
    for images in ([], single):
        with pytest.raises(DatasetError, match=f"none of {len(images)} images has two objects"):
            make_units(images, "validation")


@pytest.mark.parametrize(
    ("found", "wrong"), [('"size": [1600, 900]', '"size": [0, 900]'), ('"box2d": [1288.0', '"box2d": [NaN')]
)
def test_a_unit_file_that_was_edited(tmp_path: Path, found: str, wrong: str) -> None:
    path = write_units(tmp_path / "units.jsonl", official_units())
    path.write_text(path.read_text().replace(found, wrong))
    with pytest.raises(DatasetError, match=r"units.jsonl, line 1: no prompt of a unit: "):
        read_units(path)


def test_a_part_of_the_set_is_refused() -> None:
    images = [image for image in read_images(SURDS, "validation") if len(image.descs) > 1]
    with pytest.raises(DatasetError, match="16 pairs of objects, and 0 images with one object"):
        make_units(images, "validation")


def test_directions_are_read_in_any_case(tmp_path: Path) -> None:
    rows = [{**row, "yaw_descs": [word.lower() for word in row["yaw_descs"]]} for row in metadata()]
    assert make_units(read_images(lines(tmp_path / "s", rows), "validation"), "validation") == official_units()
