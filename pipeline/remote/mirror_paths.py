"""Where the mirror of a URL is: a folder of the cache that looks like any run folder.

    s3://bucket/runs/demo-1   ↔   CACHE/s3/bucket/runs/demo-1

Each follows from the other, so that a fork's parent, which it names by a relative folder, is found
by the same folder on the store. With AWS_ENDPOINT_URL the first folder is s3+HOST:PORT: there,
buckets of the same name are others.
"""

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from pipeline.errors import ConfigError, StoreError
from pipeline.remote.client import SCHEMES, Address, endpoint


class MirrorPath(type(Path())):  # type: ignore[misc]
    """A path in the cache that formats as its URL; the file system sees the path."""

    def __reduce__(self) -> tuple[Callable[[str], Path], tuple[str]]:
        """Pickle as the URL: another host's cache may be elsewhere."""
        return run_path, (f"{self}",)

    def __format__(self, spec: str) -> str:
        parts = _parts(self)
        return format(str(_address(parts)) if parts else str(self), spec)


def run_path(text: str | Path) -> Path:
    """Return the folder that a user names: an ordinary one, or the mirror of a URL.

    Raises:
        ConfigError: a URL of another kind, or without a bucket.
    """
    scheme, mark, rest = str(text).partition(":/")  # a Path has one slash where there were two
    if not mark:
        return MirrorPath(text) if _parts(Path(text)) else Path(text)
    bucket, *names = rest.strip("/").split("/")
    if scheme not in SCHEMES or not bucket or not all(names) or {".", ".."} & {*names}:
        kinds = " or ".join(f"{name}://BUCKET/…" for name in SCHEMES)
        raise ConfigError(f"{text}: expected a folder, or a URL such as {kinds}")
    return MirrorPath(cache_folder() / _store_folder(scheme) / bucket, *names)


def cache_folder() -> Path:
    """Return the folder of all mirrors: SRPO_CACHE, else ~/.cache/srpo."""
    return _resolved(os.environ.get("SRPO_CACHE") or "~/.cache/srpo")


def is_mirrored(path: Path) -> bool:
    """Tell whether a path is in the mirror of a bucket."""
    return bool(_parts(path))


def address_of(path: Path) -> Address | None:
    """Return what a path stands for; None: it is an ordinary path.

    Raises:
        StoreError: it is of another store than AWS_ENDPOINT_URL leads to.
    """
    parts = _parts(path)
    if not parts:
        return None
    address = _address(parts)
    reached = _store_folder(address.scheme)
    if parts[0] != reached:
        raise StoreError(
            f"{path!s}: in the mirror of {parts[0]}, but requests would go to {reached}: set "
            "AWS_ENDPOINT_URL as it was"
        )
    return address


@lru_cache
def _resolved(folder: str) -> Path:
    return Path(folder).expanduser().resolve()


def _store_folder(scheme: str) -> str:
    host = endpoint(scheme).partition("://")[2].strip("/").replace("/", "_")
    return f"{scheme}+{host}" if host else scheme


def _parts(path: Path) -> tuple[str, ...]:
    """Return store, bucket and names of a path in the cache; () for any other path."""
    cache, absolute = f"{cache_folder()}/", os.path.abspath(path)
    parts = tuple(absolute.removeprefix(cache).split("/"))
    known = absolute.startswith(cache) and parts[0].partition("+")[0] in SCHEMES
    return parts if known and len(parts) > 1 else ()


def _address(parts: tuple[str, ...]) -> Address:
    return Address(f"{parts[0].partition('+')[0]}://{parts[1]}", "/".join(parts[2:]))
