"""Engines that share a device with the policy: where they run, and in which order they sleep."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import Any
from unittest.mock import Mock, call

import pytest

from pipeline.config.load import load_config
from pipeline.distributed import ranks
from pipeline.errors import ConfigError
from pipeline.policy.policy import Policy
from pipeline.sampling.engine import SamplingSettings
from pipeline.vllm import rank_sampler
from pipeline.vllm.http_replica import HttpReplica
from pipeline.vllm.in_process_replica import InProcessReplica
from pipeline.vllm.launch import Launch, launch_of, server_environment, server_options
from pipeline.vllm.probe import Probe
from pipeline.vllm.rank_sampler import RankSampler
from pipeline.vllm.replica import EngineError, Group, Replica, SamplingRequest
from pipeline.vllm.server_process import ServerProcess
from tests.conftest import OpenPolicy

ASK = SamplingRequest(SamplingSettings(1.0, 1.0, 0, 4, 16), [2], 5.0)


def launched(policy: Policy, folder: Path, *settings: str, cuda: bool = False) -> Launch:
    """Return a launch; with `cuda` as on a GPU, but weights go by a file."""
    return launch_of(load_config("demo", settings), policy, folder)._replace(cuda=cuda)


@pytest.mark.parametrize(
    ("hosts", "settings", "telling"),
    [
        (1, ["vllm.tensor_parallel=2"], r"is 2, but each of 2 ranks .* set vllm\.servers"),
        (2, [], r"ranks of 2 hosts .* set vllm\.sync_folder"),
        (2, ["vllm.servers=2"], r"ranks of 2 hosts .* set vllm\.sync_folder"),
    ],
)
def test_what_several_ranks_can_not_have(
    hosts: int,
    settings: list[str],
    telling: str,
    tiny_policy: OpenPolicy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = tiny_policy()
    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks, "hosts", lambda: hosts)
    with pytest.raises(ConfigError, match=telling):
        launched(policy, tmp_path, *settings)
    launched(policy, tmp_path, "vllm.sync_folder=/shared")


OF_RANK_1 = {"LOCAL_RANK": "1", "RANK": "5", "MASTER_PORT": "9", "TORCHELASTIC_RUN_ID": "x"}


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        ({}, "1"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-b"}, "GPU-b"),
        ({"CUDA_VISIBLE_DEVICES": "3,2"}, "2"),
    ],
)
def test_a_colocated_engine_sees_its_gpu_alone(
    visible: dict[str, str], seen: str, tiny_policy: OpenPolicy, tmp_path: Path
) -> None:
    inherited = {**OF_RANK_1, **visible, "PATH": "/bin"}
    found = server_environment(launched(tiny_policy(), tmp_path, cuda=True), inherited)
    assert found["CUDA_VISIBLE_DEVICES"] == seen
    assert found["PATH"] == "/bin"
    assert not found.keys() & OF_RANK_1.keys()


def test_servers_and_cpus_see_what_the_run_sees(tiny_policy: OpenPolicy, tmp_path: Path) -> None:
    inherited = {**OF_RANK_1, "CUDA_VISIBLE_DEVICES": "3,2"}
    for launch in (
        launched(tiny_policy(), tmp_path),
        launched(tiny_policy(), tmp_path, "vllm.servers=1", cuda=True),
    ):
        assert server_environment(launch, inherited)["CUDA_VISIBLE_DEVICES"] == "3,2"


def test_a_colocated_engine_listens_at_a_socket(tiny_policy: OpenPolicy, tmp_path: Path) -> None:
    options = server_options(launched(tiny_policy(), tmp_path), tmp_path / "vllm.sock")
    assert options[options.index("--uds") + 1] == str(tmp_path / "vllm.sock")
    assert not {"--port", "--host"} & set(options)


class Sender:
    """A way for weights that does no more than vLLM's calls."""

    def send(self, replicas: list[Replica], model: Any, version: str, restarted: bool) -> None:
        for replica in replicas:
            replica.update_weights({})
            replica.finish_weight_update(version)


