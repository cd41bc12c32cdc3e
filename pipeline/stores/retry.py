"""Requests that fail for a while are made again: the one place that says which failures pass, how often, how long.

Transient: a connection that broke or never came, a timeout, an answer that was cut, HTTP 408, 425, 429 and 5xx, and
the codes that stores use for them (SlowDown, InternalError, ...). Anything else is permanent and is raised at once: a
file that is not there, a refused key, a bucket that does not exist. Waits grow twofold and are drawn at random from
[half, whole] ("equal jitter": Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog 2015), so that a
thousand workers do not come back together. Every request of ours can be repeated: a PUT writes the same bytes to the
same name.

The libraries' own retries are switched off where we make the connection (`pipeline.stores.remote`), or attempts would
multiply. Errors are judged by what they say of themselves (errno, HTTP status, code, class), without importing any
library.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pydantic import Field

from shards_schema.errors import ConfigError, StoreError
from shards_schema.inputs import documents
from shards_schema.inputs.models import StrictModel, validated

Result = TypeVar("Result")

ENVIRONMENT = "LAST_SHARDS_STORE"
"""JSON of a `StoreConfig`: like credentials and endpoints, it belongs to the machine and not to the recipe."""


class StoreConfig(StrictModel):
    """How remote stores are asked; nothing of it changes a byte of the output."""

    attempts: int = Field(default=7, ge=1, le=1000)
    """How often a request is made before the run is told."""
    first_wait: float = Field(default=0.2, ge=0)
    """Seconds before the second attempt; each further wait is twice as long."""
    longest_wait: float = Field(default=20, ge=0)
    """Seconds."""
    connect_timeout: float = Field(default=10, gt=0)
    """Seconds until a connection stands (S3)."""
    read_timeout: float = Field(default=60, gt=0)
    """Seconds without a byte of the answer (S3)."""
    concurrency: int = Field(default=16, ge=1, le=4096)
    """Requests under way at once for the images of one shard, and for one sample."""
    single_put_mb: int = Field(default=512, ge=10, le=5000)
    """Larger files go to S3 in parts (50 MiB or less, all aborted when one fails); a PUT is in memory while it is under
    way."""

    def wait(self, attempt: int) -> float:
        """Seconds to wait after attempt number `attempt` (from 1) has failed."""
        whole = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 60))
        return whole * random.uniform(0.5, 1)


def store_config() -> StoreConfig:
    """The config of this machine: the defaults, changed by ``LAST_SHARDS_STORE='{"attempts": 10}'``.

    Raises:
        ConfigError: the variable is not such JSON.
    """
    return _parsed(os.environ.get(ENVIRONMENT, "{}"))


@functools.cache
def _parsed(text: str) -> StoreConfig:
    should = f"{ENVIRONMENT} should be JSON with some of {', '.join(StoreConfig.model_fields)}"
    try:
        return validated(StoreConfig, documents.parse_json(text), f"{should}: ")
    except documents.UnreadableError as error:
        raise ConfigError(f"{should}: it {error}") from error


def again(call: Callable[[], Result], config: StoreConfig, passes: Callable[[Exception], bool]) -> Result:
    """The result of `call`, which is repeated, after a wait, while it raises what passes; at last what it raises."""
    for attempt in range(1, config.attempts):
        try:
            return call()
        except Exception as error:
            if not passes(error):
                raise
            time.sleep(config.wait(attempt))
    return call()


def retrying(call: Callable[[], Result], what: str, config: StoreConfig) -> Result:
    """The result of `call`, which is repeated while it fails in a way that passes.

    Args:
        call: one request, which can be repeated.
        what: the URL and the deed, for messages; without credentials.
        config: how often.

    Raises:
        FileNotFoundError, NotADirectoryError, FileExistsError: as the store says it; the caller knows what it means.
        StoreError: refused, or failed `config.attempts` times.
    """
    began = time.monotonic()
    try:
        return again(call, config, lambda error: transient(error) and _refusal(error, what) is None)
    except Exception as error:
        if (fault := _refusal(error, what)) is None and not transient(error):
            raise
        raise fault or StoreError(
            f"{what}: failed {config.attempts} times in {time.monotonic() - began:.0f} s, the last time with "
            f"{describe(error)}; when the store is well again, run the same command again ({ENVIRONMENT} sets attempts)"
        ) from error


_REFUSALS = {
    "NoSuchBucket": "the bucket does not exist: check the URL, and the endpoint in the environment",
    "InvalidAccessKeyId": "the store does not know this key: check the credentials in the environment",
    "SignatureDoesNotMatch": "the secret key does not fit: check the credentials in the environment",
    "ExpiredToken": "the credentials have expired: renew them in the environment",
}


def _refusal(error: Exception, what: str) -> StoreError | None:
    """What will not get better by waiting, and needs a person."""
    codes = [code for link in _chain(error) if (code := _code(link))]
    for code in codes:
        if code in _REFUSALS:
            return StoreError(f"{what}: {code}: {_REFUSALS[code]}")
    names = {kind.__name__ for link in _chain(error) for kind in type(link).__mro__}
    if "NoCredentialsError" in names or "PartialCredentialsError" in names:
        return StoreError(f"{what}: no credentials: give them in the environment or in fsspec's config, not in the URL")
    if "OfflineModeIsEnabled" in names:  # a ConnectionError by its class, which no waiting mends
        return StoreError(f"{what}: HF_HUB_OFFLINE is set, so the hub was not asked")
    if names & _NOT_A_FILE:
        return StoreError(
            f"{what}: {describe(error)}: nothing is known of the file: check the URL, and the token in the environment "
            "and its rights"
        )
    if isinstance(error, PermissionError) or _status(error) in (401, 403):
        return StoreError(
            f"{what}: refused ({describe(error)}): check the credentials in the environment, and their rights"
        )
    return None


_NOT_A_FILE = frozenset(
    {"RepositoryNotFoundError", "RevisionNotFoundError", "BucketNotFoundError", "GatedRepoError", "HFValidationError"}
)
"""Of huggingface_hub, which tells an expired token as a repository, and so as a file, that is not there."""

_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
_CODES = frozenset(
    {
        "500", "502", "503", "504", "BandwidthLimitExceeded", "IncompleteBody", "InternalError", "InternalFailure",
        "InternalServerError", "RequestLimitExceeded", "RequestTimeout", "RequestTimeoutException",
        "ServiceUnavailable", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests",
        "TooManyRequestsException", "TransientError", "XAmzContentSHA256Mismatch", "BadDigest",
    }
)  # fmt: skip
_CLASSES = frozenset(
    {
        "ChunkedEncodingError",  # requests
        "ClientConnectionError", "ClientPayloadError", "ServerDisconnectedError", "ServerTimeoutError",  # aiohttp
        "ConnectionError",  # botocore's and requests'
        "HTTPClientError", "IncompleteReadError", "ResponseParserError", "ResponseStreamingError",  # botocore
        "IncompleteRead",  # http.client
        "ProtocolError", "TimeoutException", "TransportError",  # urllib3, httpx
    }
)  # fmt: skip
_PERMANENT_CLASSES = frozenset({"SSLError", "ProxyConnectionError", "UnsupportedProtocol", "InvalidURL"})
_ERRNO = frozenset(
    {
        errno.EAGAIN, errno.EBUSY, errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH,
        errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.EPIPE, errno.EREMOTEIO, errno.ETIMEDOUT,
    }
)  # fmt: skip


def transient(error: BaseException) -> bool:
    """Whether the same request may succeed in a while."""
    if isinstance(
        error, FileNotFoundError | FileExistsError | NotADirectoryError | IsADirectoryError | PermissionError
    ):
        return False
    for link in _chain(error):
        status, code = _status(link), _code(link)
        if status is not None or code is not None:
            return status in _STATUS or code in _CODES
        names = {kind.__name__ for kind in type(link).__mro__}
        if names & _PERMANENT_CLASSES:
            return False
        if isinstance(link, ConnectionError | TimeoutError) or names & _CLASSES:
            return True
    return isinstance(error, OSError) and error.errno in _ERRNO


def describe(error: BaseException) -> str:
    """An error of a store in a few words: status and code where it has them, else class and text. No credentials."""
    for link in _chain(error):
        status, code = _status(link), _code(link)
        if status is not None or code is not None:
            return " ".join(str(x) for x in ("HTTP", status, code) if x is not None)
    return f"{type(error).__name__}: {without_credentials(str(error))[:200]}"


def without_credentials(text: str) -> str:
    """`text` with what URLs in it may hold of credentials left out."""
    return re.sub(r"(://[^\s/?'\"]+[^\s?'\"]*)\?[^\s'\"]*", r"\1?...", re.sub(r"://[^\s/?@'\"]*@", "://...@", text))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        yield link
        link = link.__cause__


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an error or of one that it was raised from."""
    return next((status for link in _chain(error) if (status := _status(link)) is not None), None)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error of botocore, aiohttp, gcsfs, huggingface_hub or requests carries."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        found = getattr(response, "status_code", None) or getattr(error, "status", None) or getattr(error, "code", None)
    return found if isinstance(found, int) else None


def _code(error: BaseException) -> str | None:
    """The code of an S3 error."""
    response: Any = getattr(error, "response", None)
    found = response.get("Error", {}).get("Code") if isinstance(response, dict) else None
    return str(found) if found else None
