"""Adapters in peft's files: peft opens ours, we open peft's, and what doesn't fit is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.config.sections import LoraSection
from pipeline.errors import PolicyError
from pipeline.policy.policy import Policy
from pipeline.policy.snapshots import save_merged, save_snapshot
from tests.builders.policies import LOWERCASE, open_on_cpu, write_tiny_policy

LORA = LoraSection(rank=4, alpha=6.0, targets=["q_proj", "v_proj", "down_proj"])
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    """Return a policy whose adapters are as after some training."""
    write_tiny_policy(tmp_path / "base", 0, LOWERCASE)
    policy = open_on_cpu(tmp_path / "base", lora=LORA)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in policy.trainable().values():
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
    return policy


@pytest.fixture
def saved(policy: Policy, tmp_path: Path) -> Path:
    save_snapshot(policy, tmp_path / "saved", 0)
    return tmp_path / "saved"


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS, use_cache=False).logits
    return found


def base_of(policy: Policy) -> Path:
    return Path(policy.model.name_or_path)


def test_peft_opens_our_adapter(policy: Policy, saved: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = AutoModelForCausalLM.from_pretrained(base_of(policy))
    theirs = peft.PeftModel.from_pretrained(base, saved)
    assert float((logits(theirs) - logits(policy.model)).abs().max()) < 1e-5
    merged = theirs.merge_and_unload()
    assert float((logits(merged) - logits(policy.model)).abs().max()) < 1e-5


def test_transformers_opens_our_adapter_by_its_folder(policy: Policy, saved: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    theirs = AutoModelForCausalLM.from_pretrained(saved)
    assert float((logits(theirs) - logits(policy.model)).abs().max()) < 1e-5


def test_we_open_an_adapter_of_peft(policy: Policy, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed")
    base = AutoModelForCausalLM.from_pretrained(base_of(policy))
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["o_proj", "gate_proj"])
    theirs = peft.get_peft_model(base, config)
    with torch.no_grad():
        for name, tensor in theirs.named_parameters():
            if "lora_" in name:
                tensor.normal_(std=0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    lora = LoraSection(
        rank=3, alpha=5.0, targets=["o_proj", "gate_proj"], adapter=str(tmp_path / "theirs")
    )
    ours = open_on_cpu(base_of(policy), lora=lora)
    assert float((logits(ours.model) - logits(theirs)).abs().max()) < 1e-5
    assert (
        ours.version
        != open_on_cpu(base_of(policy), lora=lora.model_copy(update={"adapter": None})).version
    )


def test_a_merged_model_is_a_plain_folder(policy: Policy, tmp_path: Path) -> None:
    save_merged(policy, tmp_path / "merged")
    opened = open_on_cpu(tmp_path / "merged")
    assert float((logits(opened.model) - logits(policy.model)).abs().max()) < 1e-5
    assert opened.model.get_output_embeddings().weight is opened.model.get_input_embeddings().weight
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    before = json.loads((base_of(policy) / "config.json").read_text())
    assert {k: config[k] for k in before} == before


def test_an_adapter_starts_a_run_where_another_ended(policy: Policy, saved: Path) -> None:
    lora = LORA.model_copy(update={"adapter": str(saved)})
    opened = open_on_cpu(base_of(policy), lora=lora)
    assert torch.equal(logits(opened.model), logits(policy.model))


def change(folder: Path, **entries: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"r": 8}, r"r is 8, model.lora.rank is 4; set model.lora.rank"),
        ({"lora_alpha": 12}, r"lora_alpha is 12, model.lora.alpha is 6.0"),
        (
            {"target_modules": ["q_proj"]},
            r"target_modules is \[\"q_proj\"\], model.lora.targets is",
        ),
        ({"target_modules": "all-linear"}, r"target_modules is \"all-linear\""),
        ({"lora_dropout": 0.05}, "lora_dropout is 0.05, which adapters here don't have"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is"),
        ({"use_dora": True}, "use_dora is true"),
        ({"use_rslora": True}, "use_rslora is true"),
        ({"bias": "all"}, 'bias is "all"'),
        ({"init_lora_weights": "pissa"}, 'init_lora_weights is "pissa"'),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern is"),
        ({"peft_type": "IA3"}, 'peft_type is "IA3"'),
        ({"some_future_kind": 0.5}, "some_future_kind is 0.5"),
    ],
)
def test_another_kind_of_adapter(
    policy: Policy, saved: Path, entries: dict[str, Any], message: str
) -> None:
    change(saved, **entries)
    expect_refused(policy, saved, message)


def expect_refused(policy: Policy, saved: Path, message: str) -> None:
    with pytest.raises(PolicyError, match=message) as raised:
        open_on_cpu(base_of(policy), lora=LORA.model_copy(update={"adapter": str(saved)}))
    assert str(raised.value).count("\n") == 0


def test_missing_and_broken_files(policy: Policy, saved: Path, tmp_path: Path) -> None:
    expect_refused(policy, tmp_path / "nothing", "no adapter_config.json there")
    expect_refused(policy, Path("~nobody-of-that-name/a"), "no adapter_config.json there")
    path = saved / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    expect_refused(policy, saved, "adapter_model.safetensors: can't be read")
    path.write_bytes(b"\xff" * 100)
    expect_refused(policy, saved, "adapter_model.safetensors")
    path.rename(path.with_suffix(".bin"))
    expect_refused(policy, saved, r"no tensors in adapter_model.safetensors; an adapter_model.bin")
    (saved / "adapter_config.json").write_text("[]")
    expect_refused(policy, saved, "no JSON object")
    (saved / "adapter_config.json").write_text("{")
    expect_refused(policy, saved, "not readable JSON")


def test_tensors_of_another_model(policy: Policy, saved: Path) -> None:
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name][:, :5].clone()}, path)
    expect_refused(policy, saved, r"expected a tensor .* found one of \[4, 5\]")
    save_file({k: v for k, v in tensors.items() if k != name}, path)
    expect_refused(policy, saved, "found none")
    save_file(tensors | {"more": torch.zeros(1)}, path)
    expect_refused(policy, saved, "1 tensors belong to no adapter")
    save_file(tensors | {name: tensors[name] * float("nan")}, path)
    expect_refused(policy, saved, "not finite")
    for kind in (torch.int32, torch.float8_e4m3fn, torch.complex64):
        save_file(tensors | {name: tensors[name].to(kind)}, path)
        expect_refused(policy, saved, f"is stored as {str(kind)[6:]}; adapters are in float32")


def test_an_adapter_in_another_type_or_in_several_files(policy: Policy, saved: Path) -> None:
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    lora = LORA.model_copy(update={"adapter": str(saved), "targets": [*LORA.targets, "q_proj"]})
    for kind in (torch.float64, torch.float16, torch.bfloat16):
        save_file({name: tensor.to(kind) for name, tensor in tensors.items()}, path)
        for name, tensor in open_on_cpu(base_of(policy), lora=lora).trainable().items():
            stored = tensors[f"base_model.model.{name}.weight"].to(kind).float()
            assert torch.equal(tensor, stored)
    names = list(tensors)
    for number, part in enumerate((names[:3], names[3:]), start=1):
        file = saved / f"adapter_model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, file)
    path.unlink()
    assert torch.equal(logits(open_on_cpu(base_of(policy), lora=lora).model), logits(policy.model))
