"""Snapshots are whole, digested and bit-identical; model folders that can't be used are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import pipeline.policy.snapshots
from pipeline.config.sections import ModelSection
from pipeline.errors import PolicyError, StoreError
from pipeline.policy import safetensors_layout as tensorfiles
from pipeline.policy.policy import Policy, TeacherSettings
from pipeline.policy.snapshots import load_snapshot, open_policy, save_snapshot
from tests.conftest import OpenPolicy

EMA = TeacherSettings(kind="ema", rate=0.25, mix=0.05)
STEMS = ("model", "teacher", "optimizer")
PARTS = {"model": 2, "teacher": 2, "optimizer": 5}
SECTION = ModelSection(path="x", device="cpu")


def train(policy: Policy, steps: int) -> None:
    """Train a few steps by hand: any loss will do, but AdamW's state and the EMA must move."""
    for _ in range(steps):
        policy.begin_update()
        policy.optimizer.param_groups[0]["lr"] = 1e-2
        logits = policy.model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits
        policy.optimizer.zero_grad()
        logits.log_softmax(-1)[..., 9].sum().backward()
        policy.optimizer.step()
        done = int(policy_steps(policy)) + 1
        policy.advance_teacher(done)
        policy.finish_update(f"{done:06d}-{'abc'}")


def policy_steps(policy: Policy) -> float:
    return max((float(s["step"]) for s in policy.optimizer.state.values()), default=0.0) - 1


def tensors(policy: Policy) -> dict[str, Tensor]:
    """Return everything that a snapshot must restore, as copies."""
    found = {f"model/{n}": p for n, p in policy.trainable().items()}
    if policy.teacher_model is not None:
        found |= {f"teacher/{n}": p for n, p in policy.teacher_model.named_parameters()}
    names = {p: n for n, p in policy.trainable().items()}
    for parameter, state in policy.optimizer.state.items():
        found |= {f"{key}/{names[parameter]}": value for key, value in state.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def expect_identical(policy: Policy, expected: dict[str, Tensor]) -> None:
    found = tensors(policy)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].equal(value), name


@pytest.fixture
def trained(tiny_policy: OpenPolicy) -> Policy:
    policy = tiny_policy("ema", rate=0.25)
    train(policy, 2)
    return policy


@pytest.fixture
def snapshot(trained: Policy, tmp_path: Path) -> Path:
    folder = tmp_path / "policy" / "000002"
    save_snapshot(trained, folder, 2)
    return folder


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny policy's folder, to be spoiled."""
    copied = tmp_path / "model"
    shutil.copytree(tiny_folder, copied)
    return copied


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def opening_fails(folder: Path | str) -> str:
    with pytest.raises(PolicyError) as caught:
        open_policy(str(folder), SECTION, EMA)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- snapshots -------------------------------------------------------------------------------


def test_two_steps_move_everything(trained: Policy, tiny_policy: OpenPolicy) -> None:
    before = tensors(tiny_policy("ema", rate=0.25))
    after = tensors(trained)
    moved = [n for n, value in before.items() if not after[n].equal(value)]
    assert {n.split("/")[0] for n in moved} == {"model", "teacher"}
    assert {float(v) for n, v in after.items() if n.startswith("step/")} == {2.0}
    assert any(bool((v != 0).any()) for n, v in after.items() if n.startswith("exp_avg_sq/"))


def test_a_round_trip_is_bit_identical(trained: Policy, snapshot: Path) -> None:
    opened = load_snapshot(snapshot, SECTION, EMA)
    expect_identical(opened, tensors(trained))
    assert opened.version == trained.version == "000002-abc"
    assert opened.initial_version == trained.initial_version
    assert opened.teacher_version == trained.teacher_version


def test_training_goes_on_as_if_nothing_had_happened(trained: Policy, snapshot: Path) -> None:
    opened = load_snapshot(snapshot, SECTION, EMA)
    train(trained, 2)
    train(opened, 2)
    expect_identical(opened, tensors(trained))


