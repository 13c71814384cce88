"""The server of the pages: read-only, on this machine only, with nothing from outside.

Rollout texts are untrusted. Templates escape everything; the headers below keep a page from running
or fetching anything that is not a file of ours, and other sites from reading or framing a page.
"""

import time
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import SrpoError
from pipeline.remote.mirror_sync import refresh
from pipeline.run.run import Run
from pipeline.viewer.page import (
    PLOTLY,
    POLICY,
    STATIC,
    Kind,
    Missing,
    Page,
    ReopenedRuns,
    Runs,
    runs_by_name,
)
from pipeline.viewer.page_registry import KINDS
from pipeline.viewer.rollout_page import KEPT, kept_at
from pipeline.viewer.run_state import state_of

HOSTS = ["127.0.0.1", "localhost"]
"""Names under which the server answers: a page elsewhere can't reach it by rebinding its own."""

FOLLOW_SECONDS = 10.0
"""How often an object store is asked for what is new, while somebody looks at a page."""

HEADERS = {
    "Content-Security-Policy": "; ".join([*POLICY, "frame-ancestors 'none'"]),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def create_app(runs: Sequence[Run]) -> FastAPI:
    """Return the application that shows these runs; it only ever reads them."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    shown = ReopenedRuns(runs_by_name(runs))
    for kind in KINDS:
        _add(app, kind, shown)
    following = _Following(runs)
    app.add_route("/state.json", lambda _: JSONResponse(following.states(shown)))
    app.add_route(KEPT, lambda asked: JSONResponse(kept_at(shown, **asked.path_params)))
    app.add_route("/static/plotly.min.js", lambda _: FileResponse(PLOTLY))
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_exception_handler(404, _not_found)
    app.add_exception_handler(Missing, _not_found)
    app.add_exception_handler(SrpoError, _broken)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)
    app.add_middleware(_Headers)
    return app


def _add(app: FastAPI, kind: Kind, runs: Runs) -> None:
    count = kind.address.count("{}")
    names = [f"parameter_{index}" for index in range(count)]
    path = kind.address.format(*(f"{{{name}}}" for name in names))

    def show(request: Request) -> Response:
        return HTMLResponse(kind.html(runs, *(request.path_params[name] for name in names)))

    app.add_route(path, show)


class _Following:
    """Says how far the runs are; of those at URLs, as the store had it `FOLLOW_SECONDS` ago."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self._roots = {run.root for run in runs}
        self._asked = time.monotonic()

    def states(self, runs: Runs) -> dict[str, Any]:
        if time.monotonic() - self._asked > FOLLOW_SECONDS:
            self._asked = time.monotonic()
            for root in self._roots:
                refresh(root)
        return {name: state_of(run) for name, run in runs.items()}


def _not_found(request: Request, error: Exception) -> Response:
    text = str(error) if isinstance(error, Missing) else f"nothing at {request.url.path}"
    return _problem(request, 404, "Not here", text)


def _broken(request: Request, error: Exception) -> Response:
    return _problem(request, 500, "This can't be shown", str(error))


def _problem(request: Request, status: int, title: str, text: str) -> Response:
    page = Page(request.url.path)
    return HTMLResponse(page.render("problem.html", title=title, text=text), status_code=status)


class _Headers:
    """Adds the security headers to every answer, refusals included."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)
