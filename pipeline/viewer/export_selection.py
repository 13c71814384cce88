"""Which rollouts an export has pages of: all of a small run, whole steps of a large one."""

from collections.abc import Callable
from functools import lru_cache

from pipeline.run.run import Run
from pipeline.viewer.history import step_records

MOST_PAGES = 4000
"""Pages of rollouts in an export of one run: at some 50 kB each, what a disk and a reader bear."""


def exported_steps(run: Run) -> list[int]:
    """Return the steps whose rollouts are exported: the first, the last, and some in between.

    Steps that hold the evidence of a rule's first alarm are always among them.
    """
    steps = run.steps_of("rollouts")
    if not steps:
        return []
    room = max(2, MOST_PAGES // max(1, run.manifest("rollouts", steps[0]).rows))
    if len(steps) <= room:
        return steps
    alarms: dict[str, list[int]] = {}
    for record in step_records(run):
        for alarm in record.get("alarms") or []:
            trained = [i for i in alarm["evidence"] if not i.startswith("e")]
            alarms.setdefault(str(alarm["rule"]), [int(i[:6]) for i in trained])
    spread = {steps[round(i * (len(steps) - 1) / (room - 1))] for i in range(room)}
    return sorted(spread | {step for of_rule in alarms.values() for step in of_rule})


def in_export(run: Run) -> Callable[[str], bool]:
    """Return a function that tells whether an export has the page of a rollout."""

    @lru_cache(maxsize=1)
    def steps() -> frozenset[str]:
        return frozenset(f"{step:06d}" for step in exported_steps(run))

    return lambda rollout_id: rollout_id[:6] in steps()
