"""The service's end of a process that decodes files (reader_child): it is started, asked, watched and ended here."""

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
from typing import Final

import numpy as np
from numpy.typing import NDArray

from chestct.card import InputSpec
from chestct.image import Facts, InvalidImage, Picture
from serving.inference.reader_child import OUT_OF_MEMORY, PICTURE, READY, REPLY, REQUEST
from serving.inference.window import Window

SECONDS: Final = 15
"""A start or a file takes at most, whatever else the machine does."""
STILL: Final = 3
"""Seconds without a moment of CPU time after which a process that owes something is taken for hung."""

COMMAND: Final = (sys.executable, "-P", "-m", "serving.inference.reader_child")
_ROOT: Final = Path(__file__).parents[2]
_LONGEST_REPLY: Final = 2 * 1024 * 1024
"""Bytes: a picture of the largest input that a card may have, and its facts."""
_BY_ITS_FILE: Final = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})
"""Signals by which native code ends its own process."""


class Cause(StrEnum):
    """Why a process ended, or was ended."""

    CRASHED = "crashed"
    """Its decoder did."""
    OUT_OF_MEMORY = "out_of_memory"
    OUT_OF_TIME = "out_of_time"
    """It used up a file's CPU time."""
    HUNG = "hung"
    """It did nothing, as when it is stopped, or too little."""
    KILLED = "killed"
    """From outside, or for an unknown reason."""
    NOT_STARTED = "not_started"


class Ended(Exception):
    """The process is no more, without an answer."""

    def __init__(self, cause: Cause) -> None:
        super().__init__(cause)
        self.cause = cause


class ReaderProcess:
    """One process, started by the first file and again by the next after it ended. Used from one thread.

    The process ends with the thread that started it, and what that thread blocks of signals is blocked there too.
    """

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None

    @property
    def id(self) -> int | None:
        """Of the process, where one runs."""
        return self._process.pid if self._process else None

    def decode(self, data: bytes, spec: InputSpec, window: Window | None, seconds: float = SECONDS) -> Picture:
        """What chestct.image.decode makes of a PNG or JPEG, or chestct.dicom.read of a DICOM file, if with a window.

        Raises InvalidImage as they do, and Ended; also when the process does not answer within `seconds`.
        """
        deadline = time.monotonic() + seconds
        connection = self._started(deadline)
        request = json.dumps({"spec": spec.model_dump(), "window": window}).encode()
        try:
            self._send(connection, REQUEST.pack(len(request), len(data)) + request, deadline)
            self._send(connection, data, deadline)
            kind, words, pixels = self._receive(connection, deadline)
        except (OSError, EOFError):
            raise Ended(self._find_cause()) from None
        try:
            return _unpack(kind, words, pixels, spec)
        except InvalidImage:
            raise
        except Exception:  # noqa: BLE001 - a decoder that a file took over may say anything
            self.stop()
            raise Ended(Cause.KILLED) from None

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
                    stderr=subprocess.DEVNULL,  # what decoders write may hold values of the header
                    start_new_session=True,  # Ctrl-C is for the service, which ends the process after its last file
                )
            self._socket.setblocking(False)
            kind, _, _ = self._receive(self._socket, deadline)
        except (OSError, EOFError, Ended):
            self.stop()
            raise Ended(Cause.NOT_STARTED) from None
        assert kind == READY
        return self._socket

    def _send(self, connection: socket.socket, data: bytes, deadline: float) -> None:
        rest = memoryview(data)
        while rest:
            self._wait(connection, select.POLLOUT, deadline)
            rest = rest[connection.send(rest) :]

    def _receive(self, connection: socket.socket, deadline: float) -> tuple[bytes, bytes, bytes]:
        """Kind, words and pixels of a reply."""
        kind, *sizes = REPLY.unpack(self._receive_bytes(connection, REPLY.size, deadline))
        if sum(sizes) > _LONGEST_REPLY:
            raise EOFError
        words, pixels = (self._receive_bytes(connection, size, deadline) for size in sizes)
        return kind, words, pixels

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
        """Until the process takes or gives bytes, or has ended. Raises Ended where it hangs."""
        poll = select.poll()
        poll.register(connection, event)
        if poll.poll(0):
            return
        spent = self._cpu_time()
        while not poll.poll(1000 * max(0, min(STILL, deadline - time.monotonic()))):
            before, spent = spent, self._cpu_time()
            if spent == before or time.monotonic() >= deadline:
                self.stop()
                raise Ended(Cause.HUNG)

    def _cpu_time(self) -> float:
        """That the process used, in ticks; where there is no such account only the deadline ends one that hangs."""
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
        return Cause.CRASHED if -status in _BY_ITS_FILE else Cause.KILLED


def _unpack(kind: bytes, words: bytes, pixels: bytes, spec: InputSpec) -> Picture:
    """What a reply says."""
    said = json.loads(words)
    if kind != PICTURE:
        raise InvalidImage(*said)
    layout: NDArray[np.float64] = np.array(said.pop("layout"), np.float64)
    shape = (spec.height, spec.width, spec.channels)
    return Picture(np.frombuffer(pixels, np.uint8).reshape(shape), Facts(**said, layout=layout))


def _environment() -> dict[str, str]:
    """What Python needs to find the modules, and what keeps memory small; nothing else of the service's."""
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH")))),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": "1048576",  # or glibc keeps what pictures took
    }
