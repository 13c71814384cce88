"""Hostile verifiers: each costs its own response, in bounded time, and leaves nothing behind."""

import importlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.session.session import Session
from pipeline.config.load import load_config
from pipeline.run.lock import LOCK_FILE
from pipeline.task import Verdict
from pipeline.verification.pool import VerifierPool
from pipeline.verification.sandbox import holds

HERE = Path(__file__).parent
GOOD = Verdict(1.0, True, "good")


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of hostile verifiers; when the test is over, nothing of theirs is left."""
    monkeypatch.syspath_prepend(str(HERE))
    module = importlib.import_module("hostile_verifiers")
    yield module
    assert left(module.LONG_SLEEP) == []
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob(f"srpo-verifier-{os.getpid()}-*"))


@pytest.fixture
def contained() -> None:
    """Skip a test of what this machine's kernel does not hold; the machine would be harmed."""
    with VerifierPool(holds, "t", 1, 60.0, 512) as pool:
        held = pool.verify([("", "")])[0].prediction
    if held != "own PID namespace, no network (seccomp), files read-only (Landlock)":
        pytest.skip(f"a verifier here has {held}")


def left(sleep: str) -> list[list[str]]:
    """Command lines of what this process's verifiers started and what still lives."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        ours = any("pipeline.verification.guard" in word for word in words) and any(
            f'"parent": {os.getpid()},' in word for word in words
        )
        if (ours or sleep in words) and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(words)
    return found


HELD: dict[str, str | None] = {
    "raises badly": "verifier raised _Unspeakable: (its text can't be had: RuntimeError)",
    "names address": "verifier raised ValueError: <object object at 0x…> in $TMPDIR",
    "odd verdict": "verifier raised KeyError: 'no reward'",
    "returns twice": None,
    "daemon": None,
    "bomb": "verifier process started more than 64 processes",
    "prints": None,
    "recurses": "verifier raised RecursionError: maximum recursion depth exceeded",
    "hoards": "memory limit of 512 MB exceeded",
    "exits": "verifier process ended with exit code 0",
    "closes all": "verifier process ended with exit code 1",
    "garbage": "verifier process broke its connection",
    "uses pair": None,
    "runs program": None,
    "writes much": "verifier raised OSError: [Errno 27] File too large",
    "opens much": "verifier raised OSError: [Errno 24] Too many open files: '/dev/null'",
    "leaves thread": None,
    "huge": (
        "verifier raised ValueError: Exceeds the limit (4300 digits) for integer string "
        "conversion; use sys.set_int_max_str_digits() to increase the limit"
    ),
    "infinite": "verifier returned the reward inf, expected a number in [0, 1]",
    "minus infinite": "verifier returned the reward -inf, expected a number in [0, 1]",
}


HANGS = ("hangs", "hangs in C", "regex", "forks and hangs")

REFUSE = """
import ctypes, struct, sys
refused = [int(word) for word in sys.argv[1:]]
rows = [(0x20, 0, 0, 0)]
rows += [(0x15, len(refused) - i, 0, number) for i, number in enumerate(refused)]
rows += [(6, 0, 0, 0x7FFF0000), (6, 0, 0, 0x50001)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *row) for row in rows))
head = struct.pack("HxxxxxxQ", len(rows), ctypes.addressof(code))
libc, zero = ctypes.CDLL(None), ctypes.c_ulong(0)
assert libc.prctl(38, ctypes.c_ulong(1), None, zero, zero) == 0
assert libc.prctl(22, ctypes.c_ulong(2), ctypes.c_char_p(head), zero, zero) == 0
"""
"""Lines that make the kernel refuse system calls by number to this process and all its children."""

IN_A_POOL = """
import hostile_verifiers as hostile
from pipeline.verification.sandbox import holds
from pipeline.verification.pool import VerifierPool
with VerifierPool(holds, "t", 1, 60.0, 512) as pool:
    print(pool.verify([("", "")])[0].prediction)
with VerifierPool(hostile.judge, "t", 1, 60.0, 512) as pool:
    for response in ("good", "daemon", "exits", "good", "daemon", "good"):
        print(pool.verify([(response, "")])[0].error)
    print("ready", flush=True)
    if "die" in sys.argv[0]:
        pool.verify([("forks and hangs", "")])
