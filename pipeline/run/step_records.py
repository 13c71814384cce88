"""The flat records of a run's steps and evaluations, and the alarms that are new at each."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.errors import StoreError
from pipeline.files.sealed_json import write_sealed
from pipeline.health.alarms import (
    Finding,
    alarm_of,
    findings_at_evaluation,
    findings_at_step,
)
from pipeline.run.metrics import evaluation_metrics, step_metrics
from pipeline.run.run import Run


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
        if self._run.fork is not None and step < self._run.fork.start:
            raise StoreError(
                f"{path}: missing in the parent of {self._run.root}, which must not write there; "
                "resume the parent first"
            )
        tables = {name: self._run.read(name, step) for name in self._run.tables_of(step)}
        record = step_metrics(
            tables,
            {name: self._run.manifest(name, step) for name in tables},
            self._run.config.data.mixed,
        )
        found = findings_at_step([*self.before(step), record], self._evaluated(step))
        record["alarms"] = self._alarms(found, tables, step)
        write_sealed(path, record)
        return record

    def before(self, step: int) -> list[dict[str, Any]]:
        """Return the records of the steps before one."""
        for earlier in range(len(self._steps), step):
            self._steps.append(self._run.metrics(earlier))
        return self._steps[:step]

    def evaluation(self, steps_done: int) -> dict[str, Any]:
        """Return accuracy and more of an evaluated state, and the alarms that it raises.

        The next step's record will hold these alarms too.
        """
        record = self._evaluation(steps_done)
        steps = self.before(min(steps_done, self._run.steps_done()))
        found = findings_at_evaluation(steps, self._evaluated(steps_done))
        return {**record, "alarms": self._alarms(found, {}, steps_done)}

    def unrecorded(self) -> list[dict[str, Any]]:
        """Return the alarms of the newest evaluation that no step's record holds yet."""
        done = self._run.steps_done()
        return list(self.evaluation(done)["alarms"]) if self._run.has("evaluations", done) else []

    def best(self, among: set[int] | None = None) -> int | None:
        """Return the evaluated state with the highest accuracy, the earliest of equals."""
        states = self._run.steps_of("evaluations")
        eligible = [n for n in states if among is None or n in among]
        return min(eligible, key=lambda n: (-self._evaluation(n)["accuracy"], n), default=None)

    def _evaluation(self, steps_done: int) -> dict[str, Any]:
        if steps_done not in self._evaluations:
            summary = evaluation_metrics(self._run.read("evaluations", steps_done))
            self._evaluations[steps_done] = {"steps_done": steps_done, **summary}
        return self._evaluations[steps_done]

    def _evaluated(self, steps_done: int) -> list[dict[str, Any]]:
        """Return the records of the states evaluated up to one."""
        states = self._run.steps_of("evaluations")
        return [self._evaluation(n) for n in states if n <= steps_done]

    def _alarms(
        self, found: Sequence[Finding], tables: Mapping[str, pa.Table], step: int
    ) -> list[dict[str, Any]]:
        if not found:
            return []
        states = {e["steps_done"] for e in self._evaluated(step)}
        if states:
            newest = max(states)
            best = self.best(states - {newest})
            of_states = {
                "evaluations": newest,
                "best_evaluations": newest if best is None else best,
            }
            tables = {
                **tables,
                **{name: self._run.read("evaluations", n) for name, n in of_states.items()},
            }
        root = self._run.root
        return [alarm_of(rule, sign, tables, step, root).to_record() for rule, sign in found]
