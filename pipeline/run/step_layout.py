"""A training step's stages, in the order in which data flows, and the tables that each makes.

The bank is made only where `route.sources` has it. It belongs to the step's routes: whoever makes
those makes it, too, so that a fork from `route` may have a bank that its parent has not.
"""

from pipeline.config.sections import Config

STEP_STAGES = ("generate", "verify", "route", "weigh", "update")
"""The stages that every step has."""
ALL_STAGES = ("generate", "verify", "bank", "route", "weigh", "update")
"""Those that a step can have."""
TABLES_OF_STAGE = {
    "generate": ("rollouts",),
    "verify": ("verdicts",),
    "bank": ("bank",),
    "route": ("routes", "scores", "teacher"),
    "weigh": ("weights",),
    "update": ("updates",),
}
STEP_TABLES = tuple(table for stage in STEP_STAGES for table in TABLES_OF_STAGE[stage])
ALL_TABLES = tuple(table for stage in ALL_STAGES for table in TABLES_OF_STAGE[stage])
STAGE_OF = {table: stage for stage, tables in TABLES_OF_STAGE.items() for table in tables}
STAGE_OF["evaluations"] = "evaluate"


def stages_of(config: Config) -> tuple[str, ...]:
    """Return the stages of a step by a run's settings."""
    return ALL_STAGES if "bank" in config.route.sources else STEP_STAGES


def tables_of(config: Config) -> tuple[str, ...]:
    """Return the tables of a step by a run's settings."""
    return ALL_TABLES if "bank" in config.route.sources else STEP_TABLES


def stages_from(stage: str) -> tuple[str, ...]:
    """Return the stages that a fork from one makes anew, of those that a step can have."""
    return ALL_STAGES[stage_index(stage) :]


def tables_before(stage: str) -> list[str]:
    """Return the tables that a fork from a stage refers to, of those that a step can have."""
    return [table for name in ALL_STAGES[: stage_index(stage)] for table in TABLES_OF_STAGE[name]]


def stage_index(stage: str) -> int:
    """Return the place of a stage in a step, from 0; that of the bank for `route`."""
    return ALL_STAGES.index("bank" if stage == "route" else stage)
