"""A deterministic tar, written as a stream, with the place and the checksum of every member noted.

    | header 512 | data | zeros to 512 | header 512 | data | zeros to 512 | ... | zeros 1024 |

WebDataset's rules: ``<token>.<extension>``, the members of a sample side by side. Headers are ustar with mode 0644 and
no time or owner, so that the same samples are the same bytes whoever writes them and when.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.stores.checksum import crc32c
from pipeline.stores.volume import Buffer, FileWriter
from shards_schema.codecs import TAR_END, tar_header, tar_padding
from shards_schema.commit import Member


class TarWriter:
    """Samples into a tar that someone else opened.

    Attributes:
        members: extension -> each sample's member, in order.
    """

    def __init__(self, file: FileWriter) -> None:
        self._file = file
        self.members: dict[str, list[Member]] = {}

    def add(self, token: str, members: Mapping[str, Buffer]) -> None:
        """Append one sample; `members` is extension (``l23_grid.npy``) -> bytes, the same extensions each time."""
        for extension, data in members.items():
            header = tar_header(f"{token}.{extension}", len(data))
            member = Member(self._file.position + len(header), len(data), crc32c(data))
            self.members.setdefault(extension, []).append(member)
            self._file.write(header, data, tar_padding(len(data)))

    def finish(self) -> None:
        """Write the end of the archive."""
        self._file.write(TAR_END)
