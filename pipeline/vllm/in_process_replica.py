"""vLLM inside the process of the run: no HTTP, and on a CPU no other process at all."""

import os
import time
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.text import one_line
from pipeline.vllm.launch import (
    Launch,
    engine_arguments,
    environment,
    expect_installed,
    sleeps,
)
from pipeline.vllm.replica import EngineError, Group, GroupQueue, SamplingRequest, checked_sample


class InProcessReplica:
    """A replica inside this process."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch
        self._llm: Any = None
        self._version: str | None = None
        self._asleep = False
        self.workers = launch.section.tensor_parallel

    @property
    def label(self) -> str:
        """Return the name for messages."""
        return "vLLM in this process"

    def start(self) -> bool:
        """Import vLLM and build the engine, unless that is done (see `Replica.start`).

        vLLM's CPU worker replaces `torch.set_num_threads` by a function that does nothing; the
        original is put back, and the number of threads with it.
        """
        if self._llm is not None:
            return False
        expect_installed()
        os.environ.update(environment(self._launch, server=False))
        threads, setter = torch.get_num_threads(), torch.set_num_threads
        try:
            self._llm = _build(self._launch)
        except Exception as error:
            raise EngineError(f"{self.label} did not start: {one_line(error)}") from error
        finally:
            torch.set_num_threads = setter
            torch.set_num_threads(threads)
        return True

    def sample(self, queue: GroupQueue, request: SamplingRequest) -> None:
        """Give the engine all groups at once, and step it until all are answered."""
        groups: dict[str, Group] = {}
        engine = self._llm.llm_engine
        while (group := queue.take()) is not None:
            name = str(group.number)
            groups[name] = group
            prompt = {"prompt_token_ids": list(group.prompt_ids)}
            engine.add_request(name, prompt, _parameters(request, group))
        threads = torch.get_num_threads()
        if not self._launch.cuda:
            torch.set_num_threads(self._launch.section.threads)
        try:
            self._drain(groups, queue, request)
        except BaseException:
            engine.abort_request(list(groups))
            raise
        finally:
            torch.set_num_threads(threads)

    def _drain(self, groups: dict[str, Group], queue: GroupQueue, request: SamplingRequest) -> None:
        engine, last = self._llm.llm_engine, time.monotonic()
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    answers = sorted(output.outputs, key=lambda answer: answer.index)
                    samples = [
                        checked_sample(a.token_ids, _logprobs(a), a.finish_reason, request)
                        for a in answers
                    ]
                    queue.give(groups.pop(output.request_id), samples)
                    last = time.monotonic()
            if time.monotonic() - last > request.timeout:
                raise EngineError(
                    f"{self.label} answered none of {len(groups)} groups within "
                    f"generate.timeout = {request.timeout:g} s"
                )

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """See `WeightClient`."""
        self._llm.init_weight_transfer_engine({"init_info": dict(init_info)})

    def start_weight_update(self) -> None:
        """See `WeightClient`."""
        self._llm.start_weight_update()

    def update_weights(self, update_info: Any) -> None:
        """See `WeightClient`."""
        self._llm.update_weights({"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """See `WeightClient`."""
        self._llm.finish_weight_update(weight_version)
        self._version = weight_version

    def weight_version(self) -> str | None:
        """See `Replica.weight_version`."""
        return self._version

    def reset_prefix_cache(self) -> None:
        """See `Replica.reset_prefix_cache`."""
        if not self._llm.reset_prefix_cache():
            raise EngineError(f"{self.label} could not reset its prefix cache; requests are open")

    def sleep(self) -> None:
        """See `Replica.sleep`."""
        if sleeps(self._launch):
            self._llm.sleep(level=2)
            self._version, self._asleep = None, True

    def wake(self) -> None:
        """See `Replica.wake`."""
        if self._asleep:
            self._llm.wake_up(tags=["weights"])

    def wake_cache(self) -> None:
        """See `Replica.wake_cache`."""
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
            self._asleep = False

    def close(self) -> None:
        """End the engine and its processes."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None


def _build(launch: Launch) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # vLLM's own, about torch
        from vllm import LLM
        from vllm.config import WeightTransferConfig

        arguments = engine_arguments(launch)
        transfer = WeightTransferConfig(**arguments.pop("weight_transfer_config"))
        return LLM(**arguments, weight_transfer_config=transfer)


def _parameters(request: SamplingRequest, group: Group) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        **request.parameters(group), detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )


def _logprobs(answer: Any) -> list[float]:
    pairs = zip(answer.token_ids, answer.logprobs, strict=True)
    return [float(found[token].logprob) for token, found in pairs]
