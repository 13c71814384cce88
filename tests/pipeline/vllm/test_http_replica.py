"""A server over HTTP: its answers, its failures, its silence."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.sampling.engine import Sample, SamplingSettings
from pipeline.vllm.http_replica import HttpReplica
from pipeline.vllm.replica import EngineError, Group, GroupQueue, ReplicaLost, SamplingRequest

SETTINGS = SamplingSettings(0.5, 0.9, 7, 4, 16)
ASK = SamplingRequest(SETTINGS, [2], 1.0)


Answer = Callable[[str, Any], tuple[int, Any]]


@contextmanager
def server(answer: Answer) -> Iterator[str]:
    """Serve JSON over loopback: `answer` gets path and body, returns status and content."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            body = json.loads(self.rfile.read(length)) if length else None
            status, content = answer(self.path, body)
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

    served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{served.server_port}"
    finally:
        served.shutdown()
        served.server_close()


def asked(url: str, groups: int = 3) -> GroupQueue:
    """Have a replica at a URL sample some groups of two rollouts."""
    replica = HttpReplica(url, None, limit=4, workers=1, seconds=2, sleeps=False)
    queue = GroupQueue([Group(i, [1, 2, i], 10 * i, 2) for i in range(groups)], lambda _: None)
    try:
        replica.start()
        replica.sample(queue, ASK)
    finally:
        replica.close()
    return queue


def normal(path: str, body: Any) -> tuple[int, Any]:
    """Answer as vLLM does, with choices in any order."""
    if path == "/v1/models":
        return 200, {"data": [{"id": "it"}]}
    if path != "/v1/completions":
        return 200, {}
    tokens = [body["prompt"][-1] + 10, 2]
    choices = [
        {
            "index": j,
            "token_ids": [tokens[0] + j, 2],
            "logprobs": {"token_logprobs": [-0.5 - j, -0.25]},
            "finish_reason": "stop",
        }
        for j in reversed(range(body["n"]))
    ]
    return 200, {"choices": choices}


def test_answers_come_back_to_their_group_and_rollout() -> None:
    bodies: list[Any] = []

    def answer(path: str, body: Any) -> tuple[int, Any]:
        bodies.extend([body] if path == "/v1/completions" else [])
        return normal(path, body)

    with server(answer) as url:
        queue = asked(url)
    assert queue.answers == {
        i: [Sample([10 + i + j, 2], [-0.5 - j, -0.25], "stop") for j in range(2)] for i in range(3)
    }
    assert sorted(body["seed"] for body in bodies) == [0, 10, 20]
    assert all(body["model"] == "it" and body["return_token_ids"] for body in bodies)


@pytest.mark.parametrize(
    ("status", "kind", "telling"),
    [
        (503, ReplicaLost, "failed /v1/completions"),
        (400, EngineError, r"refuses .* \(400\): .*oops"),
    ],
)
def test_servers_that_fail(status: int, kind: type[EngineError], telling: str) -> None:
    def answer(path: str, body: Any) -> tuple[int, Any]:
        return (status, "oops") if path == "/v1/completions" else normal(path, body)

    with server(answer) as url, pytest.raises(kind, match=telling):
        asked(url)


def test_a_server_that_says_nothing() -> None:
    def answer(path: str, body: Any) -> tuple[int, Any]:
        time.sleep(3 if path == "/v1/completions" else 0)
        return normal(path, body)

    started = time.monotonic()
    with server(answer) as url, pytest.raises(EngineError, match="within 1 s") as found:
        asked(url, groups=1)
    assert not isinstance(found.value, ReplicaLost)
    assert time.monotonic() - started < 5


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(ReplicaLost, match=r"does not answer /health; start it"):
        asked("http://127.0.0.1:9")
