"""The command line `srpo`. Heavy libraries are imported by the commands that need them."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from flows.bars import bars
from flows.commands.audit import audit
from flows.commands.cache import cache
from flows.commands.check import check
from flows.commands.compare import compare
from flows.commands.diff import diff
from flows.commands.policy import policy
from flows.commands.prune import prune, restore
from flows.commands.replay import replay
from flows.commands.runs import runs
from flows.commands.stage import stage
from flows.commands.view import view
from flows.options import FOLDER, RUN, Runner, Set
from pipeline.audit.plain import printable
from pipeline.disk import explained, is_trouble
from pipeline.errors import SrpoError, StoreError

if TYPE_CHECKING:
    from flows.loop import Outcome
    from flows.placing import Place
    from flows.server import Lease
    from flows.session import Session

INTERRUPTED = 130
ALARMED = 3
LEAVE_SECONDS = 5.0
"""What Prefect's client may take at the end to send what it has; the run's records are there."""

ERROR_LIMIT = 2000
"""Characters of an error line: it may quote what came from outside."""
RUNS = Path("runs")

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="On-policy post-training of language models by SRPO. Start here: srpo train demo",
)


def main() -> None:
    """Run a command; an error of ours is one line and exit code 2."""
    logging.raiseExceptions = False  # Prefect would print that it can't send its logs
    try:
        code = app(standalone_mode=False)
    except (SrpoError, OSError, typer.TyperException) as error:
        print(f"error: {printable(' '.join(_text(error).split()), ERROR_LIMIT)}", file=sys.stderr)
        code = 2
    except typer.Abort:
        code = INTERRUPTED
    _leave(code)


def _leave(code: int | None) -> NoReturn:
    """End the process. Prefect's client would wait without limit for a server that is gone."""
    events = sys.modules.get("prefect.events.worker")
    if events is not None and events.EventsWorker.drain_all(timeout=LEAVE_SECONDS).not_done:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
    sys.exit(code)


def _text(error: Exception) -> str:
    if isinstance(error, typer.TyperException):
        return error.format_message().replace("Value error, ", "")  # pydantic's words
    if isinstance(error, OSError):
        again = "; then run the same command again" if is_trouble(error) else ""
        return f"{explained(error)}{again}"
    return str(error)


@app.command()
def train(
    config: Annotated[str | None, typer.Argument(help="A TOML file or a preset.")] = None,
    run: Annotated[Path | None, typer.Option(help="Folder or URL of the run.", **RUN)] = None,
    overrides: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Record where the time of each step goes.")
    ] = False,
    runner: Runner = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes per host that share it.")] = 1,
    nnodes: Annotated[int, typer.Option(min=1, help="Hosts; start this on each.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Which host this is, from 0.")] = 0,
    rdzv_endpoint: Annotated[str, typer.Option(help="HOST:PORT of host 0.")] = "",
) -> None:
    """Train a policy; the tables of every step stay on disk.

    Ctrl-C ends the running stage, takes a snapshot and says how to go on; twice stops at once.

    Example: srpo train demo --run runs/first --set run.steps=20
    """
    from flows.opening import default_run_dir

    if run is None:
        if resume or config is None:
            raise SrpoError("which run? --resume needs --run DIR; a new run needs a configuration")
        run = default_run_dir(config, RUNS)
    places = (ranks, nnodes, node_rank, rdzv_endpoint)
    with _as_ranks(places, run) as follower:
        code = 0 if follower else _train_run(config, run, overrides or [], resume, profile, runner)
    raise typer.Exit(code)


@contextlib.contextmanager
def _as_ranks(places: tuple[int, int, int, str], run: Path) -> Iterator[bool]:
    """Be a rank if torchrun started this process; start ranks if several are wanted.

    Yields:
        Whether this rank has followed another to the end.
    """
    if places[:3] == (1, 1, 0):
        yield False
        return
    from flows.ranks import Places, inside, launch, settle_in
    from pipeline.ranks import follow, joined, rank

    if not inside():
        raise typer.Exit(launch([*sys.argv[1:], "--run", str(run)], Places(*places), run))
    settle_in()
    with joined():
        if rank():
            follow()
        yield rank() > 0


