"""Making a plan's missing runs: children side by side, and a row of each that ends well."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flows.prefect_api.server import LIMIT_SECONDS, open_server
from flows.study.children import Ended, Job, Stop, run_child, training, warm_start
from flows.study.finished_runs import code_version, commit_file, final_accuracy, row_made
from flows.terminal.progress_bars import bars
from pipeline.errors import SrpoError
from pipeline.study.study_plan import Plan, PlannedRun
from pipeline.study.study_row import Row
from pipeline.text import count, duration, percent, print_warnings

OnRow = Callable[[Row], str]
"""Takes the row of a run that ended well, and returns what is to be said of it."""


@dataclass
class Outcome:
    """What became of the runs.

    Attributes:
        failed: names of those that failed, or whose rows did.
        left: how many were not finished because a stop was asked for.
        interrupted: whether by a signal, not by the clock.
    """

    failed: list[str] = field(default_factory=list)
    left: int = 0
    interrupted: bool = False


@dataclass(frozen=True)
class Wanted:
    """A run that is to be made.

    Attributes:
        settings: overrides of its world's configuration, as its row has them.
    """

    name: str
    world: str
    settings: list[str]


def make_missing(
    plan: Plan,
    missing: Sequence[PlannedRun],
    rows: Path,
    runs: Path,
    jobs: int,
    hours: float | None,
    commit: bool,
) -> Outcome:
    """Make runs and write their rows.

    Args:
        jobs: runs at a time.
        hours: after which the runs are stopped, as by a signal.
        commit: commit each row to git.
    """

    def keep(row: Row) -> str:
        path = row.write(rows)
        done = f"accuracy {percent(final_accuracy(row))}  alarms {len(row.alarms)}"
        if not commit:
            return done
        return f"{done}  commit {commit_file(path, f'Study: row {row.name}')}"

    wanted = [Wanted(run.name, run.world, run.settings) for run in missing]
    stop = Stop(None if hours is None else 3600 * hours)
    outcome = make_runs(plan, wanted, runs, jobs, stop, keep)
    if outcome.left:
        why = "interrupted" if outcome.interrupted else f"{hours:g} hours are over"
        print(f"{why}; {count(outcome.left)} runs are left; the same command goes on", flush=True)
    if outcome.failed:
        print_warnings([f"failed: {' '.join(outcome.failed)}; the same command goes on with them"])
    return outcome


def make_runs(
    plan: Plan, wanted: Sequence[Wanted], runs: Path, jobs: int, stop: Stop, on_row: OnRow
) -> Outcome:
    """Make runs below a folder, `jobs` at a time; print a line for each that ends.

    Args:
        on_row: told of the row of each; an `SrpoError` of it makes the run count as failed.
    """
    outcome = Outcome()
    commits: dict[str, str] = {}
    by_name = {want.name: want for want in wanted}
    trainings = [training(plan, want.world, want.name, want.settings, runs) for want in wanted]

    def begin(job: Job) -> None:
        commits[job.name] = code_version()

    def end(job: Job, ended: Ended) -> None:
        advance(next(counter), len(wanted))
        if ended.stopped:
            outcome.left += 1
            return
        try:
            if ended.trouble:
                raise SrpoError(ended.trouble)
            settings = by_name[job.name].settings
            commit = commits[job.name]
            row = row_made(job.folder, job.name, settings, commit, ended.seconds, jobs)
            said = on_row(row)
            print(f"{job.name}  {duration(ended.seconds)}  {said}", flush=True)
        except SrpoError as error:
            outcome.failed.append(job.name)
            print(f"{job.name} failed: {error}\n    its run: {job.folder}", flush=True)

    counter = iter(range(1, len(wanted) + 1))
    with _prefect(runs), bars("runs") as (advance,):
        from flows.study.study_flow import make_all

        advance(0, len(wanted))
        with stop:
            _make_warm_starts(plan, wanted, runs, stop)
        make_all(trainings, jobs, stop, begin, end)
    outcome.interrupted = stop.interrupted
    return outcome


def _make_warm_starts(plan: Plan, wanted: Sequence[Wanted], runs: Path, stop: Stop) -> None:
    """Make the warm starts that are needed and not there.

    Raises:
        SrpoError: one failed.
    """
    presets = dict.fromkeys(plan.worlds[want.world].warmstart for want in wanted)
    for job in (warm_start(preset, runs) for preset in presets if preset is not None):
        if job.folder.exists():
            continue
        print(f"{job.name}: a warm start, once for all runs", flush=True)
        ended = run_child(job, stop)
        if ended.trouble:
            raise SrpoError(f"{job.name}: {ended.trouble}")


@contextlib.contextmanager
def _prefect(runs: Path) -> Iterator[None]:
    """Have a Prefect server for a block, whose address children find in the environment."""
    runs.mkdir(parents=True, exist_ok=True)
    server = open_server(runs, LIMIT_SECONDS)
    try:
        server.wait()
        if server.own:
            from flows.prefect_api.killed_runs import end_orphans

            end_orphans(server.url, LIMIT_SECONDS)
        yield
    finally:
        server.release()
