"""A training step's stages, in the order in which data flows, and the tables that each makes."""

STEP_STAGES = ("generate", "verify", "route", "weigh", "update")
TABLES_OF_STAGE = {
    "generate": ("rollouts",),
    "verify": ("verdicts",),
    "route": ("routes", "scores", "teacher"),
    "weigh": ("weights",),
    "update": ("updates",),
}
STEP_TABLES = tuple(table for stage in STEP_STAGES for table in TABLES_OF_STAGE[stage])
STAGE_OF = {table: stage for stage, tables in TABLES_OF_STAGE.items() for table in tables}
STAGE_OF["evaluations"] = "evaluate"


def stages_from(stage: str) -> tuple[str, ...]:
    """Return a stage and those that follow it in a step."""
    return STEP_STAGES[stage_index(stage) :]


def tables_before(stage: str) -> list[str]:
    """Return the tables of a step that are made before a stage runs."""
    return [table for name in STEP_STAGES[: stage_index(stage)] for table in TABLES_OF_STAGE[name]]


def stage_index(stage: str) -> int:
    """Return the place of a stage among those of a step, from 0."""
    return STEP_STAGES.index(stage)
