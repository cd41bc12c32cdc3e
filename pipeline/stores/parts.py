"""Uploads to S3 in parts: for files too large for one PUT, with every request retried by our own policy.

    create -> part 1 .. part n, a few at once -> complete        the file shows, whole, when `complete` is done
                     any of them fails for good -> abort          nothing shows, and no part is stored (and paid for)

s3fs can do this as well, but makes its attempts by rules of its own, and starts the whole file anew when one part
fails. A process that is killed leaves its upload behind; `abort_all` ends those that nobody works on any more.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pipeline.stores.retry import StoreConfig, retrying
from shards_schema.errors import StoreError

_PART = 50 << 20
_MOST_PARTS = 10_000
_AT_ONCE = 4


class PartsUpload:
    """Uploads over one s3fs connection.

    Args:
        fs: an `s3fs.S3FileSystem`.
        config: attempts, and the size from which files come here.
    """

    def __init__(self, fs: Any, config: StoreConfig) -> None:
        self._fs, self._config = fs, config

    def put(self, local: str, path: str, what: str) -> None:
        """Upload a file.

        Args:
            local: its path here.
            path: ``bucket/key``.
            what: for messages.

        Raises:
            StoreError: the store refused or failed; nothing new shows under this name.
        """
        bucket, _, key = path.partition("/")
        size = os.path.getsize(local)
        part = max(min(_PART, self._config.single_put_mb << 19), -(-size // _MOST_PARTS))
        call = functools.partial(self._call, what, Bucket=bucket, Key=key)
        upload = call("create_multipart_upload")["UploadId"]
        try:
            with open(local, "rb") as file, ThreadPoolExecutor(_AT_ONCE) as pool:
                send = functools.partial(_send, call, upload, file.fileno(), size, part)
                parts = list(pool.map(send, range(-(-size // part))))
            try:
                call("complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts})
            except FileNotFoundError:  # done before, and the answer was lost; or aborted by somebody
                found = retrying(lambda: self._fs.info(path), what, self._config)
                if found["size"] != size:
                    raise StoreError(f"{what}: the upload was aborted; is another run writing here?") from None
        except BaseException:
            with contextlib.suppress(FileNotFoundError, StoreError):  # `abort_all` ends it when the next run begins
                call("abort_multipart_upload", UploadId=upload)
            raise

    def abort_all(self, folder: str, what: str) -> int:
        """Abort the uploads below ``bucket/folder``, which no run may be writing; returns how many."""
        bucket, _, prefix = folder.partition("/")
        left = self._call(what, "list_multipart_uploads", Bucket=bucket, Prefix=f"{prefix}/").get("Uploads") or []
        for upload in left:
            with contextlib.suppress(FileNotFoundError):  # it was, and the answer was lost
                self._call(
                    what, "abort_multipart_upload", Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )
        return len(left)

    def _call(self, what: str, method: str, **arguments: Any) -> Any:
        return retrying(lambda: self._fs.call_s3(method, **arguments), what, self._config)


def _send(
    call: Callable[..., Any], upload: str, descriptor: int, size: int, part: int, index: int
) -> dict[str, int | str]:
    data = os.pread(descriptor, min(part, size - index * part), index * part)
    answer = call("upload_part", UploadId=upload, PartNumber=index + 1, Body=data)
    return {"PartNumber": index + 1, "ETag": answer["ETag"]}
