"""The web page: its files, its words in the reader's language, and the facts about this service that it needs.

None of this is an API.
"""

import re
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from serving.api_keys import Keys
from serving.http.require_api_key import require_api_key
from serving.settings import Settings

PAGE: Final = Path(__file__).with_name("page")

_SAMPLES: Final = PAGE / "samples"
"""Drawn pictures, which show no patient. docs/samples.py writes them."""
_SUFFIXES: Final = frozenset({".png", ".jpg", ".jpeg", ".dcm"})
_MOST_SAMPLES: Final = 50
"""Most pictures of CHESTCT_SAMPLES that the page offers."""
TEXTS: Final = PAGE / "text"
"""The page's words. Each language has a file here, named by its code."""
_ENGLISH: Final = "en"
_LONGEST_PATH: Final = 256
"""Most characters of a path below /page. StaticFiles looks up each folder in it, 15,000 in the longest one."""


class PageRoutes:
    """The ASGI app below /page. Pictures of CHESTCT_SAMPLES may show patients, so they require a key, as /v1 does.

    Their file names may be patients' names, and the list of samples needs no key. So the pictures have numbers. An app
    instead of a list of routes, because these are no part of the API and its description.
    """

    def __init__(self, settings: Settings, keys: Keys | None) -> None:
        self._settings = settings
        self._own = StaticFiles(directory=settings.samples) if settings.samples else None
        own = require_api_key([Route("/own/{name}", self._own_sample, name="/page/own")], keys, "v1")
        self._words = StaticFiles(directory=TEXTS)
        self._languages = frozenset(file.stem for file in TEXTS.glob("*.js"))
        files = [Route("/text.js", self._text, name="/page/text.js"), Mount("/", StaticFiles(directory=PAGE))]
        service = Route("/service.json", self._service, name="/page/service.json")
        self._router = Router([service, *own, Mount("/", GZipMiddleware(Router(files)))])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = len(scope["path"]) <= _LONGEST_PATH
        await (self._router if found else Response(status_code=HTTPStatus.NOT_FOUND))(scope, receive, send)

    async def _service(self, _: Request) -> Response:
        settings = self._settings
        samples: list[dict[str, Any]] = [
            {"name": file.name, "url": f"page/samples/{file.name}", "synthetic": True} for file in _pictures(_SAMPLES)
        ]
        own = self._numbered()
        samples += [{"name": f"Picture {name}", "url": f"page/own/{name}", "synthetic": False} for name in own]
        return JSONResponse(
            {
                "max_body_bytes": settings.max_body_bytes,
                "grpc_port": settings.grpc_port,
                "grpc_tls": settings.grpc_certificate is not None,
                "samples": samples,
            }
        )

    async def _text(self, request: Request) -> Response:
        wanted = _languages(request.headers.get("Accept-Language", ""))
        language = next((one for one in wanted if one in self._languages), _ENGLISH)
        response = await self._words.get_response(f"{language}.js", request.scope)
        response.headers.update({"Content-Language": language, "Vary": "Accept-Language"})
        return response

    def _numbered(self) -> dict[str, Path]:
        own = _pictures(self._settings.samples) if self._settings.samples else []
        return {f"{number}{file.suffix.lower()}": file for number, file in enumerate(own[:_MOST_SAMPLES], start=1)}

    async def _own_sample(self, request: Request) -> Response:
        file = self._numbered().get(request.path_params["name"])
        if self._own is None or file is None:
            return Response(status_code=HTTPStatus.NOT_FOUND)
        return await self._own.get_response(file.name, request.scope)


def _languages(header: str) -> list[str]:
    """Codes of the languages in an Accept-Language header, in its order: browsers send the preferred one first."""
    return re.findall(r"(?:^|,)\s*([a-z]{2,3})\b", header.lower())


def _pictures(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in _SUFFIXES and file.is_file())
