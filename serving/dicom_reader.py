"""DICOM files to grey levels in a process of its own: their decoders are native code that hostile files crash.

The process is started by the first file and kept. Memory, time and files are bounded from inside it, so whatever a file
does to it, the service sees a closed pipe, calls the file undecodable and starts another.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestct.image import MAX_PIXELS, InvalidImage

SECONDS: Final = 10
"""One file takes at most: a slice takes some milliseconds, and one of the largest size a second or two."""
MEMORY: Final = 512 * 1024 * 1024
"""Bytes that the process may hold, itself included (some 60 MB)."""

_ROOT: Final = Path(__file__).parents[1]
_READY: Final = b"ready"
_WINDOW: Final = struct.Struct("<dd")
_SIZE: Final = struct.Struct("<II")
"""Rows and columns before the pixels; 0 and 0 before the code and message of an error."""


class Window(NamedTuple):
    """The Hounsfield units that become grey: `width` of them around `center`; below is black, above white."""

    center: float
    width: float


LUNG: Final = Window(-600, 1500)
WINDOW_PARAMETERS: Final = ("window_center", "window_width")
"""Over every protocol; they choose another window for the DICOM files of a request."""
CENTERS: Final = (-32_768, 32_767)
WIDTHS: Final = (1, 65_536)
"""The least and the most of each."""


def choose_window(parameters: Mapping[str, object]) -> Window:
    """The window that a request asks for in WINDOW_PARAMETERS, as numbers or as text, else LUNG.

    Raises ValueError in words.
    """
    given = [parameters.get(name) for name in WINDOW_PARAMETERS]
    if given == [None, None]:
        return LUNG
    if None in given:
        raise ValueError(f"expected both {' and '.join(WINDOW_PARAMETERS)}, or neither, got one of them")
    return Window(*map(_in_bounds, WINDOW_PARAMETERS, given, (CENTERS, WIDTHS)))


def _in_bounds(name: str, value: object, bounds: tuple[int, int]) -> float:
    low, high = bounds
    with contextlib.suppress(ValueError):
        if isinstance(value, str | int | float) and not isinstance(value, bool) and low <= float(value) <= high:
            return float(value)
    raise ValueError(f"{name}: expected Hounsfield units from {low} to {high}, got {str(value)[:32]!r}")


def is_dicom(data: bytes) -> bool:
    """Whether these bytes say that they are a DICOM file; what they are called elsewhere does not count."""
    return data[128:132] == b"DICM"


class DicomReader:
    """Reads one file at a time, in a thread that waits for the process. Used from one event loop."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dicom")
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None

    @property
    def process(self) -> int | None:
        """The id of the process, where one runs."""
        return self._process.pid if self._process else None

    async def read(self, data: bytes, window: Window = LUNG) -> NDArray[np.uint8]:
        """Grey levels uint8 [rows, columns]. Raises InvalidImage as chestct.dicom.read does."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._read, data, window)

    def close(self) -> None:
        """Finish the file that is being read, then end the process."""
        self._thread.shutdown()
        self._stop()

    def _read(self, data: bytes, window: Window) -> NDArray[np.uint8]:
        connection = self._connected()
        try:
            connection.send_bytes(_WINDOW.pack(*window))
            connection.send_bytes(data)
            reply = connection.recv_bytes(_SIZE.size + MAX_PIXELS)
        except (EOFError, OSError):
            self._stop()
            raise InvalidImage(
                "undecodable_image", "the DICOM file is corrupt: its decoder failed or took too much time or memory"
            ) from None
        rows, columns = _SIZE.unpack_from(reply)
        if not rows:
            raise InvalidImage(*json.loads(reply[_SIZE.size :]))
        return np.frombuffer(reply, np.uint8, offset=_SIZE.size).reshape(rows, columns)

    def _connected(self) -> Connection:
        if self._connection is not None and self._process is not None and self._process.poll() is None:
            return self._connection
        self._stop()
        self._connection, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "serving.dicom_reader", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what decoders write may hold values of the header
                start_new_session=True,  # Ctrl-C is for the service, which ends the process after its last file
            )
        try:
            self._connection.recv_bytes(len(_READY))
        except EOFError:
            raise RuntimeError("the process that reads DICOM files does not start") from None
        return self._connection

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def _environment() -> dict[str, str]:
    """What Python needs to find the modules; nothing else of the service's."""
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    return {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1"}


def main() -> None:
    """Answer for one file after the other over the pipe of the given number, until the service closes it."""
    from chestct import dicom  # here, so that the service itself does not carry pydicom

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with Connection(int(sys.argv[1])) as service:
        service.send_bytes(_READY)
        while True:
            try:
                window = Window(*_WINDOW.unpack(service.recv_bytes()))
                data = service.recv_bytes()
            except EOFError:
                return
            signal.alarm(SECONDS)  # which ends the process, also within native code
            try:
                grey = dicom.read(data, window.center, window.width)
                reply = _SIZE.pack(*grey.shape) + grey.tobytes()
            except InvalidImage as error:
                reply = _SIZE.pack(0, 0) + json.dumps((error.code, error.message)).encode()
            signal.alarm(0)
            service.send_bytes(reply)


if __name__ == "__main__":
    main()
