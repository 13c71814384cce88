"""Hints for word problems: the form, then which written step is wrong."""

from data.hints.calculations import (
    calculations,
    last_answer,
    missing_number,
    wrong_calculation,
)


def hint(response: str, reference: str) -> str | None:
    """Return what is wrong with the form of a wrong response, or with its own working."""
    del reference
    if (wrong := missing_number(response) or wrong_calculation(response)) is not None:
        return wrong
    made = calculations(response)
    if not made:
        return "The answer is wrong, and no calculation is written down."
    if int(last_answer(response) or "") != made[-1].result:
        return "The answer is not the result of the last calculation."
    return "Each calculation is right by itself, but they don't answer the question."
