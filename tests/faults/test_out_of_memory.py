"""Out of memory: one line that says what to lower, and doing that works."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from flows.session.fork_run import fork_run
from flows.session.session import Session
from pipeline.config.load import load_config
from pipeline.errors import MemoryShortage
from pipeline.run.run import Run
from pipeline.stage.out_of_memory import LOWER, memory_errors_explained
from tests.paths import PROJECT

SMALL = ["run.steps=2", "run.threads=1", "generate.questions=16", "evaluate.questions=4"]
CONFIG = load_config("demo", SMALL)

STARVED = """
import ctypes, resource, sys
from pathlib import Path
from flows.session.session import Session
from pipeline.errors import SrpoError

session = Session.resume(Path(sys.argv[1]))
policy = session.prepare(0)
policy.tokenizer(["a", "b"])  # threads of libraries, whose stacks take room as well, are started
session.run.read("rollouts", 0), session.run.read("verdicts", 0)
ctypes.CDLL(None).malloc_trim(0)  # what opening the policy took and gave back is no room either
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (int(sys.argv[3]) << 20),) * 2)
try:
    session.run_stage(sys.argv[2], 0)
except SrpoError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 8 GB"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        pa.ArrowMemoryError("malloc of size 1024 failed"),
    ],
    ids=["Python", "torch", "CUDA", "Arrow"],
)
def test_every_library_s_shortage_is_one_line(error: Exception) -> None:
    with (
        pytest.raises(MemoryShortage, match=r"update\.micro_batch_tokens \(now 4096\) or") as found,
        memory_errors_explained("update", 3, Path("runs/a"), CONFIG),
    ):
        raise error
    assert "\n" not in str(found.value)
    assert "srpo stage update --run runs/a --step 3" in str(found.value)
    assert "--set update.micro_batch_tokens=2048 --fork NEW" in str(found.value)


def test_other_errors_stay_what_they_are() -> None:
    with (
        pytest.raises(RuntimeError, match="shapes"),
        memory_errors_explained("update", 3, Path("a"), CONFIG),
    ):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("stage", LOWER)
def test_every_stage_has_advice_with_settings_that_exist(stage: str) -> None:
    with pytest.raises(MemoryShortage, match=f"in stage {stage} of step 3; "):  # noqa: SIM117
        with memory_errors_explained(stage, 3, Path("a"), CONFIG):
            raise MemoryError


@pytest.mark.slow
def test_a_starved_stage_says_so_and_the_fork_it_names_goes_on(tmp_path: Path) -> None:
    large = load_config("demo", [*SMALL, "generate.questions=64", "route.micro_batch_tokens=65536"])
    session = Session.create(tmp_path / "run", large)
    session.run_stage("generate", 0)
    session.run_stage("verify", 0)
    session.close()
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(tmp_path / "run"), "route", "16"],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (
        "out of memory in stage route of step 0; lower route.micro_batch_tokens" in done.stdout
    ), done.stdout + done.stderr
    run = Run.open(tmp_path / "run")
    assert run.has("verdicts", 0) and not run.has("routes", 0)
    overrides = ["route.micro_batch_tokens=512"]
    fork = fork_run(run, tmp_path / "fork", "route", 0, 1, overrides)
    session = Session.resume(fork.root)
    for name in ("route", "weigh", "update"):
        session.run_stage(name, 0)
    assert session.finish_step(0)["rollouts"] == 512
    session.close()
