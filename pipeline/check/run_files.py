"""The files of a run: which must be there, their digests, and what does not belong to them."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.check.check_report import CheckReport
from pipeline.errors import StoreError
from pipeline.files import sealed_json
from pipeline.files.file_list import WrongFile, snapshot_repair
from pipeline.policy.adapter_files import BASE_CONFIG, CONFIG, STEM
from pipeline.run.removal import PRUNABLE, record_path, removal
from pipeline.run.run import Run
from pipeline.run.step_layout import ALL_TABLES, STAGE_OF
from pipeline.run.step_profiles import profile_path
from pipeline.tables.manifest import Manifest
from pipeline.text import command, go_on, ranges

TABLES = (*ALL_TABLES, "evaluations")
_BUFFER = 4 << 20

Key = tuple[int, str]
"""Step (or steps done) and table."""


@dataclass(frozen=True)
class TableFile:
    """One table of a run, in the folder of the run that made it.

    Attributes:
        manifest: None if it is missing or broken; the finding is noted already.
        pruned: whether it was removed on purpose.
    """

    step: int
    table: str
    owner: Run
    path: Path
    manifest: Manifest | None
    pruned: bool = False

    @property
    def advice(self) -> str:
        """Say how to get this table back."""
        stage = STAGE_OF[self.table]
        return (
            "restore both files from a copy, or run: "
            f"{command('stage', stage, '--run', self.owner.root, '--step', self.step)}"
        )


def file_sha256(path: Path, report: Callable[[int], None]) -> str:
    """Return the SHA-256 of a file's bytes; `report` is told of bytes as they are read."""
    digest, buffer = hashlib.sha256(), bytearray(_BUFFER)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(view[:size])
            report(size)
    return digest.hexdigest()


def list_tables(run: Run, report: CheckReport) -> dict[Key, TableFile]:
    """Return every table, own and inherited, by step and flow; note what is missing."""
    found = {}
    for (step, table), owner in sorted(
        _owners(run).items(), key=lambda item: (item[0][0], TABLES.index(item[0][1]))
    ):
        path = owner.own_table_path(table, step)
        entry = _entry(step, table, owner, path, report)
        if entry is not None:
            found[step, table] = entry
    return found


def _owners(run: Run) -> dict[Key, Run]:
    """Return in whose folder each table is, from the names of files alone."""
    owners = {}
    if run.fork is not None and run.parent is not None:
        inherited = _owners(run.parent)
        owners = {key: o for key, o in inherited.items() if run.fork.inherits(key[1], key[0])}
    for pattern, table_of in (
        ("steps/[0-9]*/*", lambda path: path.stem),
        ("evaluations/[0-9]*", lambda path: "evaluations"),
    ):
        for path in run.root.glob(pattern):
            number = path.stem if path.parent.name == "evaluations" else path.parent.name
            table = table_of(path)
            known = table in TABLES and path.suffix in (".arrow", ".json") and path.is_file()
            if known and number.isdecimal():
                owners.setdefault((int(number), table), run)
    return owners


def _entry(step: int, table: str, owner: Run, path: Path, report: CheckReport) -> TableFile | None:
    beside = path.with_suffix(".json")
    whole = TableFile(step, table, owner, path, None)
    if not beside.exists():
        if (path.parent / "metrics.json").exists() or table == "evaluations":
            report.add(beside, "the manifest of a committed table", "no file", whole.advice)
        else:
            report.notes.append(f"{path}: no manifest, so not committed; resuming replaces it")
        return None
    try:
        manifest = Manifest.read(beside)
    except (ValueError, OSError, RecursionError) as error:
        problem = str(error).removeprefix(f"{beside}: ").partition(";")[0]
        report.add(beside, "a manifest as it was written", problem, whole.advice)
        return whole
    pruned = _is_pruned(path, manifest, report)
    if not pruned and not path.is_file():
        report.add(path, f"a table of {manifest.rows} rows", "no file", whole.advice)
    return TableFile(step, table, owner, path, manifest, pruned)


def note_pruned(tables: dict[Key, TableFile], report: CheckReport) -> None:
    """Say which tables were removed on purpose, and what can't be checked without them."""
    for table in PRUNABLE:
        gone = [entry for entry in tables.values() if entry.pruned and entry.table == table]
        if gone:
            report.notes.append(
                f"table {table} of steps {ranges([entry.step for entry in gone])}: pruned on "
                "purpose (srpo restore brings it back); what follows from its rows is checked by "
                "digest only"
            )


