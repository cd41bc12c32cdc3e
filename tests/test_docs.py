"""The pages: what they link to, and what names them, is there. `make docs` builds them as a site."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import last_shards
from shards_schema import errors
from tests import rooms
from tests.test_house import ROOMS, ROOT, folder

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")])
FENCED = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Of each heading, as GitHub makes them, and as `slugify` of mkdocs.yml does."""
    heads = re.findall(r"^#+ (.*)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def dead(page: Path) -> list[str]:
    """Links of a page that lead to no file, or to no heading of it."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", FENCED.sub("", page.read_text()))):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_a_page_has_no_dead_link(page: Path) -> None:
    assert not dead(page)


def test_the_check_of_links_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A head: `b`\n[here](page.md#a-head-b) [gone](gone.md) [no](#b) `[code](x)`\n```\n# b\n```\n")
    assert dead(page) == ["gone.md", "#b"]


def test_pages_that_code_and_recipes_name_are_there() -> None:
    named: dict[str, str] = {}
    for path in [*ROOT.glob("[a-z]*/**/*.py"), *ROOT.glob("configs/*.yaml"), ROOT / "Makefile"]:
        named |= dict.fromkeys(re.findall(r"docs/[\w/-]+\.(?:md|svg)", path.read_text()), str(path))
    assert named
    assert not {page: by for page, by in named.items() if not (ROOT / page).exists()}


def test_each_name_of_the_front_door_is_on_the_page_of_the_api() -> None:
    told = re.findall(r"^::: last_shards\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert sorted([*told, "__version__"]) == sorted(last_shards.__all__)


ARCHITECTURE = (DOCS / "architecture.md").read_text()


def test_the_table_of_rooms_is_the_one_that_is_held() -> None:
    told = re.findall(r"^\| `([\w./]+)` \| [A-Z][^|]*\. \| ([^|]*) \|$", ARCHITECTURE, re.MULTILINE)
    assert {room: set(re.findall(r"`([\w.]+)`", may)) for room, may in told} == ROOMS


def test_the_picture_of_the_rooms_is_what_their_files_import() -> None:
    assert rooms.PICTURE.read_text() == rooms.svg(rooms.arrows()), "python -m tests.rooms draws it anew"


def test_the_paths_through_the_code_have_its_names() -> None:
    rows = re.findall(r"^\| `([\w/]+\.py)` \| `([\w.]+)` \|", ARCHITECTURE, re.MULTILINE)
    assert len(rows) > 20
    for path, name in rows:
        text = (ROOT / path).read_text()
        for part in name.split("."):
            assert re.search(rf"^ *(class|def) {part}\b", text, re.MULTILINE), f"{path} has no {name}"


def test_the_ten_files_are_as_long_as_the_page_says() -> None:
    ten = re.findall(r"^\d+\. `([\w/]+\.py)`", ARCHITECTURE, re.MULTILINE)
    said = int(re.findall(r"About ([\d,]+) lines", ARCHITECTURE)[0].replace(",", ""))
    assert len(ten) == 10
    assert abs(sum(len((ROOT / path).read_text().splitlines()) for path in ten) - said) <= 150


def codes() -> Iterator[str]:
    """Every code that is written out where a `SampleError` is made, or given to a function as its `code`."""
    texts = [p.read_text() for r in ROOMS if r != "tests/chaos" for p in folder(r).rglob("*.py")]
    trees = [ast.parse(text) for text in texts if re.search(r"SampleError|PickleError|\bcode\b", text)]
    nodes = [n for tree in trees for n in ast.walk(tree) if isinstance(n, ast.Call | ast.FunctionDef | ast.Assign)]
    at = {"SampleError": 0, "UnsafePickleError": 0}
    for node in nodes:
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            names = [a.arg for a in node.args.args if a.arg != "self"]
            at |= {node.name: names.index("code")} if "code" in names else {}
    for node in nodes:
        found: list[ast.expr] = []
        if isinstance(node, ast.Call):
            place = at.get(getattr(node.func, "id", getattr(node.func, "attr", "")))
            found = [*node.args[place : place + 1]] if place is not None else []
        elif isinstance(node, ast.Assign) and any(getattr(to, "id", "") == "code" for to in node.targets):
            found = [node.value.body, node.value.orelse] if isinstance(node.value, ast.IfExp) else [node.value]
        yield from (c.value for c in found if isinstance(c, ast.Constant) and isinstance(c.value, str))


def test_the_page_of_errors_has_every_code_and_every_class() -> None:
    first = re.findall(r"^\| (`[^|]*`) \|", (DOCS / "errors.md").read_text(), re.MULTILINE)
    told = set(re.findall(r"`(\w+)`", " ".join(first)))
    raised = set(codes())
    assert {"image_missing", "bad_calibration", "log_unreadable"} <= raised
    classes = {name for name in vars(errors) if name.endswith("Error")} - {"ShardsError"}
    assert told == raised | classes
