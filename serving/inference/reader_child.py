"""The process in which hostile files meet native decoders: one file after the other, over a socket to the service.

`python -m serving.inference.reader_child SOCKET WORKER`: the number of the socket, and the id of the process with
which it ends.
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

from chestct import image
from chestct.card import InputSpec
from chestct.image import InvalidImage, Picture
from serving.processes import die_with_parent

CPU_SECONDS: Final = 6
"""Of CPU time that one file takes at most: a slice takes some hundredths, one of the largest size a second or two."""
MEMORY: Final = 400 * 1024 * 1024
"""Bytes that the process may ask for. The costliest file accepted asks for 368 MiB: a JPEG Lossless of 16 bits and
MAX_PIXELS. It uses 280 MiB of them, the process itself included (90 MiB), and what a file took is given back."""
OUT_OF_MEMORY: Final = 3
"""The process' exit status when a file needs more."""

READY: Final = b"R"
PICTURE: Final = b"P"
REFUSAL: Final = b"E"
REQUEST: Final = struct.Struct("<II")
"""Bytes of the JSON and of the file, which follow."""
REPLY: Final = struct.Struct("<cII")
"""READY, PICTURE or REFUSAL, and the bytes of the JSON and of the pixels, which follow."""

_KEPT: Final = 16 * 1024 * 1024
"""Bytes: a process that keeps more of a file's memory makes place for a new one."""


def main() -> None:
    """Answer until the service closes the socket."""
    from chestct import dicom  # here, so that the service, which imports this module too, does not carry pydicom

    def decode(request: dict[str, Any], data: bytes) -> Picture:
        spec = InputSpec(**request["spec"])
        if request["window"] is None:
            return image.decode(data, spec)
        return image.from_dicom(dicom.read(data, *request["window"]), spec)

    connection, worker = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    die_with_parent(worker)  # also while it is stopped or within native code
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    most = _data_size() + _KEPT
    with connection, connection.makefile("rwb") as stream:
        _send(stream, READY)
        while _data_size() < most and (head := stream.read(REQUEST.size)):
            request, data = (stream.read(length) for length in REQUEST.unpack(head))
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # which ends the process, also within native code
            try:
                picture = decode(json.loads(request), data)
            except InvalidImage as error:
                reply: tuple[bytes, object, bytes] = (REFUSAL, [error.code, error.message], b"")
            except MemoryError:
                os._exit(OUT_OF_MEMORY)
            else:
                facts = {**picture.facts._asdict(), "layout": picture.facts.layout.tolist()}
                reply = (PICTURE, facts, picture.pixels.tobytes())
            signal.setitimer(signal.ITIMER_PROF, 0)
            del data
            _send(stream, *reply)


def _send(stream: Any, kind: bytes, facts: object = None, pixels: bytes = b"") -> None:
    words = json.dumps(facts).encode()
    stream.write(REPLY.pack(kind, len(words), len(pixels)) + words + pixels)
    stream.flush()


def _data_size() -> int:
    """Bytes that RLIMIT_DATA counts; only Linux tells."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


if __name__ == "__main__":
    main()
