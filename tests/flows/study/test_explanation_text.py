"""What is printed of why a run's accuracy fell."""

from io import StringIO

from rich.console import Console

from flows.study.explanation_text import print_explanation
from pipeline.study.alarm_study import Loss
from pipeline.study.explain import Explanation, Heard, Moved, Rollout, Token


def printed(found: Explanation) -> list[str]:
    text = StringIO()
    print_explanation(Console(file=text, width=140, markup=False), found)
    return [" ".join(line.split()) for line in text.getvalue().splitlines()]


def test_a_fall_is_printed_with_numbers_and_commands() -> None:
    token = Token("\n", 0.5, 12, 0.25)
    rollout = Rollout("000051-0001-02", 0.125, 7, "6", "srpo audit R --rollout 000051-0001-02")
    found = Explanation(
        "main/level-1/sdpo/0",
        Loss(0, 40, 60, 0.5, 0.3),
        True,
        [("length_shrinks", 47, "precedes"), ("accuracy_falls", 60, "precedes")],
        [Moved("jsd correct", 0.1, 0.1, 0.25, None, 45)],
        [Heard(True, [token], [rollout])],
    )
    lines = printed(found)
    assert lines[:2] == [
        "main/level-1/sdpo/0",
        "a loss: accuracy 30.0% after 60 steps, at best 50.0% before, lost in steps 40 to 59",
    ]
    assert "length_shrinks 47 before the loss" in lines
    assert "accuracy_falls 60 as the loss is shown" in lines
    assert "jsd correct 0.1 0.1 0.25 - 45" in lines
    assert "'\\n' 50.0% 12 25%" in lines
    assert (
        "srpo audit R --rollout 000051-0001-02 # 12.5% of its step, most at token 7, '6'" in lines
    )


def test_no_fall_is_said() -> None:
    lines = printed(Explanation("main/level-1/grpo/0", None, False, [], [], []))
    assert lines == [
        "main/level-1/grpo/0",
        "accuracy never fell from one evaluation to a later one",
        "no alarm was raised",
        "",
    ]
