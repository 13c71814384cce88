"""The teacher's prompt, to the character, and what happens when it is too long."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.sections import TemplatesSection
from pipeline.task import Message
from pipeline.twin.routing import teacher_question
from stages.route.teacher_prompt import teacher_messages, teacher_prompt, without_thinking

SYSTEM = Message("system", "Be brief.")
QUESTION = Message("user", "What is 2+2?")
TEXTS = TemplatesSection()


def render(messages: Sequence[Message]) -> tuple[str, list[int]]:
    """Stand in for a chat template with one token per character."""
    text = "".join(f"<{m.role}>{m.content}" for m in messages) + "<assistant>"
    return text, [ord(character) for character in text]


def test_wording_is_the_papers() -> None:
    found = teacher_messages([SYSTEM, QUESTION], "It is 4.", None, TEXTS)
    assert found == [
        SYSTEM,
        Message(
            "user",
            "What is 2+2?\nCorrect solution:\n\nIt is 4.\n\nCorrectly solve the original question.",
        ),
    ]


def test_feedback_stands_between_solution_and_closing_line() -> None:
    found = teacher_messages([QUESTION], "4", "You said 5.", TEXTS)
    assert found[0].content == (
        "What is 2+2?\nCorrect solution:\n\n4\nThe following is feedback from your unsuccessful "
        "earlier attempt:\n\nYou said 5.\n\nCorrectly solve the original question."
    )


@pytest.mark.parametrize("blank", ["", " ", "\n\t \n"])
def test_blank_feedback_adds_nothing(blank: str) -> None:
    assert teacher_messages([QUESTION], "4", blank, TEXTS) == teacher_messages(
        [QUESTION], "4", None, TEXTS
    )


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
    text, ids = render(teacher_messages([SYSTEM, QUESTION], "demo", None, TEXTS))
    found = teacher_prompt([SYSTEM, QUESTION], "demo", None, TEXTS, len(ids), render)
    assert found is not None
    assert (found.text, found.token_ids, found.shortened) == (text, ids, "")


@given(st.text(alphabet="abcdef", min_size=40, max_size=200), st.integers(5, 39))
def test_an_overlong_demonstration_loses_its_middle(demonstration: str, room: int) -> None:
    bare = len(render(teacher_messages([SYSTEM, QUESTION], "", None, TEXTS))[1])
    found = teacher_prompt([SYSTEM, QUESTION], demonstration, None, TEXTS, bare + room, render)
    assert found is not None and found.shortened == "demonstration"
    assert len(found.token_ids) == bare + room  # as little is cut as the limit asks for
    assert found.text.startswith("<system>Be brief.<user>What is 2+2?\nCorrect solution:\n\n")
    assert found.text.endswith("\n\nCorrectly solve the original question.<assistant>")
    kept = found.text.split("\nCorrect solution:\n\n")[1].split("\n\nCorrectly")[0]
    head, tail = kept.split(" … ")
    assert demonstration.startswith(head) and demonstration.endswith(tail)
    assert 0 <= len(head) - len(tail) <= 1


def test_a_question_that_leaves_no_room_has_no_teacher() -> None:
    bare = len(render(teacher_messages([SYSTEM, QUESTION], "", None, TEXTS))[1])
    assert (
        teacher_prompt([SYSTEM, QUESTION], "demonstration", None, TEXTS, bare - 1, render) is None
    )


def test_feedback_alone() -> None:
    found = teacher_messages([SYSTEM, QUESTION], None, "You said 5.", TEXTS)
    assert found[1].content == (
        "What is 2+2?\nThe following is feedback from your unsuccessful earlier attempt:\n\n"
        "You said 5.\n\nCorrectly solve the original question."
    )


@given(st.text(alphabet="abcdef", min_size=40, max_size=200), st.integers(5, 39))
def test_overlong_feedback_alone_loses_its_middle(feedback: str, room: int) -> None:
    bare = len(render(teacher_messages([QUESTION], None, "", TEXTS))[1])
    found = teacher_prompt([QUESTION], None, feedback, TEXTS, bare + room, render)
    assert found is not None and found.shortened == "feedback"
    assert len(found.token_ids) == bare + room
    head, tail = found.text.split("attempt:\n\n")[1].split("\n\nCorrectly")[0].split(" … ")
    assert feedback.startswith(head) and feedback.endswith(tail)


def test_feedback_is_shortened_where_cutting_the_solution_can_not_help() -> None:
    whole = len(render(teacher_messages([QUESTION], "4", "", TEXTS))[1])
    both = len(render(teacher_messages([QUESTION], "4", "x" * 100, TEXTS))[1])
    found = teacher_prompt([QUESTION], "4", "x" * 100, TEXTS, both - 20, render)
    assert found is not None and found.shortened == "feedback"
    assert "Correct solution:\n\n4\n" in found.text and len(found.token_ids) == both - 20
    assert teacher_prompt([QUESTION], "4", "x" * 100, TEXTS, whole - 1, render) is None


@given(st.sampled_from(["{question}", "{solution}", "{feedback}", "{", "}", "\\1", "{x}"]))
def test_what_is_filled_in_is_never_searched(hostile: str) -> None:
    texts = TemplatesSection(both="{feedback}|{solution}|{question}")
    found = teacher_messages([Message("user", f"q{hostile}")], f"s{hostile}", f"f{hostile}", texts)
    assert found[0].content == f"f{hostile}|s{hostile}|q{hostile}"
    turns = [Message("user", hostile)]
    told = teacher_messages(turns, hostile, None, TEXTS)[0].content
    assert told == teacher_question(hostile, hostile)
    assert teacher_messages(turns, hostile, "no", TEXTS)[0].content == teacher_question(
        hostile, hostile, "no"
    )


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("solution", "{question}"),
        ("solution", "{question} {question} {solution}"),
        ("solution", "{question} {solution} {feedback}"),
        ("feedback", "{solution} {question}"),
        ("both", "{question} {solution}"),
        ("both", "{question} {solution} {feedback} {answer}"),
    ],
)
def test_a_template_without_its_placeholders_is_refused(key: str, text: str) -> None:
    with pytest.raises(ValueError, match=r"expected the placeholders \{question\}"):
        TemplatesSection.model_validate({key: text})
