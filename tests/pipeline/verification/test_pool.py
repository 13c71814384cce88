"""Verifiers that misbehave in every way we know of; each costs its own response and no other."""

import importlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, DataError
from pipeline.task import Verdict
from pipeline.verification.child import _checked, _repeatable
from pipeline.verification.pool import VerifierPool, timed_out
from tests.paths import PROJECT

HERE = Path(__file__).parent
FOLDER = "/srpo-verifier-123-0123456789abcdef"

PoolMaker = Callable[..., VerifierPool]


@pytest.fixture
def judges(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of judges, under a name that the children can import too."""
    monkeypatch.syspath_prepend(str(HERE))
    yield importlib.import_module("misbehaving_judges")
    del sys.modules["misbehaving_judges"]


@pytest.fixture
def pool(judges: Any) -> Iterator[PoolMaker]:
    """Makes pools that are closed at the end."""
    made: list[VerifierPool] = []

    def make(
        workers: int = 1, timeout_seconds: float = 1.0, memory_mb: int = 256, **others: Any
    ) -> VerifierPool:
        made.append(VerifierPool(judges.judge, "t", workers, timeout_seconds, memory_mb, **others))
        return made[-1]

    yield make
    for each in made:
        each.close()


FINE = ("fine", "gold")
MISBEHAVIOUR = {
    "fails": "verifier raised ValueError: two lines",
    "unknown": "verifier raised KeyError: 'unknown'",
    "spins": "time limit of 1 s exceeded",
    "sleeps in C": "time limit of 1 s exceeded",
    "ignores SIGTERM": "time limit of 1 s exceeded",
    "takes memory": "memory limit of 256 MB exceeded",
    "takes memory slowly": "memory limit of 256 MB exceeded",
    "segfaults": "verifier process was ended by SIGSEGV",
    "exits:0": "verifier called sys.exit",
    "exits at once:0": "verifier process ended with exit code 0",
    "exits at once:3": "verifier process ended with exit code 3",
    "forks": "verifier process ended with exit code 7",
    "closes everything": "verifier process broke its connection",
    "writes everywhere:junk": "verifier process broke its connection",
    "writes everywhere:5": "verifier process broke its connection",
    "returns:1.0": "verifier returned a float, expected a Verdict",
    "returns:None or dict": "verifier returned a type, expected a Verdict",
    "returns:Verdict(float('nan'), True)": (
        "verifier returned the reward nan, expected a number in [0, 1]"
    ),
    "returns:Verdict(1.5, True)": "verifier returned the reward 1.5, expected a number in [0, 1]",
    "returns:Verdict(-0.1, True)": "verifier returned the reward -0.1, expected a number in [0, 1]",
    "returns:Verdict(float('inf'), True)": (
        "verifier returned the reward inf, expected a number in [0, 1]"
    ),
    "returns:Verdict(None, True)": "verifier returned the reward None, expected a number in [0, 1]",
    "returns:Verdict(b'1', True)": "verifier returned the reward b'1', expected a number in [0, 1]",
    "returns:Verdict([1.0], True)": (
        "verifier returned the reward [1.0], expected a number in [0, 1]"
    ),
    "returns:Verdict(10**400, True)": (
        f"verifier returned the reward 1{'0' * 99} …, expected a number in [0, 1]"
    ),
    "returns:Verdict('1', True)": "verifier returned the reward '1', expected a number in [0, 1]",
    "returns:Verdict(1.0, 1)": "verifier returned format_ok 1, expected a bool",
    "returns:Verdict(1.0, None)": "verifier returned format_ok None, expected a bool",
    "returns:Verdict(1.0, True, 5)": "verifier returned prediction of type int, expected text",
}


@pytest.mark.parametrize("workers", [1, 2])
def test_each_misbehaviour_costs_its_own_response_only(pool: PoolMaker, workers: int) -> None:
    pairs = [pair for command in MISBEHAVIOUR for pair in ((command, "gold"), FINE)]
    verdicts = pool(workers).verify(pairs)
    assert [v.error for v in verdicts[::2]] == list(MISBEHAVIOUR.values())
    assert all(v.reward == 0.0 and not v.format_ok for v in verdicts[::2])
    assert set(verdicts[1::2]) == {Verdict(1.0, True, "t gold")}


@pytest.mark.parametrize(
    ("written", "reward"),
    [
        ("True", 1.0),
        ("False", 0.0),
        ("1", 1.0),
        ("__import__('fractions').Fraction(1, 4)", 0.25),
        ("__import__('decimal').Decimal('0.5')", 0.5),
        ("__import__('numpy').float32(0.75)", 0.75),
        ("__import__('numpy').float64(0.1)", 0.1),
        ("__import__('numpy').bool_(True)", 1.0),
        ("__import__('numpy').int64(1)", 1.0),
        ("__import__('numpy').array(0.5)", 0.5),
        ("type('Score', (), {'__float__': lambda self: 0.5})()", 0.5),
    ],
)
def test_every_kind_of_number_is_a_reward(pool: PoolMaker, written: str, reward: float) -> None:
    shared = pool(1, memory_mb=2048, timeout_seconds=30.0)
    assert shared.verify([(f"returns:Verdict({written}, True)", "")]) == [Verdict(reward, True)]


def test_numpys_bools_say_whether_the_format_is_kept(pool: PoolMaker) -> None:
    shared = pool(1, memory_mb=2048, timeout_seconds=30.0)
    written = [f"returns:Verdict(0.5, __import__('numpy').bool_({b}))" for b in (True, False)]
    assert [v.format_ok for v in shared.verify([(w, "") for w in written])] == [True, False]


def test_torchs_scalars_are_numbers_and_tensors_of_several_are_none() -> None:
    one = _checked(Verdict(torch.tensor(1.0), torch.tensor(True)))  # type: ignore[arg-type]
    assert (one["reward"], one["format_ok"], one["error"]) == (1.0, True, None)
    two = _checked(Verdict(torch.tensor([1.0, 0.0]), True))  # type: ignore[arg-type]
    assert two["error"] == (
        "verifier returned the reward tensor([1., 0.]), expected a number in [0, 1]"
    )
    assert _checked(Verdict(np.array([0.0, 1.0]), True))["error"]  # type: ignore[arg-type]


@pytest.mark.parametrize("blank", ["", " \n", None])
def test_a_blank_error_is_none(blank: str | None) -> None:
    assert _checked(Verdict(1.0, True, error=blank))["error"] is None
    assert _checked(Verdict(1.0, True, error="x"))["error"] == "x"


@pytest.mark.parametrize(
    ("error", "late"),
    [
        ("time limit of 10 s exceeded", True),
        ("verifier raised TimeoutError: 3 s", True),
        ("verifier raised TimeoutExpired: Command 'x'", True),
        ("verifier raised TimedOut: x", True),
        ("verifier raised ValueError: Timeout", False),
        ("memory limit of 256 MB exceeded", False),
        (None, False),
    ],
)
def test_time_outs(error: str | None, late: bool) -> None:
    assert timed_out(Verdict(0.0, False, error=error)) is late


def test_verdicts_keep_order_and_all_fields(pool: PoolMaker) -> None:
    # The first takes longest, so that verdicts arrive in another order.
    pairs = [(f"naps:{0.3 if i == 0 else 0.0}", str(i)) for i in range(20)]
    shared = pool(3)
    assert [v.prediction for v in shared.verify(pairs)] == [f"t {i}" for i in range(20)]
    assert shared.verify([("echo:x", "")]) == [Verdict(0.5, False, "x", "x", "x")]
    assert shared.verify([]) == []


def test_time_limit_counts_from_the_start_of_each_task(pool: PoolMaker) -> None:
    verdicts = pool(1, timeout_seconds=1.0).verify([("naps:0.4", "")] * 5)
    assert [v.error for v in verdicts] == [None] * 5


def test_preparation_is_not_counted(pool: PoolMaker, judges: Any) -> None:
    prepared = pool(1, timeout_seconds=0.5, prepare=judges.prepare_slowly)
    assert prepared.verify([FINE])[0].error is None


def test_long_texts_are_cut_visibly_and_responses_are_not(pool: PoolMaker) -> None:
    shared = pool(1, timeout_seconds=5.0)
    (verdict,) = shared.verify([("echo:" + "y" * 12_345, "")])
    for text in (verdict.prediction, verdict.feedback, verdict.error):
        assert text is not None and len(text) == 10_000
        assert text.endswith(" … [cut, 12345 characters in all]")
    assert shared.verify([("length:" + "ü" * 3_000_000, "")])[0].prediction == "3000000"


@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(texts=st.lists(st.text(st.characters(exclude_categories=[])), max_size=8))
def test_any_text_passes_unchanged_but_for_lone_surrogates(
    pool: PoolMaker, texts: list[str]
) -> None:
    with pool(2, timeout_seconds=5.0) as shared:
        verdicts = shared.verify([(f"echo:{text}", "") for text in texts])
    expected = [text.encode("utf-8", "replace").decode() for text in texts]
    assert [v.prediction for v in verdicts] == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<object at 0x7f3a5c> and\n <g at 0xAB>", "<object at 0x…> and <g at 0x…>"),
        ("the answer is 0xdeadbeef", "the answer is 0xdeadbeef"),
        (f"no file '/var/tmp{FOLDER}/tmpab12/x': 2", "no file '$TMPDIR': 2"),
        (f"in {FOLDER}", "in $TMPDIR"),
        ("in /tmp/others", "in /tmp/others"),
    ],
)
def test_error_texts_are_the_same_in_equal_runs(text: str, said: str) -> None:
    assert _repeatable(text) == said


def test_children_are_silent_small_and_apart(
    pool: PoolMaker, capfd: pytest.CaptureFixture[str]
) -> None:
    shared = pool(1)
    start = time.monotonic()
    assert shared.verify([("uses streams", "")])[0].prediction == "''"
    assert time.monotonic() - start < 2.0  # 0.15 s on an idle machine
    assert capfd.readouterr() == ("", "")
    facts = eval(shared.verify([("tells facts", "")])[0].prediction or "")
    assert facts["group"] == facts["pid"] != os.getpid()
    assert facts["core"] == (0, 0) and facts["memory"] == 256 << 20
    assert not {"torch", "numpy", "pytest", "_pytest", "pydantic"} & set(facts["modules"])
    assert shared.verify([("gets SIGINT", "")])[0].error is None


_THERE: set[psutil.Process] = set()


@pytest.fixture(autouse=True)
def there() -> None:
    """Know what earlier tests of this process have left running, such as servers that fork."""
    _THERE.clear()
    _THERE.update(psutil.Process().children(recursive=True))


def processes(parent: int | None = None) -> list[psutil.Process]:
    """What a process has started, as it is seen from outside: guards, verifiers, their programs."""
    return [p for p in psutil.Process(parent).children(recursive=True) if p not in _THERE]


def wait_until_gone(those: list[psutil.Process], seconds: float = 20.0) -> None:
    """Wait for processes to end; fail if one lives on. One that nobody collected has ended."""
    end = time.monotonic() + seconds
    while alive := [p for p in those if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]:
        assert time.monotonic() < end, alive
        time.sleep(0.02)


def test_children_live_across_calls_and_end_with_the_pool(pool: PoolMaker) -> None:
    with pool(1) as shared:
        assert shared.verify([FINE])[0].error is None
        first = processes()
        assert shared.verify([("starts program", "")])[0].error is None
        assert shared.verify([FINE])[0].error is None
        # The program has ended with its verdict; nobody had to wait for it.
        wait_until_gone([p for p in processes() if p not in first])
        assert all(p.is_running() for p in first)
    wait_until_gone(first)
    with pytest.raises(ConfigError, match="closed"):
        shared.verify([FINE])
    shared.close()


def test_a_child_that_ends_while_it_waits_is_replaced(pool: PoolMaker) -> None:
    shared = pool(1)
    shared.verify([FINE])
    processes()[-1].kill()
    time.sleep(0.1)
    assert shared.verify([FINE, FINE]) == [Verdict(1.0, True, "t gold")] * 2


def test_a_pool_outlives_the_thread_that_first_used_it(pool: PoolMaker) -> None:
    shared = pool(1)
    thread = threading.Thread(target=lambda: shared.verify([FINE]))
    thread.start()
    thread.join()
    first = processes()
    time.sleep(0.1)
    shared.verify([FINE])
    assert first and processes() == first


def test_threads_may_share_a_pool(pool: PoolMaker) -> None:
    shared, found = pool(2), dict[int, list[Verdict]]()

    def work(number: int) -> None:
        found[number] = shared.verify([("naps:0.01", str(number))] * 5)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: {v.prediction for v in vs} for n, vs in found.items()} == {
        n: {f"t {n}"} for n in range(4)
    }


def test_an_interrupted_call_leaves_nothing_for_the_next(
    pool: PoolMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = pool(1, timeout_seconds=5.0)

    def interrupt(self: VerifierPool) -> None:
        raise KeyboardInterrupt

    shared.verify([FINE])
    with monkeypatch.context() as patch:
        patch.setattr(VerifierPool, "_wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            shared.verify([("naps:0.1", "old")])
    time.sleep(0.3)
    assert shared.verify([("fine", "new")]) == [Verdict(1.0, True, "t new")]


def test_a_verifier_that_cannot_start_is_one_error(pool: PoolMaker, judges: Any) -> None:
    with pytest.raises(DataError, match=r"^the verifier of task t can't start: ImportError: no"):
        pool(1, prepare=judges.prepare_badly).verify([FINE])
    with pytest.raises(ConfigError, match=r"raise verify\.memory_mb \(now 1\)"):
        pool(1, memory_mb=1).verify([FINE])


PARENT = """
import sys
from pathlib import Path
with Path("imported").open("a") as log:
    log.write("once\\n")
from pipeline.verification.pool import VerifierPool
from misbehaving_judges import judge
if __name__ == "__main__":
    pool = VerifierPool(judge, "t", 2, 1000.0, 512)
    print(len(pool.verify([("naps:0.1", "")] * 2)), flush=True)
    pool.verify([("spins", ""), ("sleeps in C", "")])
"""


@pytest.mark.parametrize("name", ["parent.py", "srpo"])
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties children to their parent")
def test_a_killed_parent_leaves_no_children(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, name],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{PROJECT}{os.pathsep}{HERE}"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent, parent.stdout:
        assert parent.stdout.readline() == "2\n"
        time.sleep(0.3)
        started = processes(parent.pid)
        assert len(started) >= 2
        parent.send_signal(signal.SIGKILL)
    wait_until_gone(started)
    # The children did not import the parent's main module again.
    assert (tmp_path / "imported").read_text() == "once\n"


def test_many_responses_are_quick(pool: PoolMaker) -> None:
    shared = pool(2)
    shared.verify([FINE] * 4)
    start = time.monotonic()
    verdicts = shared.verify([("length:" + "z" * 20_000, "")] * 256)
    assert math.fsum(v.reward for v in verdicts) == 256
    assert time.monotonic() - start < 5.0  # 0.05 s on an idle machine
