"""Every composition of a group, as it shows in `routes`, `scores` and `teacher`."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.methods import METHODS, Method
from pipeline.policy.policy import Policy
from pipeline.tables.schemas import teacher_schema
from stages.route import STAGE as ROUTE
from stages.route.stage import _half
from tests.stages.steps import (
    NOT_JUDGED,
    Group,
    config_of,
    open_tiny,
    routed,
    run_one,
    sampled,
)

RIGHT, WRONG = 1.0, 0.0
GROUPS: list[Group] = [
    [("one", RIGHT), ("two", RIGHT), ("three", RIGHT)],
    [("one", WRONG), ("two", WRONG), ("three", WRONG)],
    [("one", WRONG), ("good answer", RIGHT), ("", WRONG)],
    [("a", RIGHT), ("cut off|", WRONG), ("b", RIGHT)],
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return open_tiny(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def tables(policy: Policy) -> dict[str, pa.Table]:
    return routed(policy, config_of(), GROUPS)


def column(tables: dict[str, pa.Table], name: str) -> list[object]:
    return list(tables["routes"][name].to_pylist())


def test_routes_of_every_composition(tables: dict[str, pa.Table]) -> None:
    assert column(tables, "route") == (
        ["grpo"] * 3 + ["grpo"] * 3 + ["sdpo", "grpo", "sdpo"] + ["grpo", "sdpo", "grpo"]
    )
    assert column(tables, "teacher_available") == (
        [True] * 3 + [False] * 3 + [True, False, True] + [True] * 3
    )
    assert column(tables, "teacher_source")[3:8] == ["none"] * 3 + ["sibling", "none"]


def test_the_first_correct_sibling_demonstrates(tables: dict[str, pa.Table]) -> None:
    teachers = column(tables, "teacher_rollout_id")
    assert teachers[:3] == ["000000-0000-01", "000000-0000-00", "000000-0000-00"]
    assert teachers[6:9] == ["000000-0002-01", None, "000000-0002-01"]
    text = column(tables, "teacher_prompt_text")[6]
    assert text == (
        "<system>be brief<user>question 2\nCorrect solution:\n\ngood answer\n\n"
        "Correctly solve the original question.<assistant>"
    )


def test_reasons_name_what_happened(tables: dict[str, pa.Table]) -> None:
    reasons = [str(r) for r in column(tables, "reason")]
    assert all("all-right group; advantage 0, no signal" in r for r in reasons[:3])
    assert all("wrong, no teacher" in r and "all-wrong group" in r for r in reasons[3:6])
    assert "sole correct rollout, cannot teach itself" in reasons[7]
    assert "truncated" in reasons[10]
    assert reasons[6] == "wrong, teacher available: learns from the teacher"


def test_advantages_use_all_rewards_of_the_group(tables: dict[str, pa.Table]) -> None:
    advantages = column(tables, "advantage")
    assert advantages[:6] == [0.0] * 6
    assert advantages[6:9] == pytest.approx([-1 / 3, 2 / 3, -1 / 3])
    assert column(tables, "group_std")[6] == pytest.approx(np.std([0, 1, 0], ddof=1))


def test_only_taught_rollouts_get_a_teacher_pass(tables: dict[str, pa.Table]) -> None:
    taught = set(tables["teacher"]["rollout_id"].to_pylist())
    assert taught == {"000000-0002-00", "000000-0002-02", "000000-0003-01"}
    scored = [len(x) for x in tables["scores"]["old_logprobs"].to_pylist()]
    lengths = [len(x) for x in tables["rollouts"]["response_ids"].to_pylist()]
    routes = column(tables, "route")
    assert scored == [n if r == "sdpo" else 0 for n, r in zip(lengths, routes, strict=True)]


def test_old_logprobs_are_scored_where_several_updates_need_them(policy: Policy) -> None:
    tables = routed(policy, config_of(route={"mini_batch": 2}, generate={"questions": 4}), GROUPS)
    scored = [len(x) > 0 for x in tables["scores"]["old_logprobs"].to_pylist()]
    advantages = column(tables, "advantage")
    assert scored == [a != 0 for a in advantages]
    everything = routed(policy, config_of(route={"rescore": "all"}), GROUPS)
    assert all(len(x) > 0 for x in everything["scores"]["old_logprobs"].to_pylist())


UNJUDGED: list[Group] = [
    [("one", RIGHT), ("two", None), ("three", WRONG), ("four", WRONG)],
    [("one", None), ("two", None)],
    [("one", RIGHT), ("two", None)],
    [("one", WRONG), ("two", WRONG), ("three", None)],
]


def test_what_could_not_be_judged_is_left_out(policy: Policy) -> None:
    """Section 1, by hand: means over the judged, N without the others, no teaching either way."""
    tables = routed(policy, config_of(), UNJUDGED)
    assert column(tables, "route") == (
        ["grpo", "none", "sdpo", "sdpo"] + ["none"] * 2 + ["grpo", "none"] + ["grpo"] * 2 + ["none"]
    )
    # Group 0: 1, 0, 0 have mean 1/3 and deviation sqrt((4/9 + 1/9 + 1/9) / 2).
    assert column(tables, "advantage") == pytest.approx([2 / 3, 0, -1 / 3, -1 / 3] + [0] * 7)
    assert column(tables, "group_mean") == pytest.approx([1 / 3] * 4 + [0] * 2 + [1] * 2 + [0] * 3)
    assert column(tables, "group_std")[:6] == pytest.approx([(1 / 3) ** 0.5] * 4 + [0] * 2)
    assert column(tables, "teacher_available") == [False, False, True, True] + [False] * 7
    assert set(tables["teacher"]["rollout_id"].to_pylist()) == {"000000-0000-02", "000000-0000-03"}
    reasons = [str(r) for r in column(tables, "reason")]
    assert reasons[1] == f"not judged: left out; {NOT_JUDGED}"
    assert reasons[0] == (
        "correct, no teacher: learns from its advantage; "
        "sole correct rollout, cannot teach itself; 1 of 4 in the group not judged"
    )
    assert "all-right group; advantage 0, no signal; 1 of 2 in the group not judged" in reasons[6]
    assert "all-wrong group" in reasons[8]


@pytest.mark.parametrize("method", METHODS)
def test_no_method_learns_from_what_could_not_be_judged(policy: Policy, method: Method) -> None:
    tables = routed(policy, config_of(route={"method": method, "mini_batch": 2}), UNJUDGED)
    errors = tables["verdicts"]["error"].to_pylist()
    routes = tables["routes"].to_pylist()
    for route, error in zip(routes, errors, strict=True):
        if error is not None:
            assert route["route"] == "none"
            assert route["advantage"] == 0
            assert not route["teacher_available"]
    known = [[a for a in group if a[1] is not None] for group in UNJUDGED]
    alone = routed(policy, config_of(route={"method": method}), [group for group in known if group])
    kept = [r for r, error in zip(routes, errors, strict=True) if error is None]
    for ours, theirs in zip(kept, alone["routes"].to_pylist(), strict=True):
        for name in ("route", "advantage", "group_mean", "group_std", "teacher_available"):
            assert ours[name] == theirs[name], name


def test_an_error_counts_more_than_the_reward_beside_it(policy: Policy) -> None:
    """Verdicts of an older `verify` may have both."""
    tables = sampled(policy, [[("a", RIGHT), ("b", WRONG)]])
    rows = tables["verdicts"].to_pylist()
    rows[0]["error"] = NOT_JUDGED
    tables["verdicts"] = pa.Table.from_pylist(rows, schema=tables["verdicts"].schema)
    run_one(ROUTE, tables, policy, config_of())
    assert column(tables, "route") == ["none", "grpo"]
    assert column(tables, "group_mean") == [0.0, 0.0]


def test_a_response_that_ends_inside_its_thinking_demonstrates_nothing(policy: Policy) -> None:
    tables = sampled(policy, [[("a", RIGHT), ("b", RIGHT), ("c", WRONG)], [("d", RIGHT), ("e", 0)]])
    texts = ["<think>a", "<think>x</think> b", "c", "so <think> d", "e"]
    place = tables["rollouts"].schema.get_field_index("response_text")
    field = tables["rollouts"].schema.field(place)
    tables["rollouts"] = tables["rollouts"].set_column(place, field, pa.array(texts))
    run_one(ROUTE, tables, policy, config_of())
    assert column(tables, "teacher_rollout_id") == [
        "000000-0000-01", None, "000000-0000-01", None, None,
    ]  # fmt: skip
    assert column(tables, "route") == ["grpo", "grpo", "sdpo", "grpo", "grpo"]
    assert "solution:\n\nb\n\nCorrectly" in str(column(tables, "teacher_prompt_text")[2])
    reasons = [str(r) for r in column(tables, "reason")]
    assert "correct siblings end inside a think block" in reasons[1]
    assert "correct siblings end inside a think block" in reasons[4]
    assert "sole correct rollout" in reasons[3]


def test_an_empty_response_is_defined(policy: Policy) -> None:
    groups: list[Group] = [[("|", WRONG), ("ok", RIGHT)], [("|", RIGHT), ("no", WRONG)]]
    tables = routed(policy, config_of(), groups)
    assert column(tables, "route") == ["sdpo", "grpo", "grpo", "sdpo"]
    assert "empty response" in str(column(tables, "reason")[0])
    assert set(tables["teacher"]["rollout_id"].to_pylist()) == {"000000-0001-01"}
    # An empty demonstration is a demonstration: it was judged correct.
    assert "Correct solution:\n\n\n\nCorrectly" in str(column(tables, "teacher_prompt_text")[3])


def test_an_overlong_teacher_prompt_is_shortened_or_dropped(policy: Policy) -> None:
    groups: list[Group] = [[("x" * 60, RIGHT), ("no", WRONG)]]
    bare = len(
        "be briefquestion 0\nCorrect solution:\n\n\n\nCorrectly solve the original question."
    )
    fits = bare + 3 + 20  # three for the header's tokens
    shortened = routed(policy, config_of(route={"max_teacher_prompt_length": fits}), groups)
    assert column(shortened, "route")[1] == "sdpo"
    assert f"demonstration shortened to fit {fits} prompt tokens" in str(
        column(shortened, "reason")[1]
    )
    assert len(column(shortened, "teacher_prompt_ids")[1]) == fits  # type: ignore[arg-type]
    dropped = routed(policy, config_of(route={"max_teacher_prompt_length": bare}), groups)
    assert column(dropped, "route")[1] == "grpo"
    assert column(dropped, "teacher_available")[1] is False
    assert f"can't be brought to {bare} tokens" in str(column(dropped, "reason")[1])


def test_nobody_is_taught_where_nobody_failed(policy: Policy) -> None:
    tables = routed(policy, config_of(), [GROUPS[0]])
    assert tables["teacher"].num_rows == 0
    assert tables["weights"].num_rows == 0
    assert tables["teacher"].schema.field("topk_ids").type.list_size == 16
    rows = {"kept_dtype": "float16", "keep_student_logprobs": False}
    lean = routed(policy, config_of(route=rows), [GROUPS[0]])
    assert lean["teacher"].num_rows == 0
    assert lean["teacher"].schema.equals(teacher_schema(16, "float16", student=False))


def test_half_precision_ends_at_no_finite_value() -> None:
    values = np.array([-70000.0, -np.inf, -0.0, -1.0], dtype=np.float32)
    assert _half(values).tolist() == [-65504.0, -np.inf, -0.0, -1.0]


def test_grpo_needs_neither_prompts_nor_passes(policy: Policy) -> None:
    tables = routed(policy, config_of(route={"method": "grpo"}), GROUPS)
    assert set(column(tables, "route")) == {"grpo"}
    assert set(column(tables, "teacher_prompt_text")) == {None}
    assert tables["teacher"].num_rows == 0


def test_k_of_the_whole_vocabulary_has_no_tail(policy: Policy) -> None:
    tables = routed(policy, config_of(route={"top_k": 1000}), GROUPS)
    assert tables["teacher"].schema.field("topk_ids").type.list_size == policy.vocabulary == 53
    assert set(tables["teacher"]["student_tail"].to_pylist()) == {-np.inf}


def test_a_group_of_one(tmp_path: Path, policy: Policy) -> None:
    tables = routed(policy, config_of(route={"method": "grpo"}), [[("a", RIGHT)], [("b", WRONG)]])
    assert column(tables, "advantage") == [0.0, 0.0]
    assert column(tables, "group_std") == [0.0, 0.0]


def test_another_policys_scores_are_not_the_old_ones(policy: Policy) -> None:
    """A route replayed over another policy's rollouts: pi_old is what was sampled (section 7)."""
    version, policy.version = policy.version, "000000-aaaaaaaaaaaa"
    tables = sampled(policy, GROUPS)
    policy.version = version
    config = config_of(route={"rescore": "all"})
    run_one(ROUTE, tables, policy, config)
    assert {len(x) for x in tables["scores"]["old_logprobs"].to_pylist()} == {0}
    assert all(len(x) > 0 for x in tables["scores"]["student_entropy"].to_pylist())
