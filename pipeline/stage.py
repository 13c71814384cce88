"""The stage contract and the one runner that all stages share.

A stage is a function of (input tables, its configuration sections, explicit handles). It never
sees a path. The runner checks inputs, skips what is already there, checks and commits the outputs.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, cast

import pyarrow as pa

from pipeline.config import Config
from pipeline.engine import Engine
from pipeline.errors import PolicyError, StoreError
from pipeline.files import digest_of
from pipeline.invariants import check_table
from pipeline.manifest import Cost, Manifest, Origin
from pipeline.memory import PeakMemory
from pipeline.policy import Policy
from pipeline.schemas import SCHEMA_VERSION
from pipeline.store import Run, expect_schema
from pipeline.task import Message, Question
from pipeline.verification import VerifierPool

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
        task: name of the task.
        verifier_version: name and version of the task's verifier.
        verifier_digest: SHA-256 of the task's source.
        render: prompt text and ids of a conversation, without a policy.
    """

    seed: int
    step: int
    task: str = ""
    verifier_version: str = ""
    verifier_digest: str = ""
    questions: Sequence[Question] = ()
    render: Render | None = None
    policy: Policy | None = None
    engine: Engine | None = None
    verifier: VerifierPool | None = None
    progress: Progress = silent

    def the_policy(self) -> Policy:
        """Return the policy; a stage that calls this declares it in `uses`."""
        if self.policy is None:
            raise PolicyError("this stage needs a policy and got none")
        return self.policy

    def the_render(self) -> Render:
        """Return the function that renders prompts."""
        return self.render or self.the_policy().render


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
    """The manifests of a stage's tables, and whether they were there already."""

    manifests: dict[str, Manifest]
    skipped: bool


class Sections:
    """A configuration of which a stage sees only the sections that it declares."""

    def __init__(self, config: Config, stage: Stage) -> None:
        self._config, self._stage = config, stage

    def __getattr__(self, name: str) -> Any:
        if name not in self._stage.sections:
            raise AttributeError(f"stage {self._stage.name} does not declare section {name}")
        return getattr(self._config, name)


def run_stage(run: Run, stage: Stage, handles: Handles) -> StageResult:
    """Run one stage of one step, or find it done: here, or in the run that this one is a fork of.

    With no policy at hand, a stage makes those of its tables that need none.

    Raises:
        StoreError: inputs are missing or damaged; the outputs are there but were made from other
            inputs, settings or code; an output breaks its schema or an invariant.
        PolicyError: the policy's version is not the one the step needs.
    """
    partial = handles.policy is None and bool(stage.without_policy)
    writes = stage.without_policy if partial else stage.writes
    found = {t: run.manifest(t, handles.step) for t in writes if run.has(t, handles.step)}
    inherited = all(run.owner(table, handles.step) is not run for table in writes)
    if inherited and not stage.advances_policy:
        return StageResult(found, skipped=True)
    origins = {table: _origin(run, stage, handles, table) for table in writes}
    if stage.advances_policy:
        _expect_version(handles)
    for table, manifest in found.items():
        _expect_same(run, manifest, origins[table])
    if len(found) == len(writes) and not stage.advances_policy:
        return StageResult(found, skipped=True)
    manifests = _execute(run, stage, handles, origins)
    return StageResult(manifests, skipped=False)


def next_version(origin: Origin) -> str:
    """Return the policy's version after an update: its number of steps and a lineage digest.

    The digest covers the version before, the tables, the settings and the stage's version: equal
    versions mean equal weights on equal machines, without hashing the weights.
    """
    return f"{origin.step + 1:06d}-{digest_of(origin.model_dump())[:12]}"


def _execute(
    run: Run, stage: Stage, handles: Handles, origins: dict[str, Origin]
) -> dict[str, Manifest]:
    tables = {name: run.read(name, handles.step) for name in stage.reads}
    memory = PeakMemory()
    started = time.perf_counter()
    output = stage.run(tables, cast(Config, Sections(run.config, stage)), handles)
    seconds = time.perf_counter() - started
    if set(output.tables) != set(origins):
        raise StoreError(f"stage {stage.name} made {sorted(output.tables)}, not {list(origins)}")
    facts = dict(output.facts)
    if stage.advances_policy:
        facts["next_policy_version"] = next_version(origins[stage.writes[0]])
    known = {**tables, **output.tables}
    for name in origins:
        expect_schema(stage.name, name, output.tables[name])
    for name in origins:
        check_table(name, known)
    cost = Cost(
        seconds=seconds,
        tokens=output.tokens,
        peak_memory_mb=memory.megabytes(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    manifests = {
        name: run.commit(origin, output.tables[name], facts, cost)
        for name, origin in origins.items()
    }
    if stage.advances_policy:
        handles.the_policy().finish_update(facts["next_policy_version"])
    return manifests


def _origin(run: Run, stage: Stage, handles: Handles, table: str) -> Origin:
    inputs = {name: run.manifest(name, handles.step).sha256 for name in stage.reads}
    if "questions" in stage.uses:
        inputs["questions"] = digest_of([asdict(q) for q in handles.questions])
    if "seed" in stage.uses:
        inputs["seed"] = str(handles.seed)
    if "verifier" in stage.uses:
        inputs["verifier"] = handles.verifier_digest
    needed = "policy" in stage.uses and table not in stage.without_policy
    policy = handles.the_policy() if needed else None
    return Origin(
        schema_version=SCHEMA_VERSION,
        table=table,
        step=handles.step,
        stage=stage.name,
        stage_version=stage.version,
        inputs=inputs,
        settings={s: getattr(run.config, s).model_dump() for s in stage.sections},
        policy_version=policy.version if policy else None,
        teacher_version=policy.teacher_version if policy else None,
    )


def _expect_version(handles: Handles) -> None:
    """Refuse a policy that isn't the step's (an update is never applied twice)."""
    policy = handles.the_policy()
    expected = f"{handles.step:06d}-"
    if not policy.version.startswith(expected):
        raise PolicyError(
            f"step {handles.step} updates a policy after {handles.step} steps, this one has "
            f"version {policy.version}"
        )


def _expect_same(run: Run, manifest: Manifest, wanted: Origin) -> None:
    differences = manifest.origin.differences(wanted)
    if differences:
        path = run.table_path(wanted.table, wanted.step)
        raise StoreError(
            f"{path} was made otherwise ({'; '.join(differences[:3])}): a committed table is "
            "never overwritten; use the recorded settings, or another run"
        )
