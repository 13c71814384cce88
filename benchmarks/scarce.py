"""What other sources of teacher information are worth where correct siblings are scarce.

    python -m benchmarks.scarce FOLDER [--seeds 5] [--steps 160] [--only TEXT]

The demo with 4 questions of 2 rollouts a step, over 64 training questions again and again. For each
choice of sources: the share of a step's questions of which no rollout has a gradient, and the test
accuracy after equal steps, over seeds. Runs stay in FOLDER and are not made again.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from pipeline.run.metrics import bootstrap, evaluation_metrics
from pipeline.run.run import Run

SRPO = Path(sys.executable).with_name("srpo")
TASK = Path(__file__).with_name("scarce_task.py")
SOURCES: dict[str, dict[str, object]] = {
    "grpo": {"route.method": "grpo"},
    "sibling": {},
    "sibling, bank": {"route.sources": ["sibling", "bank"]},
    "sibling, solution": {"route.sources": ["sibling", "solution"]},
    "sibling, gold": {"route.sources": ["sibling", "gold"]},
    "sibling, feedback alone": {"route.feedback_alone": True},
}
SETTINGS: dict[str, object] = {
    "data.task": str(TASK),
    "generate.questions": 4,
    "generate.rollouts": 2,
    "run.snapshot_every": 1000,
    "evaluate.every": 1000,
}
THIRDS = 3


def trained(root: Path, sources: dict[str, object], steps: int, seed: int) -> Run:
    """Return a finished run; one that is there is not made again."""
    settings = {**SETTINGS, **sources, "run.steps": steps, "run.seed": seed}
    done = (root / "run.json").exists() and (root / f"evaluations/{steps:06d}.arrow").exists()
    if not done:
        given = [x for key, value in settings.items() for x in ("--set", f"{key}={_text(value)}")]
        begun = (root / "run.json").exists()
        arguments = ["--resume"] if begun else ["demo", *given]
        command = [str(SRPO), "train", *arguments, "--run", str(root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Run.open(root)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def measures(run: Run, steps: int) -> dict[str, float]:
    """Return a run's share of silent questions, by thirds of its steps, and its accuracy."""
    records = [json.loads(run.metrics_path(step).read_text()) for step in range(steps)]
    silent = np.array_split([record["silent_questions"] for record in records], THIRDS)
    evaluation = evaluation_metrics(run.read("evaluations", steps))
    return {
        "silent": float(np.mean([r["silent_questions"] for r in records])),
        **{f"silent {i + 1}/{THIRDS}": float(part.mean()) for i, part in enumerate(silent)},
        "taught": float(np.mean([record["share_sdpo"] for record in records])),
        "accuracy": float(evaluation["accuracy"]),
    }


def line(name: str, found: Sequence[dict[str, float]]) -> list[str]:
    """Return a row of the table: means over seeds, the accuracy with its interval over seeds."""
    means = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
    accuracy = bootstrap([one["accuracy"] for one in found])
    shares = [f"{means[key]:.1%}" for key in means if key != "accuracy"]
    return [name, *shares, f"{accuracy.mean:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]"]


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--only", default="", help="only sources whose name has this text")
    arguments = parser.parse_args()
    console = Console()
    chosen = {name: own for name, own in SOURCES.items() if arguments.only in name}
    jobs = [(name, seed) for seed in range(arguments.seeds) for name in chosen]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for name, seed in track(jobs, "runs", console=console):
        root = arguments.folder / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
        run = trained(root, chosen[name], arguments.steps, seed)
        found[name].append(measures(run, arguments.steps))
    keys = [key for key in next(iter(found.values()))[0] if key != "accuracy"]
    table = Table("sources", *keys, "accuracy", box=None)
    for name, own in found.items():
        table.add_row(*line(name, own))
    console.print(table)


if __name__ == "__main__":
    main()
