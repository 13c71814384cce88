"""Opening a policy from a Hugging Face folder; writing and reading snapshots, atomic and digested.

RUN/policy/000020/ is a Hugging Face folder of the policy after 20 steps. It also holds
teacher.safetensors (float32), optimizer.safetensors and state.json (versions, SHA-256 of files).
With `model.lora` it holds adapters in peft's format in place of the model's weights, the teacher's
adapters in teacher.safetensors, and state.json names the frozen model and its files' SHA-256. Each
rank writes, reads and digests its share. Tensors of more than 4 GiB are split over files named
teacher-00001-of-00008.safetensors and so on.
"""

import shutil
from collections.abc import Iterator, Set
from contextlib import contextmanager
from os.path import expanduser
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging as transformers_logging

from pipeline.config.sections import ModelSection
from pipeline.distributed.ranks import agreed, exchanged, opened, share, together
from pipeline.errors import PolicyError, StoreError
from pipeline.files.durable import atomic_path, digest_of, file_digest
from pipeline.files.file_list import expect_files, snapshot_repair
from pipeline.files.sealed_json import read_sealed, write_sealed
from pipeline.machine.disk import errors_naming
from pipeline.policy import checkpoint
from pipeline.policy.adapter_files import (
    STEM,
    expect_adapters,
    load_adapters,
    save_adapters,
    save_merged_model,
)
from pipeline.policy.adapters import adapt, draw_adapters, sharing_base, trainable
from pipeline.policy.generation_config import sampling_note
from pipeline.policy.model_folder import is_on_this_machine, model_folder
from pipeline.policy.model_loading import load_pretrained, open_tokenizer, save_model
from pipeline.policy.policy import FrozenBase, Policy, TeacherSettings, spreading
from pipeline.policy.safetensors_layout import find_tensors, lay_out, tensor_files
from pipeline.policy.tokenizer_loading import tokenizer_notes
from pipeline.remote.mirror_files import fetch_anew, fetch_folder
from pipeline.text import one_line

transformers_logging.disable_progress_bar()
_MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")
_NOT_NUMERIC = {"path", "device", "gradient_checkpointing", "cpu_offload", "prompt_time", "lora"}
_OPTIMIZER_STATE = ("step", "exp_avg", "exp_avg_sq")


def open_policy(
    path: str, settings: ModelSection, teacher: TeacherSettings, seed: int = 0
) -> Policy:
    """Open the policy that a run starts from; several ranks open it from the same path.

    Its version is 000000 and a digest of the folder's files (weights, configuration, tokenizer,
    chat template) and of the settings; with `model.lora` also of the adapters that it starts with.

    Args:
        seed: the run's, from which new adapters are drawn.
    """
    return opened(_open_policy, path, settings, teacher, seed)


def _open_policy(path: str, settings: ModelSection, teacher: TeacherSettings, seed: int) -> Policy:
    with agreed():
        spread = spreading(settings)
    bfloat16 = settings.base_dtype == "bfloat16"
    model, tokenizer = load_pretrained(path, spread, settings.chat_template, bfloat16)
    folder = Path(model.name_or_path)
    base = None if settings.lora is None else _frozen_base(folder.resolve())
    identity: Any
    if not is_on_this_machine(path):
        identity = [path, model.config._commit_hash]
    else:
        identity = _digests(_model_files(folder)) if base is None else base.sha256
    if base is not None:
        identity = [identity, _start_adapters(model, settings, seed)]
    numerics = {k: v for k, v in settings.recorded().items() if k not in _NOT_NUMERIC}
    version = f"000000-{digest_of([identity, numerics, teacher.recorded()])[:12]}"
    policy = Policy(model, tokenizer, settings, teacher, version, base)
    policy.notes = [
        *tokenizer_notes(folder, tokenizer),
        *sampling_note(folder),
        *policy.prompts.notes(),
    ]
    return policy


