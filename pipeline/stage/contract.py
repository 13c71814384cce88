"""The stage contract: what a stage declares, what it is given and what it returns.

A stage is a function of (input tables, its configuration sections, explicit handles). It never
sees a path.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from pipeline.config.sections import Config
from pipeline.errors import PolicyError
from pipeline.policy.policy import Policy
from pipeline.run.step_layout import tables_of
from pipeline.sampling.engine import Engine
from pipeline.tables.manifest import Cost, Manifest
from pipeline.task import Message, Question, Verifier

Handle = Literal["seed", "questions", "policy", "engine", "verifier", "earlier"]
Progress = Callable[[int, int], None]
Render = Callable[[Sequence[Message]], tuple[str, list[int]]]
Asked = tuple[str, str]
"""A question: its task and its prompt_id."""


def silent(done: int, total: int) -> None:
    """Report progress to nobody."""


class EarlierStep(Protocol):
    """A step before the one at work; nothing of it is read before it is asked for."""

    @property
    def sha256(self) -> tuple[str, str]:
        """Return the SHA-256 of the step's rollouts and of its verdicts."""

    @property
    def demonstrating(self) -> Mapping[Asked, Sequence[int]]:
        """Return the rows, ascending, of each question's answers that can demonstrate."""

    def answers(self, rows: Sequence[int]) -> pa.Table:
        """Return these rollouts as rows of `bank`."""


@dataclass(frozen=True)
class Handles:
    """What a stage may use besides tables and settings.

    Attributes:
        seed: the run's seed.
        step: training step, or steps done for an evaluation.
        tasks: name of the task of each question.
        verifiers: by name of their task.
        verifier_digest: SHA-256 of the source of the task, or of all tasks.
        earlier: the steps before this one, from step 0 on.
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
    earlier: Sequence[EarlierStep] = ()
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
        reads_if_made: tables that it reads, too, where the run's settings have them made.
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
    reads_if_made: tuple[str, ...] = ()

    def inputs(self, config: Config) -> tuple[str, ...]:
        """Return the tables that it reads in a run with these settings."""
        made = tables_of(config)
        return (*self.reads, *(table for table in self.reads_if_made if table in made))


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
