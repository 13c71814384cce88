"""Sealed records: JSON files that carry their own SHA-256, and are read as strictly as tables.

The digest covers the record's value. Each value has exactly one text, so a change of any other byte
of the file is found as well.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import StoreError
from pipeline.files.durable import digest_of, json_text, write_json

MAX_BYTES = 256 << 20
"""Records are far smaller; a larger file is not read into memory."""


def write_sealed(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write a record with its digest, atomically, and return it with that."""
    sealed = {**record, "digest": digest_of({k: v for k, v in record.items() if k != "digest"})}
    write_json(path, sealed)
    return sealed


def read_sealed(path: Path) -> dict[str, Any]:
    """Return a record, its digest included, if every byte is as it was written.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it is no JSON object, or was changed since it was written.
    """
    record, text = read_record(path)
    expect_unchanged(path, record, text)
    return record


def is_sealed(path: Path) -> bool:
    """Tell whether a record is there and as it was written."""
    try:
        read_sealed(path)
    except (FileNotFoundError, StoreError):
        return False
    return True


def read_record(path: Path) -> tuple[dict[str, Any], str]:
    """Return a record that may have been changed, and the text of its file.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it is no JSON object, or far too large for a record.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise StoreError(f"{path}: {size} bytes; no record of a run is larger than {MAX_BYTES}")
    try:
        text = path.read_bytes().decode()
        record = json.loads(text)
    except (ValueError, RecursionError):
        raise StoreError(f"{path}: not valid JSON") from None
    if not isinstance(record, dict):
        raise StoreError(f"{path}: not a JSON object")
    return record, text


def expect_unchanged(path: Path, record: dict[str, Any], text: str) -> None:
    """Refuse a record whose digest, or whose text, is not as it was written."""
    try:
        value = {k: v for k, v in record.items() if k != "digest"}
        whole = record.get("digest") == digest_of(value) and text == json_text(record)
    except (ValueError, RecursionError):  # NaN and lone surrogates have no JSON text
        whole = False
    if not whole:
        raise StoreError(f"{path}: changed since it was written (digest does not match)")
