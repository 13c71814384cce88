"""Before a repair: damaged files are set aside, under names that no reader opens."""

from pathlib import Path

from pipeline.errors import StoreError
from pipeline.files.durable import set_aside
from pipeline.files.sealed_json import is_sealed
from pipeline.run.run import Run
from pipeline.run.step_layout import ALL_TABLES
from pipeline.stage.contract import Stage


def set_aside_damage(run: Run, stage: Stage, step: int) -> list[Path]:
    """Set aside what is damaged of a stage's own tables, or of its step's record.

    Nothing is deleted. With a manifest, the record of its step goes too. A table whose manifest is
    whole must come out the same when it is made anew; `expect_readers_agree` checks the others.

    Returns:
        The new names.
    """
    found = [path for table in stage.writes for path in _damaged(run, table, step)]
    record = run.metrics_path(step)
    follows = is_sealed(record) and not any(path.suffix == ".json" for path in found)
    if stage.name != "evaluate" and record.exists() and not follows:
        found.append(record)  # it repeats what manifests say of costs
    return [set_aside(path) for path in found]


def expect_readers_agree(run: Run, stage: Stage, step: int) -> None:
    """Refuse a table made anew that is not the one which the step's other tables were made from.

    Raises:
        StoreError: their manifests name another SHA-256.
    """
    committed = [name for name in ALL_TABLES if run.has(name, step)]
    for table in set(stage.writes) & set(committed):
        sha256 = run.manifest(table, step).sha256
        for reader in committed:
            known = run.manifest(reader, step).origin.inputs.get(table, sha256)
            if known != sha256:
                raise StoreError(
                    f"{run.table_path(table, step)}: made anew with SHA-256 {sha256[:12]}, but "
                    f"{reader} was made from {known[:12]}; same machine, threads, ranks "
                    "and versions as before?"
                )


def _damaged(run: Run, table: str, step: int) -> list[Path]:
    """Return which files of a committed table are damaged; those of ancestors are theirs."""
    path = run.table_path(table, step)
    beside = path.with_suffix(".json")
    if run.owner(table, step) is not run or not beside.exists():
        return []
    try:
        run.read(table, step)
    except StoreError:
        files = (path,) if is_sealed(beside) else (path, beside)
        return [file for file in files if file.exists()]
    return []