def _is_pruned(path: Path, manifest: Manifest, report: CheckReport) -> bool:
    """Tell whether a table is missing on purpose; a record that does not say so is a finding."""
    beside = record_path(path)
    try:
        record = removal(path)
    except StoreError as error:
        problem = str(error).removeprefix(f"{beside}: ").partition(";")[0]
        report.add(beside, "the record of a pruned table", problem, "restore it from a copy")
        return True
    if record is not None and record.sha256 != manifest.sha256:
        advice = f"delete it, then: {command('check', path.parents[2])}"
        report.add(beside, f"SHA-256 {manifest.sha256[:12]}…", record.sha256[:12], advice)
    return record is not None


def missing_tables(run: Run, tables: dict[Key, TableFile], report: CheckReport) -> None:
    """Note the tables of complete steps, and the records of whole steps, that are not there."""
    steps = sorted({step for step, table in tables if table != "evaluations"})
    complete = [step for step in steps if run.metrics_path(step).exists()]
    for step in complete:
        for table in run.tables_of(step):
            if (step, table) not in tables and not _noted(run, step, table, report):
                owner = run.owner(table, step)
                entry = TableFile(step, table, owner, owner.own_table_path(table, step), None)
                report.add(entry.path, "a table of a complete step", "no file", entry.advice)
    evaluated = [step for step, table in tables if table == "evaluations"]
    kept = [folder[0] for folder in snapshot_folders(run)]
    for step in range(max([*complete, *evaluated, *kept], default=0)):
        if step not in complete:
            path = run.metrics_path(step)
            report.add(
                path,
                "the record of a step on which later steps or states rest",
                "no file",
                f"restore it from a copy, or {recompute_advice(run, step)}",
            )
    reached = max([*(step + 1 for step in complete), *evaluated, *kept], default=0)
    for due, owner in _due_evaluations(run, reached).items():
        if due not in evaluated and not _noted(run, due, "evaluations", report):
            path = owner.own_table_path("evaluations", due)
            advice = TableFile(due, "evaluations", owner, path, None).advice
            report.add(path, "an evaluation of the schedule", "no file", advice)


