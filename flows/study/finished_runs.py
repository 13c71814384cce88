"""What becomes of a finished run: its row, and if asked for a commit of that one file."""

import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from pipeline.errors import StoreError
from pipeline.machine.processor import processor
from pipeline.run.run import Run
from pipeline.study.study_plan import CODE
from pipeline.study.study_row import Row, row_of
from pipeline.text import joined_lines, printable

_PACKAGES = ("data", "pipeline", "stages", "flows")
_TRIES, _PAUSE_SECONDS = 10, 1.0
"""How often a commit is tried while another command of git is at work."""


def code_version() -> str:
    """Return the commit of the code, with "dirty" if files of it were changed since."""
    head = _git(CODE, "rev-parse", "HEAD")
    if head.returncode:
        return "none"
    changed = _git(CODE, "status", "--porcelain", "--", *_PACKAGES).stdout.strip()
    return head.stdout.strip() + (" dirty" if changed else "")


def row_made(
    folder: Path, name: str, settings: list[str], commit: str, seconds: float, jobs: int
) -> Row:
    """Return the row of a run that was just finished.

    Args:
        commit: of the code when it began.
        seconds: that its process took, or the last one if there were several.
        jobs: runs that were made at the same time.

    Raises:
        SrpoError: it isn't finished, or damaged.
    """
    run = Run.open(folder)
    if (done := run.steps_done()) < run.config.run.steps:
        raise StoreError(f"{folder}: {done} of {run.config.run.steps} steps are done")
    made: dict[str, str | int] = {
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "torch": run.record["versions"]["torch"],
        "processor": processor(),
        "threads": run.record["hardware"]["threads"],
        "jobs": jobs,
        "seconds": round(seconds),
    }
    return row_of(run, name, settings, made)


def final_accuracy(row: Row) -> float:
    """Return avg@n of a row's last evaluation."""
    last = row.evaluations[-1]
    return float(row.correct_counts()[-1].sum()) / (last.answers * len(last.correct))


def commit_file(path: Path, message: str) -> str:
    """Commit one file and nothing else, whatever is staged; return the short commit.

    Raises:
        StoreError: git refuses.
    """
    folder = path.parent
    for _ in range(_TRIES):
        added = _git(folder, "add", "--", path.name)
        done = (
            added if added.returncode else _git(folder, "commit", "-qm", message, "--", path.name)
        )
        if done.returncode == 0:
            return _git(folder, "rev-parse", "--short", "HEAD").stdout.strip()
        if "index.lock" not in done.stderr:
            break
        time.sleep(_PAUSE_SECONDS)
    said = printable(joined_lines(done.stderr or done.stdout), 300)
    raise StoreError(f"{path}: written, but git doesn't commit it: {said}")


def _git(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(folder), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return subprocess.CompletedProcess(command, 127, "", "git is not installed")