def _start_adapters(model: Any, settings: ModelSection, seed: int) -> Any:
    """Give a model the adapters that a run starts with; return what tells them from others."""
    lora = settings.lora
    assert lora is not None
    with agreed():
        adapt(model, settings)
        draw_adapters(model, seed)
    kind = lora.model_dump(exclude={"adapter"})
    if lora.adapter is None:
        return [kind, seed]
    folder = Path(expanduser(lora.adapter))
    with checkpoint.unwrap_rank_errors(), agreed():
        expect_adapters(model, lora, folder)
    with checkpoint.unwrap_rank_errors():
        load_adapters(model, folder)
    return [kind, _digests(tensor_files(folder, STEM))]


def _model_files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if path.suffix in _MODEL_FILES]


def _frozen_base(folder: Path) -> FrozenBase:
    """Return the model in a folder that every rank names; each digests its share of the files."""
    with agreed():
        files = _model_files(folder)
    return FrozenBase(str(folder), _digests(files))


def save_snapshot(policy: Policy, target: Path, steps_done: int) -> None:
    """Write a snapshot; it appears whole, under its final name, or not at all.

    Its files are the same whatever the number of ranks that hold the policy, and open on any other.
    """
    if target.exists():
        return
    with folder_with_tokenizer(policy, target) as folder:
        with checkpoint.unwrap_rank_errors():
            together(_write_parts, policy, folder)
        state: dict[str, Any] = {
            "steps_done": steps_done,
            "policy_version": policy.version,
            "initial_version": policy.initial_version,
            "teacher": policy.teacher.recorded(),
            "sha256": together(_digests_in, policy, folder)[0],
        }
        if policy.base is not None:
            state["base"] = policy.base._asdict()
        if policy.teacher.kind == "periodic":
            state["copied_version"] = policy.copied_version
        write_sealed(folder / "state.json", state)


def save_merged(policy: Policy, target: Path) -> None:
    """Write the model that a policy's adapters make of its base, as a Hugging Face folder.

    It has neither teacher nor optimizer, and is in the precision in which the base is stored.
    """
    with folder_with_tokenizer(policy, target) as folder, checkpoint.unwrap_rank_errors():
        together(_write_merged, policy, folder)


@contextmanager
def folder_with_tokenizer(policy: Policy, target: Path) -> Iterator[Path]:
    """Yield a new folder with the tokenizer in it; after the block it stands whole at `target`."""
    with atomic_path(target) as folder, errors_naming(target):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        policy.tokenizer.save_pretrained(folder)
        yield folder


def _write_merged(policy: Policy, folder: Path) -> None:
    save_merged_model(policy.model, folder, policy.base_dtype)


def write_weights(policy: Policy, folder: Path) -> None:
    """Write the model, or with `model.lora` its adapters; every rank must call it."""
    if policy.base is None or policy.lora is None:
        save_model(policy.model, folder)
    else:
        save_adapters(policy.model, policy.lora, policy.base.path, folder)


