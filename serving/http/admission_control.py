"""ASGI middleware in front of BentoML and the routes: refuses predictions with 429 while the queue is full."""

import contextlib
import re
from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.api_keys import Forbidden, Keys, Unauthenticated
from serving.http.error_boundary import read_patience
from serving.http.errors import RequestError, describe, send_error
from serving.inference.classifier import Classifier
from serving.settings import Settings
from serving.telemetry.request_record import RequestRecord
from serving.unavailable import Closed, Overloaded

KEY_SCOPES: Final = {
    "/v1/predict": "v1",
    "/v1/predict/batch": "v1",
    "/v2/models/{name}/infer": "v2",
    "/v2/models/{name}/versions/{version}/infer": "v2",
}
"""The scope of the API keys of each route that puts images into the queue, by the route's name."""
_PATHS: Final = {name: re.compile(re.sub("{[a-z]+}", "[^/]+", name)) for name in KEY_SCOPES}


class AdmissionControl:
    """Refuses a prediction without reading its body if the queue has no room.

    Under overload there are more refusals than answers, so a refusal must be cheap. Anything else that is wrong with
    the request, including its API key, is left to the route. Needs RequestRecording around it.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, keys: Keys | None, classifier: Callable[[], Classifier | None]
    ):
        self._app = app
        self._settings = settings
        self._keys = keys
        self._classifier = classifier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            for name, path in _PATHS.items():
                if path.fullmatch(scope["path"]) and (overloaded := self._check_room(scope, KEY_SCOPES[name])):
                    scope["state"]["record"].route = name
                    await send_error(describe(overloaded), scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _check_room(self, scope: Scope, key_scope: str) -> Overloaded | None:
        """The reason to refuse the request, or None. Requests without a valid key pass on to the route's check."""
        record: RequestRecord = scope["state"]["record"]
        headers = Headers(scope=scope)
        classifier = self._classifier()
        try:
            if classifier is not None:
                record.set_deadline(read_patience(headers), self._settings.request_timeout)
                classifier.check_room(record.deadline)
        except Overloaded as overloaded:
            with contextlib.suppress(Unauthenticated, Forbidden):
                if self._keys is not None:
                    record.key = self._keys.check(headers.get("Authorization"), key_scope)
                return overloaded
        except (Closed, RequestError):
            pass
        return None
