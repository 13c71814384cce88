"""A tiny random Qwen3 policy with a character tokenizer, for tests that need numbers, not sense."""

import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

SPECIAL = ["<pad>", "<end>", "<user>", "<system>", "<assistant>"]
CHARACTERS = string.ascii_lowercase + string.digits + " \n:.,+-=?!C"
VOCABULARY = len(SPECIAL) + len(CHARACTERS) + 1
_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_tiny_policy(folder: Path, seed: int, spread: float = 0.15, tied: bool = True) -> None:
    """Write a Hugging Face folder: 2 layers, hidden 32, one token per character, V = 53.

    Args:
        spread: deviation of the initial weights; larger means lower entropy.
        tied: whether the output projection is the table of embeddings.
    """
    tokens = [*SPECIAL, "<unk>", *CHARACTERS]
    core = Tokenizer(models.WordLevel({t: i for i, t in enumerate(tokens)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[2:],
    )
    tokenizer.chat_template = _TEMPLATE
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=VOCABULARY,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=16,
                max_position_embeddings=512,
                tie_word_embeddings=tied,
                initializer_range=spread,
                eos_token_id=1,
                pad_token_id=0,
                bos_token_id=None,
            )
        )
    model.save_pretrained(folder, safe_serialization=True)
    tokenizer.save_pretrained(folder)
