"""What `--runner` names: how many workers of which kind, their Prefect task runner and cluster.

    processes:4                      a pool of four processes on this machine
    ray:4                            a Ray cluster of this command's own, on this machine
    ray:16@ray://HOST:10001          sixteen workers of an existing cluster
    dask:4   dask:16@tcp://HOST:8786

Without a runner this process does the work. Where work is done never shows in what it makes.
"""

import contextlib
import importlib.util
import itertools
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import urlsplit

from pipeline.errors import ConfigError, SrpoError

if TYPE_CHECKING:
    from prefect.task_runners import TaskRunner

Kind = Literal["processes", "ray", "dask"]

_SPEC = re.compile(r"(processes|ray|dask):([1-9][0-9]{0,3})(?:@(.+))?")
_LIBRARIES = {
    "processes": (),
    "ray": ("ray", "prefect_ray"),
    "dask": ("distributed", "prefect_dask"),
}
_ADDRESSES = {
    "processes": r"(?!)",  # none
    "ray": r"(ray://)?[^/\s]+:[0-9]{1,5}",
    "dask": r"((tcp|tls|ucx|wss?)://)?[^/\s]+:[0-9]{1,5}",
}
_OBJECT_STORE_BYTES = 80 << 20  # the smallest that Ray takes: nothing large is ever passed
_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": "CRITICAL"}
"""Options of every connection to Ray."""
_LOCAL = "127.0.0.1"
CONNECT_SECONDS = 10.0
"""Within which an existing cluster must answer."""
PIECES_OF_A_WORKER = 4
"""Pieces of work per worker: the fewer, the longer all wait at the end for the slowest."""


@dataclass(frozen=True)
class RunnerSpec:
    """What `--runner` says.

    Attributes:
        workers: how many pieces of work are done at a time.
        address: of an existing cluster; None: the command starts one, which ends with it.
    """

    kind: Kind
    workers: int
    address: str | None = None

    @classmethod
    def parse(cls, text: str) -> "RunnerSpec":
        """Read KIND:WORKERS or KIND:WORKERS@ADDRESS.

        Raises:
            ConfigError: it is neither, or its library is not installed.
        """
        found = _SPEC.fullmatch(text)
        if found is None or (found[3] and not re.fullmatch(_ADDRESSES[found[1]], found[3])):
            raise ConfigError(
                f"--runner {text}: expected processes:N, ray:N or dask:N with N workers, or an "
                "existing cluster, such as ray:16@ray://HOST:10001 or dask:16@tcp://HOST:8786"
            )
        spec = cls(cast(Kind, found[1]), int(found[2]), found[3])
        missing = [name for name in _LIBRARIES[spec.kind] if not importlib.util.find_spec(name)]
        if missing:
            raise ConfigError(
                f"--runner {text}: {missing[0]} is not installed: in srpo's clone, "
                f"pip install -e '.[{spec.kind}]'"
            )
        return spec

    def __str__(self) -> str:
        """Return the text as a user would type it."""
        return f"{self.kind}:{self.workers}{f'@{self.address}' if self.address else ''}"

    def task_runner(self, cluster: str | None = None) -> "TaskRunner[Any]":
        """Return its Prefect task runner, not started.

        Args:
            cluster: address of the open cluster, if it is one of Dask.
        """
        if self.kind == "processes":
            from prefect.task_runners import ProcessPoolTaskRunner

            return ProcessPoolTaskRunner(max_workers=self.workers)
        if self.kind == "ray":
            from prefect_ray import RayTaskRunner

            # It uses the cluster that this process is connected to.
            return cast("TaskRunner[Any]", RayTaskRunner())
        from prefect_dask import DaskTaskRunner

        return cast("TaskRunner[Any]", DaskTaskRunner(address=cluster))

    def lost(self, error: Exception) -> bool:
        """Tell whether an error says that a worker, or the way to it, was lost with its work.

        Dask's scheduler so calls what it can't read; Ray has no type of its own for a client whose
        cluster is gone.
        """
        if self.kind == "ray":
            from ray.exceptions import RayError

            known = isinstance(error, RayError | ConnectionError)
            return known or "Ray Client is not connected" in str(error)
        if self.kind == "dask":
            from distributed import KilledWorker
            from distributed.client import FutureCancelledError
            from distributed.comm import CommClosedError

            known = isinstance(error, KilledWorker | FutureCancelledError | CommClosedError)
            return known or (isinstance(error, RuntimeError) and "deserialization" in str(error))
        return isinstance(error, BrokenProcessPool)