def _due_evaluations(run: Run, reached: int) -> dict[int, Run]:
    """Return which run owes the evaluation of which state below `reached`.

    Replays never evaluate, so a fork owes only those of states that it trained itself.
    """
    found, first, every = {}, 0, run.config.evaluate.every
    if run.fork is not None and run.parent is not None:
        above = _due_evaluations(run.parent, min(run.fork.start, reached))
        found = {n: owner for n, owner in above.items() if run.fork.inherits("evaluations", n)}
        first = run.fork.end + 1
    start = -(-first // every) * every
    return found | dict.fromkeys(range(start, reached, every), run)


def recompute_advice(run: Run, step: int) -> str:
    """Say how the run that owns the record of a step makes the step anew."""
    owner = run.record_owner(step)
    fork, parent = owner.fork, owner.parent
    if fork is None or parent is None or step >= fork.end:
        return f"run: {go_on(owner.root)}"
    steps = f"{fork.start}:{fork.end}"
    again = command("replay", parent.root, "--from", fork.stage, "--steps", steps)
    return f"make the fork anew: {again} --fork NEW"


def _noted(run: Run, step: int, table: str, report: CheckReport) -> bool:
    manifest = f"{run.table_path(table, step).with_suffix('.json')}"
    return any(finding.path == manifest for finding in report.findings)


def snapshot_files(run: Run, report: CheckReport) -> Iterator[tuple[Path, str]]:
    """Yield the files of all snapshots with their recorded SHA-256; note what is missing."""
    folders = snapshot_folders(run)
    if run.steps_of("rollouts") and 0 not in dict(folders):
        first = run.snapshot_path(0)
        expected = "the first snapshot, from which every policy can be rebuilt"
        report.add(first, expected, "no folder", "restore it from a copy")
    for steps, folder in folders:
        state = read_state(folder, report)
        if state is None:
            continue
        listed = state.get("sha256")
        if not isinstance(listed, dict):
            report.add(folder / "state.json", "a list of files", listed, snapshot_repair(folder))
            continue
        _expect_whole(run.snapshot_owner(steps), steps, folder, set(listed), report)
        for name, digest in listed.items():
            path = folder / Path(name).name
            if path.is_file():
                yield path, str(digest)
            else:
                report.add(path, f"a file of snapshot {steps}", "no file", snapshot_repair(folder))


def _expect_whole(
    owner: Run, steps: int, folder: Path, listed: set[str], report: CheckReport
) -> None:
    """Note files that a snapshot must list and does not, and files that it does not list."""
    plain = owner.config.model.lora is None
    needed = {"tokenizer.json", *(["config.json"] if plain else [CONFIG, BASE_CONFIG])}
    model = "model" if plain else STEM
    stems = [model, "optimizer"] if steps > 0 else [model]
    stems += ["teacher"] if owner.config.route.teacher != "live" else []
    tensors = [name for name in listed if name.endswith(".safetensors")]
    for stem in stems:  # of large models there are several: model-00001-of-00007.safetensors
        if not any(name.startswith((f"{stem}.", f"{stem}-")) for name in tensors):
            needed.add(f"{stem}.safetensors")
    for name in sorted(needed - listed):
        expected = f"a file in the list of snapshot {steps}"
        report.add(folder / name, expected, "not in state.json", snapshot_repair(folder))
    found = {path.name for path in folder.iterdir()} - {"state.json"}
    for name in sorted(found - listed):
        report.add(
            folder / name,
            "only files of the list",
            "a file that state.json does not know",
            snapshot_repair(folder),
        )


def snapshot_folders(run: Run) -> list[tuple[int, Path]]:
    """Return (steps done, folder) of every snapshot, the parent's up to the fork included."""
    found = {}
    if run.fork is not None and run.parent is not None:
        above = snapshot_folders(run.parent)
        found = {steps: folder for steps, folder in above if steps <= run.fork.start}
    for folder in (run.root / "policy").glob("[0-9]*"):
        if folder.name.isdecimal() and folder.is_dir():
            found.setdefault(int(folder.name), folder)
    return sorted(found.items())


def read_state(folder: Path, report: CheckReport) -> dict[str, Any] | None:
    """Return the record of a snapshot; note it if it is missing or changed."""
    path = folder / "state.json"
    state, problem = sealed_or_problem(path)
    if state is None:
        report.add(path, "the record of a snapshot", problem, snapshot_repair(folder))
    return state


def sealed_or_problem(path: Path) -> tuple[dict[str, Any] | None, str]:
    """Return a JSON record that holds its own digest, or None and what is wrong with it."""
    try:
        record = sealed_json.read_sealed(path)
    except FileNotFoundError:
        return None, "no file"
    except StoreError as error:
        return None, str(error).removeprefix(f"{path}: ")
    del record["digest"]
    return record, ""


def check_tokenizer(run: Run, report: CheckReport) -> None:
    """Note a tokenizer that is not as it was written, or of which that isn't known."""
    try:
        folder = run.tokenizer_path()
    except WrongFile as error:
        report.add(error.path, "a file of the run's tokenizer", error.problem, error.advice)
        return
    if not folder.is_dir():
        report.add(folder, "the run's tokenizer", "no folder", "copy it from policy/000000")
    elif not run.lists_tokenizer:
        report.notes.append(f"{folder}: of a run that has no digests of it, so not checked")


def check_profiles(run: Run, report: CheckReport) -> None:
    """Note profiles that are not as they were written; a step need not have one."""
    for step in run.steps_of("rollouts"):
        path = profile_path(run, step)
        if path.exists() and (problem := sealed_or_problem(path)[1]):
            advice = "delete it, no other file depends on it"
            report.add(path, "the profile of a step as it was written", problem, advice)


def note_leftovers(run: Run, report: CheckReport) -> None:
    """Note what commands that were cut short have left, and runs inside this run."""
    for folder in (".", "steps/*", "evaluations", "policy"):
        for pattern, what in (
            (".*.tmp", "left by a command that was cut short"),
            (".*.old", "left by a command that was cut short"),
            (".*.parts", "left by a command that was cut short; the same one goes on with it"),
            (".*.damaged-*", "damaged, set aside by a repair"),
        ):
            for path in sorted(run.root.glob(f"{folder}/{pattern}")):
                report.notes.append(f"{path}: {what}; no reader")
    for record in sorted(run.root.glob("evaluations/*/run.json")):
        report.notes.append(f"{record.parent}: a run of its own; check it by itself")
