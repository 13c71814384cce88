"""The stage contract and the one runner that all stages share.

A stage is a function of (input tables, its configuration sections, explicit handles). It never
sees a path. The runner checks inputs, skips what is already there, checks and commits the outputs.
"""

import time
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, cast

import pyarrow as pa

from pipeline.config.sections import Config
from pipeline.errors import PolicyError, StoreError
from pipeline.files.durable import digest_of
from pipeline.machine.peak_memory import PeakMemory
from pipeline.machine.phases import beside, phase
from pipeline.run.run import Run
from pipeline.stage.contract import Handles, Sections, Stage, StageResult
from pipeline.stage.out_of_memory import memory_errors_explained
from pipeline.tables.arrow_reading import expect_schema
from pipeline.tables.arrow_writing import Writer
from pipeline.tables.invariants import check_table
from pipeline.tables.manifest import Cost, Manifest, Origin
from pipeline.tables.schemas import SCHEMA_VERSION


def run_stage(
    run: Run, stage: Stage, handles: Handles, writer: Writer | None = None
) -> StageResult:
    """Run one stage of one step, or find it done: here, or in the run that this one is a fork of.

    With no policy at hand, a stage makes those of its tables that need none.

    Args:
        writer: commits the tables beside what follows. A stage that advances the policy, whose
            next version depends on them all, waits for it and commits by itself.

    Raises:
        StoreError: inputs are missing or damaged; the outputs are there but were made from other
            inputs, settings or code; an output breaks its schema or an invariant.
        PolicyError: the policy's version is not the one the step needs.
    """
    if writer is not None:
        writer.check()
    work = _StageCall(run, stage, handles, writer)
    decisions = handles.policy is None and bool(stage.without_policy)
    writes = stage.without_policy if decisions else stage.writes
    if any(work.pending(table) is not None for table in writes):
        work.wait_for_writer()
    found = {t: run.manifest(t, handles.step) for t in writes if run.has(t, handles.step)}
    inherited = all(run.owner(table, handles.step) is not run for table in writes)
    if inherited and not stage.advances_policy:
        return _skipped({table: run.manifest(table, handles.step) for table in writes})
    drafts = {table: _draft(run, stage, handles, table) for table in writes}
    if stage.advances_policy:
        _expect_version(handles)
    if found:
        work.wait_for_writer()
    for table, manifest in found.items():
        _expect_same(run, manifest, work.origin(drafts[table]))
    if len(found) == len(writes) and not stage.advances_policy:
        return _skipped(found)
    with memory_errors_explained(stage.name, handles.step, run.root, run.config):
        return _execute(work, drafts)


def _skipped(found: dict[str, Manifest]) -> StageResult:
    rows = {table: manifest.rows for table, manifest in found.items()}
    return StageResult(rows, found, next(iter(found.values())).cost, skipped=True)


def next_version(origin: Origin) -> str:
    """Return the policy's version after an update: its number of steps and a lineage digest.

    The digest covers the version before, the tables, the settings and the stage's version: equal
    versions mean equal weights on equal machines, without hashing the weights.
    """
    return f"{origin.step + 1:06d}-{digest_of(origin.model_dump())[:12]}"


class _StageCall:
    """One call of a stage: reads its inputs, and completes the origins of its outputs."""

    def __init__(self, run: Run, stage: Stage, handles: Handles, writer: Writer | None) -> None:
        self.run, self.stage, self.handles, self.writer = run, stage, handles, writer

    def pending(self, table: str) -> pa.Table | None:
        """Return a table of the step that is made, but not committed yet."""
        if self.writer is None:
            return None
        return self.writer.pending(self.run.table_path(table, self.handles.step))

    def wait_for_writer(self) -> None:
        """Wait until there is nothing pending."""
        if self.writer is not None:
            with phase("wait"):
                self.writer.wait()

    def read(self, table: str) -> pa.Table:
        """Return a table of the step, as it was made or as it is on the disk."""
        pending = self.pending(table)
        return self.run.read(table, self.handles.step) if pending is None else pending

    @cached_property
    def inputs(self) -> dict[str, str]:
        """Return the SHA-256 of every table read; all of them must be committed."""
        step = self.handles.step
        names = self.stage.inputs(self.run.config)
        return {name: self.run.manifest(name, step).sha256 for name in names}

    def origin(self, draft: Origin) -> Origin:
        """Complete an origin with the tables that were read."""
        return draft.model_copy(update={"inputs": {**self.inputs, **draft.inputs}})


