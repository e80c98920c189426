"""The short way to the predictions: past BentoML's layers and two routers.

BentoML puts its own layers around the service: tracing, a time limit with a task and a timer, a context. They and the
search for the route take a tenth of a millisecond, and predictions need none of them.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from chestct.store import NAME
from serving.api_keys import Keys
from serving.http import v1, v2
from serving.http.admission_control import KEY_SCOPES, AdmissionControl
from serving.http.error_boundary import ErrorBoundary
from serving.http.request_recording import RequestRecording
from serving.http.require_api_key import RequireApiKey
from serving.memory_budget import MemoryBudget
from serving.settings import Settings

Answer = Callable[[Request], Awaitable[Response]]

ROUTES: Final[Mapping[str, tuple[str, Answer]]] = {
    "/v1/predict": ("/v1/predict", v1.predict),
    "/v1/predict/batch": ("/v1/predict/batch", v1.predict_batch),
    f"/v2/models/{NAME}/infer": ("/v2/models/{name}/infer", v2.infer),
}
"""By path: the route's name, and the function that answers."""


class Shortcut:
    """ASGI app that answers POST to the paths of predictions, and passes everything else on."""

    def __init__(self, others: ASGIApp, predictions: Mapping[str, ASGIApp]) -> None:
        """`predictions`: the app for each path."""
        self._others = others
        self._predictions = predictions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = None
        if scope["type"] == "http" and scope["method"] == "POST":
            app = self._predictions.get(scope["path"])
        await (app or self._others)(scope, receive, send)


class ShortcutInFront:
    """ASGI middleware of BentoML's service that puts a Shortcut before all of its layers when the server starts."""

    def __init__(self, app: ASGIApp, predictions: Mapping[str, ASGIApp]) -> None:
        self._app = app
        self._predictions = predictions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            bentoml: Starlette = scope["app"]
            assert bentoml.middleware_stack is not None  # this call came through it
            bentoml.middleware_stack = Shortcut(bentoml.middleware_stack, self._predictions)
        await self._app(scope, receive, send)


def predictions(
    app: Starlette, settings: Settings, keys: Keys | None, memory: MemoryBudget, stopping: Callable[[], bool]
) -> dict[str, ASGIApp]:
    """The app for each path of a prediction, with everything around it that BentoML's service has around `app`."""

    def around(path: str) -> ASGIApp:
        bounded = ErrorBoundary(route(app, path, keys), settings)
        admitted = AdmissionControl(bounded, settings, keys, lambda: app.state.classifier)
        return RequestRecording(admitted, memory, stopping)

    return {path: around(path) for path in ROUTES}


def route(app: Starlette, path: str, keys: Keys | None = None) -> ASGIApp:
    """The route of a path without a router. With `keys` it requires one. Needs RequestRecording around it."""
    name, answer = ROUTES[path]
    found: dict[str, Any] = {"app": app, "path_params": {"name": NAME} if "{name}" in name else {}}

    async def run(scope: Scope, receive: Receive, send: Send) -> None:
        response = await answer(Request(scope, receive))
        await response(scope, receive, send)

    allowed: ASGIApp = RequireApiKey(run, keys, KEY_SCOPES[name]) if keys else run

    async def enter(scope: Scope, receive: Receive, send: Send) -> None:
        scope.update(found)
        scope["state"]["record"].route = name
        await allowed(scope, receive, send)

    return enter
