"""The stage contract: what a stage declares, what it is given and what it returns.

A stage is a function of (input tables, its configuration sections, explicit handles). It never
sees a path.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from pipeline.config.sections import Config
from pipeline.errors import PolicyError
from pipeline.policy.policy import Policy
from pipeline.sampling.engine import Engine
from pipeline.tables.manifest import Cost, Manifest
from pipeline.task import Message, Question, Verifier

Handle = Literal["seed", "questions", "policy", "engine", "verifier"]
Progress = Callable[[int, int], None]
Render = Callable[[Sequence[Message]], tuple[str, list[int]]]


def silent(done: int, total: int) -> None:
    """Report progress to nobody."""


@dataclass(frozen=True)
class Handles:
    """What a stage may use besides tables and settings.

    Attributes:
        seed: the run's seed.
        step: training step, or steps done for an evaluation.
        tasks: name of the task of each question.
        verifiers: by name of their task.
        verifier_digest: SHA-256 of the source of the task, or of all tasks.
        render: prompt text and ids of a conversation, without a policy.
        solutions: the task's worked solutions, by task and question, where a teacher may see them.
        golds: by name of a task, what words a gold answer (JSON text) for a teacher.
        max_logprob_gap: nats by which engine and trainer may differ in a token. A guard: it stops
            an update or leaves no trace, so it is in no digest.
    """

    seed: int
    step: int
    verifier_digest: str = ""
    questions: Sequence[Question] = ()
    tasks: Sequence[str] = ()
    render: Render | None = None
    solutions: Mapping[tuple[str, str], str] = field(default_factory=dict)
    golds: Mapping[str, Callable[[str], str]] = field(default_factory=dict)
    policy: Policy | None = None
    engine: Engine | None = None
    verifiers: Mapping[str, Verifier] = field(default_factory=dict)
    max_logprob_gap: float | None = None
    progress: Progress = silent

    def require_policy(self) -> Policy:
        """Return the policy; a stage that calls this declares it in `uses`."""
        if self.policy is None:
            raise PolicyError("this stage needs a policy and got none")
        return self.policy

    def prompt_renderer(self) -> Render:
        """Return the function that renders prompts."""
        return self.render or self.require_policy().render


class ProgressCounter:
    """Adds up units of work for the progress display; one call per finished piece."""

    def __init__(self, handles: Handles, total: int) -> None:
        self._progress, self.total, self._done = handles.progress, total, 0

    def __call__(self, units: int) -> None:
        self._done += units
        self._progress(self._done, self.total)


@dataclass(frozen=True)
class Output:
    """What a stage's `run` returns: tables, facts that belong to no row, and tokens handled."""

    tables: Mapping[str, pa.Table]
    facts: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0


@dataclass(frozen=True)
class Stage:
    """A stage's declaration.

    Attributes:
        version: raised by hand when the same inputs would give another output.
        sections: configuration sections it depends on; reading another one is an error.
        uses: handles it depends on; their digests and versions are recorded.
        without_policy: tables that it can make with no policy at hand.
        advances_policy: whether it turns the policy of a step into the next step's.
    """

    name: str
    version: int
    sections: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    uses: frozenset[Handle]
    run: Callable[[Mapping[str, pa.Table], Config, Handles], Output]
    without_policy: tuple[str, ...] = ()
    advances_policy: bool = False


@dataclass(frozen=True)
class StageResult:
    """What a stage left.

    Attributes:
        rows: number of rows of each table.
        manifests: of the tables that are committed; those left to a writer are not in it.
        cost: what making them cost.
        skipped: whether they were there already.
    """

    rows: dict[str, int]
    manifests: dict[str, Manifest]
    cost: Cost
    skipped: bool


class Sections:
    """A configuration of which a stage sees only the sections that it declares."""

    def __init__(self, config: Config, stage: Stage) -> None:
        self._config, self._stage = config, stage

    def __getattr__(self, name: str) -> Any:
        if name not in self._stage.sections:
            raise AttributeError(f"stage {self._stage.name} does not declare section {name}")
        return getattr(self._config, name)