@pytest.mark.parametrize("kind", ["live", "frozen", "trust_region", "ema", "periodic"])
def test_every_teacher_survives(tiny_policy: OpenPolicy, tmp_path: Path, kind: Any) -> None:
    policy = tiny_policy(kind, rate=0.25, period=2)
    train(policy, 3)
    save_snapshot(policy, tmp_path / "s", 3)
    assert (tmp_path / "s" / "teacher.safetensors").exists() is (kind != "live")
    teacher = TeacherSettings(kind=kind, rate=0.25, mix=0.05, period=2)
    opened = load_snapshot(tmp_path / "s", SECTION, teacher)
    expect_identical(opened, tensors(policy))
    assert opened.teacher_version == policy.teacher_version


def test_a_policy_before_its_first_update_has_no_optimizer_state(
    tiny_policy: OpenPolicy, tmp_path: Path
) -> None:
    policy = tiny_policy("ema", rate=0.25)
    save_snapshot(policy, tmp_path / "s", 0)
    assert not (tmp_path / "s" / "optimizer.safetensors").exists()
    expect_identical(load_snapshot(tmp_path / "s", SECTION, EMA), tensors(policy))


def test_equal_policies_have_equal_snapshots(tiny_policy: OpenPolicy, tmp_path: Path) -> None:
    for name in ("a", "b"):
        policy = tiny_policy("ema", rate=0.25)
        train(policy, 1)
        save_snapshot(policy, tmp_path / name, 1)
    first, second = (
        {f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("a", "b")
    )
    assert first == second


def test_a_snapshot_is_a_hugging_face_folder_of_safetensors(snapshot: Path) -> None:
    names = {f.name for f in snapshot.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "state.json"} <= names
    assert {"teacher.safetensors", "optimizer.safetensors"} <= names
    assert not [n for n in names if n.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle"))]
    state = json.loads((snapshot / "state.json").read_text())
    assert state["steps_done"] == 2
    assert state["sha256"].keys() == names - {"state.json"}


def test_large_snapshots_have_several_files_of_each_kind(
    trained: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorfiles, "MAX_FILE_BYTES", 8192)  # weights have 17 kB
    save_snapshot(trained, tmp_path / "s", 2)
    names = {f.name for f in (tmp_path / "s").iterdir()}
    parts = {stem: sorted(n for n in names if n.startswith(f"{stem}-")) for stem in STEMS}
    assert {stem: len(found) for stem, found in parts.items()} == PARTS
    assert not names & {f"{stem}.safetensors" for stem in STEMS}
    expect_identical(load_snapshot(tmp_path / "s", SECTION, EMA), tensors(trained))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "s", trust_remote_code=False)
    assert all(
        p.equal(q) for p, q in zip(theirs.parameters(), trained.model.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "teacher.safetensors", "optimizer.safetensors", "tokenizer.json"],
)
def test_a_flipped_byte_or_a_missing_file_is_named(snapshot: Path, name: str) -> None:
    flip(snapshot / name)
    with pytest.raises(StoreError, match=f"{name}: missing or damaged"):
        load_snapshot(snapshot, SECTION, EMA)
    (snapshot / name).unlink()
    with pytest.raises(StoreError, match=f"{name}: missing or damaged"):
        load_snapshot(snapshot, SECTION, EMA)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_broken_state_file_is_named(snapshot: Path, text: str) -> None:
    (snapshot / "state.json").write_text(text)
    with pytest.raises(StoreError, match=r"state\.json"):
        load_snapshot(snapshot, SECTION, EMA)


def test_a_changed_version_is_noticed(snapshot: Path) -> None:
    path = snapshot / "state.json"
    path.write_text(path.read_text().replace("000002-abc", "000002-abd"))
    with pytest.raises(StoreError, match=r"state\.json: changed since it was written"):
        load_snapshot(snapshot, SECTION, EMA)


def test_a_missing_snapshot_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="000007"):
        load_snapshot(tmp_path / "000007", SECTION, EMA)


