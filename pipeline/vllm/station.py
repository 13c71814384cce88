"""What a rank has of the engine `vllm`: its hosts, which it keeps in step with the policy.

Every rank has a station for as long as the engine lives, and all do the same at the same time, also
one that has no hosts: parts of weights and passes of a policy need every rank that holds some of
it. Rank 0 has all servers; engines beside the policy are one for each rank. A rank's error is
everybody's. A host that is gone is not: what it left unanswered is asked again, on its rank.
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
from pipeline.vllm.host import Ask, EngineError, Group, Host, HostLost, Work
from pipeline.vllm.http_host import RemoteHost
from pipeline.vllm.in_process import LocalHost
from pipeline.vllm.launch import Launch, beside, launch_of, sleeps
from pipeline.vllm.probe import Probe, largest_gap, probed
from pipeline.vllm.server_process import ServerProcess
from pipeline.vllm.threads import outcomes
from pipeline.vllm.weights import FileSender, Sender

_log = logging.getLogger("srpo.vllm")
_ROUNDS = 3
"""Times that what lost hosts left unanswered is asked again, plus one."""

stations: dict[int, "Station"] = {}
"""Of this rank, by the number of their engine."""


class Part(NamedTuple):
    """What a rank's hosts answered.

    Attributes:
        answers: samples by number of group.
        gap: the largest difference that the last check found on any rank, nats.
    """

    answers: dict[int, list[Sample]]
    gap: float


def begin(policy: Policy, number: int, config: Config) -> None:
    """Have a station, which starts its hosts when they are first needed."""
    stations[number] = Station(config, policy)


def sample(
    policy: Policy,
    number: int,
    groups: Sequence[Group],
    ask: Ask,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Part:
    """Have this rank's hosts sample its share of the groups."""
    return stations[number].sample(policy, groups, ask, progress)


def end(_: Policy | None, number: int) -> None:
    """End this rank's hosts."""
    stations.pop(number).close()


