"""Tables in Parquet, for keeping: read back and found to be the same bytes before they count."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import StoreError
from pipeline.files.durable import atomic_path
from pipeline.machine.disk import errors_naming
from pipeline.run.removal import forget_removal
from pipeline.run.run import Run
from pipeline.tables.arrow_writing import digest_arrow, write_arrow
from pipeline.tables.manifest import Manifest


def archive_path(folder: Path, table: str, step: int) -> Path:
    """Return where a table of a step is in an archive."""
    return folder / "steps" / f"{step:06d}" / f"{table}.parquet"


def archive(run: Run, table: str, step: int, folder: Path) -> Path:
    """Write a table to Parquet and return its file; one that is there and sound stays.

    Raises:
        StoreError: the file there is of another table, or does not give the same bytes back.
    """
    data, manifest = run.read(table, step), run.manifest(table, step)
    path = archive_path(folder, table, step)
    if not path.exists():
        with atomic_path(path) as temporary, errors_naming(path):
            pq.write_table(
                data,
                temporary,
                compression="zstd",
                use_dictionary=["rollout_id"],  # logits hardly repeat
                use_byte_stream_split=_floats(data.schema),
                use_compliant_nested_type=False,  # "item" stays so: the schema comes back as it was
            )
    archived(path, manifest)
    return path


def archived(path: Path, manifest: Manifest) -> pa.Table:
    """Return the table that a Parquet file holds.

    Raises:
        StoreError: no such file, not Parquet, or not the bytes that the manifest was made of.
    """
    try:
        data = pq.read_table(path)
    except FileNotFoundError:
        raise StoreError(
            f"{path}: no such archived table; name the folder it was moved to, or make the table "
            f"anew: srpo stage {manifest.origin.stage} --step {manifest.origin.step}, in the order "
            "of steps"
        ) from None
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StoreError(f"{path}: not a readable Parquet file: {error}") from None
    found = digest_arrow(data)
    if found != manifest.sha256:
        raise StoreError(
            f"{path}: gives SHA-256 {found[:12]}…, the manifest says {manifest.sha256[:12]}…: "
            "another table's, or damaged"
        )
    return data


def restore(run: Run, table: str, step: int, path: Path) -> None:
    """Put a removed table back from its archive, bit for bit; its record goes then.

    Raises:
        StoreError: the archive can't be used; nothing is changed.
    """
    manifest, target = run.manifest(table, step), run.table_path(table, step)
    data = archived(path, manifest)
    with atomic_path(target) as temporary:
        if write_arrow(temporary, data) != manifest.sha256:
            raise StoreError(f"{target}: other bytes were written than read; check the disk")
    forget_removal(target)


def _floats(schema: pa.Schema) -> list[str]:
    """Return the columns of floats, as Parquet calls them, whose bytes compress better apart."""
    found = []
    for field in schema:
        nested = pa.types.is_fixed_size_list(field.type)
        kind = field.type.value_type if nested else field.type
        if pa.types.is_floating(kind):
            found.append(f"{field.name}.list.item" if nested else field.name)
    return found
