"""Several ranks: torchrun starts the same command once for each, and one line says who was lost.

Each rank is in a session of its own, so signals reach none of them: the command hands SIGINT and
SIGTERM to rank 0, which stops as a command of one rank does and then ends the others. A rank whose
command ends, however that happened, is killed by the kernel.
"""

import contextlib
import logging
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from flows.session.failed_start import removing_failed_start
from pipeline.distributed.ranks import LOST
from pipeline.errors import ConfigError, SrpoError
from pipeline.remote.mirror_paths import is_mirrored
from pipeline.text import go_on, printable
from pipeline.verification.sandbox import prctl

JOIN_SECONDS = 900
"""Within which the hosts must have met: they may be started minutes apart."""
_TRY_SECONDS, _PAUSE_SECONDS = 5.0, 0.5
_SHOWN = 300
_GRACE_SECONDS = 5
"""Within which ranks must end if their command is interrupted and not asked to stop."""
_COMMAND_PID, _RANK_0_FILE = "SRPO_COMMAND", "SRPO_FIRST_RANK"
"""Environment variables of ranks: the command's process id; the file that takes rank 0's."""
_PR_SET_PDEATHSIG = 1
_PYTHON_ERROR = r"[\w.]+(Error|Exception|Interrupt|Exit)\b"


class RankLayout(NamedTuple):
    """How many ranks run on which hosts, in torchrun's words.

    Attributes:
        ranks: processes on each host.
        nnodes: hosts; the same command is started on each of them.
        node_rank: which of them this one is; the first one's first process is rank 0.
        rdzv_endpoint: HOST:PORT of the first, where the others find it.
    """

    ranks: int
    nnodes: int
    node_rank: int
    rdzv_endpoint: str


def is_rank() -> bool:
    """Tell whether this process is a rank that torchrun started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def become_rank() -> None:
    """Make this process end with the command, and let rank 0 alone decide when to stop."""
    if sys.platform == "linux":
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.environ.get(_COMMAND_PID, f"{os.getppid()}") != f"{os.getppid()}":
        os._exit(LOST)  # it ended before
    if os.environ["RANK"] != "0":
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    elif _RANK_0_FILE in os.environ:
        made = Path(f"{os.environ[_RANK_0_FILE]}.made")
        made.write_text(f"{os.getpid()}", encoding="utf-8")
        made.replace(os.environ[_RANK_0_FILE])


def launch(arguments: Sequence[str], layout: RankLayout, run: Path) -> int:
    """Run `srpo` with these arguments as several ranks; return rank 0's exit code.

    Raises:
        ConfigError: no address at which the hosts meet, or a run at a URL without a shared cache.
        SrpoError: a rank ended unasked, or the hosts did not meet.
    """
    _check(layout, run)
    if layout.node_rank > 0:
        _wait_for_first_host(layout)
    with tempfile.TemporaryDirectory(prefix="srpo-ranks-") as logs:
        config = LaunchConfig(
            min_nodes=layout.nnodes,
            max_nodes=layout.nnodes,
            nproc_per_node=layout.ranks,
            rdzv_backend="static" if layout.nnodes > 1 else "c10d",
            rdzv_endpoint=layout.rdzv_endpoint or "localhost:0",
            rdzv_configs=_rendezvous_settings(layout),
            run_id="srpo",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(logs, redirects=_written_to_files(layout)),
            signals_to_handle="",  # none: two are ours, and what nohup ignores stays ignored
            shutdown_timeout=_GRACE_SECONDS,
        )
        for part in ("", ".agent.server.api"):  # which has a level of its own
            logging.getLogger(f"torch.distributed.elastic{part}").setLevel(logging.CRITICAL)
        first = Path(logs) / "first"
        os.environ |= {_COMMAND_PID: f"{os.getpid()}", _RANK_0_FILE: f"{first}"}
        try:
            with removing_failed_start(run), _signals_go_to(first, layout):
                elastic_launch(config, sys.executable)("-P", "-m", "flows.cli", *arguments)
        except ChildFailedError as error:
            return _exit_code(error.failures, Path(logs), layout, run)
        except dist.DistError as error:
            raise SrpoError(
                f"--rdzv-endpoint {layout.rdzv_endpoint}: the hosts did not meet there within "
                f"{JOIN_SECONDS} s: {printable(str(error), _SHOWN)}; start the same command on "
                f"all {layout.nnodes} of them"
            ) from None
    return 0


@contextlib.contextmanager
def _signals_go_to(first: Path, layout: RankLayout) -> Iterator[None]:
    """Hand SIGINT and SIGTERM to rank 0; on other hosts the second one ends this host's ranks.

    Args:
        first: the file that says which process it is; until it is there, the first one ends all.
    """
    warned = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal warned
        if first.exists():
            with contextlib.suppress(ProcessLookupError):  # it is about to end
                os.kill(int(first.read_text(encoding="utf-8")), number)
        elif layout.node_rank == 0 or warned:
            raise SystemExit(128 + number)
        else:
            warned = True
            print("the first host's command stops the training; once more ends it", file=sys.stderr)

    known = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in known.items():
            signal.signal(number, handler)


def _check(layout: RankLayout, run: Path) -> None:
    """Refuse impossible options before anything waits for another host."""
    if layout.node_rank >= layout.nnodes:
        raise ConfigError(
            f"--node-rank {layout.node_rank}: hosts have numbers from 0 to {layout.nnodes - 1}, "
            f"with --nnodes {layout.nnodes}"
        )
    if layout.nnodes > 1 and not re.fullmatch(r"[^:\s]+:[0-9]+", layout.rdzv_endpoint):
        raise ConfigError("--nnodes needs --rdzv-endpoint HOST:PORT, the first host's")
    if layout.nnodes > 1 and is_mirrored(run) and "SRPO_CACHE" not in os.environ:
        raise ConfigError(
            f"{run}: ranks of several hosts write snapshots together; set SRPO_CACHE to a folder "
            "that all hosts share"
        )


def _wait_for_first_host(layout: RankLayout) -> None:
    """Wait until the first host listens; torch would wait as long, with a trace for each try."""
    host, _, port = layout.rdzv_endpoint.partition(":")
    started, told = time.monotonic(), False
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=_TRY_SECONDS).close()
            return
        except socket.gaierror as error:
            raise ConfigError(f"--rdzv-endpoint {host}:{port}: {error.strerror}") from None
        except OSError as error:
            spent = time.monotonic() - started
            if spent > JOIN_SECONDS:
                raise SrpoError(
                    f"--rdzv-endpoint {host}:{port}: waited {JOIN_SECONDS} s for the first host "
                    f"({error.strerror or error}); start the same command there, --node-rank 0"
                ) from None
            if not told:
                print(f"waiting for the first host at {host}:{port}, {JOIN_SECONDS} s at most")
                told = True
        time.sleep(_PAUSE_SECONDS)


def _rendezvous_settings(layout: RankLayout) -> dict[str, Any]:
    """Return settings of torchrun's rendezvous."""
    if layout.nnodes == 1:
        return {}
    return {"rank": layout.node_rank, "timeout": JOIN_SECONDS}


