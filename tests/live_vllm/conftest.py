"""Tests of live vLLM engines are skipped, with the reason, where vLLM is not installed."""

import importlib.util

import pytest

NOT_HERE = "vLLM is not installed here; run by make vllm-test"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `vllm`; the finder looks, since importing vLLM takes seconds."""
    if importlib.util.find_spec("vllm") is not None:
        return
    for item in items:
        if item.get_closest_marker("vllm") is not None:
            item.add_marker(pytest.mark.skip(reason=NOT_HERE))
