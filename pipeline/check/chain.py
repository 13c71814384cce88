"""What the manifests of a run say of each other: inputs, settings, versions of the policy."""

import json
from collections.abc import Mapping
from typing import Any

from pipeline.check.check_report import CheckReport
from pipeline.check.run_files import Key, TableFile, read_state, snapshot_folders
from pipeline.files.durable import canonical_json, digest_of
from pipeline.files.file_list import snapshot_repair
from pipeline.policy.adapter_files import config_file
from pipeline.run.run import Run
from pipeline.run.step_layout import STAGE_OF, tables_of
from pipeline.tables.manifest import Manifest, Origin
from pipeline.tables.schemas import SCHEMA_VERSION
from pipeline.text import command

_BY_ROUTE = ("rollouts", "verdicts", "bank")
_READS = {
    "verdicts": ("rollouts",),
    "bank": ("rollouts",),
    "routes": _BY_ROUTE,
    "scores": _BY_ROUTE,
    "teacher": _BY_ROUTE,
    "weights": ("routes", "teacher"),
    "updates": ("rollouts", "routes", "scores", "teacher", "weights"),
}


def _recompute(entry: TableFile) -> str:
    """Say what to do where one table does not follow from another."""
    stage, root = STAGE_OF[entry.table], entry.owner.root
    if stage in ("generate", "evaluate"):
        return "one of them was replaced: restore it from a copy"
    return (
        "one of them was replaced: restore it from a copy, or compute anew what follows: "
        f"{command('replay', root, '--from', stage)} --fork NEW"
    )


def check_chain(entry: TableFile, tables: Mapping[Key, TableFile], report: CheckReport) -> None:
    """Note where a table's manifest contradicts its place, its inputs, the settings or the chain.

    Does nothing without a manifest.
    """
    if entry.manifest is None:
        return
    origin, beside = entry.manifest.origin, entry.path.with_suffix(".json")
    place = {
        "schema_version": SCHEMA_VERSION,
        "table": entry.table,
        "step": entry.step,
        "stage": STAGE_OF[entry.table],
    }
    for key, value in place.items():
        if getattr(origin, key) != value:
            report.add(beside, f"{key} {value}", getattr(origin, key), entry.advice)
    made = tables_of(entry.owner.config)
    for name in (name for name in _READS.get(entry.table, ()) if name in made):
        source = tables.get((entry.step, name))
        there = source.manifest.sha256 if source and source.manifest else None
        said = origin.inputs.get(name)
        if there is not None and there != said:
            report.add(
                beside,
                f"input {name} with SHA-256 {there[:12]}…, the table that is there",
                f"{said[:12]}…" if said else "no such input",
                _recompute(entry),
            )
    for key, value in _handles(entry).items():
        if key in origin.inputs and origin.inputs[key] != value:
            report.add(beside, f"{key} {value} of run.json", origin.inputs[key], _recompute(entry))
    if entry.table == "bank":
        _check_earlier(entry, tables, report)
    for section, settings in origin.settings.items():
        _check_section(entry, section, settings, report)
    _check_versions(entry, report)


def _check_earlier(entry: TableFile, tables: Mapping[Key, TableFile], report: CheckReport) -> None:
    """Note a bank that was made from other earlier steps than those that are there."""
    assert entry.manifest is not None
    before = [
        [tables.get((step, name)) for name in ("rollouts", "verdicts")]
        for step in range(entry.step)
    ]
    digests = [[e.manifest.sha256 if e and e.manifest else None for e in pair] for pair in before]
    if any(None in pair for pair in digests):
        return  # what is missing is noted by itself
    expected, found = digest_of(digests), entry.manifest.origin.inputs.get("earlier", "none")
    if found != expected:
        beside = entry.path.with_suffix(".json")
        text = f"earlier {expected[:12]}…, the rollouts and verdicts of the steps before"
        report.add(beside, text, f"{found[:12]}…", _recompute(entry))


def _handles(entry: TableFile) -> dict[str, str]:
    record = entry.owner.record
    verifier = {"verifier": str(record["task_digest"])} if "task_digest" in record else {}
    return {"seed": str(entry.owner.config.run.seed), **verifier}


