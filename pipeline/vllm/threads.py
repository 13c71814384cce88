"""Calls side by side in daemon threads: an interrupted wait leaves nothing that blocks the exit."""

import threading
from collections.abc import Callable, Sequence

_LOOK_SECONDS = 0.2


def side_by_side(calls: Sequence[Callable[[], None]]) -> None:
    """Make all calls at once and wait for all; the first error in their order is raised.

    A single call is made in the caller's own thread.
    """
    for error in outcomes(calls):
        if error is not None:
            raise error


def outcomes(calls: Sequence[Callable[[], None]]) -> list[Exception | None]:
    """Make all calls at once, wait for all, and return the error of each that had one."""
    errors: list[Exception | None] = [None] * len(calls)

    def one(index: int) -> None:
        try:
            calls[index]()
        except Exception as error:
            errors[index] = error

    if len(calls) == 1:
        one(0)
        return errors
    threads = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # short waits, so that Ctrl-C is heard
            thread.join(_LOOK_SECONDS)
    return errors
