"""What a rank holds while policies are opened and kept: its parts, and little more."""

import json
from pathlib import Path

import pytest

from benchmarks.fixture import write_fixture
from tests.ranks.launcher import launch

pytestmark = pytest.mark.slow

NETWORK = {
    "vocab_size": 4096,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
MODEL_MB = 97.0  # 8 of embeddings, 6 layers of 14.8


@pytest.mark.campaign
def test_four_ranks_hold_a_quarter_each(tmp_path: Path) -> None:
    write_fixture(
        tmp_path / "model", NETWORK, prompts=1, prompt_tokens=2, completion_tokens=2, correct=[1]
    )
    measured: dict[str, tuple[float, float]] = {}
    for options in ([], ["--again"]):  # a snapshot is opened by ranks that held nothing before
        launch("benchmarks.ranks_memory", 4, tmp_path, "--child", str(tmp_path), *options)
        measured |= json.loads((tmp_path / "found.json").read_text())
    found = {work: megabytes for work, (megabytes, _) in measured.items()}
    # Two parts, and a pass that gathers the embeddings and a layer at a time.
    assert found["opening a model folder"] < 2 * MODEL_MB / 4 + 60
    assert found["writing a snapshot"] < 15
    # Four parts, the two of AdamW's state after the passes.
    assert found["opening a snapshot"] < 4 * MODEL_MB / 4 + 40
