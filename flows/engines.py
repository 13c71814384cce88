"""The sampling engines of a session, and what a user should know of how it samples."""

from pipeline.config import Config
from pipeline.engine import Engine
from pipeline.policy import Policy
from pipeline.sampling import TransformersEngine
from pipeline.vllm.engine import VllmEngine


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


def remarks(config: Config, policy: Policy | None) -> list[str]:
    """Return what to tell before training: slower ways, and sampling that biases the ratio."""
    found = []
    if policy is not None and policy.unshared:
        found.append(
            f"prompts are encoded once per rollout, not once per group ({policy.unshared}): "
            "same results, only slower"
        )
    sampling = config.generate
    if sampling.top_p < 1 or sampling.top_k:
        found.append(
            f"generate.top_p = {sampling.top_p:g}, top_k = {sampling.top_k}: rollouts are drawn "
            "from a cut distribution, the trainer's ratio is of the whole one, so it is biased"
        )
    return found
