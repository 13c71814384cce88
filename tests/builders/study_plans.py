"""A small plan of a study on the demo policy, and variations of it."""

from pathlib import Path

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
