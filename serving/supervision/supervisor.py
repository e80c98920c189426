"""BentoML's supervisor, with what it lacks: it replaces workers that hang, and ends where none can live.

The only module that knows circus, which keeps BentoML's processes. Its import sets up logging, so only the service's
hook in the supervisor does it.
"""

import asyncio
import atexit
import contextlib
import errno
import functools
import logging
import signal
import socket
import ssl
import time
from pathlib import Path
from typing import Any, Final, cast

import psutil  # type: ignore[import-untyped]
from bentoml._internal.utils import circus as bentoml_circus
from circus.exc import ConflictError  # type: ignore[import-untyped]
from tornado.ioloop import PeriodicCallback

from serving import run_folder
from serving.settings import Settings
from serving.supervision.watch import Watch
from serving.telemetry import log
from serving.worker_load import WorkerLoad

END_SECONDS: Final = 10
"""A worker that was told to stop may take so much longer than its drain and its slowest request."""
_LOOK_SECONDS: Final = 1
_LONGEST_PATH: Final = 96
"""Bytes of a folder, with room for a socket's name: its whole path has 107 at most."""
_WORKERS: Final = "service"
"""BentoML's name for the keeper of the workers."""
_ANOTHER: Final = "choose others: make serve PORT=3100 GRPC_PORT=3101"

_log = logging.getLogger(__name__)


class CannotStart(Exception):
    """Another try would fail, too; the message is one line and says what to do."""


def take_over(settings: Settings) -> None:
    """Watch the workers that BentoML starts from now on in this process. Raises CannotStart."""
    _check_certificate(settings)
    held = [_hold(settings.grpc_host, settings.grpc_port)] if settings.grpc_port else []
    if "private" in (settings.metrics, settings.bentoml_routes):
        held.append(_hold(settings.private_host, settings.private_port))
    load = WorkerLoad(settings.workers)
    try:
        folder = run_folder.make()
        atexit.register(run_folder.remove, folder)
        load.open(folder / run_folder.LOAD)
    except OSError as error:
        raise CannotStart(f"no folder for metrics and sockets: {error}") from error
    supervisor = functools.partial(Supervisor, settings=settings, folder=folder, load=load, held=held)
    bentoml_circus.Arbiter = supervisor  # type: ignore[assignment, misc]


class Supervisor(bentoml_circus.Arbiter):
    """Looks once a second: kills who hangs, starts another in the place of who died, gives up where that is in vain."""

    def __init__(
        self, *args: Any, settings: Settings, folder: Path, load: WorkerLoad, held: list[socket.socket], **options: Any
    ) -> None:
        """`folder`: of this run. `held`: ports that are the workers' alone as long as these are open."""
        # Circus listens for commands on loopback, where every user of the machine may give some; here its owner alone.
        if len(str(folder)) < _LONGEST_PATH:
            options |= {"endpoint": f"ipc://{folder}/control", "pubsub_endpoint": f"ipc://{folder}/events"}
        super().__init__(*args, **{**options, "check_delay": -1})  # `_look` does what circus would
        self._settings = settings
        self._folder = folder
        self._load = load
        self._held = held
        self._watch = Watch(settings.hang_seconds)
        self._told_to_stop = False
        self._looking = PeriodicCallback(self._look, 1000 * _LOOK_SECONDS)

    def initialize(self) -> None:
        """Take the HTTP port, and tell the workers of this run. Ends the process where the port is taken."""
        for one in self.sockets.values():
            try:
                _check_free(one.host, one.port)
            except CannotStart as error:
                raise SystemExit(f"error: {error}") from None
        super().initialize()
        for watcher in self._keepers():
            watcher.respawn = True  # BentoML's is False in its own containers, which would go on with fewer workers
            watcher.env.update(run_folder.variables(self._folder))
            watcher.graceful_timeout = self._settings.drain_seconds + self._settings.request_timeout + END_SECONDS
            watcher.hooks.update(after_spawn=self._on_start, after_reap=self._on_end)
        log.take_over_of_supervisor()
        self._looking.start()

    def _keepers(self) -> list[Any]:
        """Circus' keepers of workers; with `--reload` there is one, too, of a process that looks for changed files."""
        return [watcher for watcher in self.watchers if watcher.name == _WORKERS]

    def stop(self) -> Any:
        """Stop the workers, then the process; awaitable. Circus refuses while it does something else: try again."""
        return asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        if self._told_to_stop:
            return
        self._told_to_stop = True
        while True:
            try:
                await cast(Any, super()).stop()
            except ConflictError:
                await asyncio.sleep(0.01)
            else:
                return

    async def _look(self) -> None:
        self._load.watcher = time.monotonic()
        if not self._told_to_stop:
            with contextlib.suppress(ConflictError):
                await self.manage_watchers()
            if type(failed := vars(self)["_exception"]) is RuntimeError:  # circus could start no worker at all
                self._exception = SystemExit(f"error: {failed}")
        # Last, since circus forgets without a word who dies while it looks.
        alive = {pid: watcher for watcher in self._keepers() for pid in watcher.processes}
        for pid, why in self._watch.look(self._load.beats, alive):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended, and circus did not look yet
                alive[pid].send_signal(pid, signal.SIGKILL)
                _log.warning("worker process %d is %s: killed", pid, why)

    def _on_start(self, watcher: Any, pid: int, **_: object) -> bool:
        self._watch.start(pid, watcher.processes[pid].wid)
        return True

    def _on_end(self, watcher: Any, process_pid: int, exit_code: int | None, **_: object) -> None:
        run_folder.trim_metrics(self._folder, process_pid)
        if self._told_to_stop or watcher.is_stopping():  # the latter to start again, with `--reload`
            return
        death = self._watch.end(process_pid, exit_code)
        reason = (exit_code == run_folder.CANNOT_START and run_folder.take_failure(self._folder)) or death.reason
        if death.fatal:
            self._exception = SystemExit(f"error: no worker can live: {reason}")
            self.stop()
        else:
            _log.warning("worker process %d has ended: %s; another takes its place", process_pid, reason)


def _check_certificate(settings: Settings) -> None:
    if settings.grpc_certificate and settings.grpc_certificate_key:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                settings.grpc_certificate, settings.grpc_certificate_key
            )
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise CannotStart(f"CHESTCT_GRPC_CERTIFICATE and its key: {error}") from error


def _hold(host: str, port: int) -> socket.socket:
    """Keep a port for this run: its workers may listen on it (SO_REUSEPORT), another run may not.

    Without it, a second service of the same user would take half of the calls. Raises CannotStart.
    """
    held = _bind(host, port)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return held


def _check_free(host: str, port: int) -> None:
    """Raises CannotStart where somebody has the port."""
    _bind(host, port).close()


def _bind(host: str, port: int) -> socket.socket:
    """A socket that nobody shares, but with connections that have ended. Raises CannotStart."""
    name = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in name else socket.AF_INET
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((name, port))
    except OSError as error:
        taken = f" is taken; {_ANOTHER}" if error.errno == errno.EADDRINUSE else f": {error.strerror}"
        raise CannotStart(f"port {port} of {host}{taken}") from error
    return bound
