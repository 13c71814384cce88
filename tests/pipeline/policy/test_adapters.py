"""Adapters (docs/method.md, section 14): what they compute, what is trained, what is shared."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from pipeline.config.sections import LoraSection
from pipeline.errors import PolicyError, StoreError
from pipeline.forward.packing import TokenSequence
from pipeline.forward.projection import logits_NV
from pipeline.forward.scoring import response_hidden_ND
from pipeline.policy import model_folder
from pipeline.policy.adapters import (
    AdaptedLinear,
    FrozenLinear,
    draw_adapters,
    plain_weights,
    stirred,
    trainable,
)
from pipeline.policy.policy import Policy, TeacherSettings
from pipeline.policy.snapshots import load_snapshot, save_snapshot
from tests.builders.policies import LOWERCASE, open_on_cpu, write_tiny_policy

LORA = LoraSection(rank=4, alpha=6.0)
SEQUENCES = [TokenSequence([5, 6, 7], [8, 9, 10]), TokenSequence([5, 6, 7], [11, 12])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_policy(tmp_path / "base", 0, LOWERCASE)
    return tmp_path / "base"


def moved(policy: Policy, seed: int = 1) -> Policy:
    """Change what is trained, as an update would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in policy.trainable().values():
            tensor.add_(0.1 * torch.randn(tensor.shape, generator=generator))
    return policy


def logits(policy: Policy, model: Any) -> Tensor:
    forward = policy.forward(1.0)
    with torch.no_grad():
        return logits_NV(forward.head(model), response_hidden_ND(model, SEQUENCES, forward))


def merged(policy: Policy, model: Any) -> Any:
    """Return a plain model with the adapters added to its weights by hand."""
    plain = open_on_cpu(Path(policy.model.name_or_path)).model
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            stem = name.removesuffix("weight")
            if f"{stem}lora_A" in named:
                a, b = named[f"{stem}lora_A"].double(), named[f"{stem}lora_B"].double()
                weight.copy_(weight.double() + LORA.alpha / LORA.rank * (b @ a))
    return plain


def test_a_layer_by_hand() -> None:
    layer = torch.nn.Linear(2, 2)
    layer.__class__ = AdaptedLinear
    assert isinstance(layer, AdaptedLinear)
    layer.weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    layer.bias = torch.nn.Parameter(torch.tensor([0.5, -0.5]))
    layer.lora_A = torch.nn.Parameter(torch.tensor([[1.0, -1.0]]))
    layer.lora_B = torch.nn.Parameter(torch.tensor([[2.0], [3.0]]))
    layer.lora_scale = 0.5
    # W x = (-1, -1); A x = 3, halved 1.5; B of it (3, 4.5)
    assert layer(torch.tensor([1.0, -2.0])).tolist() == [-3 + 3 + 0.5, -5 + 4.5 - 0.5]
    assert layer.merged().tolist() == [[2.0, 1.0], [4.5, 2.5]]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_frozen_product_keeps_no_copy_of_its_weight(stored: torch.dtype, autocast: bool) -> None:
    layer = torch.nn.Linear(3, 2).requires_grad_(False)
    layer.__class__ = FrozenLinear
    layer.weight.data = layer.weight.data.to(stored)
    x, kept = torch.randn(4, 3, requires_grad=True), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        y = layer(x)
    assert [tensor.data_ptr() for tensor in kept] == [layer.weight.data_ptr()]
    assert y.dtype == (torch.bfloat16 if autocast else torch.float32)
    gradient = torch.randn(4, 2).to(y.dtype)
    y.backward(gradient)
    expected = gradient.double() @ layer.weight.to(y.dtype).double()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), expected, rtol=0, atol=0.02 if autocast else 1e-6)


def test_new_adapters_change_nothing(folder: Path) -> None:
    plain = open_on_cpu(folder)
    adapted = open_on_cpu(folder, lora=LORA)
    assert torch.equal(logits(adapted, adapted.model), logits(plain, plain.model))


