"""vLLM behind HTTP: a server of ours, or one whose URL is given."""

import math
from collections.abc import Mapping
from typing import Any

import httpx

from pipeline.sampling.engine import Sample
from pipeline.vllm.concurrency import errors_of
from pipeline.vllm.replica import (
    EngineError,
    Group,
    GroupQueue,
    ReplicaLost,
    SamplingRequest,
    checked_sample,
)
from pipeline.vllm.server_process import ServerProcess

_CONNECT_SECONDS = 10.0
_MOST_CONNECTIONS = 64
_SHOWN = 300


class HttpReplica:
    """A replica behind HTTP: a server of ours, or one whose URL is given.

    Args:
        url: of a server that runs already; None: `process` knows it.
        process: a server of ours, which is started and ended here; None: somebody else's.
        limit: rollouts that the server samples at the same time; decides the open requests.
        workers: of its processes or GPUs, those that hold weights.
        seconds: time limit for every request but samples.
        sleeps: whether the server shares its GPU with the policy.
    """

    def __init__(
        self,
        url: str | None,
        process: ServerProcess | None,
        limit: int,
        workers: int,
        seconds: float,
        sleeps: bool,
    ) -> None:
        self._url, self._process = url, process
        self._limit, self._seconds = limit, seconds
        self.workers = workers
        self._model = ""
        self._known, self._failed = False, False
        self._sleeps, self._asleep = sleeps, False
        socket = process.socket if process is not None else None
        self._client = httpx.Client(
            transport=httpx.HTTPTransport(
                uds=str(socket) if socket else None,
                limits=httpx.Limits(max_connections=_MOST_CONNECTIONS),
            ),
            trust_env=False,
        )

    @property
    def label(self) -> str:
        """Return the server's name for messages."""
        return f"vLLM at {self.url}" if self._process is None else self._process.label

    @property
    def url(self) -> str:
        """Return the server's address."""
        if self._url is not None:
            return self._url.rstrip("/")
        assert self._process is not None
        return self._process.url

    def start(self) -> bool:
        """See `Replica.start`; a server of ours that ended, or failed, is started again."""
        fresh = not self._known
        if self._process is not None:
            if self._known and (self._failed or not self._healthy()):
                self._process.end()
            fresh = self._process.start() or fresh
            self._process.wait(self._healthy)
        elif not self._healthy():
            raise ReplicaLost(
                f"{self.label} does not answer /health; start it, or change vllm.urls"
            )
        self._model = self._get("/v1/models")["data"][0]["id"]
        self._known, self._failed = True, False
        self._asleep = self._asleep and not fresh
        return fresh

    def sample(self, queue: GroupQueue, request: SamplingRequest) -> None:
        """Keep as many requests open as the server can take (see `Replica.sample`)."""

        def sample_until_empty() -> None:
            while (group := queue.take()) is not None:
                queue.give(group, self._complete(group, request))

        first = queue.peek()
        if first is None:
            return
        open_at_once = min(math.ceil(self._limit / first.rollouts), _MOST_CONNECTIONS)
        errors = [e for e in errors_of([sample_until_empty] * open_at_once) if e is not None]
        for error in errors:
            if not isinstance(error, ReplicaLost):
                raise error
        if errors:
            raise errors[0]

    def _complete(self, group: Group, request: SamplingRequest) -> list[Sample]:
        body = {
            "model": self._model,
            "prompt": list(group.prompt_ids),
            "add_special_tokens": False,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            **request.parameters(group),
        }
        found = self._post("/v1/completions", body, request.timeout)
        choices = sorted(found["choices"], key=lambda choice: choice["index"])
        return [
            checked_sample(
                choice["token_ids"],
                choice["logprobs"]["token_logprobs"],
                choice["finish_reason"],
                request,
            )
            for choice in choices
        ]

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """See `WeightClient`."""
        self._post("/init_weight_transfer_engine", {"init_info": dict(init_info)})

    def start_weight_update(self) -> None:
        """See `WeightClient`."""
        self._post("/start_weight_update")

    def update_weights(self, update_info: Any) -> None:
        """See `WeightClient`."""
        self._post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See `WeightClient`."""
        self._post("/finish_weight_update", {"weight_version": weight_version})

    def weight_version(self) -> str | None:
        """See `Replica.weight_version`; a sleeping server still names weights that are gone."""
        if self._asleep:
            return None
        found = self._get("/weight_info")["weight_version"]
        return None if found is None else str(found)

    def reset_prefix_cache(self) -> None:
        """See `Replica.reset_prefix_cache`."""
        if not self._post("/reset_prefix_cache")["success"]:
            raise EngineError(f"{self.label} could not reset its prefix cache; requests are open")

    def sleep(self) -> None:
        """See `Replica.sleep`."""
        if self._sleeps:
            self._post("/sleep?level=2")
            self._asleep = True

    def wake(self) -> None:
        """See `Replica.wake`."""
        if self._asleep:
            self._post("/wake_up?tags=weights")

    def wake_cache(self) -> None:
        """See `Replica.wake_cache`."""
        if self._asleep:
            self._post("/wake_up?tags=kv_cache")
            self._asleep = False

    def close(self) -> None:
        """End the server, if it is ours."""
        self._client.close()
        if self._process is not None:
            self._process.end()

    def _healthy(self) -> bool:
        try:
            return self._client.get(f"{self.url}/health", timeout=_CONNECT_SECONDS).is_success
        except httpx.HTTPError:
            return False

    def _get(self, path: str) -> Any:
        return self._answer("GET", path, None, self._seconds)

    def _post(self, path: str, body: Any = None, seconds: float | None = None) -> Any:
        return self._answer("POST", path, body, seconds or self._seconds)

    def _answer(self, method: str, path: str, body: Any, seconds: float) -> Any:
        """Return the JSON answer to a request; errors name the server and quote its log."""
        log = f"; its log ends: {self._process.log_tail()}" if self._process else ""
        timeout = httpx.Timeout(seconds, connect=_CONNECT_SECONDS, pool=None)
        try:
            answer = self._client.request(method, self.url + path, json=body, timeout=timeout)
        except httpx.ReadTimeout:
            raise EngineError(
                f"{self.label} gave no answer to {path} within {seconds:g} s (generate.timeout "
                f"for samples, vllm.start_seconds for all else){log}"
            ) from None
        except httpx.TransportError as error:
            raise ReplicaLost(
                f"{self.label} is gone ({type(error).__name__}: {error}){log}"
            ) from None
        if answer.status_code >= 500:
            self._failed = True
            raise ReplicaLost(f"{self.label} failed {path}: {answer.text[:_SHOWN]}{log}")
        if not answer.is_success:
            raise EngineError(
                f"{self.label} refuses {path} ({answer.status_code}): {answer.text[:_SHOWN]}"
            )
        return answer.json() if answer.content else None
