"""`srpo train`: one run, on one process or several."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer
from rich.console import Console

from flows.commands.completion import presets_starting_with
from flows.commands.options import INTERRUPTED, RUN, RUNS, Runner, Set
from flows.terminal.console import is_live, open_console, status
from pipeline.errors import SrpoError, StoreError
from pipeline.machine.disk import os_error_line
from pipeline.text import command, print_warnings, state_word

if TYPE_CHECKING:
    from flows.prefect_api.server import ServerHandle
    from flows.session.session import Session
    from flows.training.loop import Outcome
    from flows.workers.runner_spec import RunnerSpec


ALARMED = 3
"""Exit code of a training that an alarm ended."""


class _Beside(NamedTuple):
    """What a command does beside training."""

    profile: bool
    preflight: bool


def train(
    config: Annotated[
        str | None,
        typer.Argument(
            help="A TOML file or a preset.",
            autocompletion=presets_starting_with,
        ),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder or URL of the run.", **RUN)] = None,
    overrides: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run.")] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Record where the time of each step goes.")
    ] = False,
    preflight: Annotated[
        bool,
        typer.Option("--preflight", help="First measure the teacher's lead; it warns, no more."),
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
    from flows.session.open_run import default_run_dir

    if run is None:
        if resume or config is None:
            raise SrpoError("which run? --resume needs --run DIR; a new run needs a configuration")
        run = default_run_dir(config, RUNS)
    layout = (ranks, nnodes, node_rank, rdzv_endpoint)
    with _as_ranks(layout, run) as follower:
        beside = _Beside(profile, preflight)
        code = 0 if follower else _train_here(config, run, overrides or [], resume, beside, runner)
    raise typer.Exit(code)


@contextlib.contextmanager
def _as_ranks(layout: tuple[int, int, int, str], run: Path) -> Iterator[bool]:
    """Be a rank if torchrun started this process; start ranks if several are wanted.

    Yields:
        Whether this rank has followed another to the end.
    """
    if layout[:3] == (1, 1, 0):
        yield False
        return
    from flows.training.rank_launcher import RankLayout, become_rank, is_rank, launch
    from pipeline.distributed.ranks import follow, joined, rank

    if not is_rank():
        raise typer.Exit(launch([*sys.argv[1:], "--run", str(run)], RankLayout(*layout), run))
    become_rank()
    with joined():
        if rank():
            follow()
        yield rank() > 0


def _train_here(
    config: str | None,
    run: Path,
    overrides: list[str],
    resume: bool,
    beside: _Beside,
    runner: str | None,
) -> int:
    """Train in this process; return the command's exit code."""
    from flows.prefect_api.server import open_server
    from flows.session.open_run import checked_start, expect_teacher, open_session
    from flows.training.summary import print_summary
    from flows.workers.runner_spec import RunnerSpec
    from pipeline.text import go_on

    spec = RunnerSpec.parse(runner) if runner else None
    start = checked_start(config, run, overrides, resume)
    if beside.preflight:
        expect_teacher(start.config)
    console = open_console()
    # It starts in the background, while the model loads.
    server = open_server(run.parent, start.config.run.prefect_seconds)
    try:
        if not server.own:
            server.wait()  # somebody else's server: before anything is written

        def train_session(session: "Session") -> "Outcome":
            nonlocal run
            if session is opened:
                with status(console, f"{run}: starting Prefect"):
                    _wait_for_prefect(server, session)
            else:
                run = session.run.root
                print(f"going on in {run}: {session.run.fork.note if session.run.fork else ''}")
            first = beside if session is opened else beside._replace(preflight=False)
            outcome = _train_and_show(session, run, console, first, spec)
            print_summary(console, session, outcome)
            return outcome

        with status(console, f"{run}: opening the policy, starting Prefect"):
            from flows.training.alarm_fork import train_with_recovery

            opened = open_session(start)
        outcome = train_with_recovery(opened, train_session)
    except OSError as error:
        begun = (run / "run.json").exists()
        on = f"then go on: {go_on(run)}" if begun else "then run the same command again"
        raise StoreError(f"{os_error_line(error)}; {on}") from error
    except KeyboardInterrupt:
        known = (run / "run.json").exists()
        hint = f"; go on: {go_on(run)}" if known else "; nothing was written"
        print(f"interrupted{hint}", file=sys.stderr)
        return INTERRUPTED
    finally:
        server.release()
    return {"stopped": INTERRUPTED, "alarm": ALARMED}.get(outcome.ended, 0)


def _wait_for_prefect(server: "ServerHandle", session: "Session") -> None:
    server.wait()
    if server.own:
        from flows.prefect_api.killed_runs import end_orphans

        end_orphans(server.url, session.config.run.prefect_seconds)


def _train_and_show(
    session: "Session", run: Path, console: Console, beside: _Beside, spec: "RunnerSpec | None"
) -> "Outcome":
    from flows.session.questions import stop_line
    from flows.training.disk_watch import DiskSpaceWatcher, disk_space_line, disk_space_warnings
    from flows.training.profile_watch import profiled
    from flows.training.progress import Lines, Screen
    from flows.training.train_flow import run_training
    from flows.workers.worker_pool import optional_pool

    print_warnings([*session.warnings(), *disk_space_warnings(session)])
    print(f"{run}: {disk_space_line(session)}")
    print(f"{run}: {stop_line(session.run)}")
    with contextlib.ExitStack() as stack:
        session.stages.spread_over(
            stack.enter_context(optional_pool(spec, session.config.run.stall_seconds))
        )
        if beside.preflight:
            _measure_lead_first(session, console)
        first = stack.enter_context(profiled(session, console)) if beside.profile else []
        if not is_live(console):
            return run_training(session, [*first, DiskSpaceWatcher(session), Lines(session)])
        with Screen(session, run.name, console) as screen:
            return run_training(session, [*first, DiskSpaceWatcher(session), screen])


def _measure_lead_first(session: "Session", console: Console) -> None:
    """Print the lead of the teacher at the start of a run; what was measured before is read."""
    run = session.run.root
    if steps := session.next_step():
        again = command("evaluate", state_word(run, steps), "--taught")
        print(f"{run}: {steps} steps are done, so no preflight; {again} measures the lead now")
        return
    from flows.reruns.measure_lead import WORK, measure_lead
    from flows.terminal.lead_text import print_lead
    from flows.terminal.progress_bars import bars

    with bars(*WORK) as progress:
        lead = measure_lead(session, 0, progress=progress)
    print_lead(console, lead.path, lead.record)
