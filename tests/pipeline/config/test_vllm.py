"""Settings of vLLM: those that contradict each other, and which engine evaluates."""

import pytest

from pipeline.config.load import load_config
from pipeline.errors import ConfigError


@pytest.mark.parametrize(
    ("settings", "telling"),
    [
        (["vllm.servers=1", 'vllm.urls=["http://a:1"]'], "vllm.servers starts some"),
        (["vllm.servers=1", "vllm.sync=ipc"], "use nccl"),
        (["vllm.data_parallel=2"], "vllm.servers = 1"),
    ],
)
def test_settings_that_contradict_each_other(settings: list[str], telling: str) -> None:
    with pytest.raises(ConfigError, match=telling):
        load_config("demo", settings)


def test_evaluations_use_the_engine_of_training_unless_told_otherwise() -> None:
    assert load_config("demo").evaluate.engine == "transformers"
    assert load_config("demo", ["generate.engine=vllm"]).evaluate.engine == "vllm"
    both = ["generate.engine=vllm", "evaluate.engine=transformers"]
    assert load_config("demo", both).evaluate.engine == "transformers"
