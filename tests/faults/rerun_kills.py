"""SIGKILL of the commands that work on a finished run: given again, they must come to their end.

Each command runs once undisturbed and once killed several times, on copies of one run. What the two
leave must be equal, their parent's tables included.
"""

import math
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.faults.command_processes import CommandProcesses
from tests.faults.train_kills import (
    END_SECONDS,
    CampaignError,
    expect_end,
    expect_nobody,
    fingerprint,
)

TRAINING = "train demo --run run --set run.steps=4 --set run.snapshot_every=4 --set " + (
    "evaluate.questions=10 --set generate.questions=8 --set run.prefect_seconds=120"
)
OUT = "out"
COMMANDS = {
    "stage": "stage route --run run --step 3 --set route.top_k=8 --fork fork",
    "replay": "replay run --from weigh --steps 1:4 --set weigh.beta=0,2 --fork sweep",
    "evaluate": "evaluate run@3",
    "policy": f"policy run@3 {OUT}",
}
"""Given again, all but the last find what is done; `policy` refuses a folder that is there."""


class Cut(NamedTuple):
    """A command that was killed: after how many CPU seconds, and when no process was left."""

    name: str
    after: float
    gone: float


def kill_commands(folder: Path, seed: int, kills: int) -> Iterator[Cut]:
    """Kill each command so many times, giving it again each time; yield each kill.

    Raises:
        CampaignError: a command did not come to its end, or to another one.
    """
    base = folder / "base"
    base.mkdir()
    _until_end(_started(base, TRAINING))
    for name, command in COMMANDS.items():
        whole, cut = folder / f"{name}-whole", folder / f"{name}-cut"
        shutil.copytree(base, whole, ignore=shutil.ignore_patterns(".prefect", "*.log"))
        shutil.copytree(whole, cut)
        processes = _started(whole, command)
        _until_end(processes)
        work = processes.used
        source = random.Random(f"{seed}-{name}")
        for _ in range(kills):
            if not (cut / OUT).exists():
                yield _killed(name, _started(cut, command), source.uniform(0.0, work))
        if not (cut / OUT).exists():
            _until_end(_started(cut, command, again=True))
        found, expected = fingerprint(cut), fingerprint(whole)
        if found != expected:
            names = {n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)}
            raise CampaignError(f"{cut} and {whole} differ in {sorted(names)}")


def _started(folder: Path, command: str, again: bool = False) -> CommandProcesses:
    log = folder.with_name(f"{folder.name}{'-again' if again else ''}.log")
    return CommandProcesses(["-m", "flows.cli", *command.split()], folder, log)


def _until_end(processes: CommandProcesses) -> None:
    expect_end(processes, processes.wait_for_work(math.inf, END_SECONDS), disturbed=False)
    expect_nobody(processes)


def _killed(name: str, processes: CommandProcesses, after: float) -> Cut:
    """Kill a command, or find that it ended: the next one may then find all done."""
    if (code := processes.wait_for_work(after, END_SECONDS)) is not None:
        expect_end(processes, code, disturbed=False)
    else:
        processes.command.send_signal(signal.SIGKILL)
        processes.wait(END_SECONDS)
    return Cut(name, after, expect_nobody(processes))
