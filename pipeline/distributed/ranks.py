"""Ranks: processes that hold one policy together and do what rank 0 has them do.

Rank 0 runs the flow, owns the tables and calls functions on all ranks (`together`); the others
wait for its calls (`follow`). Calls and answers travel by torch.distributed. A single process is
the case of one rank: the same functions, called directly.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from pipeline.errors import SrpoError

T = TypeVar("T")
Arguments = ParamSpec("Arguments")
OwnPolicy = TypeVar("OwnPolicy")
"""What a function called on every rank takes first: a policy, or None if it needs none."""
Function = Callable[..., Any]

LOST = 4
"""Exit code of a rank that lost another one; the launcher knows which one was lost."""
_FOREVER = timedelta(days=3650)
_control: list[Any] = []
"""The process group of calls and answers: gloo, no time limit (rank 0 may verify for hours)."""
_unanswered: list["_Call"] = []
"""The call this rank is in. A rank that ends inside one sends no farewell, so others notice."""


class _Call(NamedTuple):
    """What every rank does next; `opens`: its result is the policy of the calls that follow."""

    function: Function
    arguments: tuple[Any, ...]
    opens: bool


def size() -> int:
    """Return how many ranks there are."""
    return dist.get_world_size() if _control else 1


def rank() -> int:
    """Return this process's number among the ranks, from 0."""
    return dist.get_rank() if _control else 0


def hosts() -> int:
    """Return how many machines the ranks run on, as torchrun counts them."""
    return int(os.environ["GROUP_WORLD_SIZE"]) if _control else 1


def control() -> Any:
    """Return the process group of calls and answers; None with one rank."""
    return _control[0] if _control else None


