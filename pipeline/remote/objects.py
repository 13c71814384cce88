"""An object store, by URL: requests that are retried within limits, and errors of one line.

obstore talks to it (S3 and what speaks like it, Google's): conditional writes, ETags, ranges. It
takes addresses and credentials from the environment variables that the vendors' own tools read.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pipeline.audit.plain import printable
from pipeline.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from obstore import Bytes
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs")
REQUEST_SECONDS = 60.0
"""Limit of one request, its contents included: `RANGE` or four parts of `PART` at a time."""
RETRY_SECONDS = 60.0
"""How long a request that fails is tried again; no further try begins after that."""
RANGE = 32 << 20
"""Bytes fetched by one request."""
PART = 8 << 20
"""Bytes of one part of an upload; more where a file would have too many parts."""

_SIDE_BY_SIDE = 4
_MOST_PARTS = 9_000
_TRIES = 10
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

_T = TypeVar("_T")


class Address(NamedTuple):
    """Where an object, or a folder of objects, is.

    Attributes:
        bucket: with its scheme, as in s3://bucket.
        key: without slashes at its ends; empty: the whole bucket.
    """

    bucket: str
    key: str

    @property
    def scheme(self) -> str:
        """Return the kind of store."""
        return self.bucket.partition(":")[0]

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> "Address":
        return Address(self.bucket, f"{self.key}/{name}".lstrip("/"))

    def beside(self, name: str) -> "Address":
        """Return the address of another name in the same folder."""
        return Address(self.bucket, self.key.rpartition("/")[0]) / name


class Object(NamedTuple):
    """What a store says of an object.

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


class Changed(Exception):
    """A conditional write found another state than it depended on; nothing was written."""


def endpoint(scheme: str) -> str:
    """Return the address that the environment gives for a scheme; empty: the vendor's own."""
    if scheme != "s3":
        return ""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


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

    return _persistently(folder, call)


def folders(folder: Address) -> list[str]:
    """Return the names of the folders in a folder."""

    def call(store: "ObjectStore") -> list[str]:
        import obstore

        found = obstore.list_with_delimiter(store, prefix=folder.key or None)
        return [path.rpartition("/")[2] for path in found["common_prefixes"]]

    return _persistently(folder, call)


def has(address: Address) -> bool:
    """Tell whether there is an object."""

    def call(store: "ObjectStore") -> bool:
        import obstore

        try:
            obstore.head(store, address.key)
        except FileNotFoundError:
            return False
        return True

    return _persistently(address, call)


def read(address: Address) -> tuple[bytes, Version] | None:
    """Return a small object and its state; None if there is none."""

    def call(store: "ObjectStore") -> tuple[bytes, Version] | None:
        import obstore

        try:
            found = obstore.get(store, address.key)
            return bytes(found.bytes()), _version(found.meta)
        except FileNotFoundError:
            return None

    return _persistently(address, call)


def stat(address: Address) -> Object:
    """Return what the store says of an object that is there.

    Raises:
        StoreError: it is not.
    """

    def call(store: "ObjectStore") -> Object:
        import obstore

        return _object(obstore.head(store, address.key))

    with _expecting(address):
        return _persistently(address, call)


def read_range(address: Address, thing: Object, start: int, end: int) -> "Bytes":
    """Return bytes [start, end) of an object in a known state.

    Raises:
        Changed: it is in another one.
    """
    with _expecting(address):
        return _persistently(address, lambda store: _range(store, address, thing, start, end))


def download(address: Address, target: Path) -> Object:
    """Write an object to a file: by one request, or range by range, all of one state.

    Raises:
        StoreError: it is not there, or it changes all the time.
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
        return _persistently(address, call)


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

    return _persistently(address, call)


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

    _persistently(address, call)


def copy(source: Address, target: Address) -> bool:
    """Copy an object within its bucket; tell whether it was there."""

    def call(store: "ObjectStore") -> bool:
        import obstore

        try:
            obstore.copy(store, source.key, target.key)
        except FileNotFoundError:
            return False
        return True

    return _persistently(source, call)


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
        return _persistently(address, call)
    except Changed:
        found = read(address)
        if found is None or found[0] != content:
            raise
        return found[1]


def _persistently(address: Address, call: "Callable[[ObjectStore], _T]") -> _T:
    """Call until it succeeds; obstore retries most of what fails, and this what it gives up.

    Raises:
        FileNotFoundError: no such object, or no such bucket.
        StoreError: the store refuses, or fails for too long.
    """
    from obstore import exceptions

    store = _store(address.bucket, endpoint(address.scheme))
    started, pause = time.monotonic(), _FIRST_PAUSE
    while True:
        try:
            return call(store)
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            raise Changed(str(address)) from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise StoreError(f"{address}: the store refuses: {_reason(error)}") from None
        except exceptions.BaseError as error:
            if "NoSuchBucket" in str(error):
                raise StoreError(f"{address.bucket}: no such bucket; make it first") from None
            spent = time.monotonic() - started
            if spent + pause > RETRY_SECONDS:
                raise StoreError(
                    f"{address}: the store failed for {spent:.0f} s (limit {RETRY_SECONDS:g} s): "
                    f"{_reason(error)}; what is stored stays: when it answers again, run the same "
                    "command again, a training with --resume"
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


@lru_cache
def _store(bucket: str, address: str) -> "ObjectStore":
    """Return the client of a bucket at an endpoint."""
    try:
        from obstore.store import from_url
    except ImportError:
        raise ConfigError(f"{bucket}: needs obstore: pip install 'srpo[remote]'") from None
    options: Any = {
        "client_options": {
            "timeout": timedelta(seconds=REQUEST_SECONDS),
            "connect_timeout": timedelta(seconds=min(10.0, REQUEST_SECONDS)),
            "allow_http": address.startswith("http://"),
        },
        "retry_config": {
            "max_retries": _TRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(seconds=_FIRST_PAUSE),
                "max_backoff": timedelta(seconds=_LONGEST_PAUSE),
                "base": 2,
            },
        },
    }
    if bucket.startswith("s3:"):
        options["config"] = {"checksum_algorithm": "sha256"}
        options["config"] |= {"endpoint": address} if address else {}
    return from_url(bucket, **options)


def _object(meta: Any) -> Object:
    return Object(meta["size"], meta["e_tag"] or "", meta["last_modified"])


def _version(meta: Any) -> Version:
    return Version(meta["e_tag"], meta["version"])


def _reason(error: Exception) -> str:
    """Return what obstore says, without its own insides."""
    return printable(" ".join(str(error).partition("Debug source")[0].split()), 300)
