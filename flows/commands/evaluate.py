"""`srpo evaluate`: how good a policy is on the test questions."""

import contextlib
from typing import Annotated

import typer

from flows.commands.completion import tasks_starting_with
from flows.commands.options import RUNS, Runner, Set
from flows.terminal.progress_bars import bars


def evaluate(
    state: Annotated[
        str, typer.Argument(metavar="RUN[@STEP]|MODEL", help="A run, at its end or STEP; a model.")
    ],
    task: Annotated[
        str | None,
        typer.Option(
            help="Another task than the run's.",
            autocompletion=tasks_starting_with,
        ),
    ] = None,
    overrides: Set = None,
    runner: Runner = None,
) -> None:
    """Measure a policy on the test questions: avg@k with its interval, pass@k, maj@k.

    A model is a Hugging Face folder or name; its answers are kept in a run folder of their own.

    Example: srpo evaluate runs/first@20 --set evaluate.rollouts=4
    """
    from flows.session.open_run import default_run_dir, model_config, split_state
    from pipeline.remote.mirror_sync import is_run

    run, step = split_state(state)
    chosen = [*([f"data.task={task}"] if task else []), *(overrides or [])]
    settings = None if is_run(run) else model_config(state, chosen)  # first: what follows is heavy

    from flows.reruns.evaluate import evaluate_now
    from flows.session.questions import left_out
    from flows.session.session import Session
    from flows.training.progress import evaluation_line
    from flows.workers.command_pool import command_pool
    from pipeline.text import print_warnings

    names = ("policy, by replaying updates", "evaluate")
    with contextlib.ExitStack() as stack:
        if settings is None:
            session = stack.enter_context(Session.resume(run))
        else:
            run, step, chosen = default_run_dir("evaluate", RUNS), 0, []
            session = stack.enter_context(Session.create(run, settings, keep_start=False))
            print_warnings(left_out(settings, session.questions))
        worker_pool = stack.enter_context(command_pool(runner, run.parent))
        replayed, own = stack.enter_context(bars(*names))
        steps_done = session.next_step() if step is None else step
        summary = evaluate_now(session, steps_done, chosen, own, replayed, worker_pool)
    print(evaluation_line(steps_done, summary))
    print(f"{summary['questions']} questions, {summary['rollouts']} answers each, in {run}")
