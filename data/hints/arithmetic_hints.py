"""Hints for sums and differences: the form, then which written step is wrong."""

from data.hints.calculations import calculations, missing_number, wrong_calculation


def hint(response: str, reference: str) -> str | None:
    """Return what is wrong with the form of a wrong response, or with its own working."""
    del reference
    if (wrong := missing_number(response) or wrong_calculation(response)) is not None:
        return wrong
    if not calculations(response):
        return "The answer is wrong, and no calculation is written down."
    return "Each calculation is right by itself, but a step between them is missing or wrong."
