"""Child processes that train a study's runs, and how they are asked to stop."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from pathlib import Path
from types import FrameType
from typing import NamedTuple, Self

from pipeline.files.durable import atomic_path, digest_of, file_digest
from pipeline.study.study_plan import CODE, POLICIES, WARM_STARTS, Plan, World
from pipeline.text import duration, printable

SRPO = (sys.executable, "-P", "-m", "flows.cli")
"""The command `srpo`, as words."""
LIMIT_SECONDS = 2 * 3600.0
"""What a run may take at most, in one go."""
_POLL_SECONDS = 0.2
_LINES, _SHOWN = 8, 300
"""How many of a failed child's last lines are shown, and how much of each."""
_STOPPING = b"stopping: each run takes a snapshot first; Ctrl-C again stops at once\n"


class Stop:
    """Counts how often the runs were asked to stop: by signals, and by the clock.

    Once means gently. Handlers are installed for a block, in the main thread.

    Args:
        seconds: after which the clock asks; None: never.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._signals = 0
        self._end = None if seconds is None else time.monotonic() + seconds
        self._previous: dict[int, object] = {}

    @property
    def interrupted(self) -> bool:
        """Tell whether somebody asked, not the clock."""
        return self._signals > 0

    @property
    def times(self) -> int:
        """Return how often a stop was asked for."""
        late = self._end is not None and time.monotonic() > self._end
        return self._signals + late

    def __enter__(self) -> Self:
        """Install the handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        """Put the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        os.write(2, _STOPPING)  # a bare write is safe here, nothing else is


class Job(NamedTuple):
    """A run that a child process is to train.

    Attributes:
        folder: of the run. What the child says goes into a file beside it.
        words: of the command, after `srpo`; `--resume` is added where there is something to resume.
    """

    name: str
    folder: Path
    words: list[str]

    @property
    def log(self) -> Path:
        """Return the file of what the child says."""
        return self.folder.with_name(f"{self.folder.name}.log")


class Ended(NamedTuple):
    """How a child ended.

    Attributes:
        seconds: that it took.
        trouble: what went wrong, with the child's last lines; "" if all went well.
        stopped: it ended because it was asked to, or was never begun for that reason.
    """

    seconds: float
    trouble: str = ""
    stopped: bool = False


def training(plan: Plan, world: str, name: str, settings: list[str], runs: Path) -> Job:
    """Return the job that trains a run of a world below a folder of runs."""
    folder = runs.resolve() / name
    given = [*places(plan.worlds[world], runs), *settings]
    sets = [word for setting in given for word in ("--set", setting)]
    words = ["train", str(plan.worlds[world].config), "--run", str(folder), *sets]
    return Job(name, folder, words)


def places(world: World, runs: Path) -> list[str]:
    """Return the overrides that say where a world's policy lies on this machine.

    A row doesn't have them: they decide nothing, since a run's first version digests the files.
    """
    if world.policy is not None:
        return [f"model.path={_copy_of(CODE / world.policy, runs.resolve())}"]
    if world.warmstart is not None:
        return [f"model.lora.adapter={warm_start(world.warmstart, runs).folder}"]
    return []


def _copy_of(policy: Path, runs: Path) -> Path:
    """Return a policy's copy beside the runs, made if it isn't there.

    So a run that was begun by one clone of the code goes on by another.
    """
    digest = digest_of({path.name: file_digest(path) for path in policy.iterdir()})
    copy = runs / POLICIES / f"{policy.parent.name}-{digest[:12]}"
    if not copy.exists():
        with atomic_path(copy) as temporary:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.copytree(policy, temporary)
    return copy


def warm_start(preset: str, runs: Path) -> Job:
    """Return the job that makes a preset's warm start, in the folder where runs look for it.

    On one thread, so that its result doesn't depend on how many cores there are.
    """
    folder = runs.resolve() / WARM_STARTS / preset
    words = ["warmstart", preset, "--out", str(folder), "--set", "run.threads=1"]
    return Job(f"{WARM_STARTS}/{preset}", folder, words)


def run_child(job: Job, stop: Stop) -> Ended:
    """Run a job's command to its end; asked to stop, or after `LIMIT_SECONDS`, interrupt it.

    Each time that `stop` counts is one SIGINT. The child is in a session of its own, so that a
    terminal's Ctrl-C reaches it from here alone.
    """
    if stop.times:
        return Ended(0.0, stopped=True)
    resume = ["--resume"] if (job.folder / "run.json").exists() else []
    job.log.parent.mkdir(parents=True, exist_ok=True)
    began, told, late = time.monotonic(), 0, False
    with job.log.open("ab") as log:
        process = subprocess.Popen(
            [*SRPO, *job.words, *resume],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        while process.poll() is None:
            time.sleep(_POLL_SECONDS)
            if not late and time.monotonic() - began > LIMIT_SECONDS:
                late = True
                process.send_signal(signal.SIGINT)
            while told < stop.times:
                told += 1
                process.send_signal(signal.SIGINT)
    seconds = time.monotonic() - began
    if process.returncode == 0:
        return Ended(seconds)
    if late:
        return Ended(seconds, f"stopped after {duration(LIMIT_SECONDS)}, the most for one run")
    if told:
        return Ended(seconds, stopped=True)
    return Ended(seconds, f"exit code {process.returncode}\n{_last_lines(job.log)}")


def _last_lines(log: Path) -> str:
    with log.open(encoding="utf-8", errors="replace") as file:
        lines = deque((line.rstrip() for line in file if line.strip()), maxlen=_LINES)
    return "\n".join(f"    {printable(line, _SHOWN)}" for line in lines)
