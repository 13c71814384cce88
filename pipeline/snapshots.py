"""Opening a policy from a Hugging Face folder, and snapshots: safetensors only, digested, atomic.

RUN/policy/000020/ is a Hugging Face folder of the policy after 20 steps, with beside it
teacher.safetensors (float32), optimizer.safetensors and state.json (versions, SHA-256 of files).
"""

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from pipeline.config import ModelSection
from pipeline.disk import naming
from pipeline.errors import StoreError
from pipeline.files import atomic_path, digest_of, file_digest
from pipeline.listed import expect_files, snapshot_repair
from pipeline.policy import Policy, TeacherSettings
from pipeline.pretrained import load_pretrained
from pipeline.sealed import read_sealed, write_sealed

transformers_logging.disable_progress_bar()
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")
_OPTIMIZER_STATE = ("step", "exp_avg", "exp_avg_sq")


def open_policy(path: str, settings: ModelSection, teacher: TeacherSettings) -> Policy:
    """Open the policy that a run starts from.

    Its version is 000000 and a digest of the folder's files (weights, configuration, tokenizer,
    chat template) and of the settings.
    """
    model, tokenizer = load_pretrained(path)
    folder = Path(path)
    files = [f for f in sorted(folder.glob("*")) if f.suffix in _MODEL_FILES]
    identity: Any = {f.name: file_digest(f) for f in files} or [path, model.config._commit_hash]
    numerics = settings.model_dump(exclude={"path", "device", "gradient_checkpointing"})
    version = f"000000-{digest_of([identity, numerics, asdict(teacher)])[:12]}"
    return Policy(model, tokenizer, settings, teacher, version)


def save_snapshot(policy: Policy, target: Path, steps_done: int) -> None:
    """Write a snapshot; it appears whole, under its final name, or not at all."""
    if target.exists():
        return
    with atomic_path(target) as folder, naming(target):
        shutil.rmtree(folder, ignore_errors=True)
        policy.model.save_pretrained(folder, safe_serialization=True)
        policy.tokenizer.save_pretrained(folder)
        if policy.teacher_model is not None:
            save_file(_parameters(policy.teacher_model), folder / "teacher.safetensors")
        optimizer = _optimizer_tensors(policy)
        if optimizer:
            save_file(optimizer, folder / "optimizer.safetensors")
        files = {f.name: file_digest(f) for f in sorted(folder.iterdir()) if f.is_file()}
        state = {
            "steps_done": steps_done,
            "policy_version": policy.version,
            "initial_version": policy.initial_version,
            "teacher": asdict(policy.teacher),
            "sha256": files,
        }
        write_sealed(folder / "state.json", state)


def keep_tokenizer(policy: Policy, folder: Path) -> dict[str, str]:
    """Write the policy's tokenizer, durably, and return the SHA-256 of its files."""
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_path(folder) as temporary:
        shutil.rmtree(temporary, ignore_errors=True)
        policy.tokenizer.save_pretrained(temporary)
        return {f.name: file_digest(f) for f in sorted(temporary.iterdir())}


def load_snapshot(folder: Path, settings: ModelSection, teacher: TeacherSettings) -> Policy:
    """Open a snapshot with its teacher and optimizer.

    Raises:
        StoreError: a file is missing or its bytes changed.
        PolicyError: the model can't be opened.
    """
    state = _read_state(folder / "state.json")
    if state["teacher"] != asdict(teacher):
        raise StoreError(
            f"{folder}: a snapshot with teacher {state['teacher']}, wanted {asdict(teacher)}"
        )
    expect_files(folder, state["sha256"], "state.json", snapshot_repair(folder))
    if state["steps_done"] > 0 and "optimizer.safetensors" not in state["sha256"]:
        raise StoreError(f"{folder}: a snapshot after updates without optimizer.safetensors")
    model, tokenizer = load_pretrained(str(folder))
    policy = Policy(model, tokenizer, settings, teacher, state["policy_version"])
    policy.initial_version = state["initial_version"]
    if policy.teacher_model is not None:
        _copy_parameters(policy.teacher_model, load_file(folder / "teacher.safetensors"))
    if "optimizer.safetensors" in state["sha256"]:
        _restore_optimizer(policy, load_file(folder / "optimizer.safetensors"))
    return policy


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return read_sealed(path)
    except FileNotFoundError:
        raise StoreError(f"{path.parent}: no snapshot here (state.json is missing)") from None


def _parameters(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters()}


@torch.no_grad()
def _copy_parameters(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(tensors[name])


def _optimizer_tensors(policy: Policy) -> dict[str, torch.Tensor]:
    state = policy.optimizer.state
    return {
        f"{key}/{name}": state[p][key].detach().cpu().contiguous()
        for name, p in policy.named_parameters()
        if p in state
        for key in _OPTIMIZER_STATE
    }


def _restore_optimizer(policy: Policy, tensors: dict[str, torch.Tensor]) -> None:
    for name, parameter in policy.named_parameters():
        if f"step/{name}" in tensors:
            policy.optimizer.state[parameter] = {
                key: tensors[f"{key}/{name}"].to(parameter.device if key != "step" else "cpu")
                for key in _OPTIMIZER_STATE
            }
