"""Arguments and environment of vLLM, in this process or as a server."""

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.config.sections import Config
from pipeline.config.vllm import VllmSection
from pipeline.distributed import ranks
from pipeline.errors import ConfigError
from pipeline.policy.policy import Policy
from pipeline.vllm.replica import EngineError

Transfer = Literal["file", "ipc", "nccl"]
FILE_BACKEND = "srpo_file"
_FEWEST_BATCHED_TOKENS = 8192
_OF_RANKS = (
    "RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "WORLD_SIZE", "LOCAL_WORLD_SIZE",
    "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""Variables by which torchrun tells a process its rank."""


class Launch(NamedTuple):
    """What an engine is started with.

    Attributes:
        folder: holds the model's config.json; weights come by transfer only.
        length: tokens of prompt and response that fit.
        rollouts: the most that are sampled at the same time.
        cuda: whether it runs on GPUs.
    """

    folder: Path
    section: VllmSection
    dtype: Literal["float32", "bfloat16"]
    transfer: Transfer
    length: int
    rollouts: int
    cuda: bool

    @property
    def seconds(self) -> float:
        """Return the time limit for an engine to come up."""
        return self.section.start_seconds


def launch_of(config: Config, policy: Policy, folder: Path) -> Launch:
    """Return how an engine for this run's policy is started; writes the model's config.json.

    Raises:
        ConfigError: with several ranks, a colocated engine of several GPUs; or ranks on several
            hosts, and no folder for weights that all hosts share.
        EngineError: prompts and responses are longer than the model's positions.
    """
    section, cuda = config.vllm, policy.device.type == "cuda"
    _expect_fit_for_ranks(section, transfer_of(section, cuda))
    longest = max(config.generate.max_response_length, config.evaluate.max_response_length)
    length = config.data.max_prompt_length + longest
    positions = getattr(policy.model.config, "max_position_embeddings", None)
    if positions is not None:
        length = min(length, int(positions))
    if length <= longest:
        raise EngineError(
            f"{policy.model.name_or_path}: {positions} positions, but responses may have {longest} "
            "tokens; lower generate.max_response_length or evaluate.max_response_length"
        )
    dtype = config.model.precision if section.dtype == "auto" else section.dtype
    folder.mkdir(parents=True, exist_ok=True)
    policy.model.config.save_pretrained(folder)
    return Launch(
        folder=folder,
        section=section,
        dtype=dtype,
        transfer=transfer_of(section, cuda),
        length=length,
        rollouts=max(config.generate.batch_size, config.evaluate.batch_size),
        cuda=cuda,
    )


def expect_installed() -> None:
    """Raise an EngineError unless vLLM is installed; looks without importing it, which is slow."""
    if importlib.util.find_spec("vllm") is None:
        raise EngineError(
            "the engine is vllm, which is not installed; see `srpo doctor`, or set "
            "generate.engine = transformers"
        )


def _expect_fit_for_ranks(section: VllmSection, transfer: Transfer) -> None:
    if ranks.size() > 1 and colocated(section) and section.tensor_parallel > 1:
        raise ConfigError(
            f"vllm.tensor_parallel is {section.tensor_parallel}, but each of {ranks.size()} ranks "
            "has an engine on its own GPU; for engines of several GPUs set vllm.servers"
        )
    if ranks.hosts() > 1 and transfer == "file" and section.sync_folder is None:
        raise ConfigError(
            f"ranks of {ranks.hosts()} hosts write the weights for vLLM into one file; set "
            "vllm.sync_folder to a folder that all of them share"
        )


def transfer_of(section: VllmSection, cuda: bool) -> Transfer:
    """Return how weights travel: as set, or as the devices of both sides suggest."""
    if section.sync != "auto":
        return section.sync
    if not cuda:
        return "file"
    return "ipc" if colocated(section) else "nccl"


def backend_of(transfer: Transfer) -> str:
    """Return the name of a way of transfer in vLLM's registry."""
    return FILE_BACKEND if transfer == "file" else transfer


def engine_arguments(launch: Launch) -> dict[str, Any]:
    """Return vLLM's engine arguments.

    Log-probabilities are those after temperature, top-p and top-k. Chunked prefill is off: a seeded
    request whose prompt is split kills vLLM's CPU engine. Weights start random, so that a weight
    that is never sent shows in the probe.
    """
    section = launch.section
    arguments: dict[str, Any] = {
        "model": str(launch.folder),
        "skip_tokenizer_init": True,
        "load_format": "dummy",
        "generation_config": "vllm",
        "dtype": launch.dtype,
        "max_model_len": launch.length,
        "max_num_seqs": launch.rollouts,
        "max_num_batched_tokens": max(launch.length, _FEWEST_BATCHED_TOKENS),
        "enable_chunked_prefill": False,
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",
        "tensor_parallel_size": section.tensor_parallel,
        "weight_transfer_config": {"backend": backend_of(launch.transfer)},
    }
    if launch.cuda:
        arguments["gpu_memory_utilization"] = section.gpu_memory_utilization
        if sleeps(launch):
            arguments["enable_sleep_mode"] = True
    else:
        arguments |= {"enforce_eager": True, "kv_cache_memory_bytes": section.cpu_cache_gb << 30}
    return arguments


def sleeps(launch: Launch) -> bool:
    """Tell whether the engine shares a GPU with the policy, and so sleeps during updates."""
    return launch.cuda and colocated(launch.section)


def colocated(section: VllmSection) -> bool:
    """Tell whether each rank has an engine of its own, on its device."""
    return not section.servers and not section.urls


def server_options(launch: Launch, address: int | Path) -> list[str]:
    """Return the command line of vLLM's server.

    Args:
        address: a port of 127.0.0.1, or the path of a Unix socket.
    """
    listening = (
        {"uds": address} if isinstance(address, Path) else {"host": "127.0.0.1", "port": address}
    )
    arguments = {
        **engine_arguments(launch),
        "data_parallel_size": launch.section.data_parallel,
        "served_model_name": "policy",
        **listening,
        "disable_uvicorn_access_log": True,
    }
    options: list[str] = []
    for name, value in arguments.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            options.append(flag if value else "--no-" + flag[2:])
        else:
            options += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return options


def environment(launch: Launch, server: bool) -> dict[str, str]:
    """Return the environment variables that vLLM needs beside those that are set."""
    variables = {
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": os.environ.get(
            "VLLM_LOGGING_LEVEL", "WARNING" if server else "ERROR"
        ),
    }
    if server:
        variables["VLLM_SERVER_DEV_MODE"] = "1"
        variables["VLLM_RPC_BASE_PATH"] = str(launch.folder.parent)  # vLLM leaves its sockets there
    if launch.transfer == "ipc":
        variables["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    if not launch.cuda:
        variables |= {
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1" if server else "0",
        }
        if server:
            variables["OMP_NUM_THREADS"] = str(launch.section.threads)
    return variables


def server_environment(launch: Launch, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the whole environment of a server of ours.

    The server is no rank of the trainer's, so torchrun's variables are left out. A colocated one
    sees its rank's GPU alone.
    """
    kept = {k: v for k, v in inherited.items() if not k.startswith("TORCHELASTIC_")}
    kept = {k: v for k, v in kept.items() if k not in _OF_RANKS}
    if sleeps(launch):
        index, visible = inherited["LOCAL_RANK"], inherited.get("CUDA_VISIBLE_DEVICES")
        kept["CUDA_VISIBLE_DEVICES"] = visible.split(",")[int(index)] if visible else index
    return {**kept, **environment(launch, server=True)}
