"""The log of a worker: one line of JSON per entry on standard output, from any library, and no write ever waits.

Messages of libraries and exceptions may quote a request. So the log shows only what is written in their code: the
message before values are filled in, the place, the exception's type and its stack frames.
"""

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import select
import stat
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from serving.telemetry import metrics

OUTPUT: Final = 1
_ERRORS: Final = 2
_LONGEST_LINE: Final = select.PIPE_BUF - 256
"""Most bytes of a line. A pipe takes it and a notice in one piece, so the lines of two workers never mix."""
_PIPE_BYTES: Final = 1 << 20
"""Size of the pipe: the most that Linux allows any user, and some four seconds of a busy service's log."""
_FRAMES: Final = 12
"""Most stack frames of an exception. The innermost are kept."""
_LONGEST_MESSAGE: Final = 300
"""Most characters of a message."""
_OURS: Final = ("serving", "chestct", "service")
"""Packages whose messages never quote a request."""
_FOLDERS: Final = re.compile(
    rf"{re.escape(str(Path(__file__).parents[2]))}/(?!\.venv)|.*/(site-packages|python3\.\d+)/"
)
"""The leading part of a file's path that is not needed to find the file."""

_log = logging.getLogger(__name__)


class JsonFormatter(logging.Formatter):
    """Formats an entry as one line of JSON without any request's content."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "at": _place(record.pathname, record.lineno, record.funcName or ""),
        }
        if message := _message(record):
            line["message"] = message.strip()[:_LONGEST_MESSAGE]
        if request_id := getattr(record, "request_id", None):
            line["request_id"] = request_id
        if record.exc_info and (error := record.exc_info[1]):
            line |= {"error": _name(error), "stack": _stack(error)}
            if causes := [f"{_name(cause)} {''.join(_stack(cause)[-1:])}".strip() for cause in _causes(error)]:
                line["causes"] = causes[-_FRAMES:]
        text = json.dumps(line)
        while len(text) >= _LONGEST_LINE and (places := line.get("stack") or line.get("causes")):
            del places[0]
            text = json.dumps(line)
        return text


class NonBlockingHandler(logging.Handler):
    """Writes lines to a descriptor that never blocks. Lines that do not fit are dropped and counted."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._descriptor = descriptor
        self._dropped = 0
        self._cut = False
        """Whether the last line was cut off, which only a disk that fills up does."""
        mode = os.fstat(descriptor).st_mode
        self._ready: select.poll | None = None
        if not stat.S_ISREG(mode) and os.get_blocking(descriptor):
            self._ready = select.poll()
            self._ready.register(descriptor, select.POLLOUT)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - a message that does not match its arguments must not fail a request
            line = json.dumps({"logger": record.name, "error": _name(error)})
        self._write_or_count(line)

    def write_line(self, line: str) -> None:
        """Write a line that is formatted already, without an entry."""
        with self.lock:  # type: ignore[union-attr] # every handler has one
            self._write_or_count(line)

    def _write_or_count(self, line: str) -> None:
        if self._write(f"{self._notice()}\n{line}\n" if self._dropped else f"{line}\n"):
            self._dropped = 0
        else:
            self._dropped += 1
            metrics.LOG_LINES_DROPPED.inc()

    def _notice(self) -> str:
        words = "lines of the log were dropped: nobody read them, or the disk was full"
        return json.dumps(
            {"time": now(), "level": "WARNING", "logger": __name__, "message": words, "dropped": self._dropped}
        )

    def _write(self, text: str) -> bool:
        if self._ready and not self._ready.poll(0):
            return False
        data = f"\n{text}".encode() if self._cut else text.encode()
        try:
            self._cut = os.write(self._descriptor, data) < len(data)
        except OSError:  # the pipe or the disk is full, or the reader is gone
            return False
        return not self._cut


_handler: NonBlockingHandler | None = None
"""The handler of all entries, once this process has one."""


