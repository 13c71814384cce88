"""The section `vllm` of the configuration."""

from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from pipeline.config.field_types import PositiveInt, Seconds, Section, Workers


class VllmSection(Section):
    """How vLLM runs, where it is the engine; nothing here decides what is sampled."""

    servers: int = Field(
        0,
        ge=0,
        le=1024,
        description="servers to start on this machine; 0: an engine beside the policy, per rank",
    )
    urls: list[str] = Field(
        default_factory=list,
        description="servers that run already and share the load (docs/vllm.md)",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: model.precision"
    )
    sync: Literal["auto", "file", "ipc", "nccl"] = Field(
        "auto", description="how weights get there; auto: file on CPUs, ipc or nccl on GPUs"
    )
    sync_folder: str | None = Field(
        None, description="file: a folder that ranks and servers share; unset: a temporary one"
    )
    tensor_parallel: PositiveInt = Field(1, description="GPUs of one model replica")
    data_parallel: PositiveInt = Field(1, description="replicas inside each server")
    gpu_memory_utilization: float = Field(
        0.5, gt=0, le=1, description="share of a GPU's memory that an engine may take"
    )
    cpu_cache_gb: PositiveInt = Field(1, description="GiB for keys and values on a CPU")
    threads: Workers = Field(1, description="CPU threads of an engine on a CPU")
    start_seconds: Seconds = Field(300.0, description="time limit for an engine to come up")

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: list[str]) -> list[str]:
        """Refuse what is no address of a server, and passwords, which run.json would keep."""
        for url in urls:
            parts = urlsplit(url)
            named = parts.hostname and parts.port != 0  # a port that is no number raises
            if parts.scheme not in ("http", "https") or not named:
                raise ValueError("expected http://HOST:PORT")
            if parts.username is not None or parts.query or parts.fragment:
                raise ValueError("expected http://HOST:PORT without user, query or fragment")
        return urls
