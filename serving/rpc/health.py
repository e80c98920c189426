"""The health service, whose watches can be ended and wait for no other one."""

import asyncio
from typing import Any, Final

from grpc import StatusCode
from grpc_health.v1 import health, health_pb2

from serving.rpc.connections import Context, DeliveryTimeouts

_SAY_SO: Final = 0.1
"""Seconds in which the watches wake up and tell."""


class Health(health.aio.HealthServicer):  # type: ignore[misc] # it has no types
    """`end` lets go of those who watch it.

    The library's own watches write while they hold a lock. So a client that reads nothing would keep all others, and
    the stop of the service, from it for ever.
    """

    def __init__(self, untaken: DeliveryTimeouts) -> None:
        super().__init__()
        self._untaken = untaken
        self._watches: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._ended = False

    def announce(self, names: tuple[str, ...], ready: bool) -> None:
        """Tell those who ask about the services with these names: SERVING or NOT_SERVING."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        self._server_status.update(dict.fromkeys(names, status))
        self._changed.set()
        self._changed = asyncio.Event()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        told, writing = None, False
        try:
            while True:
                changed = self._changed
                status = self._server_status.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
                if status != told:
                    writing = True
                    with self._untaken.expecting(context):
                        await context.write(health_pb2.HealthCheckResponse(status=status))
                    told, writing = status, False
                await changed.wait()
        except asyncio.CancelledError:
            if not self._ended:
                raise
            if writing:  # gRPC sends no status after what is not taken
                self._untaken.end(context)
                raise
            await context.abort(StatusCode.UNAVAILABLE, "not_ready: the service is stopping")
        finally:
            self._watches.discard(task)

    async def end(self) -> None:
        """By itself no watch ends, so that each stop of the server would take all its grace."""
        if self._watches:
            await asyncio.sleep(_SAY_SO)
        self._ended = True
        for watch in self._watches:
            watch.cancel()
