"""A real S3 server on loopback (moto's), behind a small HTTP proxy that fails as stores fail.

Whether a request fails, and how, is a function of (seed, method, URL, range, how often it was asked): the same run
meets the same faults, whatever its threads do. Everything that reaches the server is noted.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Fault = str
"""``500``, ``503``: such an answer. ``reset``: the connection breaks before the server hears of it. ``lost``: it breaks
when the server has done what it was asked. ``cut``: the answer's body ends halfway. ``slow``: the answer comes after
`Faults.slow` seconds. ``403``: refused."""


@dataclass
class Faults:
    """What goes wrong, and how often.

    Attributes:
        rates: fault -> share of the requests.
        seed: of the draw.
        slow: seconds.
        listing_delay: seconds until what was written shows in listings.
        only: faults meet only requests with this in their URL.
        but: and none with this, if it is given.
        methods: and only these methods.
    """

    rates: Mapping[Fault, float] = field(default_factory=dict)
    seed: int = 0
    slow: float = 3.0
    listing_delay: float = 0.0
    only: str = ""
    but: str | None = None
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")

    def draw(self, method: str, what: str, time_asked: int) -> Fault | None:
        """The fault of the `time_asked`-th asking of a request."""
        if self.only not in what or method not in self.methods or (self.but is not None and self.but in what):
            return None
        text = f"{self.seed}:{method}:{what}:{time_asked}"
        u = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
        for fault, rate in self.rates.items():
            if u < rate:
                return fault
            u -= rate
        return None


@dataclass(frozen=True)
class Asked:
    """A request that reached the proxy."""

    method: str
    key: str
    query: str
    range: str
    fault: Fault | None


class FaultyS3:
    """The proxy; `faults` may be exchanged at any time."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.faults = Faults()
        self.log: list[Asked] = []
        self.sent: Counter[str] = Counter()
        self._times: Counter[tuple[str, str]] = Counter()
        self._written: dict[str, float] = {}
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def reset(self, faults: Faults | None = None) -> None:
        """Forget what was asked, and fail like this from now on."""
        with self._lock:
            self.faults = faults or Faults()
            self.log.clear()
            self.sent.clear()
            self._times.clear()

    def count(self, method: str, end: str = "") -> int:
        """Requests of this method for keys that end so and were not failed."""
        return sum(a.method == method and a.key.endswith(end) and a.fault is None for a in self.log)

    def met(self) -> Counter[Fault]:
        """How often each fault was met."""
        return Counter(a.fault for a in self.log if a.fault)

    def note(self, method: str, path: str, range_: str) -> Fault | None:
        parts = urlsplit(path)
        key = unquote(parts.path).lstrip("/")
        with self._lock:
            what = f"{path} {range_}"
            self._times[method, what] += 1
            fault = self.faults.draw(method, what, self._times[method, what])
            self.log.append(Asked(method, key, parts.query, range_, fault))
            if method in ("PUT", "POST") and fault in (None, "slow", "lost", "cut"):
                self._written.setdefault(key, time.monotonic())
        return fault

    def late(self, body: bytes, query: str) -> bytes:
        """A listing, without what was written too lately."""
        with self._lock:
            since = time.monotonic() - self.faults.listing_delay
            new = {key for key, at in self._written.items() if at > since}
            old = [key for key, at in self._written.items() if at <= since]
        text = body.decode()
        bucket = ""
        if found := re.search(r"<Name>(.*?)</Name>", text):
            bucket = found[1]

        def keep(match: re.Match[str]) -> str:
            return "" if f"{bucket}/{unquote(match[1])}" in new else match[0]

        def keep_folder(match: re.Match[str]) -> str:
            folder = f"{bucket}/{unquote(match[1])}"
            mine = any(key.startswith(folder) for key in new)
            return "" if mine and not any(key.startswith(folder) for key in old) else match[0]

        text = re.sub(r"<Contents>(?:(?!</Contents>).)*?<Key>(.*?)</Key>.*?</Contents>", keep, text, flags=re.DOTALL)
        text = re.sub(r"<CommonPrefixes>\s*<Prefix>(.*?)</Prefix>\s*</CommonPrefixes>", keep_folder, text)
        return text.encode()


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyS3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        super().setup()
        self._upstream: http.client.HTTPConnection | None = None

    def finish(self) -> None:
        if self._upstream is not None:
            self._upstream.close()
        super().finish()

    def handle_expect_100(self) -> bool:
        going_on = super().handle_expect_100()
        self.wfile.flush()
        return going_on

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _break(self) -> None:
        """Close with a reset."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _handle(self) -> None:
        fault = self.proxy.note(self.command, self.path, self.headers.get("Range", ""))
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "reset" and length:
            self.rfile.read(length // 2)  # halfway through what is written
            return self._break()
        body = self.rfile.read(length) if length else None
        if fault == "reset":
            return self._break()
        if fault in ("500", "503", "403"):
            code = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}[fault]
            return self._answer(int(fault), {"Content-Type": "application/xml"}, _error(code))
        if fault == "slow":
            time.sleep(self.proxy.faults.slow)
        status, headers, data = self._forward(body)
        if fault == "lost":
            return self._break()
        query = urlsplit(self.path).query
        if self.proxy.faults.listing_delay and self.command == "GET" and "list-type" in parse_qs(query):
            data = self.proxy.late(data, query)
            headers["Content-Length"] = str(len(data))
        self.proxy.sent["bytes"] += len(data)
        self._answer(status, headers, data, cut=fault == "cut")
        return None

    def _forward(self, body: bytes | None) -> tuple[int, dict[str, str], bytes]:
        if self._upstream is None:
            self._upstream = http.client.HTTPConnection(*self.proxy.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("connection", "expect")}
        try:
            self._upstream.request(self.command, self.path, body, headers)
            answer = self._upstream.getresponse()
            data = answer.read()
        except (http.client.HTTPException, OSError):
            self._upstream.close()
            self._upstream.request(self.command, self.path, body, headers)
            answer = self._upstream.getresponse()
            data = answer.read()
        kept = {k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding", "date")}
        if self.command != "HEAD":
            kept["Content-Length"] = str(len(data))
        return answer.status, {k: v for k, v in kept.items() if k.lower() != "server"}, data

    def _answer(self, status: int, headers: Mapping[str, str], data: bytes, *, cut: bool = False) -> None:
        try:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if not any(name.lower() == "content-length" for name in headers):
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[: len(data) // 2] if cut else data)
            self.wfile.flush()
        except OSError:  # who asked is gone
            self.close_connection = True
            return
        if cut and self.command != "HEAD":
            self._break()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815 (http.server's names)


def _error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()


@contextmanager
def s3_server() -> Iterator[FaultyS3]:
    """Moto's S3 server, and the proxy before it."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    proxy = FaultyS3(server.get_host_and_port())
    try:
        yield proxy
    finally:
        proxy.close()
        server.stop()
