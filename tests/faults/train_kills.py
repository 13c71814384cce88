"""A campaign of SIGKILLs: a demo run is killed at random moments and resumed until it is complete.

Kill number n is drawn from (seed, n) alone: whom it hits, and after which share of the work of a
command. After each kill it is noted how long the last process lived on and what was computed in
vain; after each completed run its files are compared with those of a run that nobody disturbed.
"""

import hashlib
import json
import math
import random
import signal
import sqlite3
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from flows.session.stage_runner import STAGES
from tests.faults import train_with_journal as journal
from tests.faults.command_processes import CommandProcesses, Kind

SETTINGS = (
    "run.steps=6",
    "run.snapshot_every=2",
    "run.keep_snapshots=10",
    "evaluate.questions=10",
)
END_SECONDS = 600.0
"""Within this a command must come to its end, also if it lost its server or a verifier."""
GONE_SECONDS = 120.0
MOST_LATE = 0.5
MOST_MISSES = 3
_OPEN_RUNS = "SELECT name FROM flow_run WHERE state_type IN ('PENDING', 'RUNNING')"
KINDS: tuple[Kind, ...] = ("command", "command", "server", "verifier", "everything")


class CampaignError(AssertionError):
    """Something that must not happen after a kill did."""


@dataclass
class Kill:
    """One kill: as it was drawn, and what came of it.

    Attributes:
        number: from which, with the seed, `kind` and `after` are drawn.
        share: of an undisturbed command's CPU time, after which it is made.
        after: the same in CPU seconds; later, if there is nobody of its kind yet.
        hit: who was there to be hit.
        moment: when it was done, by the clock.
        ended: exit code of the command.
        gone: seconds until no process was left; None: the next command began at once.
        lost: stages that were computed, but not on the disk, and the one that was running.
        lost_seconds: what these had taken.
        replayed: updates that the next command replayed from the last snapshot.
        replay_seconds: what these took.
    """

    number: int
    kind: Kind
    share: float
    after: float = 0.0
    run: str = ""
    hit: str = ""
    moment: float = 0.0
    ended: int | None = None
    gone: float | None = None
    lost: list[str] = field(default_factory=list)
    lost_seconds: float = 0.0
    replayed: int = 0
    replay_seconds: float = 0.0

    @classmethod
    def drawn(cls, seed: int, number: int) -> "Kill":
        """Draw a kill. The last tenth is left to commands that resume, which have less to do.

        A moment that no command lives to see would hold up all later kills.
        """
        source = random.Random(f"{seed}-{number}")
        return cls(number, source.choice(KINDS), round(source.uniform(0.0, 0.9), 3))


def fingerprint(run: Path) -> dict[str, str]:
    """Return a digest of each file of a run that must be equal in equal runs."""
    found = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name = path.relative_to(run).as_posix()
        if path.name == "metrics.json":
            record = json.loads(path.read_text(encoding="utf-8"))
            kept = {
                k: v for k, v in record.items() if not k.startswith("seconds") and k != "digest"
            }
            found[name] = hashlib.sha256(json.dumps(kept).encode()).hexdigest()
        elif path.suffix in (".arrow", ".safetensors") or path.name == "state.json":
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def train(run: Path, extra: Sequence[str] = ()) -> list[str]:
    """Return the arguments that begin a run, or go on with it if it has begun."""
    if (run / "run.json").exists():
        return ["train", "--resume", "--run", run.name]
    settings = [part for setting in (*SETTINGS, *extra) for part in ("--set", setting)]
    return ["train", "demo", "--run", run.name, *settings]


class Campaign:
    """Kills and resumes runs in one folder, which all share its Prefect database.

    They have `settings` besides `SETTINGS`.

    Attributes:
        work: CPU seconds of the last command that made a whole run undisturbed.
    """

    def __init__(self, folder: Path, seed: int, settings: Sequence[str] = ()) -> None:
        self._folder, self._seed, self._settings = folder, seed, settings
        self._runs = self._commands = 0
        self._processes: CommandProcesses | None = None
        self._misses: Counter[int] = Counter()
        run = folder / "undisturbed"
        processes, _ = self._start(run)
        code = processes.wait_for_work(math.inf, END_SECONDS)
        expect_end(processes, code, disturbed=False)
        self.work = processes.used
        self._settle(processes)
        self._expected = fingerprint(run)

    def kills(self, first: int, count: int) -> Iterator[Kill]:
        """Make kills, of as many runs as it takes; yield each when its consequences are known."""
        numbers = range(first, first + count)
        drawn = deque(Kill.drawn(self._seed, number) for number in numbers)
        while drawn:
            self._runs += 1
            yield from self._until_complete(self._folder / f"run-{self._runs:03d}", drawn)

    def close(self) -> None:
        """Kill whoever is left."""
        if self._processes is not None:
            self._processes.end()

    def _until_complete(self, run: Path, drawn: deque[Kill]) -> Iterator[Kill]:
        last: Kill | None = None
        done = False
        while not done:
            known, whole = _committed(run), not run.exists()
            processes, path = self._start(run)
            kill = drawn[0] if drawn else None
            if kill is not None:
                kill.after = kill.share * self.work
            done = _disturbed(processes, kill) if kill else _undisturbed(processes)
            if whole and kill is not None and not kill.hit:
                self._missed(kill, processes)
            entries = journal.read(path)
            if last is not None:
                _note_replay(last, entries, known)
                yield last
                last = None
            if kill is not None and kill.hit:
                last = drawn.popleft()
                last.run = run.name
                _note_losses(last, entries, _committed(run))
        self._settle(processes)
        self._compare(run)
        if last is not None:
            yield last

    def _missed(self, kill: Kill, processes: CommandProcesses) -> None:
        """Draw it earlier: the command did its work in less time than the one before."""
        self._misses[kill.number] += 1
        self.work = processes.used
        if self._misses[kill.number] > MOST_MISSES:
            raise CampaignError(
                f"no {kill.kind} to kill in {MOST_MISSES} runs: see {processes.log}"
            )

    def _start(self, run: Path) -> tuple[CommandProcesses, Path]:
        """Start the next command on a run; return its processes and where its journal will be."""
        self._commands += 1
        path = self._folder / f"{run.name}-{self._commands:04d}.journal"
        arguments = ["-m", "tests.faults.train_with_journal", str(path)]
        arguments += train(run, self._settings)
        self._processes = CommandProcesses(arguments, self._folder, path.with_suffix(".log"))
        return self._processes, path

    def _settle(self, processes: CommandProcesses) -> None:
        """Wait until the server has ended, and look at its database."""
        expect_nobody(processes)
        with closing(sqlite3.connect(self._folder / ".prefect" / "prefect.db")) as database:
            found = database.execute("PRAGMA integrity_check").fetchone()[0]
            open_runs = database.execute(_OPEN_RUNS).fetchall()
        if found != "ok" or open_runs:
            raise CampaignError(f"Prefect's database: {found}, said to be running: {open_runs}")

    def _compare(self, run: Path) -> None:
        found = fingerprint(run)
        names = found.keys() ^ self._expected.keys()
        names |= {name for name in found if found[name] != self._expected.get(name)}
        if names:
            raise CampaignError(f"{run} differs from the undisturbed run in {sorted(names)}")
        left = [str(path) for end in ("tmp", "old") for path in run.rglob(f".*.{end}")]
        if left:
            raise CampaignError(f"left in {run}: {left}")


