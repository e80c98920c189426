"""ASGI middleware around a route that answers only requests with a valid API key."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api_keys import Keys
from serving.telemetry.request_record import RequestRecord


class RequireApiKey:
    """Checks the request's API key for `scope`, and writes the key's name into the request record.

    Raises Unauthenticated and Forbidden, which ErrorBoundary answers with 401 and 403.
    """

    def __init__(self, app: ASGIApp, keys: Keys, scope: str) -> None:
        self._app = app
        self._keys = keys
        self._scope = scope

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record: RequestRecord = scope["state"]["record"]
        record.key = self._keys.check(Headers(scope=scope).get("Authorization"), self._scope)
        await self._app(scope, receive, send)


def require_api_key(routes: Sequence[Route], keys: Keys | None, scope: str) -> Sequence[Route]:
    """The same routes. If the service has keys, they then answer only requests that hold one for `scope`."""
    if keys is not None:
        for route in routes:
            route.app = RequireApiKey(route.app, keys, scope)
    return routes
