"""Requests to an object store: retried within limits, and errors of one line.

obstore talks to it (S3 and what speaks like it, Google's): conditional writes, ETags, ranges. It
takes addresses and credentials from the environment variables that the vendors' own tools read.
"""

import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from pipeline.errors import ConfigError, StoreError
from pipeline.text import printable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs")
REQUEST_SECONDS = 60.0
"""Limit of one request, its contents included."""
RETRY_SECONDS = 60.0
"""How long a request that fails is tried again; no further try begins after that."""
FIRST_SECONDS = 10.0
"""The same limit before a first success: a wrong address or wrong credentials stay wrong."""

_TRIES = 10
_METADATA = "//169.254.169.254/"
"""The cloud's metadata service, which is asked when the environment has no credentials."""
_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_SERVICE_ACCOUNT to a service account's file",
}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0

_T = TypeVar("_T")
_reached: set[tuple[str, str]] = set()
"""Buckets, with their endpoints, that answered a request of this process."""


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
    """Return the address that the environment gives for a scheme; empty: the vendor's own.

    Raises:
        ConfigError: it is not an address.
    """
    if scheme != "s3":
        return ""
    found = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    if found and not re.fullmatch(r"https?://[^/\s]+/?", found):
        raise ConfigError(f"AWS_ENDPOINT_URL is {found}: expected https://HOST[:PORT]")
    return found


def persistently(address: Address, call: "Callable[[ObjectStore], _T]") -> _T:
    """Call until it succeeds: obstore retries most failures, this those on which it gives up.

    Raises:
        FileNotFoundError: no such object, or no such bucket.
        StoreError: the store refuses, or fails for too long.
    """
    place = address.bucket, endpoint(address.scheme)
    store = _store(*place)
    from obstore import exceptions

    limit = RETRY_SECONDS if place in _reached else min(FIRST_SECONDS, RETRY_SECONDS)
    started, pause = time.monotonic(), _FIRST_PAUSE
    while True:
        try:
            found = call(store)
            _reached.add(place)
            return found
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError) as error:
            raise Changed(str(address)) from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise StoreError(f"{address}: the store refuses: {_reason(error)}") from None
        except exceptions.BaseError as error:
            if "NoSuchBucket" in str(error):
                raise StoreError(f"{address.bucket}: no such bucket; make it first") from None
            spent = time.monotonic() - started
            if spent + pause > limit:
                raise StoreError(
                    f"{address}: the store failed for {spent:.0f} s (limit {limit:g} s): "
                    f"{_reason(error)}; {_advice(address, error, place in _reached)}"
                ) from None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


@lru_cache
def _store(bucket: str, address: str) -> "ObjectStore":
    """Return the client of a bucket at an endpoint."""
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError:
        raise ConfigError(
            f"{bucket}: needs obstore: in srpo's clone, pip install -e '.[remote]'"
        ) from None
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
    try:
        return from_url(bucket, **options)
    except BaseError as error:
        raise ConfigError(f"{bucket}: the environment's settings: {_reason(error)}") from None


def _advice(address: Address, error: Exception, reached: bool) -> str:
    if reached:
        return (
            "what is stored stays: when it answers again, run the same command again, a training "
            "with --resume"
        )
    if _METADATA in str(error):
        return f"no credentials: set {_CREDENTIALS[address.scheme]}"
    return "nothing succeeded yet: see to address and credentials (docs/storage.md)"


def _reason(error: Exception) -> str:
    """Return obstore's message without its debug output."""
    return printable(" ".join(str(error).partition("Debug source")[0].split()), 300)
