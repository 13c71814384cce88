"""Prompts: conversations through a tokenizer's chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from pipeline.errors import PolicyError
from pipeline.task import Message
from pipeline.text import printable

_TEMPLATE_ERRORS = (
    TemplateError,
    ValueError,
    TypeError,
    ArithmeticError,
    LookupError,
    RecursionError,
)
"""Errors that a chat template may raise; it is a program that somebody else wrote."""


def render_prompt(
    tokenizer: Any, template_kwargs: Mapping[str, Any], messages: Sequence[Message]
) -> tuple[str, list[int]]:
    """Return the prompt text and ids: the chat template with its header for the answer.

    Raises:
        PolicyError: the template refuses the conversation (some accept no system turn).
    """
    turns = [message._asdict() for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, **template_kwargs
        )
    except _TEMPLATE_ERRORS as error:
        roles = ", ".join(message.role for message in messages)
        reason = printable(" ".join(str(error).split()), 300)
        raise PolicyError(f"the chat template refuses turns of {roles}: {reason}") from None
    return text, encode_prompt(tokenizer, text)


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a rendered prompt; nothing is added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
