"""Snapshots are the same files whatever the number of ranks that write them, to the byte."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    PreTrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from pipeline.config.sections import ModelSection
from pipeline.distributed.ranks import LOST
from pipeline.policy.policy import Policy
from pipeline.policy.snapshots import open_policy, save_snapshot
from tests.ranks.launcher import launch
from tests.ranks.run_snapshots import EMA, FROZEN, SECTION, section_of, work

pytestmark = pytest.mark.slow


def trained(folder: Path, section: ModelSection = SECTION) -> Policy:
    """Return a policy whose weights, teacher and optimizer have all moved."""
    policy = open_policy(str(folder), section, EMA)
    policy.optimizer.param_groups[0]["lr"] = 1e-2
    for step in range(2):
        policy.begin_update()
        logits = policy.model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits
        logits.log_softmax(-1)[..., 9].sum().backward()
        policy.optimizer.step()
        policy.optimizer.zero_grad()
        policy.advance_teacher(step + 1)
        policy.finish_update(f"{step + 1:06d}-made by hand")
    return policy


def model_folder(
    folder: Path, tokenizer: Path, dtype: torch.dtype, config: PreTrainedConfig
) -> Path:
    """Write a random model with the tiny policy's tokenizer."""
    shutil.copytree(tokenizer, folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, trust_remote_code=False).to(dtype).save_pretrained(
            folder
        )
    return folder


def sizes(tied: bool) -> dict[str, Any]:
    """Return sizes none of which can be divided by four; one is three."""
    return {
        "vocab_size": 101, "hidden_size": 10, "intermediate_size": 3, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6, "eos_token_id": 2,
        "initializer_range": 0.3, "tie_word_embeddings": tied,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A `model` each; beside it, by one rank: `first`, a snapshot, `second`, two updates on."""
    found = {}
    for name, tied in {"tied": True, "untied": False}.items():
        found[name] = folder = tmp_path_factory.mktemp(name)
        model_folder(folder / "model", tiny_folder, torch.float32, Qwen3Config(**sizes(tied)))
        work("start", folder / "model", folder / "first")
        save_snapshot(trained(folder / "model"), folder / "second", 2)
        stored = load_file(folder / "second/model.safetensors")
        assert ("lm_head.weight" in stored) is not tied
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def on_ranks(count: int, logs: Path, *tasks: tuple[str, Path, Path]) -> None:
    """Have so many ranks do tasks of `run_snapshots`, one after the other."""
    launch(
        "tests.ranks.run_snapshots", count, logs, *(str(part) for task in tasks for part in task)
    )


@pytest.mark.parametrize("count", [2, 4])
def test_every_number_of_ranks_opens_and_writes_the_same_bytes(
    folders: dict[str, Path], tmp_path: Path, count: int
) -> None:
    expected = {}
    tasks = []
    for name, folder in folders.items():
        for task, source, same in [("start", "model", "first"), ("again", "second", "second")]:
            target = tmp_path / f"{name}-{task}"
            tasks.append((task, folder / source, target))
            expected[target] = folder / same
    on_ranks(count, tmp_path, *tasks)
    for target, same in expected.items():
        assert files(target) == files(same), target.name


@pytest.mark.parametrize("count", [2, 4])
def test_so_it_is_with_adapters(folders: dict[str, Path], tmp_path: Path, count: int) -> None:
    """Also when a fork takes the first snapshot's for its teacher."""
    model, first, second = (tmp_path / name for name in ("model", "first", "second"))
    shutil.copytree(folders["untied"] / "model", model)
    work("start lora", model, first)
    save_snapshot(trained(model, section_of(model, lora=True)), second, 2)
    work("adopt lora", second, tmp_path / "third")
    tasks = [("start", model, first), ("again", second, second)]
    tasks += [("adopt", second, tmp_path / "third")]
    on_ranks(
        count,
        tmp_path,
        *((f"{task} lora", source, same.with_suffix(".ranks")) for task, source, same in tasks),
    )
    for _, _, same in tasks:
        assert files(same.with_suffix(".ranks")) == files(same), same.name
    teacher = load_file(tmp_path / "third/teacher.safetensors")
    initial = load_file(first / "adapter_model.safetensors")
    assert len(teacher) == len(initial) > 0
    for name, tensor in teacher.items():
        assert initial[f"base_model.model.{name}.weight"].equal(tensor), name


def test_other_kinds_of_models(tiny_folder: Path, tmp_path: Path) -> None:
    """bfloat16; experts that transformers makes one weight of, and stores one by one; and a model
    that ends the first pass it is tried out with by an error.
    """
    experts = {
        "hidden_size": 12,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 8,
    }
    capped = {"final_logit_softcapping": None, "attn_logit_softcapping": 5.0}
    configs = {
        "half": (torch.bfloat16, Qwen3Config(**sizes(tied=True))),
        "experts": (torch.float32, Qwen3MoeConfig(**sizes(tied=False) | experts)),
        "padded": (torch.float32, Gemma2Config(**sizes(tied=True), **capped)),
    }
    for name, (dtype, config) in configs.items():
        work(
            "start",
            model_folder(tmp_path / name, tiny_folder, dtype, config),
            tmp_path / f"{name}-1",
        )
    on_ranks(2, tmp_path, *(("start", tmp_path / n, tmp_path / f"{n}-2") for n in configs))
    for name in configs:
        assert files(tmp_path / f"{name}-1") == files(tmp_path / f"{name}-2"), name


def test_what_one_rank_alone_sees_is_refused_by_all(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """The last row is the second rank's; of 101 rows that should be 102, it misses one."""
    model = folders["tied"] / "model"
    spoiled, other = (Path(shutil.copytree(model, tmp_path / n)) for n in ("a", "b"))
    tensors = load_file(spoiled / "model.safetensors")
    tensors["model.embed_tokens.weight"][-1, -1] = torch.inf
    save_file(tensors, spoiled / "model.safetensors", {"format": "pt"})
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "vocab_size": 102}))
    said = {spoiled: "not finite", other: "of another shape"}
    on_ranks(2, tmp_path, *(("refused", source, source / "said") for source in said))
    for source, words in said.items():
        text = (source / "said").read_text()
        assert words in text and "model.embed_tokens.weight" in text


