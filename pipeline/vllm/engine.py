"""The engine `vllm`: keeps its hosts in step with the policy and shares the groups among them."""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline import ranks
from pipeline.config import Config
from pipeline.engine import Sample, SamplingSettings
from pipeline.errors import PolicyError
from pipeline.files import remove_folder
from pipeline.policy import Policy
from pipeline.profiling import phase
from pipeline.vllm.host import Ask, EngineError, Group, Host, HostLost, Work
from pipeline.vllm.launch import Launch, launch_of
from pipeline.vllm.local import LocalHost
from pipeline.vllm.probe import check_host
from pipeline.vllm.remote import RemoteHost
from pipeline.vllm.server import ServerProcess
from pipeline.vllm.threads import outcomes
from pipeline.vllm.weights import FileSender, Sender, hand_over

_log = logging.getLogger("srpo.vllm")
_ROUNDS = 3
"""Times that what lost hosts left unanswered is asked again, minus one."""


class _State(NamedTuple):
    """A host that runs, whether it came up just now, and the version of its weights."""

    host: Host
    anew: bool
    version: str | None


class VllmEngine:
    """Sampling with vLLM (see `pipeline.engine.Engine`).

    Before it samples, every host must hold the weights of the policy's very version; hosts that
    don't get them, and are checked by log-probabilities.
    """

    name = "vllm"

    def __init__(self, config: Config, policy: Policy) -> None:
        self.policy = policy
        self._timeout = config.generate.timeout
        self._folder = Path(tempfile.mkdtemp(prefix="srpo-vllm-"))
        self._launch = launch_of(config, policy, self._folder / "model")
        shared = config.vllm.sync_folder
        self._sender = _sender(self._launch, Path(shared) if shared else self._folder)
        self._hosts = _hosts(self._launch, self._folder)
        self._checked: dict[Host, str] = {}
        self._keep_logs = False
        self.facts: Mapping[str, Any] = {}

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: SamplingSettings,
        progress: Callable[[int, int], None],
    ) -> list[list[Sample]]:
        """Sample responses (see `Engine.sample`).

        Raises:
            EngineError: a host does not answer in time, samples from other weights, or every host
                is lost and can't be started again.
        """
        groups, total = _groups(prompts, seeds), sum(map(len, seeds))
        ask = Ask(settings, self._stop_ids(), self._timeout)
        answers: dict[int, list[Sample]] = {}

        def answered(done_before: int, done: list[int], rollouts: int) -> None:
            done[0] += rollouts
            progress(done_before + done[0], total)

        try:
            for _ in range(_ROUNDS):
                before = sum(map(len, answers.values()))
                left = [group for group in groups if group.number not in answers]
                work = Work(left, partial(answered, before, [0]))
                try:
                    lost = self._round(work, ask)
                except HostLost as error:
                    lost = [error]
                    _log.warning("%s", error)
                answers |= work.answers
                if len(answers) == len(groups):
                    break
            else:
                raise lost[-1]
        except EngineError:
            self._keep_logs = True
            raise
        for host in self._hosts:
            host.sleep()
        return [answers[group.number] for group in groups]

    def close(self) -> None:
        """End what was started, and remove its files; logs stay if something went wrong."""
        for host in self._hosts:
            host.close()
        if not self._keep_logs:
            remove_folder(self._folder)

    def _round(self, work: Work, ask: Ask) -> list[HostLost]:
        """Have all hosts that can be had work off the groups; return which were lost."""
        hosts, lost = self._in_step()
        with phase("vllm"):
            for host, error in zip(
                hosts,
                outcomes([partial(_work_off, host, work, ask) for host in hosts]),
                strict=True,
            ):
                if isinstance(error, HostLost):
                    lost.append(error)
                    _log.warning("%s", error)
                elif error is not None:
                    raise error
                else:
                    self._expect_version(host)
        return lost

    def _in_step(self) -> tuple[list[Host], list[HostLost]]:
        """Return the hosts that run and hold the policy's weights, and why others don't.

        Raises:
            HostLost: none is left.
        """
        states: list[_State | None] = [None] * len(self._hosts)

        def start(index: int) -> None:
            host = self._hosts[index]
            anew = host.start()
            host.wake()
            states[index] = _State(host, anew, host.weight_version())

        lost: list[HostLost] = []
        with phase("start vllm"):
            for error in outcomes([partial(start, index) for index in range(len(self._hosts))]):
                if isinstance(error, HostLost):
                    lost.append(error)
                    _log.warning("%s", error)
                elif error is not None:
                    raise error
        ready = [state for state in states if state is not None]
        if not ready:
            raise lost[-1]
        hosts = [state.host for state in ready]
        version = self.policy.version
        stale = [
            s.host
            for s in ready
            if s.anew or s.version != version or self._checked.get(s.host) != version
        ]
        if stale:
            everybody = self._launch.transfer == "nccl"
            self._synchronise(hosts if everybody else stale, any(s.anew for s in ready))
        return hosts, lost

    def _synchronise(self, hosts: Sequence[Host], anew: bool) -> None:
        """Bring the policy's weights to hosts, and check that they sample from them."""
        policy = self.policy
        with phase("weights to vllm"):
            send = partial(self._sender.send, hosts, policy.model, policy.version, anew)
            ranks.together(hand_over, policy, torch.float32, send=send)
            for host in hosts:
                host.reset_prefix_cache()
        gaps = []
        with phase("check of vllm"):
            for host in hosts:
                self._expect_version(host)
                gaps.append(self._check(host))
                self._checked[host] = policy.version
        self.facts = {"engine_probe_gap": max(gaps)}

    def _check(self, host: Host) -> float:
        launch = self._launch
        return check_host(
            host, self.policy, launch.length, launch.dtype, self._stop_ids(), self._timeout
        )

    def _expect_version(self, host: Host) -> None:
        found, expected = host.weight_version(), self.policy.version
        if found != expected:
            raise EngineError(
                f"{host.label} holds weights of version {found}, the step needs {expected}; "
                "somebody else changed them, or a transfer was not finished"
            )

    def _stop_ids(self) -> list[int]:
        return sorted(self.policy.eos_ids)