"""


def in_a_pool(tmp_path: Path, refused: list[int], die: bool = False) -> list[str]:
    """Run a pool in a process of its own, refused system calls; return what it prints."""
    script = tmp_path / ("die.py" if die else "live.py")
    script.write_text(REFUSE + IN_A_POOL)
    paths = os.pathsep.join([str(HERE.parents[1]), str(HERE)])
    with subprocess.Popen(
        [sys.executable, str(script), *map(str, refused)],
        env=os.environ | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline().strip() for _ in range(8)]
        started = psutil.Process(process.pid).children(recursive=True)
        if die:
            process.kill()
    assert lines[-1] == "ready"
    alive = psutil.wait_procs(started, timeout=20)[1]
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
    return lines[:-1]


def test_hostile_verifiers_cost_their_own_response_only(contained: None, hostile: Any) -> None:
    pairs = [pair for command in HELD for pair in ((command, ""), ("good", ""))]
    with VerifierPool(hostile.judge, "t", 2, 60.0, 512) as pool:
        verdicts = pool.verify(pairs)
    assert {c: v.error for c, v in zip(HELD, verdicts[::2], strict=True)} == HELD
    assert verdicts[1::2] == [GOOD] * len(HELD)


def test_whatever_hangs_is_ended(hostile: Any) -> None:
    pairs = [pair for command in HANGS for pair in ((command, ""), ("good", ""))]
    with VerifierPool(hostile.judge, "t", 2, 2.0, 512) as pool:
        verdicts = pool.verify(pairs)
    assert [v.error for v in verdicts[::2]] == ["time limit of 2 s exceeded"] * len(HANGS)
    assert verdicts[1::2] == [GOOD] * len(HANGS)


def test_texts_of_many_megabytes_are_cut(hostile: Any) -> None:
    with VerifierPool(hostile.judge, "t", 1, 60.0, 2048) as pool:
        long, raised = pool.verify([("returns much", ""), ("raises much", "")])
        (small,) = pool.verify([("good:" + "x" * 50_000_000, "")])
    assert long.prediction is not None and len(long.prediction) == 10_000
    assert long.prediction.endswith("[cut, 100000000 characters in all]")
    assert raised.error is not None and len(raised.error) == 10_000
    assert small == GOOD


def test_there_is_no_network_and_no_file_to_change(
    contained: None, hostile: Any, tmp_path: Path
) -> None:
    (tmp_path / "verdicts.arrow").write_text("ours")
    with (
        VerifierPool(hostile.judge, "t", 1, 60.0, 512) as pool,
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        port = server.getsockname()[1]
        verdicts = pool.verify([(f"connects:{port}", ""), (f"vandal:{tmp_path}", "")])
    assert verdicts[0].error == "verifier raised PermissionError: [Errno 13] Permission denied"
    assert (verdicts[1].error or "").startswith("verifier raised PermissionError: [Errno 13]")
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("verdicts.arrow", "ours")]


def test_programs_started_at_import_stay_and_those_of_a_verdict_end_with_it(
    contained: None, hostile: Any
) -> None:
    with VerifierPool(hostile.judge, "t", 1, 60.0, 512, prepare=hostile.start_at_import) as pool:
        said = [pool.verify([(f"helper:{i}", "")])[0].prediction for i in range(3)]
    assert said == ["0", "1", "2"]
    with VerifierPool(hostile.judge, "t", 1, 60.0, 512) as pool:
        assert pool.verify([("daemon", "")] * 70) == [GOOD] * 70  # more than it may have at once


def test_what_holds_where_the_kernel_refuses(contained: None, hostile: Any, tmp_path: Path) -> None:
    """Numbers of x86-64: unshare is 272, Landlock's first call 444."""
    exited = "verifier process ended with exit code 0"
    verdicts = ["None", "None", exited, "None", "None", "None"]
    held = in_a_pool(tmp_path, [272])
    assert held[0].startswith("no PID namespace")
    assert held[0].endswith("no network (seccomp), files read-only (Landlock)")
    assert held[1:] == verdicts
    held = in_a_pool(tmp_path, [272, 444])
    assert held[0].endswith("no network (seccomp), FILES WRITABLE: no Landlock")
    assert held[1:] == verdicts


@pytest.mark.parametrize("refused", [[0xFFFF], [272]], ids=["namespace", "no namespace"])
def test_a_killed_parent_takes_daemons_along(
    hostile: Any, tmp_path: Path, refused: list[int]
) -> None:
    in_a_pool(tmp_path, refused, die=True)


@pytest.mark.slow
def test_children_replaced_for_every_response_leak_nothing(hostile: Any) -> None:
    this = psutil.Process()
    with VerifierPool(hostile.judge, "t", 2, 60.0, 512) as pool:
        pool.verify([("exits", "")] * 2)
        before = this.num_fds()
        verdicts = pool.verify([("exits", "")] * 200)
        assert this.num_fds() <= before
    assert {v.error for v in verdicts} == {"verifier process ended with exit code 0"}


TASK = """
import sys
sys.path.insert(0, {folder!r})
from hostile_verifiers import VERIFIER, load, verify
"""


def test_the_worst_in_a_stage_harm_no_rollout_beside_them(
    contained: None, hostile: Any, tmp_path: Path
) -> None:
    (tmp_path / "task.py").write_text(TASK.format(folder=str(HERE)))
    run = tmp_path / "run"
    config = load_config(
        "demo",
        [
            f"data.task={tmp_path / 'task.py'}",
            f"data.path={run}",
            "generate.questions=8",
            "generate.rollouts=2",
            "generate.max_response_length=8",
            "verify.timeout_seconds=60",
            "verify.memory_mb=512",
        ],
    )
    with closing(Session.create(run, config)) as session:
        session.run_stage("generate", 0)
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != LOCK_FILE}
        session.run_stage("verify", 0)
        rollouts = session.run.read("rollouts", 0)
        verdicts = session.run.read("verdicts", 0)
    assert {p: p.read_bytes() for p in before} == before
    seen = set()
    for what, reward, error in zip(
        rollouts["reference"].to_pylist(),
        verdicts["reward"].to_pylist(),
        verdicts["error"].to_pylist(),
        strict=True,
    ):
        command = what.partition(":")[0]
        seen.add(command)
        if command == "bomb":
            assert error == "verifier process started more than 64 processes"
        elif command == "vandal":
            assert "PermissionError" in error
        elif command != "kill parent":  # refused, or it has no effect
            assert (reward, error) == (1.0, None)
    assert seen == {"good", "good again", "bomb", "daemon", "kill parent", "vandal"}
