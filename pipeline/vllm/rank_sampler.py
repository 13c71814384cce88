"""One rank's side of the engine `vllm`: its replicas, which it keeps at the policy's weights.

Every rank has a sampler for as long as the engine lives, even a rank without replicas: weights are
sent, and the policy is run, by all ranks that hold parts of it, so all samplers make the same calls
at the same time. Rank 0 has all servers; of colocated engines each rank has one. An error of one
rank becomes the error of all. A lost replica is no error yet: its rank asks for the groups that it
left unanswered again.
"""

import logging
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.config.sections import Config
from pipeline.distributed import ranks
from pipeline.files.durable import remove_folder
from pipeline.machine.phases import phase
from pipeline.policy.policy import Policy
from pipeline.sampling.engine import Sample
from pipeline.vllm.concurrency import errors_of
from pipeline.vllm.http_replica import HttpReplica
from pipeline.vllm.in_process_replica import InProcessReplica
from pipeline.vllm.launch import Launch, colocated, launch_of, sleeps
from pipeline.vllm.probe import Probe, largest_gap, run_probe
from pipeline.vllm.replica import (
    EngineError,
    Group,
    GroupQueue,
    Replica,
    ReplicaLost,
    SamplingRequest,
)
from pipeline.vllm.server_process import ServerProcess
from pipeline.vllm.weights import FileSender, Sender

_log = logging.getLogger("srpo.vllm")
_ROUNDS = 3
"""The first round, and those that ask again for what lost replicas left unanswered."""

samplers: dict[int, "RankSampler"] = {}
"""This rank's samplers, by the number of their engine."""


class RankAnswers(NamedTuple):
    """What the replicas of one rank answered.

    Attributes:
        answers: samples by group number.
        gap: the largest difference that the last check found on any rank, nats.
    """

    answers: dict[int, list[Sample]]
    gap: float


def open_sampler(policy: Policy, number: int, config: Config) -> None:
    """Make this rank's sampler; it starts its replicas when they are first needed."""
    samplers[number] = RankSampler(config, policy)


