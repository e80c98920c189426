"""The gRPC health service, with watches that can be ended and do not block each other."""

import asyncio
from typing import Any, Final

from grpc import StatusCode
from grpc_health.v1 import health, health_pb2

from serving.rpc.connections import Context, DeliveryTimeouts

_WAKE_SECONDS: Final = 0.1
"""Seconds for the watches to wake up and send the last status."""


class Health(health.aio.HealthServicer):  # type: ignore[misc] # it has no types
    """Health servicer whose watches write without a lock.

    The library's watches write under a lock, so a client that reads nothing would block all others, and the stop of
    the service.
    """

    def __init__(self, delivery: DeliveryTimeouts) -> None:
        super().__init__()
        self._delivery = delivery
        self._watches: set[asyncio.Task[Any]] = set()
        self._changed = asyncio.Event()
        self._ended = False

    def set_status(self, names: tuple[str, ...], ready: bool) -> None:
        """Set the status of the services with these names: SERVING or NOT_SERVING."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        self._server_status.update(dict.fromkeys(names, status))
        self._changed.set()
        self._changed = asyncio.Event()

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        """The status of each service. The library lacks this method, and a call would be logged as a failure."""
        known = self._server_status.items()
        return health_pb2.HealthListResponse(
            statuses={name: health_pb2.HealthCheckResponse(status=status) for name, status in known}
        )

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        sent, writing = None, False
        try:
            while True:
                changed = self._changed
                status = self._server_status.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
                if status != sent:
                    writing = True
                    with self._delivery.limit(context):
                        await context.write(health_pb2.HealthCheckResponse(status=status))
                    sent, writing = status, False
                await changed.wait()
        except asyncio.CancelledError:
            if not self._ended:
                raise
            if writing:  # gRPC sends no status after a message that is not taken
                self._delivery.close_connection(context)
                raise
            await context.abort(StatusCode.UNAVAILABLE, "not_ready: the service is stopping")
        finally:
            self._watches.discard(task)

    async def end_watches(self) -> None:
        """End all watches. No watch ends by itself, so the server's stop would take all of its grace."""
        if self._watches:
            await asyncio.sleep(_WAKE_SECONDS)
        self._ended = True
        for watch in self._watches:
            watch.cancel()
