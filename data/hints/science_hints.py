"""Hints for questions with four options: the form, or that the chosen one is wrong."""

from data.science_qa import LETTERS, last_answer


def hint(response: str, reference: str) -> str | None:
    """Return what is wrong with a wrong response; no option is ever named."""
    del reference
    prediction = last_answer(response)
    if prediction is None:
        return "There is no <answer>…</answer>."
    if prediction not in LETTERS:
        return "The answer must be the letter of one option and nothing else."
    return "The chosen option is wrong."
