"""A pretrained model is trained: a step of adapters on SmolLM2, resumed by another command."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import Srpo

SMALL = {
    "model.path": "smollm2",
    "model.lora.rank": 4,
    "model.base_dtype": "bfloat16",
    "model.precision": "bfloat16",
    "route.method": "grpo",
    "data.max_prompt_length": 128,
    "route.max_teacher_prompt_length": 512,
    "generate.questions": 1,
    "generate.rollouts": 2,
    "generate.max_response_length": 16,
    "evaluate.questions": 1,
    "evaluate.rollouts": 1,
    "evaluate.max_response_length": 16,
    "run.threads": 1,
}


@pytest.mark.slow
@pytest.mark.usefixtures("smollm2")
def test_a_step_of_adapters_and_a_second_by_another_command(tmp_path: Path, srpo: Srpo) -> None:
    root = tmp_path / "run"
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    code, out, err = srpo("train", "demo", "--run", root, *settings, "--set", "run.steps=1")
    assert code == 0, out + err
    record = json.loads((root / "run.json").read_text())
    assert record["gguf"]["file"].endswith("SmolLM2-135M-Instruct.Q4_1.gguf")
    assert record["gguf"]["sha256"].startswith("b179c9523d0e6a0f")
    code, out, err = srpo("train", "--resume", "--run", root, "--set", "run.steps=2")
    assert code == 0, out + err
    adapters = load_file(root / "policy" / "000002" / "adapter_model.safetensors")
    assert len(adapters) == 2 * 7 * 30
    assert sum(p.stat().st_size for p in (root / "policy" / "000002").iterdir()) < 40e6
