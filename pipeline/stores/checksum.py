"""CRC-32C (Castagnoli, RFC 3720 appendix B.4) of bytes in memory, without a copy and at memory speed.

It stands in commit records for each member of a tar, and behind each chunk of a Zarr array. It finds every flipped bit
and every burst of up to 32 of them, and a random change but for one in 2^32; it is no defence against somebody who
means harm, who can write a new one. The sha256 of the whole file is (`pipeline.reading.verify`).
"""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from pipeline.stores.volume import Buffer


def crc32c(data: Buffer | NDArray[Any], before: int = 0) -> int:
    """The checksum of `data` (an array: contiguous), 0 <= crc32c < 2^32.

    Args:
        data: bytes.
        before: the checksum of the bytes that come before them; then it is that of both together.
    """
    view = np.frombuffer(data, np.uint8)
    view.flags.writeable = False  # google_crc32c takes no writable buffer, and no memoryview
    return int(google_crc32c.extend(before, view))