def _undisturbed(processes: CommandProcesses) -> bool:
    return expect_end(processes, processes.wait(END_SECONDS), disturbed=False)


def _disturbed(processes: CommandProcesses, kill: Kill) -> bool:
    """Wait for the moment, kill, and wait for what comes of it; tell whether the run is complete.

    One time in four the next command shall begin at once, while the server may still be there.
    """
    source = random.Random(kill.number)
    code = processes.wait_for_work(kill.after, END_SECONDS)
    if code is None:
        code = processes.wait(source.uniform(0.0, MOST_LATE))  # moments at which it waits count too
    victims: list[psutil.Process] = []
    while code is None and not (victims := processes.find(kill.kind)):
        code = processes.wait(0.1)
    if code is not None:
        return expect_end(processes, code, disturbed=False)
    chosen = victims if kill.kind == "everything" else [source.choice(victims)]
    kill.hit = "+".join(sorted(processes.kind(process) for process in chosen))
    kill.moment = time.time()
    for victim in source.sample(chosen, len(chosen)):
        with suppress(psutil.NoSuchProcess):
            victim.kill()
    kill.ended = processes.wait(END_SECONDS)
    done = kill.ended != -signal.SIGKILL and expect_end(processes, kill.ended, disturbed=True)
    if done or source.random() < 0.75:
        kill.gone = expect_nobody(processes)
    return done


def expect_end(processes: CommandProcesses, code: int | None, disturbed: bool) -> bool:
    """Tell whether a command came to its end; one that lost a child may fail, in one line.

    Raises:
        CampaignError: it hangs, failed with nobody to blame, or failed in another way.
    """
    if code == 0:
        return True
    lines = processes.log.read_text(encoding="utf-8").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    traces = [line for line in lines if "Traceback" in line]
    if code is None:
        raise CampaignError(f"still there after {END_SECONDS:g} s: see {processes.log}")
    if not disturbed or code != 2 or len(errors) != 1 or traces:
        raise CampaignError(f"exit code {code}, {len(errors)} errors: see {processes.log}")
    return False


def expect_nobody(processes: CommandProcesses) -> float:
    """Return after how many seconds no process was left."""
    seconds = processes.wait_until_gone(GONE_SECONDS)
    if seconds is None:
        left = [" ".join(process.cmdline()) for process in processes.members()]
        raise CampaignError(f"still there after {GONE_SECONDS:g} s: {left}; see {processes.log}")
    return seconds


def _committed(run: Path) -> set[tuple[str, int]]:
    """Return the stages all of whose tables are on the disk, with their steps."""
    tables = {(path.stem, int(path.parent.name)) for path in run.glob("steps/*/*.json")}
    tables |= {("evaluations", int(path.stem)) for path in run.glob("evaluations/*.json")}
    steps = {step for _, step in tables}
    return {
        (stage.name, step)
        for stage in STAGES.values()
        for step in steps
        if all((table, step) in tables for table in stage.writes)
    }


def _note_losses(kill: Kill, entries: list[journal.Entry], committed: set[tuple[str, int]]) -> None:
    """Note what the command had computed, or begun, that is not on the disk."""
    for entry in entries:
        if (entry.name, entry.step) not in committed:
            kill.lost.append(f"{entry.name} {entry.step}")
            kill.lost_seconds += (entry.ended or kill.moment) - entry.began


def _note_replay(kill: Kill, entries: list[journal.Entry], committed: set[tuple[str, int]]) -> None:
    """Note which updates the next command computed though they were on the disk."""
    replays = [e for e in entries if e.name == "update" and (e.name, e.step) in committed]
    kill.replayed = len(replays)
    kill.replay_seconds = sum(e.ended - e.began for e in replays if e.ended is not None)


def as_line(kill: Kill) -> str:
    """Return a kill as a line of JSON."""
    record: dict[str, Any] = asdict(kill)
    return json.dumps({k: round(v, 2) if isinstance(v, float) else v for k, v in record.items()})
