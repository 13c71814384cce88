"""`srpo stage`: one stage of one step, on saved tables; with other settings, in a fork."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.commands.completion import stages_starting_with
from flows.commands.options import FOLDER, RUN, Runner, Set
from flows.terminal.progress_bars import bars
from pipeline.errors import SrpoError
from pipeline.text import command, go_on, state_word

if TYPE_CHECKING:
    from flows.session.session import Session
    from pipeline.run.run import Run


def stage(
    name: Annotated[
        str,
        typer.Argument(
            help="generate, verify, bank, route, weigh, update, evaluate.",
            autocompletion=stages_starting_with,
        ),
    ],
    run: Annotated[Path, typer.Option(help="Folder or URL of the run.", **RUN)],
    step: Annotated[int, typer.Option(min=0, help="Training step; for evaluate: steps done.")],
    overrides: Set = None,
    fork: Annotated[
        Path | None, typer.Option(help="Folder of a new run, for the result.", **FOLDER)
    ] = None,
    decisions: Annotated[
        bool, typer.Option("--decisions", help="route: decide only; no policy is opened.")
    ] = False,
    runner: Runner = None,
) -> None:
    """Run one stage on saved tables: in place where its own tables are missing.

    With other settings, other code, or --fork, the result goes to a new run, which refers to the
    tables of RUN upstream and copies none. Nothing is ever overwritten. Damaged tables of the stage
    are set aside and made anew; they must come out as they were.

    Example: srpo stage weigh --run runs/first --step 12 --set weigh.beta=2 --fork runs/sharper
    """
    from flows.session.session import Session
    from flows.session.stage_runner import STAGES
    from flows.workers.command_pool import command_pool
    from pipeline.housekeeping.repair import expect_readers_agree, set_aside_damage
    from pipeline.run.lock import RunLock
    from pipeline.run.run import Run

    if name not in STAGES:
        raise SrpoError(f"no stage {name}; there are {', '.join(STAGES)}")
    parent = Run.open(run)
    if fork is None and not overrides:
        with RunLock(run):
            for path in set_aside_damage(parent, STAGES[name], step):
                print(f"damaged, set aside: {path}")
    if name == "evaluate" and (overrides or fork):
        raise SrpoError(
            "other settings for an evaluation need no fork: "
            f"{command('evaluate', state_word(run, step))} --set … keeps its table under "
            f"{run}/evaluations/"
        )
    names = (f"policy after {step} steps, by replaying updates", name)
    with contextlib.ExitStack() as stack:
        forked = None if name == "evaluate" else _forked(parent, fork, name, step, overrides or [])
        session = stack.enter_context(Session.resume(run) if forked is None else forked)
        if forked is not None:
            _print_fork(parent, session.run, name, step)
        worker_pool = stack.enter_context(command_pool(runner, session.run.root.parent))
        replayed, own = stack.enter_context(bars(*names))
        session.stages.spread_over(worker_pool)
        reference = session.run_stage(name, step, own, replayed, decisions)
        expect_readers_agree(session.run, STAGES[name], step)
        session.finish_if_complete(step)
        _report(session, reference, decisions)


def _forked(
    parent: "Run", fork: Path | None, name: str, step: int, overrides: Sequence[str]
) -> "Session | None":
    """Open a fork of the run to work in; None: the run itself will do."""
    from flows.session.fork_run import code_changes, fork_run, free_name
    from flows.session.session import Session
    from flows.session.stage_runner import STAGES
    from pipeline.run.lock import RunLock

    changed_code = code_changes(parent, STAGES[name], step)
    if fork is None and not overrides and not changed_code:
        return None
    for change in changed_code:
        print(f"changed code: {change}")
    root = fork or free_name(parent.root)
    with RunLock(root):
        return Session(fork_run(parent, root, name, step, step + 1, overrides))


def _print_fork(parent: "Run", made: "Run", name: str, step: int) -> None:
    """Print where a fork is, and what it changes."""
    print(f"fork of {parent.root} at step {step}, stage {name}: {made.root}")
    if made.fork is not None:
        for key, (old, new) in made.fork.changed.items():
            print(f"  {key}: {old} → {new}")


def _report(session: "Session", reference: dict[str, Any], decisions: bool) -> None:
    """Print the stage's tables, how they differ from the parent's, and what to do next."""
    name, step, run = reference["stage"], reference["step"], session.run
    done = "there already, nothing done" if reference["skipped"] else "done"
    print(f"{name} of step {step}: {done}")
    for table, facts in reference["tables"].items():
        sha256 = run.manifest(table, step).sha256
        print(f"  {table}: {facts['rows']} rows, sha256 {sha256}, {facts['path']}")
    if run.fork is None or run.parent is None or reference["skipped"]:
        return
    from pipeline.compare.run_diff import diff_runs
    from pipeline.run.step_layout import stages_of

    found = {difference.table: difference for difference in diff_runs(run.parent, run).tables}
    for table in reference["tables"]:
        if (d := found.get(table)) is None:
            print(f"  {table}: every row as in the parent")
        else:
            print(f"  {table}: {d.differing} of {d.rows} rows differ, in {', '.join(d.columns)}")
    if name == "update" and run.parent.has("updates", step):
        was, now = (
            r.manifest("updates", step).facts["next_policy_version"] for r in (run.parent, run)
        )
        print(f"  policy after it: {now}" + (", as the parent's" if was == now else f", not {was}"))
    stages = stages_of(run.config)
    if not decisions and name in stages[:-1]:
        follower = stages[stages.index(name) + 1]
        print(f"next stage    {command('stage', follower, '--run', run.root, '--step', step)}")
    print(f"whole runs    {command('diff', run.parent.root, run.root)}")
    print(f"train on      {go_on(run.root)}")
