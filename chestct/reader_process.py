"""The service's side of the guarded process (reader_child): starts it, sends it files, watches it and ends it."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np

from chestct.card import InputSpec
from chestct.image import Facts, Picture
from chestct.invalid_image import InvalidImage
from chestct.reader_child import OUT_OF_MEMORY, PICTURE, READY, REPLY, REQUEST

MAX_SECONDS: Final = 15
"""Most seconds for a start or a file, however busy the machine is."""
HANG_SECONDS: Final = 3
"""Seconds without CPU time after which a process that owes an answer counts as hung."""

COMMAND: Final = (sys.executable, "-P", "-m", "chestct.reader_child")
_ROOT: Final = Path(__file__).parents[1]
_LONGEST_REPLY: Final = 2 * 1024 * 1024
"""Bytes of a picture of the largest input that a card may have, with its facts."""
_CRASHES: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})
"""Signals by which native code ends its own process."""


class Cause(StrEnum):
    """Why the process ended, or was ended."""

    CRASHED = "crashed"
    """Its decoder crashed."""
    OUT_OF_MEMORY = "out_of_memory"
    OUT_OF_TIME = "out_of_time"
    """It used up the CPU time of a file."""
    HUNG = "hung"
    """It used no CPU time, or it did not finish in time."""
    KILLED = "killed"
    """It was killed from outside, or ended for an unknown reason."""
    NOT_STARTED = "not_started"


class ProcessEnded(Exception):
    """The process ended without an answer."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause)
        self.cause = cause


class ReaderProcess:
    """The guarded process. A file starts it if it does not run. Use it from one thread.

    The process ends with the thread that started it, and inherits the signals that this thread blocks.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    @property
    def id(self) -> int | None:
        """Id of the process; None if none runs."""
        return self._process.pid if self._process else None

    def decode(self, data: bytes, spec: InputSpec, seconds: float = MAX_SECONDS) -> Picture:
        """Decode a DICOM file by chestct.dicom.read, or a PNG or JPEG by chestct.image.decode.

        Raises their InvalidImage, and ProcessEnded, also if there is no answer within `seconds`.
        """
        deadline = time.monotonic() + seconds
        connection = self._started(deadline)
        request = spec.model_dump_json().encode()
        try:
            self._send(connection, REQUEST.pack(len(request), len(data)) + request, deadline)
            self._send(connection, data, deadline)
            kind, facts, pixels = self._receive(connection, deadline)
        except (OSError, EOFError):
            raise ProcessEnded(self._find_cause()) from None
        try:
            return _unpack(kind, facts, pixels, spec)
        except InvalidImage:
            raise
        except Exception:  # noqa: BLE001 - a decoder that a file has taken over may send anything
            self.stop()
            raise ProcessEnded(Cause.KILLED) from None

    def stop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _started(self, deadline: float) -> socket.socket:
        if self._socket is not None and self._process is not None and self._process.poll() is None:
            return self._socket
        self.stop()
        try:
            self._socket, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [*COMMAND, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=(theirs.fileno(),),
                    env=_environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # decoders may write values of the header
                    start_new_session=True,  # Ctrl-C is for the service, which then ends this process
                )
            self._socket.setblocking(False)
            kind, _, _ = self._receive(self._socket, deadline)
        except (OSError, EOFError, ProcessEnded):
            self.stop()
            raise ProcessEnded(Cause.NOT_STARTED) from None
        assert kind == READY
        return self._socket

    def _send(self, connection: socket.socket, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(connection, select.POLLOUT, deadline)
            rest = rest[connection.send(rest) :]

    def _receive(self, connection: socket.socket, deadline: float) -> tuple[bytes, bytes, bytes]:
        """Receive the kind, the JSON and the pixels of a reply."""
        kind, *sizes = REPLY.unpack(self._receive_bytes(connection, REPLY.size, deadline))
        if sum(sizes) > _LONGEST_REPLY:
            raise EOFError
        facts, pixels = (self._receive_bytes(connection, size, deadline) for size in sizes)
        return kind, facts, pixels

    def _receive_bytes(self, connection: socket.socket, size: int, deadline: float) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            self._wait(connection, select.POLLIN, deadline)
            part = connection.recv(size - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def _wait(self, connection: socket.socket, event: int, deadline: float) -> None:
        """Wait until the process takes or gives bytes, or has ended. Raises ProcessEnded if it hangs."""
        poll = select.poll()
        poll.register(connection, event)
        if poll.poll(0):
            return
        spent = self._cpu_time()
        while not poll.poll(1000 * max(0, min(HANG_SECONDS, deadline - time.monotonic()))):
            before, spent = spent, self._cpu_time()
            if spent == before or time.monotonic() >= deadline:
                self.stop()
                raise ProcessEnded(Cause.HUNG)

    def _cpu_time(self) -> float:
        """CPU time of the process in ticks. Elsewhere than on Linux it is the clock: only the deadline ends a hang."""
        assert self._process is not None
        if sys.platform != "linux":
            return time.monotonic()
        stat = Path(f"/proc/{self._process.pid}/stat").read_text(encoding="ascii", errors="replace")
        user, system = stat.rpartition(")")[2].split()[11:13]
        return int(user) + int(system)

    def _find_cause(self) -> Cause:
        assert self._process is not None
        try:
            status = self._process.wait(1)
        except subprocess.TimeoutExpired:
            status = 0
        self.stop()
        if status == OUT_OF_MEMORY:
            return Cause.OUT_OF_MEMORY
        if status == -signal.SIGPROF:
            return Cause.OUT_OF_TIME
        return Cause.CRASHED if -status in _CRASHES else Cause.KILLED


def _unpack(kind: bytes, facts: bytes, pixels: bytes, spec: InputSpec) -> Picture:
    """The picture in a reply. Raises the InvalidImage in it."""
    reply = json.loads(facts)
    if kind != PICTURE:
        raise InvalidImage(*reply)
    measured: dict[str, Any] = {
        name: np.array(fact, np.float64) if isinstance(fact, list) else fact for name, fact in reply.items()
    }
    shape = (spec.height, spec.width, spec.channels)
    return Picture(np.frombuffer(pixels, np.uint8).reshape(shape), Facts(**measured))


def _environment() -> dict[str, str]:
    """Environment by which Python finds the modules and keeps memory small. It has no other variable of the service."""
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "1048576",  # otherwise glibc keeps the memory of pictures
    }