@contextmanager
def joined() -> Iterator[None]:
    """Join the ranks that torchrun's environment variables describe; on GPUs, one rank each.

    Exchanges have no time limit: the end of a rank is noticed at once, and one that hangs keeps
    rank 0 from making progress, which the watchdog limits (`run.stall_seconds`).
    """
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_FOREVER)
    _control.append(dist.new_group(backend="gloo", timeout=_FOREVER))
    lifeline = dist.new_group(backend="gloo", timeout=_FOREVER)
    threads = [
        threading.Thread(target=_await_farewell, args=(other, lifeline), daemon=True)
        for other in (range(1, size()) if rank() == 0 else [0])
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        if not _unanswered:
            _leave(lifeline, threads)


def _leave(lifeline: Any, threads: Sequence[threading.Thread]) -> None:
    """End the others' `follow`, and exchange farewells."""
    if rank() == 0:
        _announce(None)
    with _losing():
        for other in range(1, size()) if rank() == 0 else [0]:
            dist.send(torch.zeros(1), other, group=lifeline)
    for thread in threads:
        thread.join()
    _control.clear()
    dist.destroy_process_group()


def _await_farewell(other: int, lifeline: Any) -> None:
    """Wait for another rank's farewell; exit at once if it ends without one."""
    try:
        dist.recv(torch.zeros(1), other, group=lifeline)
    except RuntimeError:
        os._exit(LOST)


@contextmanager
def _losing() -> Iterator[None]:
    """Exit silently if another rank is gone during the block: the launcher reports the loss."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            os._exit(LOST)
        raise


def broken_off() -> bool:
    """Tell whether this rank left a call in which others may still wait; no further call works."""
    return bool(_unanswered)


def together(
    function: Callable[Concatenate[OwnPolicy, Arguments], T],
    policy: OwnPolicy,
    *arguments: Arguments.args,
    **local: Arguments.kwargs,
) -> list[T]:
    """Call function(policy, *arguments) on every rank, each with its own part of the policy.

    Args:
        policy: rank 0's part; every other rank passes the part that it opened itself (`opened`).
        arguments: sent to all ranks, so they must pickle.
        local: keyword arguments for rank 0 alone, such as a progress callback; elsewhere the
            function's defaults hold.

    Returns:
        What it returned on each rank, in their order.

    Raises:
        SrpoError: the first rank's that raised one.
    """
    _announce(_Call(function, arguments, opens=False))
    return _answers(function, policy, arguments, local)


def opened(
    function: Callable[Arguments, T], *arguments: Arguments.args, **named: Arguments.kwargs
) -> T:
    """Have every rank open its part of a policy, function(*arguments); return rank 0's."""
    opening = partial(function, *arguments, **named)
    _announce(_Call(_open, (opening,), opens=True))
    policy: T = _answers(_open, None, (opening,), {})[0]
    return policy


def follow() -> None:
    """Make rank 0's calls until it leaves. Errors go back to it with the answers."""
    policy: Any = None
    while (call := _heard()) is not None:
        if call.opens:
            policy = None  # frees the old policy's memory before the new one takes its own
        with _losing():
            found = _attempt(call.function, policy, call.arguments, {})
            if call.opens:
                policy = found.value
                found = _Answer(None, found.error)
            dist.gather_object(found, None, dst=0, group=_control[0])
        _unanswered.clear()


def exchanged(value: T) -> list[T]:
    """Return every rank's value, on all of them; all must call it."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    with _losing():
        dist.all_gather_object(values, value, group=_control[0])
    return values


def share() -> slice:
    """Return this rank's share of a list: every `size()`-th item."""
    return slice(rank(), None, size())


def turns(passes: Sequence[T]) -> Iterator[T | None]:
    """Yield this rank's passes, one of each `size()`; None where only others have one left.

    A pass of a sharded policy is an exchange in which all take part.
    """
    for start in range(0, len(passes), size()):
        mine = start + rank()
        yield passes[mine] if mine < len(passes) else None


class FirstError:
    """Keeps the first error of a loop of passes, which all ranks must go through to its end."""

    def __init__(self) -> None:
        self._error: SrpoError | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what a block raises."""
        try:
            yield
        except SrpoError as error:
            self._error = self._error or error

    def expect_none(self) -> None:
        """Raise the first rank's error, on all of them; all must call it."""
        for error in exchanged(self._error):
            if error is not None:
                raise error


@contextmanager
def agreed() -> Iterator[None]:
    """End a block in the same way on all ranks: if one raises, all raise the first one's error.

    All must enter it, and exchange nothing inside. A rank that failed alone would leave the others
    waiting for it.
    """
    failed = FirstError()
    with failed.kept():
        yield
    failed.expect_none()


class _Answer(NamedTuple):
    """What a call returned or raised on one rank."""

    value: Any
    error: SrpoError | None


def _open(_: Any, opening: Callable[[], T]) -> T:
    return opening()


def _announce(call: _Call | None) -> None:
    if size() > 1:
        with _losing():
            dist.broadcast_object_list([call], src=0, group=_control[0])
        _unanswered[:] = [call] if call else []


def _heard() -> _Call | None:
    box: list[Any] = [None]
    with _losing():
        dist.broadcast_object_list(box, src=0, group=_control[0])
    heard: _Call | None = box[0]
    _unanswered[:] = [heard] if heard else []
    return heard


def _attempt(
    function: Function, policy: Any, arguments: Sequence[Any], local: dict[str, Any]
) -> _Answer:
    try:
        return _Answer(function(policy, *arguments, **local), None)
    except SrpoError as error:
        return _Answer(None, error)


def _answers(
    function: Function, policy: Any, arguments: Sequence[Any], local: dict[str, Any]
) -> list[Any]:
    if size() == 1:
        return [function(policy, *arguments, **local)]
    found: list[Any] = [None] * size()
    with _losing():
        mine = _attempt(function, policy, arguments, local)
        dist.gather_object(None, found, dst=0, group=_control[0])
    found[0] = mine
    _unanswered.clear()
    for answer in found:
        if answer.error is not None:
            raise answer.error
    return [answer.value for answer in found]
