"""Tables that were removed on purpose: a record beside the manifest says so, when and why.

The manifest stays, so that lineage holds. Where the table exists, the record has no effect.
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import StoreError
from pipeline.files.durable import remove_file
from pipeline.files.sealed_json import read_sealed, write_sealed
from pipeline.text import command

PRUNABLE = ("teacher", "weights")
"""Tables that can be recomputed, bit for bit, from those that stay."""


class Removal(BaseModel):
    """The record of a removed table: NAME.pruned.json.

    Attributes:
        sha256: of the table, as in its manifest.
        removed: when, UTC.
        reason: what removed it.
        archive: the Parquet file that holds it, if there is one; an absolute path.
        digest: SHA-256 of everything else in this record.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    step: int
    sha256: str
    bytes: int
    removed: str
    reason: str
    archive: str | None
    digest: str = ""

    def write(self, table_path: Path) -> None:
        """Write the record, durably; after that the table may be removed."""
        write_sealed(record_path(table_path), self.model_dump(mode="json"))

    def described(self, run: Path) -> str:
        """Say in words that the table is gone, and how to get it back."""
        where = [Path(self.archive).parents[2]] if self.archive else []
        return (
            f"pruned on purpose on {self.removed[:10]} ({self.reason}); to have it back: "
            f"{command('restore', run, *where)}"
        )


def record_path(table_path: Path) -> Path:
    """Return where the record of a removed table stands."""
    return table_path.with_suffix(".pruned.json")


def removal(table_path: Path) -> Removal | None:
    """Return the record of a table that was removed; None if it is there, or was lost.

    Raises:
        StoreError: the record is not as it was written.
    """
    path = record_path(table_path)
    if table_path.exists() or not path.exists():
        return None
    try:
        return Removal.model_validate(read_sealed(path))
    except ValidationError:
        raise StoreError(f"{path}: no record of a pruned table; restore it from a copy") from None


def expect_present(table_path: Path, repair: str) -> None:
    """Refuse a table that is not there: removed on purpose, or lost."""
    if table_path.exists():
        return
    if (found := removal(table_path)) is not None:
        raise StoreError(f"{table_path}: {found.described(table_path.parents[2])}")
    raise StoreError(f"{table_path}: committed but missing; {repair}")


def forget_removal(table_path: Path) -> None:
    """Remove the record of a table that is back."""
    path = record_path(table_path)
    if path.exists():
        remove_file(path)