def _written_to_files(layout: RankLayout) -> dict[int, Std]:
    """Return which processes of this host write to a file: all but rank 0."""
    first = 1 if layout.node_rank == 0 else 0
    return dict.fromkeys(range(first, layout.ranks), Std.ALL)


def _exit_code(
    failures: dict[int, ProcessFailure], logs: Path, layout: RankLayout, run: Path
) -> int:
    """Return rank 0's exit code if it ended on its own; else say who was lost.

    Raises:
        SrpoError: the first rank that ended otherwise.
    """
    if 0 in failures and failures[0].exitcode > 0 and failures[0].exitcode != LOST:
        return int(failures[0].exitcode)
    causes = {rank: f for rank, f in failures.items() if f.exitcode != LOST}
    if not causes:
        raise SrpoError(f"a rank on another host is gone; {_resume_text(layout, run)}")
    rank, cause = min(causes.items(), key=lambda item: item[1].timestamp)
    raise SrpoError(f"rank {rank} {_how_it_ended(cause, logs)}; {_resume_text(layout, run)}")


def _resume_text(layout: RankLayout, run: Path) -> str:
    if not (run / "run.json").exists():
        return "nothing was made yet: run the same command again"
    if layout.nnodes > 1:
        return f"go on with the same --nnodes … on every host: {go_on(run)}"
    return f"go on with: {go_on(run)} --ranks {layout.ranks}"


def _how_it_ended(cause: ProcessFailure, logs: Path) -> str:
    found = sorted(logs.glob(f"**/{cause.local_rank}/stderr.log"))
    lines = found[-1].read_text(errors="replace").split("\n") if found else []
    if cause.exitcode < 0:
        # A rank that fails amid an exchange is aborted by a library; its error came before that.
        errors = [line for line in lines if re.match(_PYTHON_ERROR, line)]
        reason = f": {printable(errors[-1], _SHOWN)}" if errors else ""
        return f"was killed by {signal.Signals(-cause.exitcode).name}{reason}"
    last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
    return f"ended with exit code {cause.exitcode}: {printable(last, _SHOWN)}"
