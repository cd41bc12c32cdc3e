"""What a path or a URL means, wherever one is given: understood, or refused; never a folder of a strange name.

``~/x`` is the user's home, ``file:///x`` is ``/x``. What looks like a URL and is none (``s3:/x``, ``s3:bucket``,
``a::b``, ``file://x``) would be a folder called ``s3:`` in the working directory, so it is refused; a folder that is
really called so is given as ``./s3:``.
"""

from __future__ import annotations

import os
import re

from shards_schema.errors import ConfigError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(?!//)(.*)", re.DOTALL)
_STORES = re.compile(
    "abfss?|adl|az|dbfs|file|ftp|gcs|gs|hdfs|hf|https?|local|memory|oci|oss|s3a?|sftp|ssh|webhdfs", re.IGNORECASE
)


def place(text: str) -> str:
    """A local path, or the URL of a store, as every part of the program takes it.

    Raises:
        ConfigError: it is neither; the message says how what was meant is written.
    """
    if not text.strip():
        raise ConfigError("a path or a URL is empty")
    *_, last = text.split("::")
    found = _SCHEME.match(last)
    if found and (found[2].startswith("/") or _STORES.fullmatch(found[1])):
        raise ConfigError(
            f"{text}: a URL has two slashes; write {found[1]}://{found[2].lstrip('/')}, or ./{text} for a folder"
        )
    if "::" in text and not ("://" in last or last.startswith("/")):
        raise ConfigError(f"{text}: a chain of URLs with ::, whose last link {last!r} is no URL")
    protocol, url, rest = text.partition("://")
    if url and protocol in ("file", "local"):
        if not rest.startswith("/"):
            raise ConfigError(f"{text}: names a machine, {rest.split('/')[0]!r}; write {protocol}:///{rest} or a path")
        return rest
    if url and not rest.strip("/") and "::" not in text:
        raise ConfigError(f"{text}: a URL that names no bucket")
    if text.startswith("~") and not url:
        home = os.path.expanduser(text)
        if home.startswith("~"):
            raise ConfigError(f"{text}: there is no user {text.split('/')[0][1:]!r} here; write ./{text} for a folder")
        return home
    return text


def local_place(text: str) -> str:
    """A path on this machine's disks.

    Raises:
        ConfigError: it is none.
    """
    path = place(text)
    if "://" in path:
        raise ConfigError(f"{text}: is a URL, and this goes to a file system of this machine; give a path")
    return path
