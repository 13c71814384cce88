"""Figures of the teacher's lead, worked out by hand."""

from typing import Any

import pyarrow as pa
import pytest

from pipeline.run.lead_record import lead_figures, lead_word

RIGHT, WRONG, UNJUDGED = "right", "wrong", "not judged"


def answers(*rows: tuple[str, int, str, str, str | None, str]) -> pa.Table:
    """Return answers: (part, question, source, how it was judged, demonstration, text)."""
    return pa.Table.from_pylist(
        [
            {
                "rollout_id": f"{part}-{index}",
                "part": part,
                "group": group,
                "source": source,
                "teacher_rollout_id": demonstration,
                "response_text": text,
                "correct": judged != WRONG,  # what can't be judged is wrong, whatever its row says
                "format_ok": judged == RIGHT,
                "error": "a crash" if judged == UNJUDGED else None,
            }
            for index, (part, group, source, judged, demonstration, text) in enumerate(rows)
        ]
    )


def plain(part: str, group: int, *judged: str) -> list[tuple[str, int, str, str, str | None, str]]:
    return [(part, group, "none", word, None, "text") for word in judged]


SAMPLED = [
    *plain("sampled", 0, RIGHT, WRONG),
    *plain("sampled", 1, RIGHT, RIGHT),
    *plain("sampled", 2, WRONG, WRONG),
    *plain("sampled", 3, RIGHT, WRONG),
    *plain("sampled", 4, RIGHT, UNJUDGED),
]
ALONE = [*plain("alone", 0, RIGHT, WRONG), *plain("alone", 3, WRONG, UNJUDGED)]
TAUGHT = [
    ("taught", 0, "sibling", RIGHT, "sampled-0", "text"),
    ("taught", 0, "sibling", RIGHT, "sampled-0", "other words"),
    ("taught", 3, "sibling", RIGHT, "sampled-6", "other words"),
    ("taught", 3, "sibling", WRONG, "sampled-6", "other words"),
]


def test_figures_by_hand() -> None:
    found = lead_figures(answers(*SAMPLED, *ALONE, *TAUGHT))
    assert found["questions"] == 5
    assert found["policy"]["mean"] == pytest.approx((0.5 + 1 + 0 + 0.5 + 0.5) / 5)
    assert found["all_right"] == 2  # question 1, and 4, of which one answer could not be judged
    assert found["without_source"] == 1  # question 2
    (sibling,) = found["sources"].values()
    assert sibling["questions"] == 2
    assert sibling["answers"] == 4
    assert sibling["alone"] == {"mean": 0.25, "low": 0.0, "high": 0.5}  # 1/2 and 0
    assert sibling["taught"] == {"mean": 0.75, "low": 0.5, "high": 1.0}  # 1 and 1/2
    # Both questions gain 1/2: the difference is paired, so it has no width.
    assert sibling["difference"] == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert sibling["format_alone"] == 0.25
    assert sibling["format_taught"] == 0.75
    assert sibling["copied"] == 0.25
    assert sibling["not_judged"] == 1


def test_each_source_is_compared_on_its_own_questions() -> None:
    gold = [("taught", 3, "gold", WRONG, None, "x"), ("taught", 3, "gold", WRONG, None, "x")]
    found = lead_figures(answers(*SAMPLED, *ALONE, *TAUGHT[:2], *gold))["sources"]
    assert list(found) == ["sibling", "gold"]
    assert (found["sibling"]["alone"]["mean"], found["sibling"]["taught"]["mean"]) == (0.5, 1.0)
    assert (found["gold"]["alone"]["mean"], found["gold"]["taught"]["mean"]) == (0.0, 0.0)
    assert found["gold"]["copied"] is None


def test_with_nothing_to_show_there_are_no_sources() -> None:
    found = lead_figures(answers(*plain("sampled", 0, WRONG, WRONG)))
    assert found["sources"] == {}
    assert (found["all_right"], found["without_source"]) == (0, 1)


@pytest.mark.parametrize(
    ("mean", "low", "high", "word"),
    [
        (0.3, 0.1, 0.5, "lead"),
        (0.3, 0.0, 0.5, "unclear"),
        (0.1, -0.1, 0.3, "unclear"),
        (0.008, 0.0, 0.023, "none"),
        (0.0, 0.0, 0.0, "none"),
        (-0.1, -0.3, 0.1, "none"),
    ],
)
def test_a_lead_is_an_interval_above_0_and_unclear_what_may_still_be_one(
    mean: float, low: float, high: float, word: str
) -> None:
    difference = {"mean": mean, "low": low, "high": high}
    figures: dict[str, Any] = {"questions": 4, "difference": difference}
    assert lead_word(figures) == word
    assert lead_word(figures | {"questions": 3}) == "unclear"
