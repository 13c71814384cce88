"""Snapshots are the same files whatever the number of ranks that write them, to the byte."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from transformers import Qwen3ForCausalLM

from pipeline.policy import Policy
from pipeline.snapshots import load_snapshot, open_policy, save_snapshot
from tests.ranks.launched import launch
from tests.ranks.snapshots import EMA, FROZEN, SECTION, work

pytestmark = pytest.mark.slow


def trained(folder: Path) -> Policy:
    """Return a policy whose weights, teacher and optimizer have all moved."""
    policy = open_policy(str(folder), SECTION, EMA)
    policy.optimizer.param_groups[0]["lr"] = 1e-2
    for step in range(2):
        policy.begin_update()
        policy.model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.log_softmax(-1)[
            ..., 9
        ].sum().backward()
        policy.optimizer.step()
        policy.optimizer.zero_grad()
        policy.advance_teacher()
        policy.finish_update(f"{step + 1:06d}-made by hand")
    return policy


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def folder(
    request: pytest.FixtureRequest, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model none of whose sizes can be divided by four, one of which is three.

    Beside it, written by one rank: `first`, a snapshot of it, and `second`, two updates on.
    """
    folder = tmp_path_factory.mktemp("snapshots")
    shutil.copytree(tiny_folder, folder / "model")
    policy = open_policy(str(tiny_folder), SECTION, EMA)
    sizes = {"hidden_size": 10, "intermediate_size": 3, "head_dim": 6, "num_hidden_layers": 2}
    config = policy.model.config.__class__.from_dict(
        {
            **policy.model.config.to_dict(),
            **sizes,
            "layer_types": None,
            "vocab_size": 101,
            "tie_word_embeddings": request.param,
            "initializer_range": 0.3,
        }
    )
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder / "model")
    work("start", folder / "model", folder / "first")
    save_snapshot(trained(folder / "model"), folder / "second", 2)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("count", [2, 4])
def test_every_number_of_ranks_opens_and_writes_the_same_bytes(
    folder: Path, tmp_path: Path, count: int
) -> None:
    for task, source, expected in [("start", "model", "first"), ("again", "second", "second")]:
        target = tmp_path / task
        launch("tests.ranks.snapshots", count, tmp_path, task, str(folder / source), str(target))
        assert files(target) == files(folder / expected)
    names = set(load_file(folder / "second/model.safetensors"))
    assert ("lm_head.weight" in names) is (
        not load_snapshot(folder / "first", SECTION, EMA).model.config.tie_word_embeddings
    )


def test_a_rank_that_is_killed_while_it_writes_leaves_no_snapshot(
    folder: Path, tmp_path: Path
) -> None:
    source, target = folder / "second", tmp_path / "policy" / "000002"
    with pytest.raises(ChildFailedError) as caught:
        launch("tests.ranks.snapshots", 2, tmp_path, "killed", str(source), str(target))
    assert caught.value.failures[1].exitcode == -9
    left = [path.name for path in target.parent.iterdir()]
    assert left == [".000002.tmp"]
    assert not (target.parent / left[0] / "state.json").exists()
    launch("tests.ranks.snapshots", 2, tmp_path, "again", str(source), str(target))
    assert files(target) == files(source)


def test_a_teacher_is_taken_from_the_first_snapshot(folder: Path, tmp_path: Path) -> None:
    """As a fork does that changes the teacher."""
    found = []
    for count in (1, 2):
        target = tmp_path / str(count)
        launch(
            "tests.ranks.snapshots", count, tmp_path, "adopt", str(folder / "second"), str(target)
        )
        found.append(files(target))
    assert found[0] == found[1]
    state = json.loads(found[0]["state.json"])
    assert state["teacher"]["kind"] == FROZEN.kind
    teacher = load_file(tmp_path / "2/teacher.safetensors")
    initial = load_file(folder / "first/model.safetensors")
    assert all(teacher[name].equal(weight) for name, weight in initial.items())
