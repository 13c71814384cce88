"""Concurrent calls in daemon threads, which don't keep an interrupted process from ending."""

import threading
from collections.abc import Callable, Sequence

_POLL_SECONDS = 0.2


def run_concurrently(calls: Sequence[Callable[[], None]]) -> None:
    """Make all calls at once and wait for all; raise the first error, in the order of calls.

    A single call is made in the caller's own thread.
    """
    for error in errors_of(calls):
        if error is not None:
            raise error


def errors_of(calls: Sequence[Callable[[], None]]) -> list[Exception | None]:
    """Make all calls at once, wait for all, and return the error of each, or None."""
    errors: list[Exception | None] = [None] * len(calls)

    def run(index: int) -> None:
        try:
            calls[index]()
        except Exception as error:
            errors[index] = error

    if len(calls) == 1:
        run(0)
        return errors
    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # short waits, so that Ctrl-C gets through
            thread.join(_POLL_SECONDS)
    return errors