@contextmanager
def sampling_with(
    replica: Replica, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], object]]:
    """Yield a call that samples no groups with one replica, whose probe always succeeds."""
    monkeypatch.setattr(rank_sampler, "_make_replicas", lambda launch, folder: [replica])
    monkeypatch.setattr(rank_sampler, "_make_sender", lambda launch, folder: Sender())
    monkeypatch.setattr(rank_sampler, "run_probe", lambda *_: Probe("it", []))
    monkeypatch.setattr(rank_sampler, "largest_gap", lambda *_: 0.0)
    sampler = RankSampler(load_config("demo"), policy)
    groups: list[Group] = []
    yield lambda: sampler.sample(policy, groups, ASK, lambda done, total: None)
    sampler.close()


def test_an_engine_sleeps_after_it_sampled_and_wakes_in_two_steps(
    tiny_policy: OpenPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, llm = tiny_policy(), Mock()
    llm.llm_engine.has_unfinished_requests.return_value = False
    replica = InProcessReplica(launched(policy, tmp_path, cuda=True))
    replica._llm = llm
    sent = [
        call.update_weights({"update_info": {}}),
        call.finish_weight_update(policy.version),
    ]
    sampled = [call.llm_engine.has_unfinished_requests(), call.sleep(level=2)]
    with sampling_with(replica, policy, monkeypatch) as sample:
        sample()
        assert llm.mock_calls == [*sent, call.reset_prefix_cache(), *sampled]
        llm.reset_mock()
        sample()
        assert llm.mock_calls == [
            call.wake_up(tags=["weights"]),
            *sent,
            call.wake_up(tags=["kv_cache"]),
            call.reset_prefix_cache(),
            *sampled,
        ]


def test_an_engine_on_a_cpu_keeps_its_weights(
    tiny_policy: OpenPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, llm = tiny_policy(), Mock()
    llm.llm_engine.has_unfinished_requests.return_value = False
    replica = InProcessReplica(launched(policy, tmp_path))
    replica._llm = llm
    with sampling_with(replica, policy, monkeypatch) as sample:
        sample()
        llm.reset_mock()
        sample()
    assert [c[0] for c in llm.mock_calls[:2]] == [
        "llm_engine.has_unfinished_requests",
        "llm_engine.engine_core.shutdown",
    ]


@contextmanager
def listening(socket: Path) -> Iterator[list[str]]:
    """Answer like vLLM at a socket; yield the requests that came, with the weights' name."""
    asked: list[str] = []
    version: list[str | None] = [None]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            asked.append(self.path)
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "{}")
            if self.path == "/finish_weight_update":
                version[0] = body["weight_version"]
            data = json.dumps(
                {"data": [{"id": "it"}], "success": True, "weight_version": version[0]}
            ).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments: object) -> None:
            pass

        def address_string(self) -> str:
            return "somebody"

    with ThreadingUnixStreamServer(str(socket), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield asked
        served.shutdown()


def test_a_colocated_server_sleeps_and_wakes_in_the_same_order(
    tiny_policy: OpenPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, socket = tiny_policy(), tmp_path / "it.sock"
    process = ServerProcess(launched(policy, tmp_path, cuda=True), tmp_path / "log", socket)
    monkeypatch.setattr(process, "start", lambda: False)
    monkeypatch.setattr(process, "_process", Mock(poll=lambda: None))
    replica = HttpReplica(None, process, limit=16, workers=1, seconds=5, sleeps=True)
    assert replica.label == "vLLM of rank 0"
    with listening(socket) as asked, sampling_with(replica, policy, monkeypatch) as sample:
        sample()
        del asked[:]
        sample()
    assert [path for path in asked if path not in ("/health", "/v1/models", "/weight_info")] == [
        "/wake_up?tags=weights",
        "/update_weights",
        "/finish_weight_update",
        "/wake_up?tags=kv_cache",
        "/reset_prefix_cache",
        "/sleep?level=2",
    ]


def test_what_is_not_installed_is_said_in_one_line(
    tiny_policy: OpenPolicy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = launched(tiny_policy(), tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for start in (InProcessReplica(launch).start, ServerProcess(launch, tmp_path / "log").start):
        with pytest.raises(EngineError, match="the engine is vllm, which is not installed"):
            start()
