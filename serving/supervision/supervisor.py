"""Extends BentoML's supervisor: it replaces workers that hang, and ends if no worker can live.

The only module that imports circus, which runs BentoML's processes. Import it only in the supervisor process, because
circus sets up logging when it is imported.
"""

import asyncio
import atexit
import contextlib
import errno
import functools
import logging
import math
import signal
import socket
import time
from pathlib import Path
from typing import Any, Final, cast

import psutil  # type: ignore[import-untyped]
from bentoml._internal.utils import circus as bentoml_circus
from circus.exc import ConflictError  # type: ignore[import-untyped]
from tornado.ioloop import IOLoop

from chestct import cgroups
from serving import certificate, run_folder
from serving.settings import Settings
from serving.supervision.worker_health import WorkerHealth
from serving.telemetry import log
from serving.worker_states import WorkerStates

END_SECONDS: Final = 10
"""Seconds that a stopping worker gets beyond its drain and its slowest request."""
_CHECK_SECONDS: Final = 1
_LONGEST_PATH: Final = 96
"""Bytes of a folder's path. A socket's name follows, and its whole path has 107 bytes at most."""
_WORKERS: Final = "service"
"""BentoML's name for the circus watcher that runs the workers."""
_OTHER_PORTS: Final = "choose others: make serve PORT=3100 GRPC_PORT=3101"

_log = logging.getLogger(__name__)


class CannotStart(Exception):
    """The service can't start, and a retry would fail, too. The message is one line that says what to do."""


def install(settings: Settings) -> None:
    """Make BentoML use this supervisor for the workers that it starts in this process. Raises CannotStart."""
    if settings.grpc_certificate and settings.grpc_certificate_key:
        try:
            certificate.read_end(settings.grpc_certificate, settings.grpc_certificate_key)
        except certificate.CertificateError as error:
            raise CannotStart(f"CHESTCT_GRPC_CERTIFICATE: {error}") from error
    ports = [_reserve_port(settings.grpc_host, settings.grpc_port)] if settings.grpc_port else []
    if "private" in (settings.metrics, settings.bentoml_routes):
        ports.append(_reserve_port(settings.private_host, settings.private_port))
    states = WorkerStates(settings.workers)
    try:
        folder = run_folder.create()
        atexit.register(run_folder.remove, folder)
        states.open(folder / run_folder.WORKER_STATES)
    except OSError as error:
        raise CannotStart(f"no folder for metrics and sockets: {error}") from error
    supervisor = functools.partial(Supervisor, settings=settings, folder=folder, states=states, ports=ports)
    bentoml_circus.Arbiter = supervisor  # type: ignore[assignment, misc]


