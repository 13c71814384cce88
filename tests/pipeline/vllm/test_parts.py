"""The engine's parts that need no vLLM: what is asked, what is refused, how processes end."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest
import torch
from safetensors.torch import load_file

from pipeline.config.load import load_config
from pipeline.errors import ConfigError, PolicyError
from pipeline.sampling.engine import Sample, SamplingSettings
from pipeline.vllm import vllm_engine
from pipeline.vllm.host import Ask, EngineError, Group, HostLost, Work, checked_sample
from pipeline.vllm.http_host import RemoteHost
from pipeline.vllm.launch import environment, launch_of, server_options, transfer_of
from pipeline.vllm.probe import probe_groups
from pipeline.vllm.threads import outcomes, side_by_side
from pipeline.vllm.weights import Fan, FileSender, named_weights
from tests.conftest import OpenPolicy

SETTINGS = SamplingSettings(0.5, 0.9, 7, 4, 16)
ASK = Ask(SETTINGS, [2], 1.0)
GROUP = Group(3, [5, 6], 100, 2)


def test_what_is_asked_of_vllm() -> None:
    assert ASK.parameters(GROUP) == {
        "n": 2,
        "seed": 100,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "max_tokens": 4,
        "stop_token_ids": [2],
        "ignore_eos": True,
        "logprobs": 0,
    }


@pytest.mark.parametrize(
    ("ids", "logprobs", "reason", "telling"),
    [
        ([5, 6], [-1.0], "length", "2 tokens with 1 log-probabilities"),
        ([5, 6], [-1.0, None], "stop", "2 tokens with 1 log-probabilities"),
        ([], [], "stop", "0 tokens"),
        ([5, 6], [-1.0, -2.0], "length", "by 'length'"),
        ([5, 6], [-1.0, -2.0], "stop", "last token 6"),
        ([5, 2], [-1.0, -2.0], "abort", "by 'abort'"),
        ([5, 2], [-1.0, -2.0], None, "by None"),
    ],
)
def test_answers_that_are_refused(
    ids: list[int], logprobs: list[float | None], reason: str | None, telling: str
) -> None:
    with pytest.raises(EngineError, match=telling):
        checked_sample(ids, logprobs, reason, ASK)


def test_answers_that_are_taken() -> None:
    assert checked_sample([5, 2], [-1.0, -2.0], "stop", ASK) == Sample([5, 2], [-1.0, -2.0], "stop")
    cut = checked_sample([5, 6, 7, 8], [-1.0] * 4, "length", ASK)
    assert cut == Sample([5, 6, 7, 8], [-1.0] * 4, "length")


def test_seeds_of_a_group_must_be_in_a_row() -> None:
    assert vllm_engine._groups([[1], [2]], [[7, 8], [20]]) == [
        Group(0, [1], 7, 2),
        Group(1, [2], 20, 1),
    ]
    with pytest.raises(PolicyError, match=r"seeds of group 1 are \[3, 5\]"):
        vllm_engine._groups([[1], [2]], [[7, 8], [3, 5]])


def test_every_name_of_a_tied_weight_is_sent(tiny_policy: OpenPolicy) -> None:
    model = tiny_policy().model
    sent = dict(named_weights(model, torch.bfloat16))
    assert sent["lm_head.weight"].equal(sent["model.embed_tokens.weight"])
    assert set(sent) == {name for name, _ in model.named_parameters()} | {"lm_head.weight"}
    assert {weight.dtype for weight in sent.values()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in sent.values())


def test_weights_by_file_are_those_of_the_policy(tiny_policy: OpenPolicy, tmp_path: Path) -> None:
    model, host = tiny_policy().model, Mock()
    expected = dict(named_weights(model, torch.bfloat16))

    def load(sent: dict[str, Any]) -> None:
        assert sent == {"path": str(tmp_path / "weights.safetensors"), "tensors": len(expected)}
        found = load_file(sent["path"])
        assert found.keys() == expected.keys()
        assert all(found[name].equal(weight) for name, weight in expected.items())

    host.update_weights.side_effect = load
    (tmp_path / "weights.safetensors").touch()  # of a run that was killed
    for version in ("first", "second"):
        FileSender(tmp_path, torch.bfloat16).send([host], model, version, anew=False)
    assert host.update_weights.call_count == 2
    host.finish_weight_update.assert_called_with("second")
    assert not list(tmp_path.iterdir())


def test_how_vllm_is_started(tiny_policy: OpenPolicy, tmp_path: Path) -> None:
    config = load_config("demo", ["vllm.servers=1", "vllm.cpu_cache_gb=2", "vllm.threads=3"])
    launch = launch_of(config, tiny_policy(), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "qwen3"
    options = server_options(launch, 1234)
    said = dict(itertools.pairwise(options))
    assert said["--max-model-len"] == "224"  # prompts of 128, responses of 96
    assert said["--logprobs-mode"] == "processed_logprobs"
    assert said["--kv-cache-memory-bytes"] == str(2 * 2**30)
    assert json.loads(said["--weight-transfer-config"]) == {"backend": "srpo_file"}
    assert said["--load-format"] == "dummy"
    assert said["--host"] == "127.0.0.1"
    assert "--no-enable-chunked-prefill" in options
    assert environment(launch, server=True)["VLLM_RPC_BASE_PATH"] == str(tmp_path)
    assert environment(launch, server=True)["OMP_NUM_THREADS"] == "3"
    assert environment(launch, server=False)["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


def test_responses_must_fit_the_models_positions(tiny_policy: OpenPolicy, tmp_path: Path) -> None:
    config = load_config("demo", ["generate.max_response_length=2048"])
    with pytest.raises(EngineError, match="2048 positions, but responses may have 2048"):
        launch_of(config, tiny_policy(), tmp_path)


@pytest.mark.parametrize(
    ("settings", "cuda", "way"),
    [
        ([], False, "file"),
        ([], True, "ipc"),
        (["vllm.servers=2"], True, "nccl"),
        (['vllm.urls=["http://a:1"]'], True, "nccl"),
        (["vllm.sync=file"], True, "file"),
    ],
)
def test_the_way_of_weights(settings: list[str], cuda: bool, way: str) -> None:
    assert transfer_of(load_config("demo", settings).vllm, cuda) == way


@pytest.mark.parametrize(
    ("settings", "telling"),
    [
        (["vllm.servers=1", 'vllm.urls=["http://a:1"]'], "vllm.servers starts some"),
        (["vllm.servers=1", "vllm.sync=ipc"], "use nccl"),
        (["vllm.data_parallel=2"], "vllm.servers = 1"),
    ],
)
def test_settings_that_contradict_each_other(settings: list[str], telling: str) -> None:
    with pytest.raises(ConfigError, match=telling):
        load_config("demo", settings)


def test_evaluations_use_the_engine_of_training_unless_told_otherwise() -> None:
    assert load_config("demo").evaluate.engine == "transformers"
    assert load_config("demo", ["generate.engine=vllm"]).evaluate.engine == "vllm"
    both = ["generate.engine=vllm", "evaluate.engine=transformers"]
    assert load_config("demo", both).evaluate.engine == "transformers"


def test_probe_prompts_are_the_same_and_differ_from_their_start() -> None:
    groups = probe_groups(148, 224)
    assert groups == probe_groups(148, 224)
    assert [len(g.prompt_ids) for g in groups] == [216] * 4
    assert len({tuple(g.prompt_ids[:8]) for g in groups}) == 4
    assert all(0 <= i < 148 for g in groups for i in g.prompt_ids)


def test_ranks_follow_host_after_host() -> None:
    class Listener:
        def __init__(self, workers: int) -> None:
            self.workers, self.info = workers, {}

        def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
            self.info = info

    hosts = [Listener(2), Listener(1), Listener(3)]
    Fan(hosts, "v").init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})  # type: ignore[arg-type]
    assert [host.info["rank_offset"] for host in hosts] == [1, 3, 4]
    assert {host.info["world_size"] for host in hosts} == {7}


def test_calls_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=5)
    side_by_side([lambda: [None for _ in [meeting.wait()]] and None] * 3)

    def fail() -> None:
        raise ValueError("second")

    found = outcomes([lambda: None, fail, fail])
    assert [str(error) for error in found] == ["None", "second", "second"]
    with pytest.raises(ValueError, match="second"):
        side_by_side([lambda: None, fail])


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


def asked(url: str, groups: int = 3) -> Work:
    """Have a host at a URL work off some groups of two rollouts."""
    host = RemoteHost(url, None, limit=4, workers=1, seconds=2, sleeps=False)
    work = Work([Group(i, [1, 2, i], 10 * i, 2) for i in range(groups)], lambda _: None)
    try:
        host.start()
        host.sample(work, ASK)
    finally:
        host.close()
    return work


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
        work = asked(url)
    assert work.answers == {
        i: [Sample([10 + i + j, 2], [-0.5 - j, -0.25], "stop") for j in range(2)] for i in range(3)
    }
    assert sorted(body["seed"] for body in bodies) == [0, 10, 20]
    assert all(body["model"] == "it" and body["return_token_ids"] for body in bodies)


@pytest.mark.parametrize(
    ("status", "kind", "telling"),
    [(503, HostLost, "failed /v1/completions"), (400, EngineError, r"refuses .* \(400\): .*oops")],
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
    assert not isinstance(found.value, HostLost)
    assert time.monotonic() - started < 5


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(HostLost, match=r"does not answer /health; start it"):
        asked("http://127.0.0.1:9")


SCRIPT = "import subprocess, sys, time; p = subprocess.Popen(['sleep', '100']); time.sleep(100)"


def guarded() -> tuple["subprocess.Popen[bytes]", list[int]]:
    """Start a guard over a process with a child, and return both processes' ids."""
    guard = subprocess.Popen(
        [sys.executable, "-m", "pipeline.vllm.process_guard", sys.executable, "-c", SCRIPT],
        stdin=subprocess.PIPE,
    )
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        below = psutil.Process(guard.pid).children(recursive=True)
        if len(below) == 2:
            return guard, [p.pid for p in below]
        time.sleep(0.05)
    raise AssertionError("the guard started nothing")


def gone(ids: list[int], seconds: float = 15) -> bool:
    """Wait until none of the processes lives."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if not any(psutil.pid_exists(i) and psutil.Process(i).status() != "zombie" for i in ids):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_a_guard_ends_everything_when_its_input_closes() -> None:
    guard, below = guarded()
    assert guard.stdin is not None
    guard.stdin.close()
    assert gone(below)
    guard.wait(10)


@pytest.mark.slow
def test_a_guard_ends_children_of_a_process_that_died() -> None:
    guard, below = guarded()
    os.kill(below[0], signal.SIGKILL)
    assert gone(below)
    guard.wait(10)
