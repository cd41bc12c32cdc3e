"""The error tree: one root, and every class is also the builtin a caller would expect to catch.

A message says what was expected, what was found, where, and what to do next. Two questions decide the class:
is the *input* of one sample at fault (`SampleError`: that sample is quarantined, the run goes on), or is the
*run* or the *dataset* at fault (everything else: the run stops)?
"""

from __future__ import annotations


class ShardsError(Exception):
    """Root of every error that last-shards raises on purpose."""


class ConfigError(ShardsError, ValueError):
    """A configuration value is impossible; raised when the config is constructed, before any work."""


class SampleError(ShardsError, ValueError):
    """One sample cannot be made. It is quarantined under `code`, with the message as its reason.

    Args:
        code: a stable, short, snake_case word that reports group by, e.g. ``image_truncated``.
        reason: a sentence for a person: what was expected, what was found, where.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[SampleError], tuple[str, str]]:
        return type(self), (self.code, self.reason)


class UnsafePickleError(SampleError):
    """A pickle asked for a class that is not on the allow-list; nothing of it was run."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(code, reason)


class SpecError(ShardsError, TypeError):
    """A teacher returned an array that its own `TargetSpec` does not allow: a bug in the teacher."""


class DatasetError(ShardsError, ValueError):
    """A dataset on disk is not what its records say: damaged, foreign, or of another schema version."""


class MissingFileError(DatasetError, FileNotFoundError):
    """A file that a commit record names is not there."""


class DigestError(DatasetError):
    """A file is there but its bytes are not those that were committed."""


class AbsentError(DatasetError, KeyError):
    """A token, column or target that this dataset does not have; the message names what it has."""

    __str__ = Exception.__str__  # KeyError's would put the message in quotes


class QuarantinedError(AbsentError):
    """A token that was planned and could not be written in a column; `code` and `reason` say why."""

    def __init__(self, message: str, code: str, reason: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason

    def __reduce__(self) -> tuple[type[QuarantinedError], tuple[str, str, str]]:
        return type(self), (str(self), self.code, self.reason)


class MismatchError(ShardsError, ValueError):
    """Two runs would be mixed: a recorded plan, config or weights digest differs from the one at hand."""


class StoreError(ShardsError, OSError):
    """A store refused a request, or failed it too often. Of the run, never of one sample: nothing is quarantined."""


class HeldError(ShardsError, BlockingIOError):
    """Another run is writing the dataset."""


class WeightsError(ShardsError, ValueError):
    """A checkpoint cannot be found, or does not fit the network; both sides are named."""


class IncompleteError(ShardsError, RuntimeError):
    """The accounting of a run does not close, or more was quarantined than `max_quarantined` allows."""
