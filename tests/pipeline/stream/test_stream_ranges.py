"""A dataset behind a plain web server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.reading.reader import Dataset
from shards_schema.errors import DatasetError
from tests.pipeline.stream.stream_toys import make


class Quiet(SimpleHTTPRequestHandler):
    """The standard library's: it knows no ranges."""

    def log_message(self, format: str, *values: Any) -> None:
        pass


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    out = make(tmp_path_factory.mktemp("served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=out)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_server_without_ranges_is_told_as_that(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends whole files, so no second try will help."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    dataset = Dataset(url, columns=["toy"])
    with pytest.raises(DatasetError, match=r"asked for \d+ bytes, the server sent \d+: it does not know byte ranges"):
        dataset.read(dataset.tokens("toy")[0])
