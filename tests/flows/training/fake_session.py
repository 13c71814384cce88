"""A session that does no work: it only notes what the loop asks of it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.run.run import Run


class FakeSession:
    """Plays `flows.session.session.Session` for the loop, the display and the flow."""

    def __init__(self, root: Path, *overrides: str, first: int = 0) -> None:
        settings = ["data.path=none", "run.snapshot_every=4", "evaluate.every=3", *overrides]
        self.config: Config = load_config("smoke-science-qa", settings)
        self.run = Run.create(root, self.config, {})
        self.first = first
        self.events: list[str] = []
        self.fail_at: str | None = None
        self.seconds_per_step = 1.0
        self._trained = 0.0

    def next_step(self) -> int:
        return self.first

    def prepare(self, step: int, progress: Callable[[int, int], None] | None = None) -> None:
        self.events.append(f"prepare {step}")

    def run_stage(
        self, name: str, step: int, progress: Callable[[int, int], None] | None = None
    ) -> dict[str, Any]:
        self.events.append(f"{name} {step}")
        if progress is not None:
            progress(1, 1)
        if self.fail_at == f"{name} {step}":
            self.fail_at = None
            raise OSError("the disk is full")
        return {
            "stage": name,
            "step": step,
            "tables": {},
            "seconds": 0.01,
            "tokens": 100,
            "skipped": False,
        }

    def finish_step(self, step: int) -> dict[str, Any]:
        self.events.append(f"metrics {step}")
        self._trained += self.seconds_per_step
        record = {
            "step": step,
            "reward_mean": 0.5,
            "correct_share": 0.5,
            "share_sdpo": 0.25,
            "share_grpo": 0.5,
            "loss": 0.1,
            "grad_norm": 1.0,
            "tokens": 100,
            "seconds_generate": 0.01,
        }
        return record

    def evaluation_due(self, steps_done: int) -> bool:
        return steps_done % self.config.evaluate.every == 0

    def snapshot_due(self, steps_done: int) -> bool:
        return steps_done % self.config.run.snapshot_every == 0

    def snapshot(self, steps_done: int) -> Path:
        self.events.append(f"snapshot {steps_done}")
        return self.run.snapshot_path(steps_done)

    def evaluation_summary(self, steps_done: int) -> dict[str, Any]:
        return {"accuracy": 0.5, "low": 0.4, "high": 0.6, "questions": 4, "rollouts": 4}

    def training_seconds(self) -> float:
        return self._trained

    def writing_beside(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self.events.append("close")
