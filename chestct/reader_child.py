"""The guarded process. It runs native decoders on hostile files, which come over a socket one after the other.

`python -m chestct.reader_child SOCKET WORKER`: the socket's file descriptor, and the id of the worker's
process, with which this process dies.
"""

import json
import os
import resource
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, Final

from chestct.card import InputSpec
from chestct.invalid_image import InvalidImage
from chestct.processes import die_with_parent

MAX_CPU_SECONDS: Final = 6
"""Most CPU seconds of a file. A usual slice takes some hundredths, one of the largest size a second or two."""
MEMORY_LIMIT: Final = 400 * 1024 * 1024
"""Bytes that the process may allocate. The costliest accepted file needs 368 MiB: a JPEG Lossless of 16 bits and
MAX_PIXELS. It uses 280 MiB of them with the process itself (90 MiB), and frees them."""
OUT_OF_MEMORY: Final = 3
"""Exit status if a file needs more."""

READY: Final = b"R"
PICTURE: Final = b"P"
REFUSAL: Final = b"E"
REQUEST: Final = struct.Struct("<II")
"""Lengths in bytes of the JSON and of the file, which follow."""
REPLY: Final = struct.Struct("<cII")
"""READY, PICTURE or REFUSAL, and lengths in bytes of the JSON and of the pixels, which follow."""

_MAX_GROWTH: Final = 16 * 1024 * 1024
"""Bytes that the process may grow by. It ends if its files leave more in memory."""


def main() -> None:
    """Decode files until the service closes the socket."""
    from chestct import slice_file  # not at the top: the service imports this module, too, and does without pydicom

    connection, worker = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    die_with_parent(worker)  # also while this process is stopped or in native code
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    most = _data_size() + _MAX_GROWTH
    with connection, connection.makefile("rwb") as stream:
        _send(stream, READY)
        while _data_size() < most and (head := stream.read(REQUEST.size)):
            request, data = (stream.read(length) for length in REQUEST.unpack(head))
            signal.setitimer(signal.ITIMER_PROF, MAX_CPU_SECONDS)  # its signal ends the process, also in native code
            try:
                picture = slice_file.read(data, InputSpec.model_validate_json(request))
            except InvalidImage as error:
                reply: tuple[bytes, object, bytes] = (REFUSAL, [error.code, error.message], b"")
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
            else:
                reply = (PICTURE, picture.facts._asdict(), picture.pixels.tobytes())
            signal.setitimer(signal.ITIMER_PROF, 0)
            del data
            _send(stream, *reply)


def _send(stream: Any, kind: bytes, facts: object = None, pixels: bytes = b"") -> None:
    head = json.dumps(facts, default=lambda levels: levels.tolist()).encode()
    stream.write(REPLY.pack(kind, len(head), len(pixels)) + head + pixels)
    stream.flush()


def _data_size() -> int:
    """Bytes that RLIMIT_DATA counts; 0 elsewhere than on Linux."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


if __name__ == "__main__":
    main()
