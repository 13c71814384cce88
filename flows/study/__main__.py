"""A study's runs, from its plan to its rows.

python -m flows.study state docs/study/plan.toml
python -m flows.study run docs/study/plan.toml --runs ../srpo-study
python -m flows.study remake docs/study/plan.toml main/level-1/srpo/3 --runs /tmp/anew
python -m flows.study explain ../srpo-study/main/level-1/sdpo/1
python -m flows.study tune docs/study/rows
python -m flows.study report docs/study/plan.toml --out docs/STUDY.md
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli import run_command
from flows.commands.options import INTERRUPTED
from flows.study.plan_state import plan_state, print_state, rows_of_no_run
from flows.terminal.console import open_console
from pipeline.errors import SrpoError
from pipeline.study.study_plan import Plan
from pipeline.study.study_row import Row, path_of
from pipeline.text import count

if TYPE_CHECKING:
    from pipeline.study.explain import Explanation

FAILED = 2
"""Exit code of a command of whose runs some failed."""
UNEQUAL = 1
"""Exit code of a remake that came out otherwise."""

app = typer.Typer(
    help="Make a study's runs, make them anew, and write what they say.",
    context_settings={"max_content_width": 120},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PlanFile = Annotated[Path, typer.Argument(metavar="PLAN", help="The plan, a TOML file.")]
Rows = Annotated[Path | None, typer.Option(help="Folder of rows; else rows, beside the plan.")]
Runs = Annotated[Path, typer.Option(help="Folder of run folders, outside the repository.")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at a time, each on one thread.")]
Only = Annotated[str, typer.Option(help="Only runs whose name has this text.")]


@app.command()
def state(plan: PlanFile, rows: Rows = None, only: Only = "", jobs: Jobs = 2) -> None:
    """Say how many runs of each group and world are done, and about how long the others take."""
    read = Plan.read(plan)
    print_state(open_console(), plan_state(read, _rows(plan, rows), only), jobs)


@app.command()
def run(
    plan: PlanFile,
    runs: Runs,
    rows: Rows = None,
    only: Only = "",
    jobs: Jobs = 2,
    hours: Annotated[
        float | None, typer.Option(min=0, help="After so long stop, as after Ctrl-C.")
    ] = None,
    commit: Annotated[
        bool, typer.Option("--commit", help="Commit each row, and nothing else, to git.")
    ] = False,
) -> None:
    """Make the runs that have no row yet, in the plan's order, and write their rows.

    Ctrl-C stops them after a snapshot; the same command goes on with them.

    Example: python -m flows.study run docs/study/plan.toml --runs ../srpo-study --only main/
    """
    read, folder = Plan.read(plan), _rows(plan, rows)
    state = plan_state(read, folder, only)
    print_state(open_console(), state, jobs)
    if not state.runs:
        raise SrpoError(f"--only {only}: no run of {plan} has this in its name")
    if not state.missing:
        return
    from flows.study.missing_runs import make_missing

    outcome = make_missing(read, state.missing, folder, runs, jobs, hours, commit)
    raise typer.Exit(INTERRUPTED if outcome.interrupted else FAILED if outcome.failed else 0)


@app.command()
def remake(
    plan: PlanFile,
    runs: Runs,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="ROW", help="Rows, as GROUP/WORLD/VARIANT/SEED.")
    ] = None,
    rows: Rows = None,
    share: Annotated[
        int | None, typer.Option(min=1, help="Instead of ROW: one in N rows of each world.")
    ] = None,
    jobs: Jobs = 2,
    quiet_out: Annotated[
        Path | None,
        typer.Option(help="Keep the seconds of each stage there: one run at a time, nothing else."),
    ] = None,
) -> None:
    """Make the runs of rows anew, below RUNS/remade, and say whether they came out the same.

    Compared are the digests of settings, questions, policy, every step and every evaluation.

    Example: python -m flows.study remake docs/study/plan.toml --share 10 --runs ../srpo-study
    """
    if bool(names) == (share is not None):
        raise SrpoError("which rows? Give their names, or --share N for one in N of each world")
    from flows.study.remakes import remake as remake_rows
    from flows.study.remakes import share_of

    read, folder = Plan.read(plan), _rows(plan, rows)
    if share is not None:
        wanted = share_of(plan_state(read, folder).rows.values(), share)
    else:
        wanted = [Row.read(path_of(folder, name)) for name in dict.fromkeys(names or [])]
    if not wanted:
        raise SrpoError(f"{folder}: no rows of {plan} there")
    remade = remake_rows(read, wanted, runs, jobs, quiet_out)
    if remade.outcome.interrupted:
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(FAILED if remade.outcome.failed else UNEQUAL if remade.unequal else 0)


@app.command()
def report(
    plan: PlanFile,
    out: Annotated[Path, typer.Option(help="The page; figures go to study/figures beside it.")],
    rows: Rows = None,
    quiet: Annotated[
        Path | None,
        typer.Option(help="Folder of seconds, of `remake --quiet-out`; else quiet, by the plan."),
    ] = None,
) -> None:
    """Write what the rows say into a page: between its markers, else at its end.

    Example: python -m flows.study report docs/study/plan.toml --out docs/STUDY.md
    """
    from pipeline.study.quiet_clocks import read_clocks
    from pipeline.study.study_report import write_report

    read, folder = Plan.read(plan), _rows(plan, rows)
    if not folder.is_dir():
        raise SrpoError(f"{folder}: no folder of rows there")
    found = plan_state(read, folder).rows
    clocks = read_clocks(quiet if quiet is not None else plan.parent / "quiet")
    try:
        write_report(read, found, clocks, out)
    except ValueError as error:  # rows that can't be compared
        raise SrpoError(str(error)) from None
    print(f"{out}: {count(len(found))} of {count(len(read.runs()))} runs")
    if others := rows_of_no_run(read, folder):
        print(f"left out, since the plan has no such runs: {', '.join(others)}")


@app.command()
def explain(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Folders of finished runs, or row files.")
    ],
) -> None:
    """Say when a run's accuracy fell, what moved before, and which rollouts show it.

    A row knows its numbers alone; right and wrong rollouts, tokens and commands need the folder.

    Example: python -m flows.study explain ../srpo-study/main/level-1/sdpo/1
    """
    from flows.study.explanation_text import print_explanation

    console = open_console()
    for path in runs:
        print_explanation(console, _explained(path))


@app.command()
def tune(
    folder: Annotated[Path, typer.Argument(metavar="ROWS", help="Folder of rows.")],
) -> None:
    """Choose alarms' thresholds on rows with odd seeds, and count what they do on the others.

    The tables are Markdown; rows of pilots are left out. It takes minutes.

    Example: python -m flows.study tune docs/study/rows
    """
    from pipeline.study.alarm_study import tune as tuned
    from pipeline.study.alarm_study import tuning_table_of

    rows = [Row.read(path) for path in sorted(folder.glob("*/*/*/*.json"))]
    if not (counted := [row for row in rows if row.group != "pilot"]):
        raise SrpoError(f"{folder}: no rows there but those of pilots")
    print("\n".join(tuning_table_of(tuned(counted))))


def _explained(path: Path) -> "Explanation":
    """Explain a run folder, or a row."""
    from pipeline.run.run import Run
    from pipeline.study.explain import explain
    from pipeline.study.study_row import row_of

    if path.is_file():
        return explain(Row.read(path))
    run = Run.open(path)
    name = f"run/{run.root.parent.name}/{run.root.name}/{run.config.run.seed}"
    row = row_of(run, name, [f"route.method={run.config.route.method}"], {})
    return explain(row.model_copy(update={"name": str(path)}), run)


def _rows(plan: Path, rows: Path | None) -> Path:
    return rows if rows is not None else plan.parent / "rows"


if __name__ == "__main__":
    run_command(app, "python -m flows.study")