def _check_section(
    entry: TableFile, section: str, settings: Mapping[str, Any], report: CheckReport
) -> None:
    config = entry.owner.config.recorded().get(section, {})
    for key in sorted(config.keys() | settings.keys()):
        value = settings.get(key)
        if canonical_json(config.get(key)) != canonical_json(value):
            beside = entry.path.with_suffix(".json")
            expected = f"{section}.{key} = {config.get(key)}, as run.json says"
            report.add(beside, expected, value, _recompute(entry))


def _check_versions(entry: TableFile, report: CheckReport) -> None:
    assert entry.manifest is not None
    origin, beside = entry.manifest.origin, entry.path.with_suffix(".json")
    if entry.table == "updates":
        expected = next_version(origin)
        found = entry.manifest.facts.get("next_policy_version")
        if found != expected:
            report.add(beside, f"next_policy_version {expected}", found, entry.advice)
    if origin.policy_version is None:
        return
    version = version_before(entry.owner, entry.step)
    if version is not None and origin.policy_version != version:
        expected = f"policy_version {version}, which the update before it made"
        report.add(beside, expected, origin.policy_version, _recompute(entry))
    teacher = _teacher_version(entry, origin.policy_version)
    if teacher is not None and origin.teacher_version != teacher:
        report.add(beside, f"teacher_version {teacher}", origin.teacher_version, _recompute(entry))


def next_version(origin: Origin) -> str:
    """Return the version that an update gives the policy: steps done, and a lineage digest."""
    return f"{origin.step + 1:06d}-{digest_of(origin.model_dump())[:12]}"


def version_before(run: Run, step: int) -> str | None:
    """Return the version of the policy that starts a step of a run; None if nothing says it."""
    if step == 0:
        initial: str | None = run.record.get("initial_policy_version")
        return initial
    try:
        path = run.table_path("updates", step - 1).with_suffix(".json")
        found: str | None = Manifest.read(path).facts.get("next_policy_version")
    except (ValueError, OSError, RecursionError):
        return None
    return found


def _teacher_version(entry: TableFile, policy_version: str) -> str | None:
    kind = entry.owner.config.route.teacher
    initial = entry.owner.record.get("initial_policy_version")
    source: str | None = {
        "frozen": initial,
        "trust_region": f"{initial}+{policy_version}" if initial else None,
        "periodic": _copied_version(entry.owner, entry.step),
    }.get(kind, policy_version)
    return None if source is None else f"{kind}@{source}"


def _copied_version(run: Run, steps_done: int) -> str | None:
    """Return the version of the policy that a periodic teacher is after so many steps."""
    period = run.config.route.teacher_period
    return version_before(run, period * (steps_done // period))


def check_snapshots(run: Run, report: CheckReport) -> None:
    """Note snapshots that are not of the step, or the version, that their place says."""
    ignored = CheckReport()  # unreadable records are noted where the files are listed
    for steps, folder in snapshot_folders(run):
        state = read_state(folder, ignored)
        owner = run.snapshot_owner(steps)
        route = owner.config.route
        known: dict[str, Any] = {
            "steps_done": steps,
            "policy_version": version_before(owner, steps),
            "initial_version": owner.record.get("initial_policy_version"),
            "teacher": {
                "kind": route.teacher,
                "rate": route.teacher_rate,
                "mix": route.trust_region_mix,
            },
        }
        if "teacher_period" in (recorded := route.recorded()):
            known["teacher"]["period"] = recorded["teacher_period"]
        if route.teacher == "periodic":
            known["copied_version"] = _copied_version(owner, steps)
        for key, expected in known.items():
            if state is not None and expected is not None and state.get(key) != expected:
                text = f"{key} {expected}"
                advice = snapshot_repair(folder)
                report.add(folder / "state.json", text, state.get(key), advice)


def vocabulary(run: Run) -> int | None:
    """Return V, from the configuration in a snapshot; None without one."""
    for _, folder in snapshot_folders(run):
        try:
            config = json.loads(config_file(folder).read_text(encoding="utf-8"))
            size = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
        except (ValueError, OSError, AttributeError):
            continue
        if isinstance(size, int):
            return size
    return None
