"""Blocks of the pages, by their names: ``<!-- block: NAME -->`` stands before each, so page and test cannot part."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def block(page: str, name: str) -> str:
    """The text of a block of ``docs/<page>.md``."""
    text = (DOCS / f"{page}.md").read_text()
    found = re.findall(rf"<!-- block: {re.escape(name)} -->\n```\w*\n(.*?)\n```", text, re.DOTALL)
    assert len(found) == 1, f"docs/{page}.md has {len(found)} blocks {name}"
    return found[0] + "\n"


def checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on a page's commands are typed in `folder`, which has what they find in a checkout."""
    for name in ("Makefile", "configs", "pyproject.toml", "constraints.txt"):
        (folder / name).symlink_to(DOCS.parent / name)
    monkeypatch.chdir(folder)
