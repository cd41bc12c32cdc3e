"""The pages: what they link to, and what names them, is there. `make docs` builds them as a site."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_house import ROOT

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
