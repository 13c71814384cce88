"""Calls of Prefect's client, each within a limit, and what becomes of a run when they fail.

Prefect records a training; it is not needed for one. A server that is gone, or hangs, costs a
training the time limit of a call, not its life: the tables are made to the end, and then one line
says that the record is incomplete.
"""

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from prefect.exceptions import PrefectException
from prefect.settings import (
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
)

from pipeline.errors import SrpoError
from pipeline.text import go_on

_JITTER = 1.2
"""Between its tries the client waits 2, 4, 8 … seconds, and up to a fifth more."""


def client_settings(limit_seconds: float) -> dict[Any, Any]:
    """Return settings under which a call ends within some `limit_seconds`, its retries included.

    A third of them at most is for the waits between tries: three retries in a minute. Prefect reads
    the environment when it is imported, which may have been before `open_server`.
    """
    retries = int(math.log2(limit_seconds / 3 / _JITTER + 2)) - 1
    waits = _JITTER * (2 ** (retries + 1) - 2)
    each = max(1.0, (limit_seconds - waits) / (retries + 1))
    return {
        PREFECT_API_URL: os.environ["PREFECT_API_URL"],
        PREFECT_API_REQUEST_TIMEOUT: each,
        PREFECT_CLIENT_MAX_RETRIES: retries,
    }


class ApiError(Exception):
    """A call of Prefect's client failed."""


@contextlib.contextmanager
def calling() -> Iterator[None]:
    """Turn each way in which a call of Prefect's client may fail into an `ApiError`."""
    try:
        yield
    except (httpx.HTTPError, PrefectException) as error:
        raise ApiError(_described(error)) from error
    except RuntimeError as error:  # the client wraps what happens on its first contact
        if isinstance(error.__cause__, httpx.HTTPError):
            raise ApiError(_described(error.__cause__)) from error
        raise


def warn(error: ApiError) -> None:
    """Warn that Prefect failed while the work goes on."""
    print(f"warning: {error}; the work goes on without it", file=sys.stderr)


def unrecorded(error: ApiError, run: Path) -> SrpoError:
    """Return the error of a training whose end Prefect did not record."""
    return SrpoError(
        f"{error}, so it has no record of how this training ended; what was trained is "
        f"on the disk; go on, or have the end recorded: {go_on(run)}"
    )


def _described(error: Exception) -> str:
    reason = " ".join(f"{type(error).__name__} {error}".split())
    return f"Prefect's API at {os.environ.get('PREFECT_API_URL')} fails ({reason})"
