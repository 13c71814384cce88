"""`srpo evaluate`: how good a policy is on the test questions."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.commands.completion import tasks_starting_with
from flows.commands.options import RUNS, Output, OutputFormat, Runner, Set
from flows.terminal.console import open_console
from flows.terminal.progress_bars import bars
from pipeline.errors import ConfigError


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
    taught: Annotated[
        bool, typer.Option("--taught", help="The teacher's lead, on training questions.")
    ] = False,
    questions: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="With --taught: how many are asked; else 32."),
    ] = None,
    overrides: Set = None,
    runner: Runner = None,
    output: Output = OutputFormat.TABLE,
) -> None:
    """Measure a policy on the test questions: avg@k, maj@k, and pass@k for each k, with intervals.

    A model is a Hugging Face folder or name; its answers are kept in a run folder of their own.
    JSON has all numbers, also those of each task of a mixture.

    --taught measures what a run's teacher gains from teacher prompts. The policy samples groups of
    the next training questions. Where an answer is wrong, the teacher answers the teacher prompt,
    and as often the question alone, as `generate` samples; --set changes generate and route.

    Example: srpo evaluate runs/first@20 --set evaluate.rollouts=4
    """
    from flows.session.open_run import default_run_dir, model_config, split_state
    from pipeline.remote.mirror_sync import is_run

    run, step = split_state(state)
    if taught:
        if task is not None:
            raise ConfigError("--taught asks the run's own training questions; leave --task out")
        _taught(run, step, questions, overrides or [], runner, output)
        return
    if questions is not None:
        raise ConfigError("--questions is how many --taught asks; else: --set evaluate.questions")
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


def _taught(
    run: Path,
    step: int | None,
    questions: int | None,
    overrides: list[str],
    runner: str | None,
    output: OutputFormat,
) -> None:
    """Measure the lead of a run's teacher, or read it if it has been, and print it."""
    from pipeline.remote.mirror_sync import is_run

    if not is_run(run):
        raise ConfigError(
            f"{run}: no run folder, whose settings say how questions are sampled and taught; for a "
            "model without one: srpo train CONFIG --preflight"
        )
    from flows.reruns.measure_lead import QUESTIONS, WORK, measure_lead
    from flows.session.session import Session
    from flows.terminal.lead_text import print_lead
    from flows.workers.command_pool import command_pool

    names = ("policy, by replaying updates", *WORK)
    with (
        Session.resume(run) as session,
        command_pool(runner, run.parent) as worker_pool,
        bars(*names) as (replayed, *own),
    ):
        session.stages.spread_over(worker_pool)
        steps_done = session.next_step() if step is None else step
        asked = QUESTIONS if questions is None else questions
        lead = measure_lead(session, steps_done, asked, overrides, own, replayed)
    if output is OutputFormat.JSON:
        print(json.dumps({"run": f"{run}", **lead.record}, indent=1))
        return
    print_lead(open_console(), lead.path, lead.record)
