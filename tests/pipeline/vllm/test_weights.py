"""The weights that are sent: every name of them, the bytes, and who gets them."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import torch
from safetensors.torch import load_file

from pipeline.vllm.weights import FanOutClient, FileSender, named_weights
from tests.conftest import OpenPolicy


def test_every_name_of_a_tied_weight_is_sent(tiny_policy: OpenPolicy) -> None:
    model = tiny_policy().model
    sent = dict(named_weights(model, torch.bfloat16))
    assert sent["lm_head.weight"].equal(sent["model.embed_tokens.weight"])
    assert set(sent) == {name for name, _ in model.named_parameters()} | {"lm_head.weight"}
    assert {weight.dtype for weight in sent.values()} == {torch.bfloat16}
    assert not any(weight.requires_grad for weight in sent.values())


def test_weights_by_file_are_those_of_the_policy(tiny_policy: OpenPolicy, tmp_path: Path) -> None:
    model, replica = tiny_policy().model, Mock()
    expected = dict(named_weights(model, torch.bfloat16))

    def load(sent: dict[str, Any]) -> None:
        assert sent == {"path": str(tmp_path / "weights.safetensors"), "tensors": len(expected)}
        found = load_file(sent["path"])
        assert found.keys() == expected.keys()
        assert all(found[name].equal(weight) for name, weight in expected.items())

    replica.update_weights.side_effect = load
    (tmp_path / "weights.safetensors").touch()  # of a run that was killed
    for version in ("first", "second"):
        FileSender(tmp_path, torch.bfloat16).send([replica], model, version, restarted=False)
    assert replica.update_weights.call_count == 2
    replica.finish_weight_update.assert_called_with("second")
    assert not list(tmp_path.iterdir())


def test_ranks_follow_host_after_host() -> None:
    class Listener:
        def __init__(self, workers: int) -> None:
            self.workers, self.info = workers, {}

        def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
            self.info = info

    replicas = [Listener(2), Listener(1), Listener(3)]
    FanOutClient(replicas, "v").init_weight_transfer_engine({"rank_offset": 1, "world_size": 7})  # type: ignore[arg-type]
    assert [replica.info["rank_offset"] for replica in replicas] == [1, 3, 4]
    assert {replica.info["world_size"] for replica in replicas} == {7}