def test_an_interrupted_save_leaves_no_snapshot(
    trained: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "policy" / "000002"

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline.policy.snapshots, "_optimizer_tensors", fail)
        with pytest.raises(KeyboardInterrupt):
            save_snapshot(trained, target, 2)
    assert not target.exists()
    assert not list((tmp_path / "policy").glob("[0-9]*/state.json"))
    save_snapshot(trained, target, 2)  # and the next attempt is not in its way
    expect_identical(load_snapshot(target, SECTION, EMA), tensors(trained))
    assert [p.name for p in (tmp_path / "policy").iterdir()] == ["000002"]


def test_a_snapshot_is_never_overwritten(trained: Policy, snapshot: Path) -> None:
    before = {f.name: f.read_bytes() for f in snapshot.iterdir()}
    train(trained, 1)
    save_snapshot(trained, snapshot, 2)
    assert {f.name: f.read_bytes() for f in snapshot.iterdir()} == before


# --- model folders ---------------------------------------------------------------------------


def test_versions_depend_on_weights_and_numerics(folder: Path) -> None:
    versions = {
        "start": open_policy(str(folder), SECTION, EMA).version,
        "precision": open_policy(
            str(folder), ModelSection(path="x", device="cpu", precision="bfloat16"), EMA
        ).version,
        "teacher": open_policy(
            str(folder), SECTION, TeacherSettings(kind="ema", rate=0.1, mix=0.05)
        ).version,
    }
    again = open_policy(str(folder), SECTION.model_copy(update={"path": "elsewhere"}), EMA).version
    flip(folder / "model.safetensors")
    versions["weights"] = open_policy(str(folder), SECTION, EMA).version
    assert len(set(versions.values())) == 4
    assert again == versions["start"]
    assert all(v.startswith("000000-") for v in versions.values())


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "without weights" in opening_fails(folder)


def test_pickled_weights_are_not_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"lm_head.weight": torch.zeros(1)}, folder / "pytorch_model.bin")
    assert "without weights" in opening_fails(folder)


def test_a_tokenizer_without_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    assert "no chat template" in opening_fails(folder)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "~/nowhere"])
def test_a_folder_that_does_not_exist(path: str) -> None:
    assert opening_fails(path).startswith(f"model.path {path}: no such model folder")


def test_a_folder_without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert opening_fails(folder).startswith(f"{folder}: a model folder without a tokenizer")


def test_a_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert str(folder) in opening_fails(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_folder_with_broken_json(folder: Path, name: str) -> None:
    (folder / name).write_text("{")
    assert str(folder) in opening_fails(folder)


def test_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert str(folder) in opening_fails(folder)


def test_weights_that_lack_a_tensor(folder: Path) -> None:
    """transformers would fill it in with random numbers and go on."""
    found = load_file(folder / "model.safetensors")
    del found["model.norm.weight"]
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    message = opening_fails(folder)
    assert "model.norm.weight" in message


def test_weights_of_another_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    message = opening_fails(folder)
    assert "of another shape, first model.embed_tokens.weight: [" in message
    assert ", 32] by config.json" in message


def test_code_in_a_model_folder_is_not_run(folder: Path) -> None:
    """`trust_remote_code` stays off: the folder's own class is never imported."""
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")
    opening_fails(folder)
    assert not (folder / "ran").exists()


def test_saving_and_opening_keep_float32(folder: Path) -> None:
    policy = open_policy(str(folder), SECTION, EMA)
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    half = policy.model.to(torch.bfloat16)
    half.save_pretrained(folder)
    opened = open_policy(str(folder), SECTION, EMA)
    assert {p.dtype for p in opened.model.parameters()} == {torch.float32}
