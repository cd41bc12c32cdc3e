"""One sample as each library reads it, and the file that holds the samples: JSON lines, or verl's Parquet.

ms-swift        {"messages": [user, assistant], "images": [path], "token"}, `<image>` in the user's text
llama-factory   the same, and the entry of `dataset_info.json` that names it
trl-sft         {"prompt": [user], "completion": [assistant], "images": [path], "token"}, no placeholder
trl-grpo        {"prompt": [user], "images": [path], "token"}
verl            {"data_source", "prompt": [user], "images": [{"image": path}], "ability", "reward_model",
                 "extra_info": {"token", "index"}}, `<image>` in the user's text
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.stores.disk import replace_file, write_text
from shards_schema.errors import ConfigError

Format = Literal["ms-swift", "trl-sft", "trl-grpo", "llama-factory", "verl"]
Said = Sequence[Mapping[str, str]]
"""The user's turn and the assistant's: ``{"role", "content"}`` each."""
Row = dict[str, Any]

_ROWS_AT_ONCE = 1024
_INFO = "dataset_info.json"


def row(kind: Format, said: Said, images: Sequence[str], token: str, index: int) -> Row:
    """What stands for one sample, number `index` of the file."""
    user, assistant = said
    if kind == "trl-sft":
        return {"prompt": [user], "completion": [assistant], "images": [*images], "token": token}
    if kind == "trl-grpo":
        return {"prompt": [user], "images": [*images], "token": token}
    if kind == "verl":
        return {
            "data_source": "last-shards",
            "prompt": [user],
            "images": [{"image": image} for image in images],
            "ability": "driving",
            "reward_model": {"style": "rule", "ground_truth": assistant["content"]},
            "extra_info": {"token": token, "index": index},
        }
    return {"messages": [*said], "images": [*images], "token": token}


def formats(template: str, fields: Mapping[str, Any]) -> str:
    """The template, which these fields fill.

    Raises:
        ValueError: they do not.
    """
    try:
        template.format(**fields)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"no template over {', '.join(fields)} ({type(error).__name__}: {error})") from error
    return template


def write(kind: Format, path: Path, rows: Iterable[Row]) -> None:
    """The file of a format, in place when it is whole, and what its library needs beside it.

    Args:
        kind: of the rows.
        path: of the file; its folder is made.
        rows: of `row`.

    Raises:
        ConfigError: `dataset_info.json` is there and is not LLaMA-Factory's.
    """
    entries = _entries(path) if kind == "llama-factory" else None
    replace_file(path, lambda draft: _parquet(draft, rows) if kind == "verl" else _lines(draft, rows))
    if entries is not None:
        said = json.dumps({**entries, path.stem: _entry(path.name)}, indent=2, ensure_ascii=False)
        write_text(path.with_name(_INFO), said + "\n")


def _lines(path: Path, rows: Iterable[Row]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)


def _parquet(path: Path, rows: Iterable[Row]) -> None:
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    schema = pa.schema(
        [
            ("data_source", pa.string()),
            ("prompt", pa.list_(message)),
            ("images", pa.list_(pa.struct([("image", pa.string())]))),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            ("extra_info", pa.struct([("token", pa.string()), ("index", pa.int64())])),
        ]
    )
    with pq.ParquetWriter(path, schema) as writer:
        for some in _batches(rows):
            writer.write_table(pa.Table.from_pylist(some, schema))


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    left = iter(rows)
    while some := list(islice(left, _ROWS_AT_ONCE)):
        yield some


def _entries(path: Path) -> dict[str, Any]:
    """The entries of other data sets in the folder, which stay."""
    info = path.with_name(_INFO)
    if not info.exists():
        return {}
    try:
        found = json.loads(info.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{info}: cannot be read as LLaMA-Factory's list of data sets ({error}); move it") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{info}: holds {type(found).__name__}, not LLaMA-Factory's list of data sets; move it")
    return found


def _entry(name: str) -> dict[str, Any]:
    return {
        "file_name": name,
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "images": "images"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    }
