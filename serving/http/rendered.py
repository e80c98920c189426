"""JSON documents that are the same for every request and are rendered once."""

import hashlib
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response


class Rendered:
    """A value as JSON. A client that already has it (If-None-Match) is answered 304."""

    def __init__(self, value: Any) -> None:
        self.body: Final = bytes(JSONResponse(value).body)
        self._tag = f'"{hashlib.sha256(self.body).hexdigest()[:32]}"'

    def answer(self, request: Request) -> Response:
        headers = {"ETag": self._tag}
        if self._tag in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self.body, headers=headers, media_type="application/json")
