"""Ranks: processes that hold one policy together and do what rank 0 has them do.

Rank 0 runs the flow, owns the tables, and calls functions `together`; the others `follow` it. All
of it goes by torch.distributed. A process of its own is the case of one rank: the same functions,
nobody to tell.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from pipeline.errors import SrpoError

T = TypeVar("T")
Function = Callable[..., Any]

LOST = 4
"""Exit code of a rank that lost another one; who was lost is known to whoever started them."""
_FOREVER = timedelta(days=3650)
_control: list[Any] = []
"""The group of commands and answers: gloo, without a limit (rank 0 may judge for hours)."""
_unanswered: list["_Call"] = []
"""A call that this rank has not come to the end of; ending so, it gives no farewell."""


class _Call(NamedTuple):
    """What every rank does next; `opens`: it returns the policy of the calls that follow."""

    function: Function
    arguments: tuple[Any, ...]
    opens: bool


def size() -> int:
    """Return how many ranks there are."""
    return dist.get_world_size() if _control else 1


def rank() -> int:
    """Return this process's place among them."""
    return dist.get_rank() if _control else 0


def hosts() -> int:
    """Return on how many hosts they are, as torchrun tells."""
    return int(os.environ["GROUP_WORLD_SIZE"]) if _control else 1


def control() -> Any:
    """Return the group of commands and answers, for objects; None with one rank."""
    return _control[0] if _control else None


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the ranks that torchrun's environment variables tell of; on GPUs, one each.

    Exchanges have no limit of their own: a rank that ends is felt at once, and one that hangs
    lets rank 0 make no progress, which has one (`run.stall_seconds`).
    """
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=_FOREVER)
    _control.append(dist.new_group(backend="gloo", timeout=_FOREVER))
    lifeline = dist.new_group(backend="gloo", timeout=_FOREVER)
    threads = [
        threading.Thread(target=_hold, args=(other, lifeline), daemon=True)
        for other in (range(1, size()) if rank() == 0 else [0])
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        if not _unanswered:
            _part(lifeline, threads)


def _part(lifeline: Any, threads: Sequence[threading.Thread]) -> None:
    """End the others' `follow`, and say farewell."""
    if rank() == 0:
        _announce(None)
    with _losing():
        for other in range(1, size()) if rank() == 0 else [0]:
            dist.send(torch.zeros(1), other, group=lifeline)
    for thread in threads:
        thread.join()
    _control.clear()
    dist.destroy_process_group()


def _hold(other: int, lifeline: Any) -> None:
    """Wait for another rank's farewell; its end without one is felt at once, whatever we do."""
    try:
        dist.recv(torch.zeros(1), other, group=lifeline)
    except RuntimeError:
        os._exit(LOST)


@contextmanager
def _losing() -> Iterator[None]:
    """End this process if another rank is gone, without a word: whoever started them has it."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            os._exit(LOST)
        raise


def broken_off() -> bool:
    """Tell whether this rank left a call in which others may still wait: there is no next one."""
    return bool(_unanswered)


def together(function: Function, policy: Any, *arguments: Any, **local: Any) -> list[Any]:
    """Call function(policy, *arguments) on every rank, each with its own part of the policy.

    Args:
        local: further arguments for rank 0 alone.

    Returns:
        What it returned on each rank.

    Raises:
        SrpoError: the first rank's that raised one.
    """
    _announce(_Call(function, arguments, opens=False))
    return _answers(function, policy, arguments, local)


def opened(function: Function, *arguments: Any) -> Any:
    """Have every rank open its part of a policy, function(*arguments); return rank 0's."""
    _announce(_Call(_open, (function, *arguments), opens=True))
    return _answers(_open, None, (function, *arguments), {})[0]


def follow() -> None:
    """Do what rank 0 says until it says no more. What fails here, it hears of."""
    policy: Any = None
    while (call := _heard()) is not None:
        if call.opens:
            policy = None
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
    """Return which of some things are this rank's to do: one of each `size()`."""
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
    """End a block, in which ranks exchange nothing, alike on all: by the first error, if any.

    All must enter it. A rank that ended alone would leave the others waiting for it.
    """
    failed = FirstError()
    with failed.kept():
        yield
    failed.expect_none()


class _Answer(NamedTuple):
    """What a call came to on one rank."""

    value: Any
    error: SrpoError | None


def _open(_: Any, function: Function, *arguments: Any) -> Any:
    return function(*arguments)


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
