"""Decoding where a crash costs nothing: each image in a process of its own, for shards at which a worker died or hung.

The decoder is native code that reads what strangers wrote. Where it crashes (SIGSEGV, abort) its process goes with it,
which is why a shard at which that happened is tried again with this in the place of `decode_jpeg`:

    decode pool --one image at a time--> a server (`serve`) --forks for each image--> decode_jpeg, and the end

So a crash is the doing of the image that was decoded, whatever was decoded before it. An image that crashes two such
processes, or uses up the processor time of one, is a `SampleError` and is quarantined like any other bad one, in words
that say nothing of this run: the dataset is the same bytes as if it had been refused at first. A process that somebody
else has ended (SIGKILL of the kernel's memory killer, SIGTERM) says nothing of the image, and is tried again.

The server is this module, run by itself: it has one thread and few imports, so that a fork is cheap and safe. (The
standard library's forkserver would import the worker's main program, which is Ray's, and outlive the decoder.) The
price is a fork, a copy of the pixels, and one image at a time; nobody pays it where no worker dies.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections import Counter
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import numpy as np

from pipeline.stores.decode import decode_jpeg
from shards_schema.errors import SampleError, ShardsError
from shards_schema.records import Image

SECONDS = 30.0
"""Processor time of one image; the longest that `decode_jpeg` lets through (640 million pixels in scans) takes few."""

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT, signal.SIGSYS})
_TIME = signal.SIGPROF
_PROOF = 2
"""Processes that an image must crash."""
_TRIES = 5
"""Processes that it gets in all, those that somebody else ends included."""

_DYING = 5.0
"""Seconds for a server that talks no more to have ended."""

_log = logging.getLogger(__name__)


class DecoderError(ShardsError, RuntimeError):
    """The processes that decode do not live long enough to tell anything of an image: the machine's trouble."""


class SandboxedDecoder:
    """`decode_jpeg` in processes of their own. Safe to call from many threads; one image is decoded at a time.

    The first call starts the server that forks them; `close` ends it, and it ends by itself with this process.

    Args:
        seconds: processor time that an image may take.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False

    def decode(self, data: bytes, where: str) -> Image:
        """RGB pixels, uint8 [H, W, 3], of a JPEG.

        Raises:
            SampleError: as `decode_jpeg`; and ``decoder_crash``, ``decoder_timeout``.
            DecoderError: its processes were ended by somebody else again and again, or this decoder is closed.
        """
        with self._lock:
            ends: Counter[int] = Counter()
            for _ in range(_TRIES):
                answer = self._ask(data, where)
                if isinstance(answer, np.ndarray):
                    return answer
                ends[answer] += 1
                _log.warning("%s: a process that decoded it ended with %s", where, _name(answer))
                if sum(n for end, n in ends.items() if -end in _CRASHES) >= _PROOF:
                    raise SampleError(
                        "decoder_crash",
                        f"{where}: the JPEG decoder crashes on these {len(data)} bytes (found in a process of its own)",
                    )
                if answer == -_TIME:
                    raise SampleError(
                        "decoder_timeout",
                        f"{where}: the JPEG decoder is not done with these {len(data)} bytes after {self._seconds:g} s "
                        "of processor time",
                    )
        names = ", ".join(f"{n} x {_name(end)}" for end, n in sorted(ends.items()))
        raise DecoderError(
            f"{where}: {_TRIES} processes that were to decode it have ended ({names}), which no image does; is this "
            "machine out of memory or of processes, or does somebody end them? mend that and run the same command again"
        )

    def close(self) -> None:
        """End the server, now; an image that is being decoded is a `DecoderError`."""
        self._closed = True
        _kill(self._child)  # whoever waits for it in `decode` gets an end of file
        with self._lock:
            self._end()

    def _ask(self, data: bytes, where: str) -> Image | int:
        """Pixels, or the return code of the process that was to make them."""
        if self._closed:
            raise DecoderError(f"{where}: the decoder is closed")
        child = self._child = self._child or self._start()
        try:
            self._talk.send((where, len(data)))
            self._talk.send_bytes(data)
            answer = self._talk.recv()
            if isinstance(answer, SampleError):
                raise answer
            pixels = np.empty(answer, np.uint8)
            self._talk.recv_bytes_into(pixels.reshape(-1).data)
            return pixels
        except (EOFError, ConnectionError):
            with suppress(subprocess.TimeoutExpired):
                child.wait(_DYING)
            self._end()
            return child.returncode

    def _start(self) -> subprocess.Popen[bytes]:
        one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of BLAS' threads, since the server forks
        child, self._talk = begun("pipeline.writing.sandbox", str(self._seconds), **one)
        return child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            ended(child, self._talk)


def begun(module: str, *words: str, **environment: str) -> tuple[subprocess.Popen[bytes], Connection]:
    """A process that runs one of our modules, whose last word is its end of a pipe; and the other end.

    It has our code as this process has it, which a cluster may have shipped. It is to be ended with `ended`, and ends
    by itself when this process does, if it heeds the end of the pipe.
    """
    talk, theirs = Pipe()
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    with theirs:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *words, str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,  # to be killed with what it forked, and not by a Ctrl-C that is for the driver
            env={**os.environ, "PYTHONPATH": path, **environment},
        )
    return child, talk


def ended(child: subprocess.Popen[bytes], talk: Connection) -> str:
    """Kill it, where it lives yet; how it ended, in a word."""
    _kill(child)
    talk.close()
    return _name(child.wait())


def serve(seconds: float, talk: Connection) -> None:
    """Fork for each image that is asked, until nobody is there to ask, or one of the processes has not ended well.

    Each answers by itself, and all of its answer counts or nothing: where it dies this one goes with it, by the same
    signal, and the asker sees the end of the stream. Its limit is processor time, which the kernel keeps
    (ITIMER_PROF): a machine with too much to do refuses no image.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(EOFError, ConnectionError):
        while True:
            where, size = talk.recv()
            data = talk.recv_bytes(size)
            if (pid := os.fork()) == 0:
                try:
                    signal.setitimer(signal.ITIMER_PROF, seconds)
                    _answer(talk, data, where)
                    os._exit(0)
                except Exception as error:
                    print(f"{where}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
                finally:
                    os._exit(1)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code < 0:
                os.kill(os.getpid(), -code)
            if code:
                os._exit(code)


def _answer(talk: Connection, data: bytes, where: str) -> None:
    try:
        image = decode_jpeg(data, where)
    except SampleError as error:
        talk.send(error)
    else:
        talk.send(image.shape)
        talk.send_bytes(image.reshape(-1).data)


def _kill(child: subprocess.Popen[bytes] | None) -> None:
    """It, and the process that decodes."""
    if child is not None and child.returncode is None:  # else its number may be another's by now
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)


def _name(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


if __name__ == "__main__":
    serve(float(sys.argv[1]), Connection(int(sys.argv[2])))