def _train_run(
    config: str | None,
    run: Path,
    overrides: list[str],
    resume: bool,
    profile: bool,
    runner: str | None,
) -> int:
    """Train on one run; return the command's exit code."""
    from flows.opening import checked_config, open_session
    from flows.placing import Place
    from flows.server import open_server
    from flows.summary import print_summary
    from pipeline.text import go_on

    place = Place.of(runner) if runner else None
    settings = checked_config(config, run, overrides, resume)
    console = Console()
    # It starts in the background, while the model loads.
    lease = open_server(run.parent, settings.run.prefect_seconds)
    try:
        if not lease.own:
            lease.wait()  # somebody else's server: before anything is written
        with console.status(f"{run}: opening the policy, starting Prefect"):
            opened = open_session(settings, run, resume)
            from flows.recovery import session_after_alarm
        with contextlib.closing(opened) as session:
            with console.status(f"{run}: starting Prefect"):
                _wait_for_prefect(lease, session)
            outcome = _train(session, run, console, profile, place)
            print_summary(console, session, outcome)
            following = session_after_alarm(session, outcome)
        if following is not None:
            with contextlib.closing(following) as session:
                run = session.run.root
                print(f"going on in {run}: {session.run.fork.note if session.run.fork else ''}")
                outcome = _train(session, run, console, profile, place)
                print_summary(console, session, outcome)
    except OSError as error:
        begun = (run / "run.json").exists()
        on = f"then go on: {go_on(run)}" if begun else "then run the same command again"
        raise StoreError(f"{explained(error)}; {on}") from error
    except KeyboardInterrupt:
        known = (run / "run.json").exists()
        hint = f"; go on: {go_on(run)}" if known else "; nothing was written"
        print(f"interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    finally:
        lease.release()
    return {"stopped": INTERRUPTED, "alarm": ALARMED}.get(outcome.ended, 0)


def _wait_for_prefect(lease: "Lease", session: "Session") -> None:
    lease.wait()
    if lease.own:
        from flows.orphans import end_orphans

        end_orphans(lease.url, session.config.run.prefect_seconds)


def _train(
    session: "Session", run: Path, console: Console, profile: bool, place: "Place | None"
) -> "Outcome":
    from flows.fanout import crew_at
    from flows.profile import profiled
    from flows.progress import Lines, Screen, print_warnings
    from flows.questions import warnings_of
    from flows.room import RoomWatcher, room_line, room_warnings
    from flows.train import run_training

    warnings = [*warnings_of(session.config, session.questions), *session.slow_paths()]
    print_warnings([*warnings, *room_warnings(session)])
    print(f"{run}: {room_line(session)}")
    with contextlib.ExitStack() as stack:
        session.spread_over(stack.enter_context(crew_at(place, session.config.run.stall_seconds)))
        first = stack.enter_context(profiled(session, console)) if profile else []
        if not console.is_terminal:
            return run_training(session, [*first, RoomWatcher(session), Lines(session)])
        with Screen(session, run.name, console) as screen:
            return run_training(session, [*first, RoomWatcher(session), screen])


@app.command()
def evaluate(
    state: Annotated[
        str, typer.Argument(metavar="RUN[@STEP]|MODEL", help="A run, at its end or STEP; a model.")
    ],
    task: Annotated[str | None, typer.Option(help="Another task than the run's.")] = None,
    overrides: Set = None,
    runner: Runner = None,
) -> None:
    """Measure a policy on the test questions: avg@k with its interval, pass@k, maj@k.

    A model is a Hugging Face folder or name; its answers are kept in a run folder of their own.

    Example: srpo evaluate runs/first@20 --set evaluate.rollouts=4
    """
    from flows.crews import crew_of
    from flows.evaluating import evaluate_now
    from flows.opening import default_run_dir, model_config, split_state
    from flows.progress import evaluation_line
    from flows.session import Session
    from pipeline.remote.opening import is_run

    run, step = split_state(state)
    chosen = [*([f"data.task={task}"] if task else []), *(overrides or [])]
    if is_run(run):
        session = Session.resume(run)
    else:
        settings = model_config(state, chosen)
        run, step, chosen = default_run_dir("evaluate", RUNS), 0, []
        session = Session.create(run, settings, keep_start=False)
    names = ("policy, by replaying updates", "evaluate")
    with (
        contextlib.closing(session),
        crew_of(runner, run.parent) as crew,
        bars(*names) as (replayed, own),
    ):
        steps_done = session.next_step() if step is None else step
        summary = evaluate_now(session, steps_done, chosen, own, replayed, crew)
    print(evaluation_line(steps_done, summary))
    print(f"{summary['questions']} questions, {summary['rollouts']} answers each, in {run}")


@app.command()
def tasks() -> None:
    """List the shipped tasks; a Python file of your own is a task as well.

    Example: srpo tasks
    """
    from data.registry import describe, task_names

    _print_pairs((name, describe(name)) for name in task_names())


@app.command()
def presets(name: Annotated[str | None, typer.Argument(help="Show this one.")] = None) -> None:
    """List the presets, or print one as the TOML file it is.

    Example: srpo presets srpo-paper > mine.toml
    """
    from pipeline.loading import preset_names, preset_text

    names = preset_names()
    if name is None:
        _print_pairs((n, preset_text(n).splitlines()[0].removeprefix("# ")) for n in names)
    elif name in names:
        print(preset_text(name), end="")
    else:
        raise SrpoError(f"no preset {name}; there are {', '.join(names)}")


@app.command()
def doctor(
    run_root: Annotated[Path, typer.Option(help="Folder that holds runs.", **FOLDER)] = RUNS,
) -> None:
    """Say what is installed, what the machine has, and what will run where.

    Example: srpo doctor
    """
    from flows.doctor import print_report

    if not print_report(Console(), run_root):
        raise typer.Exit(1)


app.command()(check)
app.command()(audit)
app.command()(diff)
app.command()(compare)
app.command()(view)
app.command()(stage)
app.command()(replay)
app.command()(runs)
app.command()(policy)
app.command()(prune)
app.command()(restore)
app.command()(cache)


def _print_pairs(pairs: Iterator[tuple[str, str]]) -> None:
    table = Table(show_header=False, box=None)
    for left, right in pairs:
        table.add_row(left, right)
    Console().print(table, highlight=False, markup=False)


if __name__ == "__main__":
    main()
