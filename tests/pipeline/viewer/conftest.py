"""Pages for tests: a run served in a thread on 127.0.0.1, and headless Chromium to open it.

browser     Chromium by playwright; skips where there is none
serve       serve(runs) -> address; the server ends with the test
watched     watched(…) -> a page that records console errors and requests to other hosts
"""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from flows.reruns.replay import Plan, replay
from flows.session.session import Session
from pipeline.config.load import load_config
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES
from pipeline.viewer.app import create_app

Serve = Callable[[Sequence[Run]], str]
STEPS = 7
SETTINGS = [
    f"run.steps={STEPS}",
    "run.threads=1",
    "run.snapshot_every=7",
    "generate.questions=4",
    "generate.rollouts=4",
    "evaluate.every=3",
    "evaluate.questions=8",
    "evaluate.rollouts=2",
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a short demo run; never write to it."""
    root = tmp_path_factory.mktemp("runs") / "demo"
    session = Session.create(root, load_config("demo", SETTINGS))
    session.run_stage("evaluate", 0)
    for step in range(STEPS):
        for name in STEP_STAGES:
            session.run_stage(name, step)
        session.finish_step(step)
        if session.evaluation_due(step + 1):
            session.run_stage("evaluate", step + 1)
    session.close()
    return Run.open(root)


@pytest.fixture(scope="session")
def fork(trained: Run) -> Run:
    """Return a fork of it that weighs with another beta; never write to it."""
    root = trained.root.parent / "sharper"
    replay(trained, root, Plan.of(trained, "weigh", "weigh", None), ["weigh.beta=3"]).close()
    return Run.open(root)


class Watched:
    """A page, and what it should not have done."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("console", self._said)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.errors.append(message.text)

    def outside(self, *allowed: str) -> list[str]:
        """Return the requests that went anywhere but to addresses beginning so."""
        return [url for url in self.requests if not url.startswith((*allowed, "data:", "blob:"))]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Return headless Chromium."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium or google-chrome on the PATH: make browser installs one")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def watched(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Return a factory of fresh pages; arguments are those of playwright's new_context."""
    contexts = []

    def opened(**settings: Any) -> Watched:
        context = browser.new_context(**settings)
        contexts.append(context)
        return Watched(context.new_page())

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that serves runs and returns the address, without a slash at its end."""
    servers: list[tuple[uvicorn.Server, threading.Thread]] = []

    def started(runs: Sequence[Run]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(create_app(runs), log_level="warning")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        servers.append((server, thread))
        while not server.started:
            time.sleep(0.01)
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield started
    for server, thread in servers:
        server.should_exit = True
        thread.join(timeout=10)