def _write_parts(policy: Policy, folder: Path) -> None:
    write_weights(policy, folder)
    if policy.teacher_model is not None:
        teacher = trainable(policy.teacher_model)
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
        StoreError: a file is missing or its bytes changed, also of the model under adapters.
        PolicyError: the model can't be opened.
    """
    with checkpoint.unwrap_rank_errors():
        return opened(_load_snapshot, folder, settings, teacher)


def initial_model(
    policy: Policy, folder: Path, settings: ModelSection, teacher: TeacherSettings
) -> Any:
    """Return the model of a run's first snapshot; every rank must call it.

    With adapters that is the policy's own base under the snapshot's adapters, so that there is no
    second base.

    Raises:
        StoreError: see `load_snapshot`.
    """
    if policy.base is None:
        return _load_snapshot(folder, settings, teacher).model
    _read_snapshot(folder, teacher)
    model = sharing_base(policy.model)
    load_adapters(model, folder)
    return model


def _load_snapshot(folder: Path, settings: ModelSection, teacher: TeacherSettings) -> Policy:
    state = _read_snapshot(folder, teacher)
    with agreed():
        optimizer = find_tensors(folder, "optimizer")
        if state["steps_done"] > 0 and not optimizer:
            raise StoreError(f"{folder}: a snapshot after updates without optimizer.safetensors")
        spread = spreading(settings)
    if settings.lora is None:
        base = None
        model, tokenizer = load_pretrained(str(folder), spread)
    else:
        base = _same_base(folder, state, settings.path)
        model, tokenizer = _adapted_model(folder, base, settings)
    policy = Policy(model, tokenizer, settings, teacher, state["policy_version"], base)
    policy.initial_version = state["initial_version"]
    if teacher.kind == "periodic":
        policy.copied_version = state["copied_version"]
    if policy.teacher_model is not None:
        teacher_tensors = trainable(policy.teacher_model)
        checkpoint.load(teacher_tensors, find_tensors(folder, "teacher"), folder)
    if optimizer:
        _make_optimizer_state(policy, optimizer.keys())
        checkpoint.load(_optimizer_tensors(policy), optimizer, folder)
    return policy


def _read_snapshot(folder: Path, teacher: TeacherSettings) -> dict[str, Any]:
    """Return what state.json says, after checking the files that it lists."""
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
    return state


def _same_base(folder: Path, state: dict[str, Any], path: str) -> FrozenBase:
    """Return the model under a snapshot's adapters, which must still be what it was.

    Raises:
        StoreError: it is not there, or not what it was.
    """
    with agreed():
        if not isinstance(recorded := state.get("base"), dict):
            raise StoreError(f"{folder}: a snapshot without adapters, wanted one of model.lora")
        wanted: dict[str, str] = recorded["sha256"]
        places = _places_of_base(folder, Path(recorded["path"]), path)
    places = exchanged(places)[0]  # ranks look at the same ones
    found = []
    for place in places:
        found.append(_frozen_base(place))
        if found[-1].sha256 == wanted:
            return found[-1]
    first = found[0].sha256
    name = min(n for n in wanted.keys() | first.keys() if wanted.get(n) != first.get(n))
    with agreed():
        raise StoreError(
            f"{places[0] / name}: expected SHA-256 {_short(wanted.get(name))}, under which the "
            f"adapters of {folder} were trained, found {_short(first.get(name))}; restore the "
            "model's folder as it was"
        )


def _places_of_base(folder: Path, former: Path, path: str) -> list[Path]:
    """Return where a snapshot's base may be: where `model.path` says, and where it was.

    `model.path` may name another model by now: in another working folder, or after an installation.
    The hub is asked last.

    Raises:
        StoreError: neither is there.
    """
    places = [former] if former.is_dir() else []
    if is_on_this_machine(path) or not places:
        try:
            places = [model_folder(path).resolve(), *places]
        except PolicyError as error:
            if not places:
                raise StoreError(
                    f"{folder}: adapters on a model that is gone: it was in {former}, and "
                    f"{one_line(error)}; put it back there"
                ) from None
    return list(dict.fromkeys(places))


def _short(digest: str | None) -> str:
    return "no such file" if digest is None else digest[:12]


def _adapted_model(folder: Path, base: FrozenBase, settings: ModelSection) -> tuple[Any, Any]:
    """Return model and tokenizer of a snapshot with adapters."""
    bfloat16 = settings.base_dtype == "bfloat16"
    model, _ = load_pretrained(base.path, None, settings.chat_template, bfloat16)
    with agreed():
        tokenizer = open_tokenizer(folder)
        adapt(model, settings)
    load_adapters(model, folder)
    return model, tokenizer


def _read_state(path: Path) -> dict[str, Any]:
    try:
        return read_sealed(path)
    except FileNotFoundError:
        raise StoreError(f"{path.parent}: no snapshot here (state.json is missing)") from None


def _optimizer_tensors(policy: Policy) -> dict[str, Tensor]:
    state = policy.optimizer.state
    return {
        f"{key}/{name}": state[p][key]
        for name, p in policy.trainable().items()
        if p in state
        for key in _OPTIMIZER_STATE
    }


def _make_optimizer_state(policy: Policy, kept: Set[str]) -> None:
    """Allocate optimizer state for the parameters that have some in the snapshot."""
    for name, parameter in policy.trainable().items():
        if f"step/{name}" in kept:
            policy.optimizer.state[parameter] = {
                key: torch.zeros((), device=parameter.device)
                if key == "step"
                else torch.zeros_like(parameter)
                for key in _OPTIMIZER_STATE
            }
