"""Settings of a process: what it keeps of compiled products is bounded."""

import os
import subprocess
import sys

import pytest
import torch

from pipeline.distributed.process_setup import configure_process
from tests.paths import PROJECT

CAPACITIES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
PASSES = 60


def megabytes(environment: dict[str, str]) -> list[int]:
    """Return a fresh process's resident memory after every 20 passes of ever new shapes."""
    inherited = {name: value for name, value in os.environ.items() if name not in CAPACITIES}
    command = [sys.executable, "-m", "tests.pipeline.distributed.run_new_shapes", f"{PASSES}"]
    ran = subprocess.run(
        command, cwd=PROJECT, env=inherited | environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return [int(line) for line in ran.stdout.split()]


@pytest.mark.campaign
def test_memory_over_60_steps_of_ever_new_shapes_in_bfloat16_is_flat() -> None:
    first, _, last = megabytes({})
    assert last < 1.1 * first
    if "AVX512" in torch.backends.cpu.get_cpu_capability():  # else nothing is compiled
        unbounded = megabytes(dict.fromkeys(CAPACITIES, "1024"))
        assert unbounded[-1] > unbounded[0] + 500 and unbounded[-1] > 1.5 * last


def test_a_bound_of_the_users_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    first, second = CAPACITIES
    monkeypatch.setenv(first, "7")
    monkeypatch.delenv(second, raising=False)
    configure_process(threads)
    assert (os.environ[first], os.environ[second]) == ("7", "64")
