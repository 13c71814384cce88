"""Small chat templates, each true to how a well-known family opens and closes turns.

Their tokenizers have a token for each printable character, and the family's special tokens.
"""

from typing import Any, NamedTuple

from pipeline.config.sections import ModelSection
from tests.builders.policies import PRINTABLE, Vocabulary, tokenizer_of

CHATML = PRINTABLE.template
LLAMA_3 = (
    "{{ bos_token }}"
    "{% for m in messages %}"
    "<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{{ raise_exception('No turns of a system') }}{% endif %}"
    "{% for m in messages %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
DEEPSEEK_R1 = (
    "{{ bos_token }}"
    "{% for m in messages %}"
    "{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<user>{{ m.content }}"
    "{% else %}<assistant>{{ m.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}"
    "{% for m in messages %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('Only turns of user and assistant') }}{% endif %}"
    "{% endfor %}"
)
GPT_OSS = (
    "{% for m in messages %}"
    "{% if m.role == 'assistant' %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{{ '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' }}"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
LLAMA_4 = LLAMA_3.replace("eot_id", "eot").replace("_id|", "|")
PHI = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
WORDS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n### End\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
OPEN_ENDED = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


class Family(NamedTuple):
    """A family's template and special tokens.

    Attributes:
        special: special tokens after the one for padding.
        eos: what the tokenizer names as its end token.
        closes: the token that closes an assistant's turn; None: the template has none.
    """

    template: str
    special: tuple[str, ...]
    eos: str
    closes: str | None


FAMILIES = {
    "chatml": Family(CHATML, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), "<|endoftext|>",
                     "<|im_end|>"),
    "llama-3": Family(
        LLAMA_3,
        ("<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|end_of_text|>", "<|eot_id|>",
    ),
    "llama-4": Family(
        LLAMA_4, ("<|end_of_text|>", "<|start_header|>", "<|end_header|>", "<|eot|>"),
        "<|end_of_text|>", "<|eot|>",
    ),
    "gemma": Family(GEMMA, ("<eos>", "<start_of_turn>", "<end_of_turn>"), "<eos>", "<end_of_turn>"),
    "deepseek-r1": Family(DEEPSEEK_R1, ("</s>", "<user>", "<assistant>"), "</s>", "</s>"),
    "mistral": Family(MISTRAL, ("<s>", "</s>", "[INST]", "[/INST]"), "</s>", "</s>"),
    "gpt-oss": Family(
        GPT_OSS,
        ("<|endoftext|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>"),
        "<|endoftext|>", "<|return|>",
    ),
    "phi": Family(PHI, ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>"), "<|endoftext|>",
                  "<|end|>"),
    "words": Family(WORDS, ("<|endoftext|>",), "<|endoftext|>", None),
    "open-ended": Family(OPEN_ENDED, ("<|endoftext|>",), "<|endoftext|>", None),
}  # fmt: skip


def vocabulary_of(family: Family) -> Vocabulary:
    """Return a vocabulary with a family's special tokens and template."""
    special = ("<|pad|>", *family.special)
    own = {"special": special, "end": family.eos, "template": family.template}
    return Vocabulary(**{**PRINTABLE._asdict(), **own})


def family_tokenizer(name: str) -> Any:
    """Return a family's tokenizer."""
    return tokenizer_of(vocabulary_of(FAMILIES[name]))


def settings(**model: Any) -> ModelSection:
    """Return a section `model` with these settings."""
    return ModelSection(path="x", device="cpu", **model)
