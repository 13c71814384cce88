"""The teacher's prompt: the question with a sibling's solution (docs/method.md, section 2)."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.stage.contract import Render
from pipeline.task import Message

_SOLUTION = "\nCorrect solution:\n\n"
_FEEDBACK = "\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
_CLOSING = "\n\nCorrectly solve the original question."
_CUT = " … "


class TeacherPrompt(NamedTuple):
    """A rendered teacher prompt, and whether its demonstration had to be shortened."""

    text: str
    token_ids: list[int]
    shortened: bool


def without_thinking(response: str) -> str:
    """Remove each `<think>…</think>`, and all up to a lone `</think>`.

    The white space that follows a block goes with it.
    """
    stripped = re.sub(r"<think>.*?</think>\s*", "", response, flags=re.DOTALL)
    _, lone, rest = stripped.rpartition("</think>")
    return rest.lstrip() if lone else rest


def teacher_messages(
    messages: Sequence[Message], demonstration: str, feedback: str | None
) -> list[Message]:
    """Return the conversation with the last user turn extended by solution and feedback.

    Blank feedback adds nothing, not even the sentence that announces it.
    """
    *before, question = messages
    content = question.content + _SOLUTION + demonstration
    if feedback is not None and feedback.strip():
        content += _FEEDBACK + feedback
    return [*before, Message(question.role, content + _CLOSING)]


def teacher_prompt(
    messages: Sequence[Message],
    demonstration: str,
    feedback: str | None,
    limit: int,
    render: Render,
) -> TeacherPrompt | None:
    """Render the teacher prompt within `limit` tokens.

    Header and question are never cut. A demonstration that does not fit is shortened from its
    middle, by as little as bisection finds; None if even that cannot help.
    """

    def rendered(characters: int) -> tuple[str, list[int]]:
        return render(teacher_messages(messages, _shortened(demonstration, characters), feedback))

    text, ids = rendered(len(demonstration))
    if len(ids) <= limit:
        return TeacherPrompt(text, ids, shortened=False)
    fits, too_long = 0, len(demonstration)
    best: tuple[str, list[int]] | None = None
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        text, ids = rendered(middle)
        if len(ids) <= limit:
            fits, best = middle, (text, ids)
        else:
            too_long = middle
    return None if best is None else TeacherPrompt(*best, shortened=True)


def _shortened(text: str, characters: int) -> str:
    """Return that many characters, half from each end, with a mark where the middle was."""
    if characters >= len(text):
        return text
    head = (characters + 1) // 2
    return text[:head] + _CUT + text[len(text) - (characters - head) :]