def test_a_and_b_start_from_the_seed_layer_by_layer(folder: Path) -> None:
    few = open_on_cpu(folder, lora=LoraSection(rank=4, targets=["v_proj"])).trainable()
    all_of_them = open_on_cpu(folder, lora=LORA)
    for name, tensor in few.items():
        assert torch.equal(tensor, all_of_them.trainable()[name])
    for name, tensor in all_of_them.trainable().items():
        if name.endswith("lora_B"):
            assert not bool(tensor.any())
        else:  # uniform in ±1/sqrt(in): the deviation is bound / sqrt(3)
            bound = tensor.shape[1] ** -0.5
            assert float(tensor.detach().abs().max()) <= bound
            assert float(tensor.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.15)
    first = all_of_them.trainable()["model.layers.0.mlp.up_proj.lora_A"].clone()
    draw_adapters(all_of_them.model, 1)
    assert not torch.equal(first, all_of_them.trainable()["model.layers.0.mlp.up_proj.lora_A"])


def test_what_is_trained_is_a_and_b_alone(folder: Path) -> None:
    policy = open_on_cpu(folder, lora=LORA)
    found = policy.trainable()
    assert len(found) == 2 * 7 * 2  # A and B of seven layers of two blocks
    assert {p for group in policy.optimizer.param_groups for p in group["params"]} == {
        *found.values()
    }
    frozen = [p for n, p in policy.model.named_parameters() if n not in found]
    assert not any(p.requires_grad for p in frozen)
    plain = open_on_cpu(folder)
    assert trainable(plain.model).keys() == dict(plain.model.named_parameters()).keys()


@pytest.mark.parametrize("kind", ["ema", "frozen", "trust_region", "periodic"])
def test_a_teacher_shares_the_base_and_has_adapters_of_its_own(folder: Path, kind: Any) -> None:
    teacher = TeacherSettings(kind=kind, rate=0.05, mix=0.3, period=1)
    policy = open_on_cpu(folder, teacher, lora=LORA)
    own, teachers = dict(policy.model.named_parameters()), policy.teacher_model.named_parameters()
    for name, tensor in teachers:
        assert (tensor is own[name]) == ("lora" not in name), name
        assert not tensor.requires_grad
    before = logits(policy, policy.teacher_model)
    moved(policy)
    assert torch.equal(logits(policy, policy.teacher_model), before)
    policy.advance_teacher(1)
    moves = not torch.equal(logits(policy, policy.teacher_model), before)
    assert moves == (kind in ("ema", "periodic"))


def test_the_ema_averages_a_and_b(folder: Path) -> None:
    policy = open_on_cpu(folder, lora=LORA)
    start = {name: t.detach().clone() for name, t in policy.trainable().items()}
    moved(policy)
    policy.advance_teacher(1)
    for name, tensor in trainable(policy.teacher_model).items():
        expected = 0.95 * start[name].double() + 0.05 * policy.trainable()[name].double()
        assert tensor.double() == pytest.approx(expected.detach(), abs=1e-7), name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("base_dtype", ["float32", "bfloat16"])
def test_adapters_compute_what_merged_weights_do(
    folder: Path, base_dtype: Any, precision: Any
) -> None:
    policy = moved(open_on_cpu(folder, lora=LORA, base_dtype=base_dtype, precision=precision))
    plain = open_on_cpu(folder, precision=precision)
    expected = logits(plain, merged(policy, policy.model))
    gap = float((logits(policy, policy.model) - expected).abs().max())
    # what a bfloat16 base rounds away; bfloat16 passes round much more than that
    allowed = {("float32", "float32"): 2e-5, ("bfloat16", "float32"): 0.02}
    assert gap < allowed.get((base_dtype, precision), 0.15)
    assert not policy.unshared


