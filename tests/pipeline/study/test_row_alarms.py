"""When a row says that a run's alarms were raised."""

from pathlib import Path
from typing import Any

from pipeline.files.sealed_json import write_sealed
from pipeline.run.run import Run
from pipeline.study.study_row import row_of
from tests.builders.accuracy_runs import evaluation, metrics
from tests.builders.tables import COST, config, origin, tables


def alarm(rule: str, step: int) -> dict[str, Any]:
    return {"rule": rule, "step": step, "healthy": 0, "severe": True, "message": "", "evidence": []}


def test_alarms_are_raised_when_their_record_is_made(tmp_path: Path) -> None:
    """A step's when it is done, an evaluation's before the next step; the last one's count, too.

    After both steps accuracy is 60 points lower, which stands in no step's record.
    """
    facts = {"questions_digest": "q", "initial_policy_version": "000000-a"}
    run = Run.create(tmp_path / "run", config(run={"steps": 2}), facts)
    raised: dict[int, list[dict[str, Any]]] = {
        0: [],
        1: [alarm("evaluated_format_falls", 1), alarm("off_path", 0)],
    }
    for step, alarms in raised.items():
        for name, data in tables().items():
            if name != "evaluations":
                run.commit(origin(name, step=step), data, {}, COST)
        write_sealed(run.metrics_path(step), {**metrics(step, 1.0), "alarms": alarms})
    for done, accuracy in enumerate((0.8, 0.8, 0.2)):
        run.commit(origin("evaluations", step=done), evaluation(accuracy), {}, COST)
    row = row_of(run, "main/level-1/srpo/3", ["run.seed=3"], {"commit": "c"})
    assert [(a["rule"], a["step"], a["raised"]) for a in row.alarms] == [
        ("evaluated_format_falls", 1, 1),
        ("off_path", 0, 2),
        ("accuracy_falls", 2, 2),
    ]
