"""Opening a policy from a Hugging Face folder; writing and reading snapshots, atomic and digested.

RUN/policy/000020/ is a Hugging Face folder of the policy after 20 steps. It also holds
teacher.safetensors (float32), optimizer.safetensors and state.json (versions, SHA-256 of files).
Each rank writes, reads and digests its share. Tensors of more than 4 GiB are split over files named
teacher-00001-of-00008.safetensors and so on.
"""

import shutil
from collections.abc import Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from pipeline.config.sections import ModelSection
from pipeline.distributed.ranks import agreed, exchanged, opened, share, together
from pipeline.errors import StoreError
from pipeline.files.durable import atomic_path, digest_of, file_digest
from pipeline.files.file_list import expect_files, snapshot_repair
from pipeline.files.sealed_json import read_sealed, write_sealed
from pipeline.machine.disk import errors_naming
from pipeline.policy import checkpoint
from pipeline.policy.generation_config import sampling_note
from pipeline.policy.model_loading import load_pretrained, save_model
from pipeline.policy.policy import Policy, TeacherSettings, spreading
from pipeline.policy.safetensors_layout import find_tensors, lay_out
from pipeline.policy.tokenizer_loading import tokenizer_notes
from pipeline.remote.mirror_files import fetch_anew, fetch_folder

transformers_logging.disable_progress_bar()
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")
_NOT_NUMERIC = {"path", "device", "gradient_checkpointing", "cpu_offload", "prompt_time"}
_OPTIMIZER_STATE = ("step", "exp_avg", "exp_avg_sq")


def open_policy(path: str, settings: ModelSection, teacher: TeacherSettings) -> Policy:
    """Open the policy that a run starts from; several ranks open it from the same path.

    Its version is 000000 and a digest of the folder's files (weights, configuration, tokenizer,
    chat template) and of the settings.
    """
    return opened(_open_policy, path, settings, teacher)


def _open_policy(path: str, settings: ModelSection, teacher: TeacherSettings) -> Policy:
    with agreed():
        spread = spreading(settings)
    model, tokenizer = load_pretrained(path, spread, settings.chat_template)
    folder = Path(path).expanduser()
    files = [f for f in folder.glob("*") if f.suffix in _MODEL_FILES]  # none of a hub's model
    identity: Any = _digests(files) or [path, model.config._commit_hash]
    numerics = {k: v for k, v in settings.recorded().items() if k not in _NOT_NUMERIC}
    version = f"000000-{digest_of([identity, numerics, teacher.recorded()])[:12]}"
    policy = Policy(model, tokenizer, settings, teacher, version)
    folder = Path(model.name_or_path)
    policy.notes = [
        *tokenizer_notes(folder, tokenizer),
        *sampling_note(folder),
        *policy.prompts.notes(),
    ]
    return policy


def save_snapshot(policy: Policy, target: Path, steps_done: int) -> None:
    """Write a snapshot; it appears whole, under its final name, or not at all.

    Its files are the same whatever the number of ranks that hold the policy, and open on any other.
    """
    if target.exists():
        return
    with atomic_path(target) as folder, errors_naming(target):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        policy.tokenizer.save_pretrained(folder)
        with checkpoint.unwrap_rank_errors():
            together(_write_parts, policy, folder)
        state = {
            "steps_done": steps_done,
            "policy_version": policy.version,
            "initial_version": policy.initial_version,
            "teacher": policy.teacher.recorded(),
            "sha256": together(_digests_in, policy, folder)[0],
        }
        write_sealed(folder / "state.json", state)


def _write_parts(policy: Policy, folder: Path) -> None:
    save_model(policy.model, folder)
    if policy.teacher_model is not None:
        teacher = dict(policy.teacher_model.named_parameters())
        checkpoint.save(teacher, lay_out(teacher, "teacher"), folder)
    if optimizer := _optimizer_tensors(policy):
        checkpoint.save(optimizer, lay_out(optimizer, "optimizer"), folder)


def _digests_in(_: Policy, folder: Path) -> dict[str, str]:
    return _digests(list(folder.iterdir()))


def _digests(files: list[Path]) -> dict[str, str]:
    """Return the SHA-256 of files by name; every rank must call it, and digests its share.

    The files are those that rank 0 lists: on other hosts the listing of a shared folder may lag.
    """
    listed = exchanged(sorted(files))[0]
    mine = {f.name: file_digest(f) for f in listed[share()]}
    return dict(sorted(pair for part in exchanged(mine) for pair in part.items()))


def keep_tokenizer(policy: Policy, folder: Path) -> dict[str, str]:
    """Write the policy's tokenizer durably; return the SHA-256 of its files."""
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
    with checkpoint.unwrap_rank_errors():
        return opened(_load_snapshot, folder, settings, teacher)


def model_of_snapshot(folder: Path, settings: ModelSection, teacher: TeacherSettings) -> Any:
    """Return a snapshot's model; every rank must call it (raises as `load_snapshot` does)."""
    return _load_snapshot(folder, settings, teacher).model


def _load_snapshot(folder: Path, settings: ModelSection, teacher: TeacherSettings) -> Policy:
    with agreed():
        fetch_folder(folder, share())
    with agreed():
        state = _read_state(folder / "state.json")
        if state["teacher"] != (wanted := teacher.recorded()):
            raise StoreError(
                f"{folder}: a snapshot with teacher {state['teacher']}, wanted {wanted}"
            )
        repair = snapshot_repair(folder)
        expect_files(folder, state["sha256"], "state.json", repair, fetch_anew, share())
        optimizer = find_tensors(folder, "optimizer")
        if state["steps_done"] > 0 and not optimizer:
            raise StoreError(f"{folder}: a snapshot after updates without optimizer.safetensors")
        spread = spreading(settings)
    model, tokenizer = load_pretrained(str(folder), spread)
    policy = Policy(model, tokenizer, settings, teacher, state["policy_version"])
    policy.initial_version = state["initial_version"]
    if policy.teacher_model is not None:
        teacher_tensors = dict(policy.teacher_model.named_parameters())
        checkpoint.load(teacher_tensors, find_tensors(folder, "teacher"), folder)
    if optimizer:
        _make_optimizer_state(policy, optimizer.keys())
        checkpoint.load(_optimizer_tensors(policy), optimizer, folder)
    return policy


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return read_sealed(path)
    except FileNotFoundError:
        raise StoreError(f"{path.parent}: no snapshot here (state.json is missing)") from None


def _optimizer_tensors(policy: Policy) -> dict[str, Tensor]:
    state = policy.optimizer.state
    return {
        f"{key}/{name}": state[p][key]
        for name, p in policy.named_parameters()
        if p in state
        for key in _OPTIMIZER_STATE
    }


def _make_optimizer_state(policy: Policy, kept: Set[str]) -> None:
    """Allocate optimizer state for the parameters that have some in the snapshot."""
    for name, parameter in policy.named_parameters():
        if f"step/{name}" in kept:
            policy.optimizer.state[parameter] = {
                key: torch.zeros((), device=parameter.device)
                if key == "step"
                else torch.zeros_like(parameter)
                for key in _OPTIMIZER_STATE
            }
