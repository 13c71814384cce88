"""Route: decisions, teacher prompts and scores. Read `stage.py` first."""

from stages.route.stage import STAGE

__all__ = ["STAGE"]