def _work_off(host: Host, work: Work, ask: Ask) -> None:
    """Have a host sample; an error that ends the call keeps others from taking more."""
    try:
        host.sample(work, ask)
    except HostLost:
        raise
    except Exception:
        work.abandon()
        raise


def _groups(prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]]) -> list[Group]:
    """Return the groups; vLLM numbers the seeds of a request itself, so they must be in a row."""
    groups = []
    for index, (prompt, own) in enumerate(zip(prompts, seeds, strict=True)):
        if list(own) != list(range(own[0], own[0] + len(own))):
            raise PolicyError(f"seeds of group {index} are {list(own)}; expected numbers in a row")
        groups.append(Group(index, prompt, own[0], len(own)))
    return groups


def _hosts(launch: Launch, folder: Path) -> Sequence[Host]:
    section = launch.section
    workers = section.tensor_parallel * section.data_parallel
    remote = partial(
        RemoteHost, limit=launch.rollouts, workers=workers, seconds=section.start_seconds
    )
    if section.urls:
        return [remote(url, None) for url in section.urls]
    if section.servers:
        logs = [folder / f"server-{index}.log" for index in range(section.servers)]
        return [remote(None, ServerProcess(launch, log)) for log in logs]
    return [LocalHost(launch)]


def _sender(launch: Launch, folder: Path) -> Sender:
    """Return the way for weights that a launch asks for."""
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[launch.dtype]
    if launch.transfer == "file":
        return FileSender(folder, dtype)
    from pipeline.vllm.collective import CollectiveSender

    return CollectiveSender(launch.transfer, dtype)
