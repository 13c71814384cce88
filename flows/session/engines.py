"""The sampling engines of a session, and what should be known of its policy."""

from pipeline.config.sections import Config
from pipeline.policy.policy import Policy
from pipeline.sampling.engine import Engine
from pipeline.sampling.transformers_engine import TransformersEngine
from pipeline.vllm.vllm_engine import VllmEngine


class Engines:
    """Makes engines when they are first needed; vLLM's lives as long as the session."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._vllm: VllmEngine | None = None

    def of(self, stage: str, policy: Policy) -> Engine:
        """Return the engine of stage generate or evaluate, over this policy."""
        config = self._config
        name = config.evaluate.engine if stage == "evaluate" else config.generate.engine
        if name != "vllm":
            return TransformersEngine(policy)
        if self._vllm is None:
            self._vllm = VllmEngine(config, policy)
        self._vllm.policy = policy
        return self._vllm

    def close(self) -> None:
        """End servers and engines that were started."""
        if self._vllm is not None:
            self._vllm.close()
            self._vllm = None


def policy_notes(policy: Policy | None) -> list[str]:
    """Say what a user should know of a resident policy: its files, what is not done quickly."""
    if policy is None:
        return []
    slow = [
        f"prompts are encoded once per rollout, not once per group ({policy.unshared}): "
        "same results, only slower"
    ]
    open_ended = [
        f"{policy.stops.note}: no stop token from there, responses end with {policy.stops.line} "
        "alone (model.extra_stop_tokens adds one)"
    ]
    return [
        *policy.notes,
        *(open_ended if policy.stops.note else []),
        *(slow if policy.unshared else []),
    ]
