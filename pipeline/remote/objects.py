"""Operations on objects of a store: read, write, list and remove, with or without conditions."""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.errors import StoreError
from pipeline.remote import client
from pipeline.remote.client import Address, Changed

if TYPE_CHECKING:
    from obstore import Bytes
    from obstore.store import ObjectStore

RANGE = 32 << 20
"""Bytes fetched by one request."""
PART = 8 << 20
"""Bytes of one part of an upload, four at a time; larger where there would be too many parts."""

_SIDE_BY_SIDE = 4
_MOST_PARTS = 9_000


class Object(NamedTuple):
    """A store's metadata of an object.

    Attributes:
        etag: changes with the contents.
    """

    size: int
    etag: str
    modified: datetime


class Version(NamedTuple):
    """One state of an object, which a write may depend on."""

    etag: str | None
    number: str | None


def listed(folder: Address) -> dict[str, Object]:
    """Return all objects below a folder, by their names from there."""

    def call(store: "ObjectStore") -> dict[str, Object]:
        import obstore

        found = {}
        for batch in obstore.list(store, prefix=folder.key or None):
            for meta in batch:
                name = meta["path"].removeprefix(folder.key).lstrip("/")
                found[name] = _object(meta)
        return found

    return client.persistently(folder, call)


def folders(folder: Address) -> list[str]:
    """Return the names of the folders in a folder."""

    def call(store: "ObjectStore") -> list[str]:
        import obstore

        found = obstore.list_with_delimiter(store, prefix=folder.key or None)
        return [path.rpartition("/")[2] for path in found["common_prefixes"]]

    return client.persistently(folder, call)


def has(address: Address) -> bool:
    """Tell whether there is an object."""

    def call(store: "ObjectStore") -> bool:
        import obstore

        try:
            obstore.head(store, address.key)
        except FileNotFoundError:
            return False
        return True

    return client.persistently(address, call)


def read(address: Address) -> tuple[bytes, Version] | None:
    """Return a small object and its state; None if there is none."""

    def call(store: "ObjectStore") -> tuple[bytes, Version] | None:
        import obstore

        try:
            found = obstore.get(store, address.key)
            return bytes(found.bytes()), _version(found.meta)
        except FileNotFoundError:
            return None

    return client.persistently(address, call)


def stat(address: Address) -> Object:
    """Return what the store says of an object that is there.

    Raises:
        StoreError: it is not.
    """

    def call(store: "ObjectStore") -> Object:
        import obstore

        return _object(obstore.head(store, address.key))

    with _expecting(address):
        return client.persistently(address, call)


def read_range(address: Address, thing: Object, start: int, end: int) -> "Bytes":
    """Return bytes [start, end) of an object in a known state.

    Raises:
        Changed: it is in another one.
    """
    with _expecting(address):
        return client.persistently(address, lambda store: _range(store, address, thing, start, end))


def download(address: Address, target: Path) -> Object:
    """Write an object to a file: by one request, or range by range, all of one state.

    Raises:
        StoreError: it is not there, or it changed meanwhile.
    """

    def call(store: "ObjectStore") -> Object:
        import obstore

        whole = obstore.get(store, address.key)
        found = _object(whole.meta)
        with target.open("wb") as file:
            if found.size <= RANGE:
                file.write(whole.bytes())
                return found
            for start in range(0, found.size, RANGE):
                file.write(_range(store, address, found, start, min(start + RANGE, found.size)))
        return found

    with _expecting(address):
        try:
            return client.persistently(address, call)
        except Changed:
            raise StoreError(f"{address}: changed while it was read; run it again") from None


def upload(address: Address, source: Path) -> str:
    """Store a file, whatever is there, and return its ETag. It appears whole or not at all."""
    size = source.stat().st_size
    part = max(PART, size // _MOST_PARTS)

    def call(store: "ObjectStore") -> str:
        import obstore

        made = obstore.put(
            store, address.key, source, chunk_size=part, max_concurrency=_SIDE_BY_SIDE
        )
        return made["e_tag"] or ""

    return client.persistently(address, call)


def create(address: Address, content: bytes) -> Version:
    """Store a small object where there is none.

    Raises:
        Changed: there is one, with other contents.
    """
    return _conditionally(address, content, "create")


def replace(address: Address, content: bytes, known: Version) -> Version:
    """Store a small object in place of a known state of it.

    Raises:
        Changed: it is in another state, with other contents.
    """
    mode = {"e_tag": known.etag, "version": known.number}
    return _conditionally(address, content, {k: v for k, v in mode.items() if v is not None})


def remove(address: Address) -> None:
    """Remove an object; none is no error."""

    def call(store: "ObjectStore") -> None:
        import obstore

        with contextlib.suppress(FileNotFoundError):
            obstore.delete(store, address.key)

    client.persistently(address, call)


def copy(source: Address, target: Address) -> bool:
    """Copy an object within its bucket; tell whether it was there."""

    def call(store: "ObjectStore") -> bool:
        import obstore

        try:
            obstore.copy(store, source.key, target.key)
        except FileNotFoundError:
            return False
        return True

    return client.persistently(source, call)


@contextlib.contextmanager
def _expecting(address: Address) -> Iterator[None]:
    """Refuse to go on without an object that was listed."""
    try:
        yield
    except FileNotFoundError:
        raise StoreError(
            f"{address}: gone since it was listed: another command removed it; run this one again"
        ) from None


def _range(store: "ObjectStore", address: Address, thing: Object, start: int, end: int) -> "Bytes":
    """Return bytes [start, end) of an object in a known state."""
    import obstore

    options: Any = {"range": (start, end)}
    options |= {"if_match": thing.etag} if thing.etag else {}
    return obstore.get(store, address.key, options=options).bytes()


def _conditionally(address: Address, content: bytes, mode: Any) -> Version:
    """Write on a condition; a write whose answer was lost is recognised by its contents."""

    def call(store: "ObjectStore") -> Version:
        import obstore

        made = obstore.put(store, address.key, content, mode=mode, use_multipart=False)
        return Version(made["e_tag"], made["version"])

    try:
        return client.persistently(address, call)
    except Changed:
        found = read(address)
        if found is None or found[0] != content:
            raise
        return found[1]


def _object(meta: Any) -> Object:
    return Object(meta["size"], meta["e_tag"] or "", meta["last_modified"])


def _version(meta: Any) -> Version:
    return Version(meta["e_tag"], meta["version"])
