"""Caps and scales by a model's configuration: of its logits, and of attention scores."""

import re
from typing import Any

from pipeline.errors import PolicyError

_OF_LOGITS = re.compile(
    r"((final|output|lm_head)_)?logits?_(soft_?cap(ping)?|caps?|scal(e|ing)|multiplier)"
    r"|lm_head_(multiplier|scale)|output_multiplier(_scale)?"
)
"""Settings of Gemma 2, RecurrentGemma, xLSTM, nanochat, Cohere, Granite, Falcon-H1 and others."""
_OF_ATTENTION = re.compile(r"(attn|attention)_(logits?_)?(soft_?cap(ping)?|caps?)")
_NEUTRAL = (None, False, 1)


def expect_plain_logits(config: Any, path: str) -> None:
    """Refuse a configuration whose logits are more than projections of hidden states.

    Losses are computed from projections, chunk by chunk; a cap or scale after them would be lost.

    Raises:
        PolicyError: it caps or scales logits.
    """
    for name, value in sorted(config.get_text_config().to_dict().items()):
        if _OF_LOGITS.fullmatch(name) and value not in _NEUTRAL:
            raise PolicyError(
                f"{path}: config.json has {name} = {value}: its logits are not projection(hidden "
                "states); such models are not supported"
            )


def caps_attention(config: Any) -> bool:
    """Tell whether a configuration caps attention scores."""
    settings = config.get_text_config().to_dict()
    return any(_OF_ATTENTION.fullmatch(n) and v not in _NEUTRAL for n, v in settings.items())
