"""The HTTP app: the routes of /v1 and /v2, /metrics, the page and the API documentation."""

import asyncio

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from serving.api_keys import Keys
from serving.http import v1, v2
from serving.http.error_boundary import ErrorBoundary
from serving.http.page_routes import PAGE, PageRoutes
from serving.http.readiness import ready_classifier
from serving.http.rendered import Rendered
from serving.settings import Settings
from serving.telemetry import metrics


def create_app(settings: Settings, keys: Keys | None = None) -> Starlette:
    """Build the app. Each route's name is its label in the metrics. With `keys`, /v1 and /v2 require an API key.

    The routes answer 503 until `app.state.classifier` holds a Classifier that is ready. Then `app.state.document` must
    hold the rendered document of serving.http.openapi. The app needs RequestRecording around it.
    """
    routes: list[BaseRoute] = [
        v1.routes(keys),
        *v2.routes(keys),
        Route("/metrics", _metrics, name="/metrics"),
        Route("/", _index, name="/", middleware=[Middleware(GZipMiddleware)]),
        Route("/docs", _docs, name="/docs"),
        Route("/docs.json", _docs_json, name="/docs.json"),
        Mount("/page", PageRoutes(settings, keys)),
    ]
    app = Starlette(routes=routes, middleware=[Middleware(ErrorBoundary, settings=settings)])
    app.state.classifier = None
    return app


async def _metrics(_: Request) -> Response:
    # In a thread, because it reads the files of every worker.
    text = await asyncio.to_thread(metrics.exposition)
    return Response(text, headers={"Content-Type": metrics.CONTENT_TYPE})


async def _index(_: Request) -> Response:
    return FileResponse(PAGE / "index.html")


async def _docs(_: Request) -> Response:
    return FileResponse(PAGE / "docs.html")


async def _docs_json(request: Request) -> Response:
    ready_classifier(request)
    document: Rendered = request.app.state.document
    return document.answer(request)
