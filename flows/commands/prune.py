"""`srpo prune` and `srpo restore`: free disk space, at a stated cost, and bring it all back."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import RUN
from flows.terminal.progress_bars import bars
from pipeline.text import size

if TYPE_CHECKING:
    from pipeline.housekeeping.pruning import PruningPlan


def prune(
    run: Annotated[Path, typer.Argument(help="Folder or URL of a run.", **RUN)],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go; change nothing.")
    ] = False,
    tables: Annotated[str, typer.Option(help="Which tables: teacher, weights.")] = "teacher",
    before: Annotated[int | None, typer.Option(min=0, help="Only steps before this one.")] = None,
    keep_last: Annotated[
        int | None, typer.Option(min=0, help="Keep the tables of the N newest steps.")
    ] = None,
    snapshots: Annotated[
        bool, typer.Option("--snapshots", help="Snapshots too, except first, best and newest.")
    ] = False,
    archive: Annotated[
        Path | None, typer.Option(help="First archive the tables in this folder, as Parquet.")
    ] = None,
) -> None:
    """Remove big tables of a run, and say what becomes impossible without them.

    What resuming needs stays: the newest snapshot and the tables since. So does what a fork needs,
    if it lies in a folder that holds this run or an ancestor; other forks are not known. Rollouts,
    verdicts, routes, scores, updates, evaluations, manifests and records always stay: they are
    small, audits read them, and srpo restore recomputes the rest from them. If it is interrupted,
    run it again.

    Example: srpo prune runs/first --keep-last 10 --archive /archive/first --dry-run
    """
    from flows.terminal.console import open_console
    from flows.terminal.prune_plan_text import print_plan
    from pipeline.housekeeping.pruning import expect_sound_start, plan_pruning
    from pipeline.run.lock import RunLock
    from pipeline.run.run import Run

    names = [name.strip() for name in tables.split(",")]
    opened = Run.open(run)
    with contextlib.nullcontext() if dry_run else RunLock(run):
        found = plan_pruning(opened, names, before, keep_last, snapshots)
        print_plan(open_console(), found, dry_run)
        if dry_run or not found.bytes:
            return
        expect_sound_start(found.run)
        kept = _remove(found, archive)
    print(f"{run}: {size(found.bytes)} removed{kept}")


def restore(
    run: Annotated[Path, typer.Argument(help="Folder or URL of a run.", **RUN)],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="The archive, if it was moved.")
    ] = None,
) -> None:
    """Bring back pruned tables: from their archive, or by computing them again.

    Each must have the SHA-256 of its manifest. Tables that were never archived are computed step by
    step: `teacher` by the teacher's passes, `weights` by stage weigh.

    Example: srpo restore runs/first /archive/first
    """
    from flows.session.session import Session
    from pipeline.housekeeping.parquet_archive import archive_path
    from pipeline.housekeeping.parquet_archive import restore as from_archive
    from pipeline.housekeeping.pruning import pruned_tables
    from pipeline.run.lock import RunLock
    from pipeline.run.run import Run

    opened = Run.open(run)
    anew: dict[int, set[str]] = {}
    with RunLock(run), bars("restoring") as (progress,):
        gone = pruned_tables(opened)
        for number, (piece, record) in enumerate(gone.items()):
            place = folder or (Path(record.archive).parents[2] if record.archive else None)
            if place is None:
                anew.setdefault(piece.step, set()).add(piece.table)
            else:
                from_archive(opened, *piece, archive_path(place, *piece))
            progress(number + 1, len(gone))
    if anew:
        with Session.resume(run) as session, bars("computing") as (progress,):
            for number, step in enumerate(sorted(anew)):
                for name in ("route", "weigh", "update"):
                    session.run_stage(name, step)
                progress(number + 1, len(anew))
    computed = sum(map(len, anew.values()))
    print(f"{run}: {len(gone) - computed} tables restored from an archive, {computed} made anew")


def _remove(found: "PruningPlan", folder: Path | None) -> str:
    """Remove what the plan names, each table after it is archived; return what that takes."""
    from pipeline.housekeeping.parquet_archive import archive
    from pipeline.housekeeping.pruning import remove, remove_snapshots

    written = 0
    with bars("removing") as (progress,):
        for number, piece in enumerate(found.pieces):
            kept = None
            if folder is not None:
                kept = archive(found.run, *piece, folder)
                written += kept.stat().st_size
            remove(found.run, piece, "srpo prune", kept)
            progress(number + 1, len(found.pieces))
    remove_snapshots(found.run, found.snapshots)
    whole = sum(found.pieces.values())
    share = f" ({written / whole:.0%} of the tables)" if whole else ""
    return f"; {size(written)} in {folder}{share}" if folder is not None else ""
