"""Small warm starts: the demo policy on word problems, whose characters it knows."""

from pathlib import Path

from pipeline.config.load import load_config
from pipeline.config.sections import Config

SETTINGS = (
    *("data.task=word_problems", "data.path=level-1", "data.max_prompt_length=400"),
    *("generate.max_response_length=160", "route.max_teacher_prompt_length=600"),
    *("warmstart.steps=5", "warmstart.examples=4", "warmstart.learning_rate=1e-3"),
)


def small_config(*settings: str) -> Config:
    """Return the configuration of a warm start of seconds."""
    return load_config("demo", [*SETTINGS, *settings])


def write_task(folder: Path, solution: str) -> str:
    """Write a task of sums whose solutions are a Python expression over a and b; its path."""
    path = folder / "sums.py"
    path.write_text(
        f'''"""Sums."""
from pipeline.task import Message, Question, Verdict
VERIFIER = "sums/1"
def load(path, split):
    rows = [(a, b) for a in range(2, 6) for b in range(2, 6) if (a + b) % 2 == (split == "test")]
    return [
        Question(f"{{a}}+{{b}}", (Message("user", f"{{a}} + {{b}}?"),), str(a + b), {solution})
        for a, b in rows
    ]
def verify(response, reference):
    right = response.split()[-1:] == [reference]
    return Verdict(float(right), response.startswith("So"))
'''
    )
    return str(path)
