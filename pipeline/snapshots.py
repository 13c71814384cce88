"""Opening a policy from a Hugging Face folder, and snapshots: safetensors only, digested, atomic.

RUN/policy/000020/ is a Hugging Face folder of the policy after 20 steps, with beside it
teacher.safetensors (float32), optimizer.safetensors and state.json (versions, SHA-256 of files).
"""

import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from pipeline import ranks
from pipeline.config import ModelSection
from pipeline.disk import naming
from pipeline.errors import StoreError
from pipeline.files import atomic_path, digest_of, file_digest
from pipeline.listed import expect_files, snapshot_repair
from pipeline.policy import Policy, TeacherSettings
from pipeline.pretrained import load_pretrained
from pipeline.ranks import opened, together
from pipeline.remote.cached import fetch_folder
from pipeline.sealed import read_sealed, write_sealed
from pipeline.sharding import spread, whole

transformers_logging.disable_progress_bar()
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")
_OPTIMIZER_STATE = ("step", "exp_avg", "exp_avg_sq")


def open_policy(path: str, settings: ModelSection, teacher: TeacherSettings) -> Policy:
    """Open the policy that a run starts from.

    Its version is 000000 and a digest of the folder's files (weights, configuration, tokenizer,
    chat template) and of the settings. Several ranks open it from the same path.
    """
    policy: Policy = opened(_open_policy, path, settings, teacher)
    return policy


def _open_policy(path: str, settings: ModelSection, teacher: TeacherSettings) -> Policy:
    model, tokenizer = load_pretrained(path)
    folder = Path(path)
    files = [f for f in sorted(folder.glob("*")) if f.suffix in _MODEL_FILES]
    identity: Any = {f.name: file_digest(f) for f in files} or [path, model.config._commit_hash]
    numerics = settings.model_dump(exclude={"path", "device", "gradient_checkpointing"})
    version = f"000000-{digest_of([identity, numerics, asdict(teacher)])[:12]}"
    return Policy(model, tokenizer, settings, teacher, version)


def save_snapshot(policy: Policy, target: Path, steps_done: int) -> None:
    """Write a snapshot; it appears whole, under its final name, or not at all.

    Its files are the same whatever the number of ranks that hold the policy, and open on any other.
    """
    if target.exists():
        return
    with atomic_path(target) as folder, naming(target):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        together(_write_parts, policy, folder)
        policy.tokenizer.save_pretrained(folder)
        files = {f.name: file_digest(f) for f in sorted(folder.iterdir()) if f.is_file()}
        state = {
            "steps_done": steps_done,
            "policy_version": policy.version,
            "initial_version": policy.initial_version,
            "teacher": asdict(policy.teacher),
            "sha256": files,
        }
        write_sealed(folder / "state.json", state)


def _write_parts(policy: Policy, folder: Path) -> None:
    """Write model, teacher and optimizer, one after the other: rank 0 holds one of them at most."""
    save_model(policy.model, folder)
    if policy.teacher_model is not None:
        _save(named_parts(policy.teacher_model.named_parameters()), folder / "teacher.safetensors")
    if optimizer := _optimizer_tensors(policy):
        _save(named_parts(optimizer.items()), folder / "optimizer.safetensors")


def save_model(model: Any, folder: Path) -> None:
    """Write a model as a Hugging Face folder; every rank must call it."""
    weights = named_parts(model.named_parameters())
    if ranks.rank():
        return
    by_id = {id(p): weights[name] for name, p in model.named_parameters()}
    named = model.state_dict(keep_vars=True)
    state = {name: by_id.get(id(tensor), tensor) for name, tensor in named.items()}
    model.save_pretrained(folder, state_dict=state, safe_serialization=True)


def named_parts(named: Iterable[tuple[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return tensors whole, on rank 0's CPU; the other ranks give their parts and get none."""
    found = {}
    for name, tensor in named:
        complete = whole(tensor.detach())
        if ranks.rank() == 0:
            found[name] = complete.cpu().contiguous()
    return found


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    if ranks.rank() == 0:
        save_file(tensors, path)


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
    policy: Policy = opened(_load_snapshot, folder, settings, teacher)
    return policy


def _load_snapshot(folder: Path, settings: ModelSection, teacher: TeacherSettings) -> Policy:
    fetch_folder(folder)
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


@torch.no_grad()
def _copy_parameters(model: Any, tensors: dict[str, torch.Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.copy_(spread(tensors[name], parameter))


def _optimizer_tensors(policy: Policy) -> dict[str, torch.Tensor]:
    state = policy.optimizer.state
    return {
        f"{key}/{name}": state[p][key]
        for name, p in policy.named_parameters()
        if p in state
        for key in _OPTIMIZER_STATE
    }


def _restore_optimizer(policy: Policy, tensors: dict[str, torch.Tensor]) -> None:
    for name, parameter in policy.named_parameters():
        if f"step/{name}" in tensors:
            policy.optimizer.state[parameter] = {
                key: stored if key == "step" else spread(stored, parameter)
                for key in _OPTIMIZER_STATE
                for stored in [tensors[f"{key}/{name}"]]
            }
