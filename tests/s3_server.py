"""A local S3 server (moto's), and the trouble that a network makes: answers that fail, by seed.

500     the request is refused; nothing was done
lost    the request is done, and then answered by 500
reset   the connection is closed without an answer; nothing was done
hang    no answer for `HANG_SECONDS`; nothing was done
"""

import logging
import random
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

HANG_SECONDS = 3.0
FAULTS = ("500", "lost", "reset", "hang")
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass
class Server:
    """A server, and what it does to requests.

    Attributes:
        share: of the requests that fail; 0: none.
        requests: method and path of each.
        failed: what was done to those that failed.
    """

    share: float = 0.0
    faults: tuple[str, ...] = FAULTS
    requests: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    url: str = ""
    _random: random.Random = field(default_factory=lambda: random.Random(0))
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def make_bucket(self, name: str) -> str:
        """Make an empty bucket and return its URL."""
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        urllib.request.urlopen(request).close()
        return f"s3://{name}"

    def application(self, real: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """Return the server's application, with trouble before it."""

        def call(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            fault = self._fault(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
            if fault is None:
                return real(environ, start)
            if fault == "lost":
                list(real(environ, lambda *_: lambda _: None))
            else:  # read what the client sends, before it is answered
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            if fault == "hang":
                time.sleep(HANG_SECONDS)
            if fault == "reset":
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
                raise ConnectionResetError
            start("500 Internal Server Error", [("Content-Length", "0")])
            return []

        return call

    def _fault(self, request: str) -> str | None:
        with self._guard:
            self.requests.append(request)
            if self._random.random() >= self.share:
                return None
            self.failed.append(self._random.choice(self.faults))
            return self.failed[-1]


@contextmanager
def serving() -> Iterator[Server]:
    """Serve on a free port of this machine for a block."""
    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = Server()
    real = DomainDispatcherApplication(create_backend_app)
    http = make_server("127.0.0.1", 0, server.application(real), threaded=True)
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
