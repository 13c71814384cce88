"""Update: losses, objective and the optimizer step. Read `stage.py` first."""

from stages.update.stage import STAGE

__all__ = ["STAGE"]
