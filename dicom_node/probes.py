"""The probes and the metrics over HTTP."""

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from dicom_node import metrics

_PLAIN: Final = (("Content-Type", "text/plain; charset=utf-8"),)


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it so
        """Log nothing: probes come every few seconds."""


class Probes:
    """Answers `/livez` while the worker lives, `/readyz` while the node takes associations, and `/metrics`."""

    def __init__(self, host: str, port: int, alive: Callable[[], bool], ready: Callable[[], bool]) -> None:
        """Open the port. Raises OSError."""
        self._checks = {"/livez": alive, "/readyz": ready}
        self._server = make_server(host, port, self._answer, server_class=_Server, handler_class=_Quiet)
        threading.Thread(target=self._server.serve_forever, name="probes", daemon=True).start()

    @property
    def port(self) -> int:
        return self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: dict[str, Any], start: Any) -> Iterable[bytes]:
        path = request["PATH_INFO"]
        if path == "/metrics":
            content: Iterable[bytes] = metrics.APPLICATION(request, start)
            return content
        if path not in self._checks:
            start("404 Not Found", [*_PLAIN])
            return [b"expected /livez, /readyz or /metrics\n"]
        good = self._checks[path]()
        start("200 OK" if good else "503 Service Unavailable", [*_PLAIN])
        return [b"ok\n" if good else b"not ready\n"]
