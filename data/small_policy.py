"""What the policies have in common that the project made from nothing (`data.demo`, `data.study`).

A tokenizer of whole words and single digits, a small Qwen3, and the supervised loss of responses.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pipeline.config.sections import TemplatesSection

TEMPLATES = TemplatesSection()
"""How teacher prompts are worded by default."""
PAD, EOS, START, END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Example(NamedTuple):
    """A user message and the response to learn."""

    content: str
    response: str


def taught(text: str, solution: str) -> str:
    """Return the user message of the teacher prompt (docs/method.md, section 2)."""
    return TEMPLATES.solution.format(question=text, solution=solution)


def build_tokenizer(texts: list[str], piece: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each piece of the texts and each ASCII character.

    Args:
        piece: a regular expression that any text is cut into matches of.
    """
    characters = {chr(code) for code in range(32, 127)} | {"\n"}
    pieces = sorted(characters.union(*(re.findall(piece, text) for text in texts)))
    # Equal scores make the Unigram model take as few pieces as it can.
    unknown = "<|unknown|>"
    tokenizer = Tokenizer(Unigram([(unknown, -10.0), *((p, -1.0) for p in pieces)], unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(piece), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    special = [AddedToken(token, special=True) for token in (PAD, EOS, START, END)]
    tokenizer.add_special_tokens(special)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        unk_token=unknown,
        additional_special_tokens=[START, END, EOS],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def build_model(tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int) -> Qwen3ForCausalLM:
    """Return a Qwen3 with random weights and heads of 32 dimensions."""
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            intermediate_size=2 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            num_key_value_heads=hidden // 32,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
            dtype="float32",
        )
    )


def padded(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[Example], system: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and labels, both [examples, length]; only response tokens have a label."""
    rows = []
    for content, response in examples:
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": content},
        ]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        rows.append((prompt, [*tokenizer.encode(response), tokenizer.eos_token_id]))
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), -100)
    for row, (prompt, answer) in enumerate(rows):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


def token_loss_sum(
    model: Qwen3ForCausalLM, ids: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, int]:
    """Return the summed cross-entropy of the labelled tokens, in nats, and their number."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    kept = targets != -100
    logits = model.lm_head(hidden[kept])
    return cross_entropy(logits, targets[kept], reduction="sum"), int(kept.sum())
