"""The flat record of a step: its metrics, and the alarms that are new at it."""

from typing import Any

from pipeline.files import digest_of, write_json
from pipeline.health import new_findings
from pipeline.health_evidence import alarm_of
from pipeline.lineage import STEP_TABLES
from pipeline.metrics import evaluation_metrics, step_metrics
from pipeline.store import Run


class Records:
    """The records of a run's steps and evaluations, each read or made once."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._steps: list[dict[str, Any]] = []
        self._evaluations: dict[int, dict[str, Any]] = {}

    def finish(self, step: int) -> dict[str, Any]:
        """Write the record of a complete step, if there is none yet, and return it."""
        path = self._run.metrics_path(step)
        if path.exists():
            return self._run.metrics(step)
        tables = {name: self._run.read(name, step) for name in STEP_TABLES}
        record = step_metrics(
            tables, {name: self._run.manifest(name, step) for name in STEP_TABLES}
        )
        evaluations = [self.evaluation(n) for n in self._evaluated(step)]
        if evaluations:
            newest = evaluations[-1]["steps_done"]
            tables["evaluations"] = self._run.read("evaluations", newest)
        findings = new_findings([*self.before(step), record], evaluations)
        run = str(self._run.root)
        record["alarms"] = [alarm_of(finding, tables, run) for finding in findings]
        write_json(path, {**record, "digest": digest_of(record)})
        return record

    def before(self, step: int) -> list[dict[str, Any]]:
        """Return the records of the steps before one."""
        for earlier in range(len(self._steps), step):
            self._steps.append(self._run.metrics(earlier))
        return self._steps[:step]

    def evaluation(self, steps_done: int) -> dict[str, Any]:
        """Return accuracy and more of an evaluated state."""
        if steps_done not in self._evaluations:
            summary = evaluation_metrics(self._run.read("evaluations", steps_done))
            self._evaluations[steps_done] = {"steps_done": steps_done, **summary}
        return self._evaluations[steps_done]

    def best(self, among: set[int] | None = None) -> int | None:
        """Return the evaluated state with the highest accuracy, the earliest of equals."""
        states = self._run.steps_of("evaluations")
        eligible = [n for n in states if among is None or n in among]
        return min(eligible, key=lambda n: (-self.evaluation(n)["accuracy"], n), default=None)

    def _evaluated(self, step: int) -> list[int]:
        """Return the states that were evaluated when a step ended."""
        return [n for n in self._run.steps_of("evaluations") if n <= step]
