"""`srpo evaluate`: how good a policy is on the test questions."""

import contextlib
import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from flows.commands.completion import tasks_starting_with
from flows.commands.options import RUNS, Output, OutputFormat, Runner, Set
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
    output: Output = OutputFormat.TABLE,
) -> None:
    """Measure a policy on the test questions: avg@k, maj@k, and pass@k for each k, with intervals.

    A model is a Hugging Face folder or name; its answers are kept in a run folder of their own.
    JSON has all numbers, also those of each task of a mixture.

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
    if output is OutputFormat.JSON:
        print(json.dumps({"run": f"{run}", **summary}, indent=1))
        return
    print(evaluation_line(steps_done, summary))
    _print_passes(summary)
    print(f"{summary['questions']} questions, {summary['rollouts']} answers each, in {run}")


def _print_passes(summary: Mapping[str, Any]) -> None:
    from rich.table import Table

    from flows.terminal.console import open_console
    from pipeline.run.pass_at_k import ks_of
    from pipeline.text import percent

    table = Table(box=None)
    for heading in ("k", "pass@k", "95% interval"):
        table.add_column(heading, justify="right")
    for k in ks_of(summary):
        mean, low, high = (percent(summary[f"pass_at_{k}{end}"]) for end in ("", "_low", "_high"))
        table.add_row(f"{k}", mean, f"{low} to {high}")
    open_console().print(table, highlight=False)
    mean, low, high = (f"{summary[f'distinct_answers{end}']:.2f}" for end in ("", "_low", "_high"))
    print(f"{mean} distinct answers to a question ({low} to {high})")
