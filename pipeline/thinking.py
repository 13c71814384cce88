"""Think blocks: where a response reasons, between `<think>` and `</think>`, before it answers.

A template may open the block in the prompt, in its header for the answer, or leave that to the
response.
A response whose block never closes has not answered: docs/method.md, section 2.
"""

OPEN, CLOSE = "<think>", "</think>"
OTHER_TAGS = ("[THINK]", "<seed:think>", "◁think▷", "<thinking>", "<thought>", "<|channel|>")
"""What begins the think blocks of other models, which are not known here."""


def template_thinks(template: str) -> bool:
    """Tell whether a chat template knows of think blocks: it opens, closes or removes them."""
    return OPEN in template or CLOSE in template


def opens_thinking(prompt: str, header: str = "") -> bool:
    """Tell whether a rendered prompt ends inside a think block.

    Args:
        header: its end, after all turns; a block that begins there may hold words already.
    """
    return prompt.rstrip().endswith(OPEN) or unclosed_thinking(header)


def unclosed_thinking(response: str, opened: bool = False) -> bool:
    """Tell whether a response ends inside a think block.

    Args:
        response: its text, tags included.
        opened: whether the prompt opened the block (`opens_thinking`).
    """
    last_open, last_close = response.rfind(OPEN), response.rfind(CLOSE)
    return last_open > last_close or (opened and last_close < 0)
