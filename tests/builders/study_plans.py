"""A small plan of a study on the demo policy, variations of it, and rows written by hand."""

from pathlib import Path

from pipeline.study.study_row import EvaluationRow, Row

PLAN = """
[worlds.sums]
title = "Two-digit arithmetic"
config = "sums.toml"
policy = "data/demo/policy"

[variants.grpo]
title = "GRPO"
set = ["route.method=grpo"]

[variants.srpo]
title = "SRPO"

[rates.sums]
grpo = 1e-3
srpo = 2e-4

[[groups]]
name = "pilot"
worlds = ["sums"]
variants = ["srpo", "grpo"]
seeds = [0]
steps = 2
rates = [4e-4, 1e-3]

[[groups]]
name = "main"
worlds = ["sums"]
variants = ["grpo", "srpo"]
seeds = [1, 2]
steps = 2
set = ["generate.temperature=0.9"]
"""
WORLD = """
[run]
threads = 1

[data]
task = "arithmetic"
max_prompt_length = 128

[model]
path = "demo"

[generate]
questions = 4
rollouts = 4
max_response_length = 32

[route]
top_k = 16
max_teacher_prompt_length = 256

[evaluate]
every = 1
questions = 6
rollouts = 3
max_response_length = 32
"""


def write_plan(folder: Path, *changes: tuple[str, str]) -> Path:
    """Write the plan and its world's configuration; return the plan's path.

    Args:
        changes: texts of the plan, and what stands in their place.
    """
    text = PLAN
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sums.toml").write_text(WORLD, encoding="utf-8")
    path = folder / "plan.toml"
    path.write_text(text, encoding="utf-8")
    return path


def small_row(name: str = "main/sums/srpo/1", **changes: object) -> Row:
    """Return a row of two steps with an evaluation before and after."""
    group, world, variant, seed = name.split("/")
    evaluations = [
        EvaluationRow(
            step=step, correct="01", answers=1, format_rate=1.0, truncated=0.0, tokens=9.0,
            majority=0.5, distinct=1.0, digest=f"{step}" * 64,
        )
        for step in (0, 2)
    ]  # fmt: skip
    made: dict[str, str | int] = {"commit": "c" * 40, "torch": "2.13.0", "processor": "a fast one"}
    whole = Row(
        name=name, group=group, world=world, variant=variant, seed=int(seed), settings=[],
        config="c1", made=made, questions="q1", start="000000-a", steps=["aaaaaaaa", "bbbbbbbb"],
        evaluations=evaluations, series={}, means={}, alarms=[],
    )  # fmt: skip
    return whole.model_copy(update=changes)
