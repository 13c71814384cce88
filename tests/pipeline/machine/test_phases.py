"""Phases: whose time is whose, and what a model's matrix products cost."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import pipeline.machine.phases
from pipeline.machine.flops import forward_flops, matmul_rate, projection_flops
from pipeline.machine.phases import REST, PhaseTotal, Profiler, beside, phase
from tests.builders.policies import LOWERCASE, write_tiny_policy


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Return the time [s] that the clock shows; tests move it by hand."""
    now = [100.0]
    monkeypatch.setattr(pipeline.machine.phases, "perf_counter", lambda: now[0])
    yield now


def test_seconds_are_exclusive_and_add_up_to_the_stage(at: list[float]) -> None:
    with Profiler() as profiler:
        profiler.start("route")
        at[0] += 1  # rest
        for _ in range(2):
            with phase("outer", tokens=5, flops=7.0):
                at[0] += 2
                with phase("inner") as work:
                    at[0] += 4
                    work.add(tokens=1, flops=10.0)
                    work.add(tokens=2)
                at[0] += 8
        at[0] += 16  # rest
        profiler.start("weigh")
        at[0] += 32
        profiler.stop()
        at[0] += 64  # in no stage
        with phase("outside"):
            at[0] += 128
        assert profiler.take() == [
            PhaseTotal("route", "inner", False, 2, 8.0, 6, 20.0),
            PhaseTotal("route", "outer", False, 2, 20.0, 10, 14.0),
            PhaseTotal("route", REST, False, 0, 17.0),
            PhaseTotal("weigh", REST, False, 0, 32.0),
        ]
        assert profiler.take() == []


def test_without_a_profiler_nothing_is_counted() -> None:
    with phase("forward", 3, 5.0) as work, beside("route"):
        work.add(tokens=1)
    with Profiler() as profiler:
        profiler.start("route")
        profiler.stop()
        (row,) = profiler.take()
        assert row.phase == REST
    assert Profiler.active is None


def test_an_error_ends_its_phases(at: list[float]) -> None:
    with Profiler() as profiler:
        profiler.start("update")
        with pytest.raises(ValueError), phase("outer"), phase("inner"):
            at[0] += 1
            raise ValueError
        with phase("outer"):
            at[0] += 2
        profiler.stop()
        found = {row.phase: (row.calls, row.seconds) for row in profiler.take()}
    assert found == {"inner": (1, 1.0), "outer": (2, 2.0), REST: (0, 0.0)}


def test_another_thread_works_beside_the_stages() -> None:
    with Profiler() as profiler:
        profiler.start("weigh")
        begun, leave = threading.Event(), threading.Event()

        def write() -> None:
            with beside("route"), phase("commit"):
                begun.set()
                leave.wait(5)

        writer = threading.Thread(target=write)
        started = time.perf_counter()
        writer.start()
        begun.wait(5)
        with phase("compute"):
            time.sleep(0.02)
        leave.set()
        writer.join()
        profiler.stop()
        elapsed = time.perf_counter() - started
        rows = {(row.stage, row.phase): row for row in profiler.take()}
    assert rows["route", "commit"].beside and not rows["weigh", "compute"].beside
    assert 0.02 <= rows["route", "commit"].seconds <= elapsed
    own = sum(row.seconds for row in rows.values() if not row.beside)
    assert own == pytest.approx(elapsed, abs=0.01)


def test_phases_of_many_threads_are_all_counted() -> None:
    def work() -> None:
        for _ in range(200):
            with phase("a"), phase("b", tokens=1):
                pass

    with Profiler() as profiler:
        profiler.start("verify")
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        profiler.stop()
        rows = {row.phase: row for row in profiler.take()}
    assert (rows["a"].calls, rows["b"].calls, rows["b"].tokens) == (800, 800, 800)


def test_one_profiler_at_a_time() -> None:
    with Profiler(), pytest.raises(RuntimeError), Profiler():
        pass
    assert Profiler.active is None


def test_operations_of_a_model_counted_by_hand(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write_tiny_policy(tmp_path, seed=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    attention = 32 * 32 + 32 * 16 + 32 * 16 + 32 * 32  # queries, keys, values, output
    multilayer = 3 * 32 * 64
    assert forward_flops(model, 7) == 2 * 2 * (attention + multilayer) * 7
    assert projection_flops(model, 7) == 2 * 32 * len(LOWERCASE) * 7


def test_the_rate_of_matrix_products_is_measured_quickly() -> None:
    started = time.perf_counter()
    rate = matmul_rate(torch.device("cpu"), torch.float32)
    assert time.perf_counter() - started < 2
    assert 1e8 < rate < 1e15
