"""How a run begins: its initial policy, and what is recorded of its surroundings."""

import platform
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from data.random_policy import write_random_policy
from flows.questions import Questions
from pipeline.config import Config
from pipeline.policy import Policy, TeacherSettings
from pipeline.snapshots import open_policy

_PACKAGES = (
    "srpo",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "pyarrow",
    "polars",
    "prefect",
    "numpy",
)


def initial_policy(config: Config, questions: Questions) -> Policy:
    """Open the policy that a run starts from: shipped, random, or any Hugging Face model."""
    if config.model.path == "demo":
        path = str(files("data") / "demo" / "policy")
        return open_policy(path, config.model, teacher_settings(config))
    if config.model.path == "random":
        with tempfile.TemporaryDirectory() as folder:
            texts = [m.content for q in questions.train for m in q.messages]
            write_random_policy(Path(folder), texts, config.run.seed)
            return open_policy(folder, config.model, teacher_settings(config))
    return open_policy(config.model.path, config.model, teacher_settings(config))


def teacher_settings(config: Config) -> TeacherSettings:
    """Return which teacher the policy carries."""
    route = config.route
    return TeacherSettings(route.teacher, route.teacher_rate, route.trust_region_mix)


def surroundings(policy: Policy) -> dict[str, Any]:
    """Return the versions and the hardware on which equal runs have equal tables."""
    hardware = {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "device": str(policy.device),
        "gpu": torch.cuda.get_device_name() if policy.device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }
    return {"versions": {name: version(name) for name in _PACKAGES}, "hardware": hardware}
