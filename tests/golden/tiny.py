"""A step small enough for finite differences: a Qwen3 of 16 dimensions and two groups of three.

Rewards: group 0 has one correct rollout of three, group 1 two of three, so that under `srpo`
both branches, the sole correct rollout and the choice of a sibling all occur.
"""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
ANSWERS = (
    "7<|end|>",
    "<think>hm</think>12<|end|>",
    "5 or 6",
    "3<|end|>",
    "4 4<|end|>",
    "x</think>9",
)
REWARDS = (0.0, 1.0, 0.25, 1.0, 0.0, 1.0)
TEMPERATURE = 0.75


class TinyStep(NamedTuple):
    """The inputs of `recompute`."""

    tables: dict[str, pa.Table]
    policy_dir: Path
    teacher: list[tuple[dict[str, Tensor], float]]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each printable character, and three special ones."""
    names = ["<|pad|>", "<|start|>", "<|end|>", "\n", *map(chr, range(32, 127))]
    inner = Tokenizer(
        models.WordLevel({name: index for index, name in enumerate(names)}, "<|pad|>")
    )
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(names[:3])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def make_model(seed: int, vocabulary: int) -> Qwen3ForCausalLM:
    """A random policy whose logits spread enough for the distributions to differ."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    return Qwen3ForCausalLM(config)


def teacher_prompt(question: str, demonstration: str) -> str:
    """The rendered teacher prompt, spelled out."""
    return (
        "<|start|>system\nS<|end|>\n<|start|>user\n"
        f"{question}\nCorrect solution:\n\n{demonstration}\n\n"
        "Correctly solve the original question.<|end|>\n<|start|>assistant\n"
    )


def make_step(folder: Path, mini_batches: int) -> TinyStep:
    """Write a policy to `folder` and return a step over it, of one or two mini-batches."""
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(folder)
    make_model(0, len(tokenizer)).save_pretrained(folder)
    other = {n: p.detach().clone() for n, p in make_model(1, len(tokenizer)).named_parameters()}
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
            f"<|start|>system\nS<|end|>\n<|start|>user\n{question}<|end|>\n<|start|>assistant\n"
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
    return TinyStep(
        {name: pa.Table.from_pylist(rows) for name, rows in tables.items()}, folder, [(other, 1.0)]
    )