def now() -> str:
    """The time for an entry: ISO 8601 in UTC, with milliseconds."""
    seconds, fraction = divmod(time.time(), 1)
    return f"{_of_second(int(seconds))}.{int(1000 * fraction):03d}+00:00"


@lru_cache(maxsize=2)
def _of_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def write_request(logger: logging.Logger, line: str) -> None:
    """Write a request's line, past the entry that `logging` would make of it, which takes longer than the line."""
    if _handler is None:
        logger.info("%s", line)
    else:
        _handler.write_line(line)


def make_writes_non_blocking() -> None:
    """Make writes to standard output and error non-blocking, from Python and native code.

    A pipe or a terminal is opened again for this process alone: O_NONBLOCK on the shared description would also change
    it for the shell and the other workers.
    """
    for descriptor in (OUTPUT, _ERRORS):
        # If the pipe is another user's or there is no /proc, the handler polls before it writes.
        with contextlib.suppress(OSError):
            mode = os.fstat(descriptor).st_mode
            if not (stat.S_ISFIFO(mode) or os.isatty(descriptor)):
                continue
            own = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            os.dup2(own, descriptor)
            os.close(own)
            if stat.S_ISFIFO(mode) and sys.platform == "linux":
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def take_over_of_supervisor() -> None:
    """In BentoML's supervisor: send the entries of this project and of circus through one handler that never blocks.

    BentoML's own start lines stay.
    """
    make_writes_non_blocking()  # otherwise an unread log would keep the supervisor from replacing workers
    handler = NonBlockingHandler(OUTPUT)
    for name in ("serving", "circus"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False


def take_over(descriptor: int = OUTPUT) -> None:
    """Send all log entries, warnings and uncaught exceptions of this process through one handler."""
    # Otherwise gRPC's native code would report each failed handshake, past any handler.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # JsonFormatter shows none of these, and to look them up takes half of an entry's time.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.logAsyncioTasks = False  # type: ignore[attr-defined] # since Python 3.12
    global _handler
    _handler = handler = NonBlockingHandler(descriptor)
    for logger in [logging.getLogger(name) for name in logging.root.manager.loggerDict]:
        logger.handlers.clear()
        logger.propagate = True
    logging.root.handlers = [handler]
    for name in ("request_record", "start_times"):
        logging.getLogger(f"serving.telemetry.{name}").setLevel(logging.INFO)
    logging.getLogger("bentoml").setLevel(logging.WARNING)
    # They warn of each invalid form or request, which the request's own line reports already.
    for name in ("python_multipart", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.showwarning = _log_warning  # type: ignore[assignment] # *_ takes `file` and `line`
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _log_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    _log.warning("%s at %s", category.__name__, _place(filename, lineno, ""))


def _log_uncaught(kind: type[BaseException], error: BaseException | None, at: TracebackType | None) -> None:
    _log.error("nothing caught an exception", exc_info=(kind, error or kind(), at))


def _message(record: logging.LogRecord) -> str:
    """The message. For other packages only text that is written in their code, nothing that was built at run time."""
    if record.name.partition(".")[0] in _OURS:
        return record.getMessage()
    if record.args:
        return str(record.msg)
    frame = sys._getframe()
    while frame := frame.f_back:  # type: ignore[assignment]
        if frame.f_code.co_filename == record.pathname and frame.f_code.co_name == record.funcName:
            return record.msg if isinstance(record.msg, str) and record.msg in frame.f_code.co_consts else ""
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen = {id(error)}
    while cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        if id(cause) in seen:
            return
        seen.add(id(cause))
        yield cause
        error = cause


def _name(error: BaseException) -> str:
    number = errno.errorcode.get(error.errno or 0) if isinstance(error, OSError) else None
    return " ".join(filter(None, (type(error).__qualname__, number)))


def _stack(error: BaseException) -> list[str]:
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return [_place(code.co_filename, line, code.co_name) for code, line in frames[-_FRAMES:]]


def _place(file: str, line: int, function: str) -> str:
    return f"{_FOLDERS.sub('', file)[-80:]}:{line} {function}".strip()