def cut(number: int, parts: int) -> list[tuple[int, int]]:
    """Return [first, last) of each of `parts` parts of units of work, as even as possible."""
    edges = [number * part // parts for part in range(parts + 1)]
    return [(first, last) for first, last in itertools.pairwise(edges) if first < last]


def pieces(number: int, spec: RunnerSpec) -> list[tuple[int, int]]:
    """Return [first, last) of the pieces into which units of work are cut for its workers."""
    return cut(number, PIECES_OF_A_WORKER * spec.workers)


@contextlib.contextmanager
def cluster_of(spec: RunnerSpec) -> Iterator[str | None]:
    """Open the cluster for a block; yield the address by which a task runner finds it."""
    opened = {"processes": _no_cluster, "ray": _ray, "dask": _dask}[spec.kind]
    with contextlib.ExitStack() as stack:
        try:
            address = stack.enter_context(opened(spec))
        except (OSError, RuntimeError, ValueError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise SrpoError(f"--runner {spec}: no workers there: {reason}") from error
        yield address


@contextlib.contextmanager
def _no_cluster(spec: RunnerSpec) -> Iterator[None]:
    """A pool of processes begins and ends with each call."""
    yield


def _expect_listening(address: str) -> None:
    """Refuse an address at which nobody listens; the libraries take up to a minute to say so.

    Raises:
        OSError: no such host, or no connection to it.
    """
    parts = urlsplit(f"//{address.rpartition('://')[2]}")
    socket.create_connection((parts.hostname, parts.port), CONNECT_SECONDS).close()


@contextlib.contextmanager
def _ray(spec: RunnerSpec) -> Iterator[None]:
    """Connect this process to a Ray cluster; one of our own has no pages and reports nowhere."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if spec.address is not None:
        with _their_ray(spec.address):
            yield
        return
    import ray

    folder = tempfile.mkdtemp(prefix="srpo-ray-")
    ours = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address="local",
            job_config=_own_modules_only(),
            num_cpus=spec.workers,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            _node_ip_address=_LOCAL,
            _temp_dir=folder,
            **_QUIET,
        )
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)  # Ray's handler ends the process at once
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _own_modules_only() -> Any:
    """Return settings of a Ray job whose workers don't import from this command's directory.

    Ray would put that directory before all others, and a user's own flows.py there in place of
    ours. It leaves it out for jobs that bring a directory; nothing else depends on this answer.
    """
    from ray.job_config import JobConfig

    config = JobConfig()
    config._runtime_env_has_working_dir = lambda: True
    return config


@contextlib.contextmanager
def _their_ray(address: str) -> Iterator[None]:
    """Connect this process to an existing Ray cluster.

    A cluster that was started where there is a token asks for it; Ray presents it only if told to.
    """
    _expect_listening(address)
    token = Path("~/.ray/auth_token").expanduser()
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys() or token.exists():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # no cluster of our own if it is lost
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of its tries to connect
        ray.init(address, **_QUIET)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _dask(spec: RunnerSpec) -> Iterator[str]:
    """Start a Dask cluster on this machine, unless an existing one is named."""
    from distributed import Client, LocalCluster

    if spec.address is not None:
        _expect_listening(spec.address)
        Client(spec.address, timeout=CONNECT_SECONDS, set_as_default=False).close()
        yield spec.address
        return
    with LocalCluster(
        n_workers=spec.workers,
        threads_per_worker=1,
        host=_LOCAL,
        dashboard_address=f"{_LOCAL}:0",  # any free port; without bokeh there are no pages
        silence_logs="CRITICAL",
    ) as cluster:
        yield cluster.scheduler_address
