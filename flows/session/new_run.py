"""How a run begins: its initial policy, and what is recorded of its surroundings."""

import platform
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from data.random_policy import write_random_policy
from flows.session.disk_check import expect_disk_space, facts_of
from flows.session.question_loading import load_questions
from flows.session.questions import (
    Questions,
    check_evaluation_context,
    check_training_context,
    fitting,
)
from flows.session.verifiers import code_digest
from pipeline.config.sections import Config
from pipeline.distributed.process_setup import configure_process
from pipeline.errors import StoreError
from pipeline.files.durable import remove_folder, remove_leftovers
from pipeline.policy.policy import Policy, TeacherSettings
from pipeline.policy.snapshots import keep_tokenizer, open_policy, save_snapshot
from pipeline.run.run import Run, is_taken

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


def create_run(run_dir: Path, config: Config, keep_start: bool) -> tuple[Run, Questions, Policy]:
    """Write a run's folder; everything that can be wrong is found before anything is written.

    Args:
        keep_start: take snapshot 0, from which a run can be resumed.
    """
    configure_process(config.run.threads)
    loaded = load_questions(config)
    policy = initial_policy(config, loaded)
    config = with_prompt_time(config, policy)
    check_evaluation_context(config, policy)
    if keep_start:
        check_training_context(config, policy)
    questions = fitting(loaded, config, policy.render)
    facts = {
        **surroundings(policy),
        "task_digest": code_digest(config.data),
        **questions.facts(),
        "initial_policy_version": policy.version,
        "stop_tokens": policy.stops.record(),
    }
    if keep_start:
        expect_disk_space(config, facts_of(policy, config, questions), run_dir)
    if is_taken(run_dir):
        raise StoreError(f"{run_dir}: there is something already; choose another --run")
    remove_leftovers(run_dir / "policy")
    facts["tokenizer_sha256"] = keep_tokenizer(policy, run_dir / "tokenizer")
    if keep_start:
        start = run_dir / "policy" / "000000"
        if start.exists():  # of a command cut short, perhaps with another model
            remove_folder(start)
        save_snapshot(policy, start, 0)
    return Run.create(run_dir, config, facts), questions, policy


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


def with_prompt_time(config: Config, policy: Policy) -> Config:
    """Return the settings with the time that prompts show, where the chat template asks for it."""
    if config.model.prompt_time is not None or not policy.prompts.takes_time:
        return config
    time = policy.prompts.time.isoformat()
    return config.model_copy(
        update={"model": config.model.model_copy(update={"prompt_time": time})}
    )


def teacher_settings(config: Config) -> TeacherSettings:
    """Return which teacher the policy carries."""
    route = config.route
    return TeacherSettings(kind=route.teacher, rate=route.teacher_rate, mix=route.trust_region_mix)


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