def test_a_bfloat16_base_is_computed_with_in_float32(folder: Path) -> None:
    """It rounds weights once and nothing else: on rounded weights, all but the last bits agree."""
    policy = moved(open_on_cpu(folder, lora=LORA, base_dtype="bfloat16"))
    for name, tensor in policy.model.named_parameters():
        matrix = tensor.dim() > 1 and "lora" not in name
        assert tensor.dtype == (torch.bfloat16 if matrix else torch.float32), name
    plain = merged(policy, policy.model)
    rounded = dict(plain_weights(policy.model, torch.float32))
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            weight.copy_(rounded[name])
    gap = (logits(policy, policy.model) - logits(open_on_cpu(folder), plain)).abs().max()
    assert float(gap) < 2e-5


def test_merged_weights_have_the_names_of_the_base(folder: Path) -> None:
    policy = moved(open_on_cpu(folder, lora=LORA))
    expected = merged(policy, policy.model)
    names = [name for name, _ in expected.named_parameters(remove_duplicate=False)]
    found = list(plain_weights(policy.model, torch.float32))
    assert [name for name, _ in found] == names
    for name, weight in found:
        assert weight == pytest.approx(expected.get_parameter(name).detach(), abs=1e-6), name


def test_a_stirred_model_is_itself_again(folder: Path) -> None:
    policy = moved(open_on_cpu(folder, lora=LORA))
    before = logits(policy, policy.model)
    with stirred(policy.model):
        assert float((logits(policy, policy.model) - before).abs().max()) > 0.01
    assert torch.equal(logits(policy, policy.model), before)


def test_a_model_that_loses_its_adapters_in_packed_rows_is_padded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe of packing fills B with noise; with B = 0 it would see nothing."""
    whole = AdaptedLinear.forward

    def forgetful(layer: AdaptedLinear, x: Tensor) -> Tensor:
        if x.shape[0] == 1:  # a packed row
            return torch.nn.functional.linear(x, layer.weight, layer.bias)
        return whole(layer, x)

    monkeypatch.setattr(AdaptedLinear, "forward", forgetful)
    assert "hidden states would differ" in open_on_cpu(folder, lora=LORA).unshared


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["qkv"], "has no layer qkv; its linear layers are called down_proj, gate_proj, k_proj"),
        (["lm_head"], "lm_head is the output projection of"),
        (["embed_tokens"], "model.embed_tokens of .* is a Embedding; only plain linear layers"),
        (["mlp"], "model.layers.0.mlp of .* is a Qwen3MLP"),
    ],
)
def test_targets_that_can_have_no_adapter(folder: Path, targets: list[str], message: str) -> None:
    with pytest.raises(PolicyError, match=rf"model.lora.targets: .*{message}"):
        open_on_cpu(folder, lora=LoraSection(targets=targets))


def test_a_rank_that_no_change_of_a_layer_has(folder: Path) -> None:
    open_on_cpu(folder, lora=LoraSection(rank=32, targets=["k_proj"]))
    message = r"model.lora.rank is 33: more than both sides of .*k_proj of .*, 16 by 32, whose"
    with pytest.raises(PolicyError, match=message):
        open_on_cpu(folder, lora=LoraSection(rank=33, targets=["up_proj", "k_proj"]))


def test_layers_that_are_not_linear_modules(tmp_path: Path) -> None:
    write_tiny_policy(tmp_path / "base", 0, LOWERCASE)
    (tmp_path / "base" / "model.safetensors").unlink()
    config = GPT2Config(vocab_size=len(LOWERCASE), n_embd=32, n_layer=1, n_head=2, n_positions=64)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    with pytest.raises(PolicyError, match=r"transformer.h.0.attn.c_attn of .* is a Conv1D"):
        open_on_cpu(tmp_path / "base", lora=LoraSection(targets=["c_attn"]))
    with pytest.raises(PolicyError, match=r"no layer q_proj; it has no plain linear layers"):
        open_on_cpu(tmp_path / "base", lora=LORA)


def test_a_target_may_be_a_whole_name(folder: Path) -> None:
    lora = LoraSection(targets=["model.layers.1.self_attn.q_proj", "mlp.down_proj"])
    assert {name.rpartition(".")[0] for name in open_on_cpu(folder, lora=lora).trainable()} == {
        "model.layers.1.self_attn.q_proj",
        *(f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1)),
    }


# --- snapshots -------------------------------------------------------------------------------


def test_a_snapshot_holds_adapters_and_names_the_base(folder: Path, tmp_path: Path) -> None:
    policy = moved(open_on_cpu(folder, lora=LORA))
    policy.advance_teacher(1)
    save_snapshot(policy, tmp_path / "000000", 0)
    assert not list((tmp_path / "000000").glob("model*.safetensors"))
    opened = load_snapshot(tmp_path / "000000", policy._settings, policy.teacher)
    assert opened.checksum() == policy.checksum()
    assert opened.version == policy.version
    assert torch.equal(logits(opened, opened.model), logits(policy, policy.model))
    assert torch.equal(logits(opened, opened.teacher_model), logits(policy, policy.teacher_model))


def test_a_base_that_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    policy = open_on_cpu(folder, lora=LORA)
    save_snapshot(policy, tmp_path / "000000", 0)
    write_tiny_policy(folder, 1, LOWERCASE)
    with pytest.raises(StoreError, match=r"model.safetensors: expected SHA-256 .* found"):
        load_snapshot(tmp_path / "000000", policy._settings, policy.teacher)


def test_a_base_is_found_where_it_was_or_said_to_be_gone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative model.path, and a command given in another folder; then the model is removed."""
    monkeypatch.chdir(tmp_path)
    policy = open_on_cpu(Path("./base"), lora=LORA)
    save_snapshot(policy, tmp_path / "run" / "000000", 0)
    snapshot = (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir(snapshot)
    settings = policy._settings
    assert load_snapshot(snapshot / "000000", settings, policy.teacher).version == policy.version
    folder.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"adapters on a model that is gone: it was in .*/base, "):
        load_snapshot(snapshot / "000000", settings, policy.teacher)


