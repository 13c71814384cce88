"""Everything that commits something to a run: how it begins, what it does, what a reader sees."""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config.sections import ModelSection
from pipeline.files.durable import digest_of, remove_folder, remove_leftovers, set_aside
from pipeline.files.sealed_json import read_sealed, write_sealed
from pipeline.policy.policy import Policy, TeacherSettings
from pipeline.policy.snapshots import keep_tokenizer, load_snapshot, save_snapshot
from pipeline.run.run import Run, is_taken
from tests.builders.tables import COST, STEP, config, origin, tables
from tests.faults.broken_disk import FAULTS, BrokenDisk, Fault

TEACHER = TeacherSettings(kind="ema", rate=0.05, mix=0.05)


@dataclass(frozen=True)
class Operation:
    """One way of committing.

    Attributes:
        prepare: makes a folder in the old state.
        act: goes to the new state; from there it is not called again.
        look: what a process that has just begun finds; any error is a third state.
    """

    prepare: Callable[[Path], None]
    act: Callable[[Path], object]
    look: Callable[[Path], object]


def operations(open_policy: Callable[[], Policy]) -> dict[str, Operation]:
    """Return all of them."""

    def snapshot(root: Path) -> None:
        remove_leftovers(root / "policy")
        save_snapshot(open_policy(), root / "policy" / "000000", 0)

    def tokenizer(root: Path) -> None:
        keep_tokenizer(open_policy(), root / "tokenizer")

    def with_snapshot(root: Path) -> None:
        _create(root)
        snapshot(root)

    return {
        "run": Operation(Path.mkdir, _create, _run_of),
        "longer run": Operation(_create, _longer, _run_of),
        "table": Operation(_create, _commit("weights"), _table),
        "lost table": Operation(_lost, _commit("weights"), _table),
        "record": Operation(_create, _record, _record_of),
        "snapshot": Operation(_create, snapshot, _snapshot_of),
        "removed snapshot": Operation(with_snapshot, _remove_snapshot, _snapshot_of),
        "tokenizer": Operation(_create, tokenizer, _tokenizer_of),
        "set aside": Operation(_committed, _set_aside, _table),
    }


def attempt(
    operation: Operation, root: Path, at: int, fault: Fault, expected: object
) -> str | None:
    """Fail one call of an operation; return what is wrong, if anything is.

    Args:
        expected: what a reader finds after an undisturbed operation.
    """
    shutil.rmtree(root, ignore_errors=True)
    operation.prepare(root)
    old = operation.look(root)
    disk = BrokenDisk(root, at, fault)
    with disk.in_place(), contextlib.suppress(OSError):
        operation.act(root)
    seen = _seen(operation, root)
    if seen != old:
        new = seen
    else:
        operation.act(root)
        new = operation.look(root)
    if new == expected:
        return None
    call = disk.calls[at] if at < len(disk.calls) else "no call"
    return f"{fault} at call {at} ({call}): {old} became {seen}, then {new}, not {expected}"


def campaign(operation: Operation, root: Path) -> tuple[list[str], int, list[str]]:
    """Fail every call of an operation in every way; return calls, attempts and what went wrong."""
    shutil.rmtree(root, ignore_errors=True)
    operation.prepare(root)
    counting = BrokenDisk(root)
    with counting.in_place():
        operation.act(root)
    expected = operation.look(root)
    ways = [
        (at, fault)
        for at, call in enumerate(counting.calls)
        for fault in FAULTS
        if fault != "short" or call == "write"
    ]
    wrong = [attempt(operation, root, at, fault, expected) for at, fault in ways]
    return counting.calls, len(ways), [text for text in wrong if text is not None]


def _seen(operation: Operation, root: Path) -> object:
    try:
        return operation.look(root)
    except Exception as error:  # whatever it is, it is a third state
        return f"{type(error).__name__}: {error}"


def _create(root: Path) -> None:
    Run.create(root, config(), {"hardware": "none"})


def _run_of(root: Path) -> object:
    return Run.open(root).record["digest"] if is_taken(root) else None


def _longer(root: Path) -> None:
    Run.open(root).extend(config(run={"steps": 200}))


def _commit(table: str) -> Callable[[Path], object]:
    return lambda root: Run.open(root).commit(origin(table), tables()[table], {}, COST)


def _committed(root: Path) -> None:
    _create(root)
    _commit("weights")(root)


def _lost(root: Path) -> None:
    _committed(root)
    Run.open(root).table_path("weights", STEP).unlink()


def _table(root: Path) -> object:
    run = Run.open(root)
    if not run.has("weights", STEP):
        return None
    return digest_of(run.read("weights", STEP).to_pylist())


def _set_aside(root: Path) -> None:
    set_aside(Run.open(root).table_path("weights", STEP))


def _record(root: Path) -> None:
    write_sealed(Run.open(root).metrics_path(STEP), {"loss": 0.5, "steps": list(range(1000))})


def _record_of(root: Path) -> object:
    path = Run.open(root).metrics_path(STEP)
    return read_sealed(path)["digest"] if path.exists() else None


def _snapshot_of(root: Path) -> object:
    run = Run.open(root)
    if 0 not in run.snapshots():
        return None
    settings: Any = ModelSection(path="x", device="cpu")
    return load_snapshot(run.snapshot_path(0), settings, TEACHER).version


def _remove_snapshot(root: Path) -> None:
    remove_leftovers(root / "policy")
    remove_folder(root / "policy" / "000000")


def _tokenizer_of(root: Path) -> object:
    folder = root / "tokenizer"
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else None
