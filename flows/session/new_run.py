"""How a run begins: its initial policy, and what is recorded of its surroundings."""

import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data.random_policy import write_random_policy
from flows.session.disk_check import expect_disk_space, facts_of
from flows.session.failed_start import remove_failed_start
from flows.session.privileged import expect_offered
from flows.session.question_loading import load_questions
from flows.session.questions import (
    Questions,
    expect_evaluation_context,
    expect_training_context,
    fitting,
    model_positions,
    positions_of,
)
from flows.session.verifiers import code_digest
from pipeline.config.sections import Config
from pipeline.distributed.process_setup import configure_process
from pipeline.errors import StoreError
from pipeline.files.durable import remove_folder, remove_leftovers
from pipeline.machine.disk import expect_makeable
from pipeline.policy.gguf_model import gguf_source
from pipeline.policy.model_folder import gguf_file, is_on_this_machine, model_folder
from pipeline.policy.policy import Policy, TeacherSettings, resolve_device
from pipeline.policy.snapshots import keep_tokenizer, open_policy, save_snapshot
from pipeline.run.folder import RunFolder
from pipeline.run.run import Run, is_taken
from pipeline.vllm.launch import expect_installed

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


class NewRun(NamedTuple):
    """Everything that a run in `root` begins with; nothing of it is written yet.

    Attributes:
        keeps_start: whether it takes snapshot 0, from which a run can be resumed.
    """

    root: Path
    config: Config
    questions: Questions
    policy: Policy
    facts: dict[str, Any]
    keeps_start: bool


def prepare_run(root: Path, config: Config, keep_start: bool) -> NewRun:
    """Return what a run in `root` begins with; everything that can be wrong is found here.

    Nothing is written. What needs no model is looked at first.
    """
    configure_process(config.run.threads)
    _expect_possible(config, root, keep_start)
    loaded = load_questions(config)
    if keep_start:
        expect_offered(config, loaded)
    task_digest = code_digest(config)
    policy = initial_policy(config, loaded)
    config = with_prompt_time(config, policy)
    _expect_context(config, positions_of(policy), keep_start)
    questions = fitting(loaded, config, policy.render)
    facts = {
        **surroundings(policy),
        "task_digest": task_digest,
        **questions.facts(),
        "initial_policy_version": policy.version,
        "stop_tokens": policy.stops.record(),
    }
    if policy.lora is not None:
        facts["trained"] = policy.trained_part
    if (file := gguf_file(config.model.path)) is not None:
        facts["gguf"] = {"file": str(file), **gguf_source(Path(policy.model.name_or_path))}
    if keep_start:
        expect_disk_space(config, facts_of(policy, config, questions), root)
    return NewRun(root, config, questions, policy, facts, keep_start)


def write_run(new: NewRun) -> Run:
    """Write a run's folder, or leave nothing in it; call it with the folder's lock held.

    Raises:
        StoreError: something is there already.
    """
    if is_taken(new.root):
        raise StoreError(f"{new.root}: there is something already; choose another --run")
    try:
        remove_leftovers(new.root / "policy")
        tokenizer_sha256 = keep_tokenizer(new.policy, new.root / "tokenizer")
        if new.keeps_start:
            snapshot = RunFolder(new.root).own_snapshot_path(0)
            if snapshot.exists():  # of a command cut short, perhaps with another model
                remove_folder(snapshot)
            save_snapshot(new.policy, snapshot, 0)
        return Run.create(new.root, new.config, {**new.facts, "tokenizer_sha256": tokenizer_sha256})
    except BaseException as error:
        remove_failed_start(new.root, error)
        raise


def _expect_possible(config: Config, root: Path, training: bool) -> None:
    """Refuse what this machine can't do, or the model can't hold, before a model is opened.

    Raises:
        SrpoError: no GPU, no vLLM, limits over the model's positions, a folder that can't be made.
    """
    expect_makeable(root)
    resolve_device(config.model.device)
    engines = {config.evaluate.engine, config.generate.engine if training else None}
    if "vllm" in engines and not config.vllm.urls:
        expect_installed()
    path = _model_folder(config)
    folder = model_folder(path) if is_on_this_machine(path) else Path(path)
    _expect_context(config, model_positions(folder), training)


def _expect_context(config: Config, positions: int | None, training: bool) -> None:
    """Refuse limits that a context of so many positions can't hold; None: the model doesn't say."""
    expect_evaluation_context(config, positions)
    if training:
        expect_training_context(config, positions)


def initial_policy(config: Config, questions: Questions) -> Policy:
    """Open the policy that a run starts from: shipped, random, or any Hugging Face model."""
    if config.model.path == "random":
        with tempfile.TemporaryDirectory() as folder:
            texts = [m.content for q in questions.train for m in q.messages]
            write_random_policy(Path(folder), texts, config.run.seed)
            return open_policy(folder, config.model, teacher_settings(config))
    folder = str(_model_folder(config))
    policy = open_policy(folder, config.model, teacher_settings(config), config.run.seed)
    if config.model.path == "demo":
        policy.notes = []  # it knows the characters of its task, and is meant to know no others
    return policy


def _model_folder(config: Config) -> str:
    """Return the folder, GGUF file or name of the model that a run starts from."""
    path = config.model.path
    return str(model_folder(path)) if path == "demo" else path


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
    return TeacherSettings(
        kind=route.teacher,
        rate=route.teacher_rate,
        mix=route.trust_region_mix,
        period=route.teacher_period,
    )


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
