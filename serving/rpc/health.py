"""The health service, whose watches can be ended."""

import asyncio
from typing import Any, Final

import grpc
from grpc import StatusCode
from grpc_health.v1 import health, health_pb2

_SAY_SO: Final = 0.1
"""Seconds in which the watches wake up and tell."""

_Context = grpc.aio.ServicerContext[Any, Any]


class Health(health.aio.HealthServicer):  # type: ignore[misc] # it has no types
    """`end` lets go of those who watch it."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[Any]] = set()
        self._ended = False

    async def announce(self, names: tuple[str, ...], ready: bool) -> None:
        """Tell those who ask about the services with these names: SERVING or NOT_SERVING."""
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in names:
            await self.set(name, status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: _Context) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            await super().Watch(request, context)
        except asyncio.CancelledError:
            if not self._ended:
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