def sample_share(
    policy: Policy,
    number: int,
    groups: Sequence[Group],
    request: SamplingRequest,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> RankAnswers:
    """Have this rank's replicas sample its share of the groups."""
    return samplers[number].sample(policy, groups, request, progress)


def close_sampler(_: Policy | None, number: int) -> None:
    """Close this rank's sampler, and with it the replicas."""
    samplers.pop(number).close()


class RankSampler:
    """One rank's replicas, and the state that keeps them at the policy's weights."""

    def __init__(self, config: Config, policy: Policy) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="srpo-vllm-"))
        shared = config.vllm.sync_folder or ranks.exchanged(str(self._folder))[0]
        self._launch = launch_of(config, policy, self._folder / "model")
        self._sender = _make_sender(self._launch, Path(shared))
        self._replicas = _make_replicas(self._launch, self._folder)
        self._share = _groups_of_rank(self._launch)
        self._checked: dict[Replica, str] = {}  # the policy version that each was checked for
        self._lost: ReplicaLost | None = None
        self._gap = 0.0
        self._keep_logs = False

    def sample(
        self,
        policy: Policy,
        groups: Sequence[Group],
        request: SamplingRequest,
        progress: Callable[[int, int], None],
    ) -> RankAnswers:
        """Sample this rank's share of the groups; every rank must call it.

        Raises:
            EngineError: a replica, of any rank, does not answer in time or samples from other
                weights; or every replica of a rank is lost and can't be started again.
        """
        mine = groups[self._share]
        total, done = sum(group.rollouts for group in mine), 0
        answers: dict[int, list[Sample]] = {}

        def answered(rollouts: int) -> None:
            nonlocal done
            done += rollouts
            progress(done, total)

        try:
            for _ in range(_ROUNDS):
                queue = GroupQueue(
                    [group for group in mine if group.number not in answers], answered
                )
                replicas = self._round(policy, queue, request)
                answers |= queue.answers
                left = ranks.exchanged(self._lost if len(answers) < len(mine) else None)
                missing = [error for error in left if error is not None]
                if not missing:
                    break
            else:
                raise missing[0]
            self._on_each(replicas, lambda replica: replica.sleep())
        except EngineError:
            self._keep_logs = True
            raise
        return RankAnswers(answers, self._gap)

    def close(self) -> None:
        """End what was started, and remove its files; logs stay if something went wrong."""
        for replica in self._replicas:
            replica.close()
        if not self._keep_logs:
            remove_folder(self._folder)

    def _round(self, policy: Policy, queue: GroupQueue, request: SamplingRequest) -> list[Replica]:
        """Have all available replicas sample the queue; return those that are not lost."""
        replicas = self._ready_replicas(policy, request)
        with phase("vllm"):
            return self._on_each(replicas, partial(_sample_queue, queue, request, policy.version))

    def _ready_replicas(self, policy: Policy, request: SamplingRequest) -> list[Replica]:
        """Start this rank's replicas; return when those of all ranks hold the policy's weights."""
        started: list[Replica] = []

        def start(replica: Replica) -> None:
            if replica.start():
                started.append(replica)
            replica.wake()
            if replica in started or replica.weight_version() != policy.version:
                self._checked.pop(replica, None)

        with phase("start vllm"):
            if sleeps(self._launch):
                torch.cuda.empty_cache()  # the engine needs the memory that updates left reserved
            replicas = self._on_each(self._replicas, start)
        # Sending is collective: if any replica of any rank needs weights, all ranks send theirs.
        stale = any(self._checked.get(replica) != policy.version for replica in replicas)
        if any(ranks.exchanged(stale)):
            replicas = self._send_weights(replicas, policy, bool(started))
            replicas = self._check(replicas, policy, request)
        return replicas

    def _send_weights(
        self, replicas: Sequence[Replica], policy: Policy, restarted: bool
    ) -> list[Replica]:
        """Send the policy's weights to the replicas of all ranks; return those that got them."""

        def confirm(replica: Replica) -> None:
            replica.wake_cache()
            replica.reset_prefix_cache()
            _expect_version(replica, policy.version)

        with phase("weights to vllm"):
            send = partial(self._sender.send, replicas, policy.model, policy.version, restarted)
            (sent,) = self._call_each([send])
            return self._on_each(replicas if sent else [], confirm)

    def _check(
        self, replicas: Sequence[Replica], policy: Policy, request: SamplingRequest
    ) -> list[Replica]:
        """Compare log-probabilities of what the replicas sample with the policy's own."""
        launch, probes = self._launch, dict[Replica, Probe]()

        def probe(replica: Replica) -> None:
            probes[replica] = run_probe(replica, policy.vocabulary, launch.length, request)

        with phase("check of vllm"):
            alive = self._on_each(replicas, probe)
            found = [probes[replica] for replica in alive]
            self._gap = largest_gap(policy, launch.length, launch.dtype, found)
        self._checked.update(dict.fromkeys(alive, policy.version))
        return alive

    def _on_each(
        self, replicas: Sequence[Replica], call: Callable[[Replica], None]
    ) -> list[Replica]:
        """Make a call to each replica; return those that are not lost."""
        answered = self._call_each([partial(call, replica) for replica in replicas])
        return [replica for replica, ok in zip(replicas, answered, strict=True) if ok]

    def _call_each(self, calls: Sequence[Callable[[], None]]) -> list[bool]:
        """Make calls concurrently; return for each whether its replica answered.

        A lost replica is remembered in `_lost`. Every rank must call this.

        Raises:
            SrpoError: the first other error, in the order of ranks.
        """
        first, done = ranks.FirstError(), []
        for error in errors_of(calls):
            done.append(error is None)
            if isinstance(error, ReplicaLost):
                self._lost = error
                _log.warning("%s", error)
            elif error is not None:
                with first.kept():
                    raise error
        first.expect_none()
        return done


def _sample_queue(
    queue: GroupQueue, request: SamplingRequest, version: str, replica: Replica
) -> None:
    """Have a replica sample from the queue; an error that ends the run empties the queue."""
    try:
        replica.sample(queue, request)
    except ReplicaLost:
        raise
    except Exception:
        queue.abandon()
        raise
    _expect_version(replica, version)


def _expect_version(replica: Replica, expected: str) -> None:
    found = replica.weight_version()
    if found != expected:
        raise EngineError(
            f"{replica.label} holds weights of version {found}, the step needs {expected}; "
            "somebody else changed them, or a transfer was not finished"
        )


def _groups_of_rank(launch: Launch) -> slice:
    """Return which groups this rank's replicas sample."""
    if colocated(launch.section):
        return ranks.share()
    return slice(None) if ranks.rank() == 0 else slice(0)


def _make_replicas(launch: Launch, folder: Path) -> list[Replica]:
    section = launch.section
    remote = partial(
        HttpReplica,
        limit=launch.rollouts,
        workers=section.tensor_parallel * section.data_parallel,
        seconds=section.start_seconds,
        sleeps=sleeps(launch),
    )
    if colocated(section):
        if ranks.size() == 1:
            return [InProcessReplica(launch)]
        return [remote(None, ServerProcess(launch, folder / "vllm.log", folder / "vllm.sock"))]
    if ranks.rank():
        return []
    if section.urls:
        return [remote(url, None) for url in section.urls]
    logs = [folder / f"server-{index}.log" for index in range(section.servers)]
    return [remote(None, ServerProcess(launch, log)) for log in logs]


def _make_sender(launch: Launch, folder: Path) -> Sender:
    """Return the sender for the launch's way of transfer."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[launch.dtype]
    if launch.transfer == "file":
        return FileSender(folder, dtype)
    from pipeline.vllm.collective import CollectiveSender

    return CollectiveSender(launch.transfer, dtype)
