"""The teacher's prompt, to the character, and what happens when it is too long."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.task import Message
from stages.route.teacher_prompt import teacher_messages, teacher_prompt, without_thinking

SYSTEM = Message("system", "Be brief.")
QUESTION = Message("user", "What is 2+2?")


def render(messages: Sequence[Message]) -> tuple[str, list[int]]:
    """Stand in for a chat template with one token per character."""
    text = "".join(f"<{m.role}>{m.content}" for m in messages) + "<assistant>"
    return text, [ord(character) for character in text]


def test_wording_is_the_papers() -> None:
    found = teacher_messages([SYSTEM, QUESTION], "It is 4.", None)
    assert found == [
        SYSTEM,
        Message(
            "user",
            "What is 2+2?\nCorrect solution:\n\nIt is 4.\n\nCorrectly solve the original question.",
        ),
    ]


def test_feedback_stands_between_solution_and_closing_line() -> None:
    found = teacher_messages([QUESTION], "4", "You said 5.")
    assert found[0].content == (
        "What is 2+2?\nCorrect solution:\n\n4\nThe following is feedback from your unsuccessful "
        "earlier attempt:\n\nYou said 5.\n\nCorrectly solve the original question."
    )


@pytest.mark.parametrize("blank", ["", " ", "\n\t \n"])
def test_blank_feedback_adds_nothing(blank: str) -> None:
    assert teacher_messages([QUESTION], "4", blank) == teacher_messages([QUESTION], "4", None)


def test_thinking_is_removed() -> None:
    assert without_thinking("<think>a\nb</think>c") == "c"
    assert without_thinking("x<think>a</think>y<think>b</think>z") == "xyz"
    assert without_thinking("lost thought</think>answer") == "answer"
    assert without_thinking("a</think>b</think>c") == "c"
    # White space after a block goes with it; what stands before a block, or without one, stays.
    assert without_thinking("<think>a</think>\n\n c \n") == "c \n"
    assert without_thinking("lost thought</think>\n\tanswer") == "answer"
    assert without_thinking("x <think>a</think> y") == "x y"
    assert without_thinking(" c") == " c"
    assert without_thinking("<think>a</think>\n") == ""
    assert without_thinking("<think>never closed") == "<think>never closed"


def test_a_prompt_that_fits_is_not_touched() -> None:
    text, ids = render(teacher_messages([SYSTEM, QUESTION], "demo", None))
    found = teacher_prompt([SYSTEM, QUESTION], "demo", None, len(ids), render)
    assert found is not None
    assert (found.text, found.token_ids, found.shortened) == (text, ids, False)


@given(st.text(alphabet="abcdef", min_size=40, max_size=200), st.integers(5, 39))
def test_an_overlong_demonstration_loses_its_middle(demonstration: str, room: int) -> None:
    bare = len(render(teacher_messages([SYSTEM, QUESTION], "", None))[1])
    found = teacher_prompt([SYSTEM, QUESTION], demonstration, None, bare + room, render)
    assert found is not None and found.shortened
    assert len(found.token_ids) == bare + room  # as little is cut as the limit asks for
    assert found.text.startswith("<system>Be brief.<user>What is 2+2?\nCorrect solution:\n\n")
    assert found.text.endswith("\n\nCorrectly solve the original question.<assistant>")
    kept = found.text.split("\nCorrect solution:\n\n")[1].split("\n\nCorrectly")[0]
    head, tail = kept.split(" … ")
    assert demonstration.startswith(head) and demonstration.endswith(tail)
    assert 0 <= len(head) - len(tail) <= 1


def test_a_question_that_leaves_no_room_has_no_teacher() -> None:
    bare = len(render(teacher_messages([SYSTEM, QUESTION], "", None))[1])
    assert teacher_prompt([SYSTEM, QUESTION], "demonstration", None, bare - 1, render) is None