class Station:
    """A rank's hosts."""

    def __init__(self, config: Config, policy: Policy) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="srpo-vllm-"))
        shared = config.vllm.sync_folder or ranks.exchanged(str(self._folder))[0]
        self._launch = launch_of(config, policy, self._folder / "model")
        self._sender = _sender(self._launch, Path(shared))
        self._hosts = _hosts(self._launch, self._folder)
        self._share = _share(self._launch)
        self._checked: dict[Host, str] = {}
        self._lost: HostLost | None = None
        self._gap = 0.0
        self._keep_logs = False

    def sample(
        self,
        policy: Policy,
        groups: Sequence[Group],
        ask: Ask,
        progress: Callable[[int, int], None],
    ) -> Part:
        """Sample this rank's share of the groups; every rank must call it.

        Raises:
            EngineError: a host, of any rank, does not answer in time or samples from other
                weights; or every host of a rank is lost and can't be started again.
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
                work = Work([group for group in mine if group.number not in answers], answered)
                hosts = self._round(policy, work, ask)
                answers |= work.answers
                left = ranks.exchanged(self._lost if len(answers) < len(mine) else None)
                missing = [error for error in left if error is not None]
                if not missing:
                    break
            else:
                raise missing[0]
            self._each(hosts, lambda host: host.sleep())
        except EngineError:
            self._keep_logs = True
            raise
        return Part(answers, self._gap)

    def close(self) -> None:
        """End what was started, and remove its files; logs stay if something went wrong."""
        for host in self._hosts:
            host.close()
        if not self._keep_logs:
            remove_folder(self._folder)

    def _round(self, policy: Policy, work: Work, ask: Ask) -> list[Host]:
        """Have the hosts that can be had work off the groups; return those that are not lost."""
        hosts = self._in_step(policy, ask)
        with phase("vllm"):
            return self._each(hosts, partial(_work_off, work, ask, policy.version))

    def _in_step(self, policy: Policy, ask: Ask) -> list[Host]:
        """Return the hosts that run, once all hosts of all ranks hold the policy's weights."""
        came_up: list[Host] = []

        def start(host: Host) -> None:
            if host.start():
                came_up.append(host)
            host.wake()
            if host in came_up or host.weight_version() != policy.version:
                self._checked.pop(host, None)

        with phase("start vllm"):
            if sleeps(self._launch):
                torch.cuda.empty_cache()  # what updates left unused is for the engine now
            hosts = self._each(self._hosts, start)
        stale = any(self._checked.get(host) != policy.version for host in hosts)
        if any(ranks.exchanged(stale)):
            hosts = self._synchronise(hosts, policy, bool(came_up))
            hosts = self._check(hosts, policy, ask)
        return hosts

    def _synchronise(self, hosts: Sequence[Host], policy: Policy, anew: bool) -> list[Host]:
        """Bring the policy's weights to the hosts of all ranks."""

        def received(host: Host) -> None:
            host.wake_cache()
            host.reset_prefix_cache()
            _expect_version(host, policy.version)

        with phase("weights to vllm"):
            send = partial(self._sender.send, hosts, policy.model, policy.version, anew)
            (sent,) = self._done([send])
            return self._each(hosts if sent else [], received)

    def _check(self, hosts: Sequence[Host], policy: Policy, ask: Ask) -> list[Host]:
        """Compare what hosts sample with the policy's own log-probabilities."""
        launch, probes = self._launch, dict[Host, Probe]()

        def probe(host: Host) -> None:
            probes[host] = probed(host, policy.vocabulary, launch.length, ask)

        with phase("check of vllm"):
            able = self._each(hosts, probe)
            found = [probes[host] for host in able]
            self._gap = largest_gap(policy, launch.length, launch.dtype, found)
        self._checked.update(dict.fromkeys(able, policy.version))
        return able

    def _each(self, hosts: Sequence[Host], call: Callable[[Host], None]) -> list[Host]:
        """Have hosts do something, and return those that are not lost."""
        done = self._done([partial(call, host) for host in hosts])
        return [host for host, able in zip(hosts, done, strict=True) if able]

    def _done(self, calls: Sequence[Callable[[], None]]) -> list[bool]:
        """Make calls side by side and tell which were not to a host that is gone.

        Raises:
            SrpoError: of another kind, the first rank's; every rank must call it.
        """
        first, done = ranks.FirstError(), []
        for error in outcomes(calls):
            done.append(error is None)
            if isinstance(error, HostLost):
                self._lost = error
                _log.warning("%s", error)
            elif error is not None:
                with first.kept():
                    raise error
        first.expect_none()
        return done


def _work_off(work: Work, ask: Ask, version: str, host: Host) -> None:
    """Have a host sample; an error that ends the call keeps others from taking more."""
    try:
        host.sample(work, ask)
    except HostLost:
        raise
    except Exception:
        work.abandon()
        raise
    _expect_version(host, version)


def _expect_version(host: Host, expected: str) -> None:
    found = host.weight_version()
    if found != expected:
        raise EngineError(
            f"{host.label} holds weights of version {found}, the step needs {expected}; "
            "somebody else changed them, or a transfer was not finished"
        )


def _share(launch: Launch) -> slice:
    """Return which groups are for this rank's hosts."""
    if beside(launch.section):
        return ranks.share()
    return slice(None) if ranks.rank() == 0 else slice(0)


def _hosts(launch: Launch, folder: Path) -> list[Host]:
    section = launch.section
    remote = partial(
        RemoteHost,
        limit=launch.rollouts,
        workers=section.tensor_parallel * section.data_parallel,
        seconds=section.start_seconds,
        sleeps=sleeps(launch),
    )
    if beside(section):
        if ranks.size() == 1:
            return [LocalHost(launch)]
        return [remote(None, ServerProcess(launch, folder / "vllm.log", folder / "vllm.sock"))]
    if ranks.rank():
        return []
    if section.urls:
        return [remote(url, None) for url in section.urls]
    logs = [folder / f"server-{index}.log" for index in range(section.servers)]
    return [remote(None, ServerProcess(launch, log)) for log in logs]


def _sender(launch: Launch, folder: Path) -> Sender:
    """Return the way for weights that a launch asks for."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[launch.dtype]
    if launch.transfer == "file":
        return FileSender(folder, dtype)
    from pipeline.vllm.collective import CollectiveSender

    return CollectiveSender(launch.transfer, dtype)
