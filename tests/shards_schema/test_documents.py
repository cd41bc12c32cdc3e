"""YAML and JSON of strangers: what would end the process, fill its memory or lose a key is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from shards_schema.inputs import documents
from shards_schema.inputs.documents import UnreadableError, parse_json, parse_yaml

DEEP = 100_000
"""libyaml's composer and CPython's C stack end at some tens of thousands."""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * DEEP, "nested more than 100 levels deep"),
        ("{a: " * DEEP, "nested more than 100 levels deep"),
        ("- " * DEEP + "x", "nested more than 100 levels deep"),
        ("? " * 5000 + "x", "nested more than 100 levels deep"),
        ("- ? " * 5000 + "x", "nested more than 100 levels deep"),
        ("\n".join(" " * i + "a:" for i in range(2000)), "nested more than 100 levels deep"),
        ("a: &x [1]\nb: *x", "uses aliases (*x)"),
        ("a: 1\nb: 2\na: 3", "gives the key 'a' twice"),
        ("[{b: {c: 1, c: 2}}]", "gives the key 'c' twice"),
        (b"a: \xff", "is no UTF-8 (byte 0xff at 3)"),
        ("a: " + "9" * 5000, "is not YAML"),
        ("a: [", "is not YAML"),
        ("x" * (documents.YAML_BYTES + 1), "more than the 16 MiB"),
    ],
)
def test_yaml_that_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(UnreadableError) as error:
        parse_yaml(text)
    assert said in str(error.value)


def test_yaml_that_is_taken() -> None:
    assert parse_yaml("a: 2026-02-30\nb: 2026-02-03") == {"a": "2026-02-30", "b": "2026-02-03"}
    assert parse_yaml(b"\xef\xbb\xbfa: '*x & y'") == {"a": "*x & y"}
    many = "[" + "[1, 2], " * 1000 + "]"  # many brackets, and not deep
    assert len(parse_yaml(many)) == 1000
    levels = documents.DEPTH - 1
    assert str(parse_yaml("[" * levels + "]" * levels)).count("[") == levels


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * DEEP, "nested too deep"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "gives the key 'c' twice"),
        (b'"\xff"', "is no UTF-8"),
        ("{", "is not JSON"),
        ("9" * 5000, "is not JSON"),
    ],
)
def test_json_that_is_refused(text: str | bytes, said: str) -> None:
    with pytest.raises(UnreadableError) as error:
        parse_json(text)
    assert said in str(error.value)


def test_a_file_that_never_ends_is_read_up_to_its_limit(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="has more than the 1 MiB"):
        documents.read("/dev/zero", 1 << 20)
    (tmp_path / "whole").write_bytes(b"x" * 10)
    assert documents.read(tmp_path / "whole", 10) == b"x" * 10
