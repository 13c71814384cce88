"""Whether measurements of the teacher's lead are as they were written (`run.lead_record`)."""

from pathlib import Path
from typing import Any

from pipeline.check.check_report import CheckReport
from pipeline.check.run_files import sealed_or_problem
from pipeline.errors import StoreError
from pipeline.files.durable import has_digest
from pipeline.run.lead_record import TAUGHT, lead_figures
from pipeline.run.run import Run
from pipeline.tables.arrow_reading import read_arrow, validated

_ADVICE = "delete both files, nothing depends on them, and measure again: srpo evaluate --taught"


def check_leads(run: Run, report: CheckReport) -> None:
    """Note measurements whose bytes, or figures, are not what they were; a run needs none."""
    folder = run.root / "evaluations"
    for path in sorted(folder.glob(f"{TAUGHT}-*.json")):
        record, problem = sealed_or_problem(path)
        if record is None:
            report.add(path, "a measurement as it was written", problem, _ADVICE)
        else:
            _check_table(run, path, record, report)
    for table in sorted(folder.glob(f"{TAUGHT}-*.arrow")):
        if not table.with_suffix(".json").exists():
            report.notes.append(f"{table}: no record, so not committed; measuring replaces it")


def _check_table(run: Run, path: Path, record: dict[str, Any], report: CheckReport) -> None:
    table = path.with_suffix(".arrow")
    if not table.is_file():
        report.add(table, "the answers of a measurement", "no file", _ADVICE)
    elif not has_digest(run.fetched(table), str(record.get("sha256")), run.fetch_anew):
        report.add(table, "the SHA-256 of its record", "another one", _ADVICE)
    else:
        try:
            figures = lead_figures(validated(table, read_arrow(table)))
        except (StoreError, KeyError) as error:
            report.add(table, "answers that can be counted", f"{error}", _ADVICE)
            return
        if figures != record.get("figures"):
            report.add(path, "figures that follow from its table", "other ones", _ADVICE)
