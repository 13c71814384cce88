"""The teacher's prompt: question, solution, feedback (docs/method.md, sections 2 and 12)."""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.config.sections import TemplatesSection
from pipeline.stage.contract import Render
from pipeline.task import Message

_CUT = " … "
_PLACEHOLDER = re.compile(r"\{(question|solution|feedback)\}")


class TeacherPrompt(NamedTuple):
    """A rendered teacher prompt, and what had to be shortened: nothing, a solution or feedback."""

    text: str
    token_ids: list[int]
    shortened: str = ""


def without_thinking(response: str) -> str:
    """Remove each `<think>…</think>`, and all up to a lone `</think>`.

    The white space that follows a block goes with it.
    """
    stripped = re.sub(r"<think>.*?</think>\s*", "", response, flags=re.DOTALL)
    _, lone, rest = stripped.rpartition("</think>")
    return rest.lstrip() if lone else rest


def is_blank(feedback: str | None) -> bool:
    """Tell whether feedback says nothing; then it is not even announced."""
    return feedback is None or not feedback.strip()


def teacher_messages(
    messages: Sequence[Message],
    solution: str | None,
    feedback: str | None,
    templates: TemplatesSection,
) -> list[Message]:
    """Return the conversation with the last user turn put into the template for what is shown.

    Placeholders are filled in one pass: texts that are filled in may hold braces of their own.
    """
    *before, question = messages
    if solution is None:
        template = templates.feedback
    else:
        template = templates.solution if is_blank(feedback) else templates.both
    texts = {"question": question.content, "solution": solution, "feedback": feedback}
    content = _PLACEHOLDER.sub(lambda found: texts[found[1]] or "", template)
    return [*before, Message(question.role, content)]


def teacher_prompt(
    messages: Sequence[Message],
    solution: str | None,
    feedback: str | None,
    templates: TemplatesSection,
    limit: int,
    render: Render,
) -> TeacherPrompt | None:
    """Render the teacher prompt within `limit` tokens.

    Header and question are never cut. A solution that does not fit is shortened from its middle, by
    as little as bisection finds; feedback is, where it is alone or cutting the solution can't help.
    None if nothing can.
    """

    def rendered(solution: str | None, feedback: str | None) -> tuple[str, list[int]]:
        return render(teacher_messages(messages, solution, feedback, templates))

    text, ids = rendered(solution, feedback)
    if len(ids) <= limit:
        return TeacherPrompt(text, ids)
    if solution is not None:
        best = _longest(solution, lambda cut: rendered(cut, feedback), limit)
        if best is not None:
            return TeacherPrompt(*best, shortened="demonstration")
    if feedback is None or is_blank(feedback):
        return None
    best = _longest(feedback, lambda cut: rendered(solution, cut), limit)
    return None if best is None else TeacherPrompt(*best, shortened="feedback")


def _longest(
    text: str, rendered: Callable[[str], tuple[str, list[int]]], limit: int
) -> tuple[str, list[int]] | None:
    """Return the prompt with as much of a text as fits; None if not one character does."""
    fits, too_long = 0, len(text)
    best: tuple[str, list[int]] | None = None
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        found = rendered(_shortened(text, middle))
        if len(found[1]) <= limit:
            fits, best = middle, found
        else:
            too_long = middle
    return best


def _shortened(text: str, characters: int) -> str:
    """Return that many characters, half from each end, with a mark where the middle was."""
    if characters >= len(text):
        return text
    head = (characters + 1) // 2
    return text[:head] + _CUT + text[len(text) - (characters - head) :]
