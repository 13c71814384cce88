"""A step small enough for finite differences: a Qwen3 of 16 dimensions and two groups of three.

Rewards: group 0 has one correct rollout of three, group 1 two of three, so that under `srpo`
both branches, the sole correct rollout and the choice of a sibling all occur.
"""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.builders.policies import PRINTABLE, tokenizer_of, write_tiny_policy

ANSWERS = (
    "7<|im_end|>",
    "<think>hm</think>12<|im_end|>",
    "5 or 6",
    "3<|im_end|>",
    "4 4<|im_end|>",
    "x</think>9",
)
REWARDS = (0.0, 1.0, 0.25, 1.0, 0.0, 1.0)
TEMPERATURE = 0.75


class TwinInputs(NamedTuple):
    """The inputs of `recompute`."""

    tables: dict[str, pa.Table]
    policy_dir: Path
    teacher: list[tuple[dict[str, Tensor], float]]


def teacher_prompt(question: str, demonstration: str) -> str:
    """The rendered teacher prompt, spelled out."""
    return (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n"
        f"{question}\nCorrect solution:\n\n{demonstration}\n\n"
        "Correctly solve the original question.<|im_end|>\n<|im_start|>assistant\n"
    )


def make_step(folder: Path, mini_batches: int) -> TwinInputs:
    """Write a policy to `folder` and return a step over it, of one or two mini-batches."""
    tokenizer = tokenizer_of(PRINTABLE)
    write_tiny_policy(folder, 0, PRINTABLE, hidden=16, spread=0.3)
    write_tiny_policy(folder / "teacher", 1, PRINTABLE, hidden=16, spread=0.3)
    teacher = load_file(folder / "teacher" / "model.safetensors")
    siblings = (1, None, 1, 5, 3, 3)
    demonstrations = {1: "12", 3: "3", 5: "9"}
    rollouts, verdicts, routes = [], [], []
    generator = torch.Generator().manual_seed(2)
    for index, answer in enumerate(ANSWERS):
        group, sample = divmod(index, 3)
        name, question = f"000000-{group:04d}-{sample:02d}", f"Q{group}?"
        messages = [{"role": "system", "content": "S"}, {"role": "user", "content": question}]
        ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
        prompt = (
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n"
            f"{question}<|im_end|>\n<|im_start|>assistant\n"
        )
        sibling = siblings[index]
        taught = "" if sibling is None else teacher_prompt(question, demonstrations[sibling])
        rollouts.append(
            {
                "rollout_id": name,
                "group": group,
                "sample": sample,
                "messages": messages,
                "prompt_ids": tokenizer(prompt, add_special_tokens=False)["input_ids"],
                "response_ids": ids,
                "sampled_logprobs": (-5 * torch.rand(len(ids), generator=generator)).tolist(),
                "temperature": TEMPERATURE,
                "finish_reason": "stop" if answer.endswith("<|im_end|>") else "length",
            }
        )
        verdicts.append({"rollout_id": name, "reward": REWARDS[index]})
        routes.append(
            {
                "rollout_id": name,
                "mini_batch": group if mini_batches == 2 else 0,
                "teacher_prompt_ids": tokenizer(taught, add_special_tokens=False)["input_ids"],
            }
        )
    tables = {"rollouts": rollouts, "verdicts": verdicts, "routes": routes}
    return TwinInputs(
        {name: pa.Table.from_pylist(rows) for name, rows in tables.items()},
        folder,
        [(teacher, 1.0)],
    )
