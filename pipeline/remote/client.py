"""Requests to an object store: retried within limits, and errors of one line.

obstore talks to it (S3 and what speaks like it, Google's): conditional writes, ETags, ranges. It
takes addresses and credentials from the environment variables that the vendors' own tools read.
"""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pipeline.audit.plain import printable
from pipeline.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs")
REQUEST_SECONDS = 60.0
"""Limit of one request, its contents included."""
RETRY_SECONDS = 60.0
"""How long a request that fails is tried again; no further try begins after that."""

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


class Changed(Exception):
    """A conditional write found another state than it depended on; nothing was written."""


def endpoint(scheme: str) -> str:
    """Return the address that the environment gives for a scheme; empty: the vendor's own."""
    if scheme != "s3":
        return ""
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")


def persistently(address: Address, call: "Callable[[ObjectStore], _T]") -> _T:
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


def _reason(error: Exception) -> str:
    """Return what obstore says, without its own insides."""
    return printable(" ".join(str(error).partition("Debug source")[0].split()), 300)