def test_a_base_is_found_though_its_name_stands_for_another_model(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen from another folder; or of `smollm2`, once its package is installed or gone."""
    monkeypatch.chdir(tmp_path)
    policy = open_on_cpu(Path("./base"), lora=LORA)
    save_snapshot(policy, tmp_path / "000000", 0)
    write_tiny_policy(tmp_path / "elsewhere" / "base", 1, LOWERCASE)
    monkeypatch.chdir(tmp_path / "elsewhere")
    opened = load_snapshot(tmp_path / "000000", policy._settings, policy.teacher)
    assert opened.base == policy.base
    write_tiny_policy(folder, 2, LOWERCASE)
    with pytest.raises(StoreError, match=r"elsewhere/base/model.safetensors: expected SHA-256"):
        load_snapshot(tmp_path / "000000", policy._settings, policy.teacher)


def test_the_hub_is_not_asked_for_a_base_that_is_there(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By now it may have another version of the model."""
    policy = open_on_cpu(folder, lora=LORA)
    save_snapshot(policy, tmp_path / "000000", 0)
    asked: list[str] = []

    def copy_of_hub(name: str) -> Path:
        asked.append(name)
        return tmp_path / "of_hub"

    monkeypatch.setattr(model_folder, "_copy_of_hub", copy_of_hub)
    settings = policy._settings.model_copy(update={"path": "org/name"})
    load_snapshot(tmp_path / "000000", settings, policy.teacher)
    assert not asked
    folder.rename(tmp_path / "of_hub")
    load_snapshot(tmp_path / "000000", settings, policy.teacher)
    assert asked == ["org/name"]


def test_versions_tell_starts_apart(folder: Path) -> None:
    version = open_on_cpu(folder, lora=LORA).version
    assert version == open_on_cpu(folder, lora=copy.deepcopy(LORA)).version
    others = [
        open_on_cpu(folder),
        open_on_cpu(folder, lora=LORA, base_dtype="bfloat16"),
        open_on_cpu(folder, lora=LoraSection(rank=4, alpha=7.0)),
    ]
    assert version not in {other.version for other in others}