def _execute(work: _StageCall, drafts: dict[str, Origin]) -> StageResult:
    stage, handles = work.stage, work.handles
    with phase("read"):
        tables = {name: work.read(name) for name in stage.inputs(work.run.config)}
    memory = PeakMemory()
    started = time.perf_counter()
    with phase("other computing"):
        output = stage.run(tables, cast(Config, Sections(work.run.config, stage)), handles)
    seconds = time.perf_counter() - started
    if set(output.tables) != set(drafts):
        raise StoreError(f"stage {stage.name} made {sorted(output.tables)}, not {list(drafts)}")
    made = {name: _as_declared(stage, name, output.tables[name]) for name in drafts}
    with phase("check"):
        for name in drafts:
            check_table(name, {**tables, **made})
    cost = Cost(
        seconds=seconds,
        tokens=output.tokens,
        peak_memory_mb=memory.megabytes(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    facts = dict(output.facts)
    if stage.advances_policy:
        work.wait_for_writer()
        facts["next_policy_version"] = next_version(work.origin(drafts[stage.writes[0]]))
    manifests = _commit(work, drafts, made, facts, cost)
    if stage.advances_policy:
        handles.require_policy().finish_update(facts["next_policy_version"])
    return StageResult({n: t.num_rows for n, t in made.items()}, manifests, cost, skipped=False)


def _commit(
    work: _StageCall,
    drafts: dict[str, Origin],
    made: dict[str, pa.Table],
    facts: dict[str, Any],
    cost: Cost,
) -> dict[str, Manifest]:
    """Commit the tables, or leave them to the writer; return the manifests that there are."""

    def commit(name: str) -> Manifest:
        with phase("write"):
            return work.run.commit(work.origin(drafts[name]), made[name], facts, cost)

    def commit_beside(name: str) -> None:
        with beside(work.stage.name):
            commit(name)

    if work.writer is None or work.stage.advances_policy:
        return {name: commit(name) for name in drafts}
    for name, data in made.items():
        path = work.run.table_path(name, work.handles.step)
        work.writer.submit(path, data, partial(commit_beside, name))
    return {}


def _as_declared(stage: Stage, name: str, data: pa.Table) -> pa.Table:
    """Return a table as a reader would find it; refuse another schema than its own."""
    return data.cast(expect_schema(stage.name, name, data)).combine_chunks()


def _draft(run: Run, stage: Stage, handles: Handles, table: str) -> Origin:
    """Return the origin of a table, without the tables that it is made from."""
    inputs = {}
    if "questions" in stage.uses:
        inputs["questions"] = digest_of([q.recorded() for q in handles.questions])
    if "seed" in stage.uses:
        inputs["seed"] = str(handles.seed)
    if handles.solutions:
        inputs["solutions"] = digest_of(sorted(handles.solutions.items()))
    if "verifier" in stage.uses:
        inputs["verifier"] = handles.verifier_digest
    if "earlier" in stage.uses:
        inputs["earlier"] = digest_of([earlier.sha256 for earlier in handles.earlier])
    needed = "policy" in stage.uses and table not in stage.without_policy
    policy = handles.require_policy() if needed else None
    recorded = run.config.recorded()
    return Origin(
        schema_version=SCHEMA_VERSION,
        table=table,
        step=handles.step,
        stage=stage.name,
        stage_version=stage.version,
        inputs=inputs,
        settings={s: recorded[s] for s in stage.sections if s in recorded},
        policy_version=policy.version if policy else None,
        teacher_version=policy.teacher_version if policy else None,
    )


def _expect_version(handles: Handles) -> None:
    """Refuse a policy that isn't the step's (an update is never applied twice)."""
    policy = handles.require_policy()
    expected = f"{handles.step:06d}-"
    if not policy.version.startswith(expected):
        raise PolicyError(
            f"step {handles.step} updates a policy after {handles.step} steps, this one has "
            f"version {policy.version}"
        )


def _expect_same(run: Run, manifest: Manifest, wanted: Origin) -> None:
    differences = manifest.origin.differences(wanted)
    if differences:
        path, was = run.table_path(wanted.table, wanted.step), manifest.origin.stage_version
        if was != wanted.stage_version:
            raise StoreError(
                f"{path} was made by other rules of stage {wanted.stage} (stage_version: {was}, "
                f"not {wanted.stage_version}), and rules are not mixed: use a state that has a "
                "snapshot, or the code that made it"
            )
        raise StoreError(
            f"{path} was made otherwise ({'; '.join(differences[:3])}): a committed table is "
            "never overwritten; use the recorded settings, or another run"
        )
