"""Live servers of ours: the same rollouts, deaths in the middle of a step, hangs, no leftovers."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from pipeline.policy.policy import Policy
from pipeline.vllm.replica import EngineError
from pipeline.vllm.vllm_engine import VllmEngine
from tests.conftest import OpenPolicy
from tests.live_vllm.live_engine import (
    SETTINGS,
    children,
    largest_gap,
    learn,
    prompts,
    running,
    sample,
    seeds,
    servers_of,
)

pytestmark = pytest.mark.vllm

Pair = tuple[VllmEngine, Policy]


@pytest.fixture(scope="module")
def pair(demo_policy: OpenPolicy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Return an engine of two servers for the tests of this module, and its policy."""
    policy, before, temporary = demo_policy(), children(), tmp_path_factory.mktemp("t")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(temporary))  # of servers, not of this process, which has read it
        with running(policy, "vllm.servers=2") as engine:
            yield engine, policy
    assert children() <= before
    assert not [path for path in temporary.iterdir() if path.is_socket()]


def test_two_servers_draw_what_one_engine_draws(pair: Pair) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 12), seeds(12, 8)
    shared = sample(engine, asked, of)
    assert largest_gap(policy, asked, shared) < 1e-4
    with running(policy) as alone:
        expected = sample(alone, asked, of)
    same = [
        a.response_ids == b.response_ids
        for one, other in zip(shared, expected, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    assert sum(same) >= 0.99 * len(same)


def test_updates_reach_every_server(pair: Pair) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 6), seeds(6, 2)
    for update in range(3):
        learn(policy, f"{update + 500:06d}-served")
        assert largest_gap(policy, asked, sample(engine, asked, of)) < 1e-4


def test_servers_that_slept_are_awake_when_they_sample(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 6), seeds(6, 2)
    replicas = engine.sampler._replicas
    for replica in replicas:
        monkeypatch.setattr(replica, "_sleeps", True)
    sample(engine, asked, of)
    assert [replica._get("/is_sleeping") for replica in replicas] == [{"is_sleeping": True}] * 2  # type: ignore[attr-defined]
    assert [replica.weight_version() for replica in replicas] == [None] * 2
    learn(policy, "000600-after-sleep", scale=0.02)
    assert largest_gap(policy, asked, sample(engine, asked, of)) < 1e-4
    monkeypatch.undo()
    assert largest_gap(policy, asked, sample(engine, asked, of)) < 1e-4
    assert [replica._get("/is_sleeping") for replica in replicas] == [{"is_sleeping": False}] * 2  # type: ignore[attr-defined]


def test_a_server_at_a_url_serves_whoever_brings_weights(
    pair: Pair, demo_policy: OpenPolicy
) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 4), seeds(4, 4)
    mine = sample(engine, asked, of)
    guest = demo_policy()
    learn(guest, "000700-a-guest", scale=0.02)
    urls = [replica.url for replica in engine.sampler._replicas]  # type: ignore[attr-defined]
    with running(guest, f'vllm.urls=["{urls[0]}", "{urls[1]}"]') as visitor:
        assert largest_gap(guest, asked, sample(visitor, asked, of)) < 1e-4
    assert len(servers_of(engine)) == 2  # a guest's engine ends nothing
    again = sample(engine, asked, of)  # weights of another version are noticed, and replaced
    assert largest_gap(policy, asked, again) < 1e-4
    assert [[a.response_ids for a in group] for group in again] == [
        [a.response_ids for a in group] for group in mine
    ]


def test_a_server_that_dies_in_the_middle_loses_nothing(pair: Pair) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 24), seeds(24, 8)
    expected = sample(engine, asked, of)
    victim = servers_of(engine)[0]
    told: list[int] = []

    def kill_early(done: int, total: int) -> None:
        told.append(done)
        if len(told) == 2:
            victim.kill()

    answers = sample(engine, asked, of, progress=kill_early)
    assert told[-1] == 192
    assert told == sorted(told)
    same = [
        a == b
        for one, other in zip(answers, expected, strict=True)
        for a, b in zip([x.response_ids for x in one], [x.response_ids for x in other], strict=True)
    ]
    assert sum(same) >= 0.99 * len(same)
    again = sample(engine, asked, of)  # the dead one is started again, and gets the weights
    assert len(servers_of(engine)) == 2
    assert largest_gap(policy, asked, again) < 1e-4


def test_all_servers_may_die_once(pair: Pair) -> None:
    engine, policy = pair
    asked, of = prompts(policy, 24), seeds(24, 8)
    killed: list[int] = []

    def kill_all(done: int, total: int) -> None:
        if not killed:
            for server in servers_of(engine):
                killed.append(server.pid)
                server.kill()

    answers = sample(engine, asked, of, progress=kill_all)
    assert len(killed) == 2
    assert largest_gap(policy, asked, answers) < 1e-4


def test_a_hang_ends_within_the_limit(demo_policy: OpenPolicy) -> None:
    policy, before = demo_policy(), children()
    with running(policy, "vllm.servers=1", "generate.timeout=6") as engine:
        sample(engine, prompts(policy, 1), seeds(1, 1))
        started_here = psutil.Process().children(recursive=True)
        frozen = [p for p in started_here if p.pid not in before and "guard" not in p.cmdline()[2]]

        def freeze() -> None:
            for process in frozen:
                os.kill(process.pid, signal.SIGSTOP)

        timer = threading.Timer(0.05, freeze)
        timer.start()
        started = time.monotonic()
        with pytest.raises(EngineError, match=r"generate\.timeout|does not answer|gave no answer"):
            sample(engine, prompts(policy, 40), seeds(40, 8), SETTINGS._replace(batch_size=8))
        assert time.monotonic() - started < 6 + 5
    assert children() <= before


def test_nothing_is_left_when_the_run_is_killed(demo_policy: OpenPolicy) -> None:
    policy, before = demo_policy(), children()
    with running(policy, "vllm.servers=1") as engine:
        sample(engine, prompts(policy, 1), seeds(1, 1))
        started = children() - before
        assert started
        engine.sampler._replicas[0]._process._process.stdin.close()  # type: ignore[attr-defined]
        limit = time.monotonic() + 20
        while time.monotonic() < limit and children() & started:
            time.sleep(0.2)
        assert not children() & started
