"""Tiny random Qwen3 policies, a token for each character: for tests that need numbers, not sense.

There are two vocabularies: LOWERCASE is small, V = 53; PRINTABLE, V = 100, has all printable ASCII
characters, so that texts round-trip. The weights depend on the seed and the sizes alone.
"""

import string
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from pipeline.config.sections import ModelSection
from pipeline.policy.policy import Policy, TeacherSettings
from pipeline.policy.snapshots import open_policy

EMA = TeacherSettings(kind="ema", rate=0.05, mix=0.05)


class Vocabulary(NamedTuple):
    """The tokens of a policy, in the order of their ids: special ones, unknown, characters.

    Attributes:
        special: the first is for padding.
        end: the special token that ends a response.
        pattern: regular expression of what is one token.
        template: the chat template.
    """

    special: tuple[str, ...]
    end: str
    unknown: str
    characters: str
    pattern: str
    template: str

    def __len__(self) -> int:
        return len(self.special) + 1 + len(self.characters)


LOWERCASE = Vocabulary(
    special=("<pad>", "<end>", "<user>", "<system>", "<assistant>"),
    end="<end>",
    unknown="<unk>",
    characters=string.ascii_lowercase + string.digits + " \n:.,+-=?!C",
    pattern=".",  # several newlines are one unknown token: recorded numbers are those of this
    template=(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    ),
)
PRINTABLE = Vocabulary(
    special=("<|pad|>", "<|im_start|>", "<|im_end|>"),
    end="<|im_end|>",
    unknown="<|unknown|>",
    characters="\n" + "".join(map(chr, range(32, 127))),
    pattern=r"[\s\S]",
    template=(
        "{% for message in messages %}"
        "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
        "{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
)


def write_tiny_policy(
    folder: Path,
    seed: int,
    vocabulary: Vocabulary = LOWERCASE,
    *,
    layers: int = 2,
    hidden: int = 32,
    spread: float = 0.15,
    tied: bool = True,
    padding: str | None = None,
) -> None:
    """Write the Hugging Face folder of a random policy with two heads.

    Args:
        spread: deviation of the initial weights; larger means lower entropy.
        tied: whether the output projection is the table of embeddings.
        padding: the token that the model takes for padding; None: the tokenizer's.
    """
    tokenizer = tokenizer_of(vocabulary)
    tokenizer.save_pretrained(folder)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=hidden // 2,
        max_position_embeddings=2048,
        tie_word_embeddings=tied,
        initializer_range=spread,
        pad_token_id=tokenizer.convert_tokens_to_ids(padding or tokenizer.pad_token),
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.save_pretrained(folder)


def tokenizer_of(vocabulary: Vocabulary) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a vocabulary."""
    tokens = [*vocabulary.special, vocabulary.unknown, *vocabulary.characters]
    inner = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, vocabulary.unknown))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(vocabulary.pattern), "isolated")
    inner.decoder = decoders.Fuse()
    inner.add_special_tokens(list(vocabulary.special))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=vocabulary.special[0],
        eos_token=vocabulary.end,
        unk_token=vocabulary.unknown,
    )
    tokenizer.chat_template = vocabulary.template
    return tokenizer


def open_on_cpu(folder: Path, teacher: TeacherSettings = EMA, **model: Any) -> Policy:
    """Open the policy of a folder on the CPU; `model` are more settings of the section model."""
    section = ModelSection(path=str(folder), device="cpu", **model)
    return open_policy(str(folder), section, teacher)