class Supervisor(bentoml_circus.Arbiter):
    """Checks the workers once a second: kills those that hang, replaces the dead, and ends if replacing is in vain."""

    def __init__(
        self,
        *args: Any,
        settings: Settings,
        folder: Path,
        states: WorkerStates,
        ports: list[socket.socket],
        **options: Any,
    ) -> None:
        """`folder` is the run's folder. `ports` are open sockets that reserve ports for the workers."""
        # By default circus takes commands on loopback from every user. A socket in the folder is for its owner alone.
        if len(str(folder)) < _LONGEST_PATH:
            options |= {"endpoint": f"ipc://{folder}/control", "pubsub_endpoint": f"ipc://{folder}/events"}
        super().__init__(*args, **{**options, "check_delay": -1})  # `_check_workers` does what circus would
        self._settings = settings
        self._folder = folder
        self._states = states
        self._ports = ports
        self._health = WorkerHealth(settings.hang_seconds, settings.max_worker_deaths)
        self._memory_kills = cgroups.memory_kills()
        self._stop_requested = False

    def initialize(self) -> None:
        """Bind the HTTP port and configure the workers. Raises SystemExit if the port is taken."""
        for one in self.sockets.values():
            try:
                _bind(one.host, one.port).close()
            except CannotStart as error:
                raise SystemExit(f"error: {error}") from None
        super().initialize()
        for watcher in self._worker_watchers():
            watcher.respawn = True  # in its own containers BentoML sets False, which leaves fewer workers
            watcher.env.update(run_folder.environment(self._folder))
            watcher.graceful_timeout = self._settings.drain_seconds + self._settings.request_timeout + END_SECONDS
            watcher.hooks.update(after_spawn=self._on_start, after_reap=self._on_end)
        log.take_over_of_supervisor()
        IOLoop.current().add_callback(self._check_for_ever)

    def _worker_watchers(self) -> list[Any]:
        """Circus' watchers of workers. With `--reload` another watcher runs a process that looks for changed files."""
        return [watcher for watcher in self.watchers if watcher.name == _WORKERS]

    def stop(self) -> Any:
        """Stop the workers, then the process. Returns an awaitable. Retries while circus is busy."""
        return asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        if self._stop_requested:
            return
        self._stop_requested = True
        while True:
            try:
                await cast(Any, super()).stop()
            except ConflictError:
                await asyncio.sleep(0.01)
            else:
                return

    async def _check_for_ever(self) -> None:
        # Not with tornado's PeriodicCallback: after the clock was set back, it waits until the old time comes again.
        while True:
            try:
                await self._check_workers()
            except Exception:  # noqa: BLE001 - the next check may go well, and without any nobody replaces workers
                _log.exception("a check of the workers failed")
            await asyncio.sleep(_CHECK_SECONDS)

    async def _check_workers(self) -> None:
        self._states.supervisor_beat = time.monotonic()
        memory_kills = cgroups.memory_kills()
        if not self._stop_requested:
            with contextlib.suppress(ConflictError):
                await self.manage_watchers()
            if type(failed := vars(self)["_exception"]) is RuntimeError:  # circus could not start any worker
                self._exception = SystemExit(f"error: {failed}")
        self._memory_kills = memory_kills  # of the check's start, so that no kill falls between two checks
        # Last, because circus silently forgets a worker that dies during its own check.
        alive = {pid: watcher for watcher in self._worker_watchers() for pid in watcher.processes}
        for pid, why in self._health.find_hung(self._states.worker_beats, alive):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended since circus' last check
                alive[pid].send_signal(pid, signal.SIGKILL)
                _log.warning("worker process %d is %s: killed", pid, why)

    def _on_start(self, watcher: Any, pid: int, **_: object) -> bool:
        self._health.add(pid, watcher.processes[pid].wid)
        return True

    def _on_end(self, watcher: Any, process_pid: int, exit_code: int | None, **_: object) -> None:
        run_folder.trim_metrics(self._folder, process_pid)
        if self._stop_requested or watcher.is_stopping():  # a stopping watcher restarts its workers, with `--reload`
            return
        death = self._health.record_death(process_pid, exit_code, self._memory_used_up())
        reason = (exit_code == run_folder.CANNOT_START and run_folder.pop_failure(self._folder)) or death.reason
        if death.fatal:
            self._exception = SystemExit(f"error: {death.fatal}: {reason}")
            self.stop()
        else:
            self._states.count_replaced(death.cause)
            _log.warning("worker process %d has ended: %s; another takes its place", process_pid, reason)

    def _memory_used_up(self) -> str:
        """What was used up, if the kernel has killed a process of the container for it since the last check."""
        if cgroups.memory_kills() == self._memory_kills:
            return ""
        limit = cgroups.memory_limit()
        return "the memory" if limit == math.inf else f"the memory limit of {limit / (1 << 20):,.0f} MiB"


def _reserve_port(host: str, port: int) -> socket.socket:
    """Reserve a port for this run, so that only its workers can listen on it (SO_REUSEPORT). Raises CannotStart.

    Otherwise a second service of the same user could share the port and take half of the calls.
    """
    reserved = _bind(host, port)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return reserved


def _bind(host: str, port: int) -> socket.socket:
    """Bind a socket to the port, also if ended connections linger on it. Raises CannotStart if the port is taken."""
    name = host.strip("[]")
    try:
        family = socket.AF_INET6 if ":" in name else socket.AF_INET
        bound = socket.socket(family)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((name, port))
    except OSError as error:
        taken = f" is taken; {_OTHER_PORTS}" if error.errno == errno.EADDRINUSE else f": {error.strerror}"
        raise CannotStart(f"port {port} of {host}{taken}") from error
    return bound
