"""The child of `pipeline.writing.sandbox`: forks for each image that it is given, and tells what became of it.

    in    {"where": PATH, "size": N}\\n  N bytes of a JPEG
    out   {"shape": [H, W, 3]}\\n            decoded; the pixels stand at the beginning of the file PIXELS
          {"code": ..., "reason": ...}\\n   refused by `decode_jpeg`
          {"ended": RETURNCODE}\\n          the process ended (negative: by that signal) and said nothing

What a process says is passed on only when it has ended well, so that none can tear the stream of the others. Its limit
is processor time, which the kernel keeps (ITIMER_PROF): a machine with too much to do refuses no image. It has one
thread and few imports, so that a fork is cheap and safe. Whoever asked is gone at the end of its input, and so is it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import NoReturn

from pipeline.stores.decode import decode_jpeg
from shards_schema.errors import SampleError


def main(seconds: float, pixels: int) -> None:
    """Serve stdin and stdout until there is no more; `pixels` is an open file, in memory where that can be."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source = sys.stdin.buffer
    own = os.dup(1)
    os.dup2(2, 1)  # a decoder that prints does not print into the answers
    sink = os.fdopen(own, "wb")
    while line := source.readline():
        asked = json.loads(line)
        data = source.read(asked["size"])
        if len(data) < asked["size"]:
            return
        sink.write(_decoded(data, asked["where"], seconds, pixels, own))
        sink.flush()


def _decoded(data: bytes, where: str, seconds: float, pixels: int, own: int) -> bytes:
    """The answer of a process of its own, which has nothing of the descriptors of this one's talk."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        for descriptor in (reading, own, 0):
            os.close(descriptor)
        _decode(data, where, seconds, pixels, writing)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return answer if code == 0 else _head(ended=code)


def _decode(data: bytes, where: str, seconds: float, pixels: int, writing: int) -> NoReturn:
    """In the process of its own: answer, and end without any ceremony."""
    code = 1
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            image = decode_jpeg(data, where)
        except SampleError as error:
            answer = _head(code=error.code, reason=error.reason)
        else:
            answer = _head(shape=image.shape)
            view = memoryview(image.reshape(-1).data)
            done = 0
            while done < len(view):
                done += os.pwrite(pixels, view[done:], done)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(answer)
        code = 0
    except Exception as error:
        print(f"{where}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def _head(**answer: object) -> bytes:
    return json.dumps(answer).encode() + b"\n"


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