def test_a_rank_that_alone_cannot_reach_the_store_ends_the_opening_on_all(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    source, target = folders["tied"] / "second", tmp_path / "000002"
    on_ranks(2, tmp_path, ("alone", source, target))
    assert target.with_suffix(".said").read_text() == "the store failed"
    assert files(target) == files(source)


def test_a_rank_that_is_killed_while_it_writes_leaves_no_snapshot(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    source, target = folders["tied"] / "second", tmp_path / "policy" / "000002"
    with pytest.raises(ChildFailedError) as caught:
        on_ranks(2, tmp_path, ("killed", source, target))
    # Of two that end together one is reported: that which was killed, or that which lost it.
    found = {number: failure.exitcode for number, failure in caught.value.failures.items()}
    assert found in ({1: -9}, {0: LOST})
    left = [path.name for path in target.parent.iterdir()]
    assert left == [".000002.tmp"]
    assert not (target.parent / left[0] / "state.json").exists()
    on_ranks(2, tmp_path, ("again", source, target))
    assert files(target) == files(source)


def test_rank_0_says_that_the_disk_of_another_is_full(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    target = tmp_path / "000002"
    with pytest.raises(ChildFailedError) as caught:
        on_ranks(2, tmp_path, ("full", folders["tied"] / "second", target))
    assert caught.value.failures[0].exitcode == 1
    assert target.with_suffix(".said").read_text().startswith("[Errno 28] No space left on device")
    assert not target.exists()


def test_a_teacher_is_taken_from_the_first_snapshot(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """As a fork does that changes the teacher."""
    source = folders["tied"] / "second"
    work("adopt", source, tmp_path / "1")
    on_ranks(2, tmp_path, ("adopt", source, tmp_path / "2"))
    assert files(tmp_path / "1") == files(tmp_path / "2")
    state = json.loads((tmp_path / "2/state.json").read_text())
    assert state["teacher"]["kind"] == FROZEN.kind
    teacher = load_file(tmp_path / "2/teacher.safetensors")
    initial = load_file(source.with_name("first") / "model.safetensors")
    assert all(teacher[name].equal(weight) for name, weight in initial.items())
