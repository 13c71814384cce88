"""How vLLM is started, and how weights will go to it."""

import itertools
import json
from pathlib import Path

import pytest

from pipeline.config.load import load_config
from pipeline.vllm.launch import environment, launch_of, server_options, transfer_of
from pipeline.vllm.replica import EngineError
from tests.conftest import OpenPolicy


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
