"""Rows of rollouts, joined, filtered, sorted and grouped; token tables are left alone."""

from pathlib import Path

import polars as pl
import pytest

from pipeline.audit import listing
from pipeline.errors import ConfigError, StoreError
from pipeline.run.run import Run
from tests.builders.step_runs import LARGE_ROLLOUTS, large_run, make_run
from tests.builders.tables import IDS, STEP, tables, with_column


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "run", tables())


def test_one_row_per_rollout_joined_from_all_tables(run: Run) -> None:
    row = listing.samples(run).collect().row(1, named=True)
    expected = {
        "rollout_id": IDS[1], "step": STEP, "group": 0, "sample": 1, "prompt_id": "q0",
        "task": "arithmetic", "route": "sdpo", "reason": "wrong", "reward": 0.0,
        "correct": False, "prediction": "5",
        "advantage": -0.5, "teacher_rollout_id": IDS[0], "response_tokens": 2, "loss_sum": 0.5,
        "share": 0.2, "divergence": 0.25, "verifier": "arithmetic/1", "error": None,
        "policy_version": "000003-abc", "finish_reason": "stop", "computed": True,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected
    assert "response_text" not in row and "weight_std" not in row


def test_texts_and_weights_on_request(run: Run) -> None:
    needs = ["response_text", "weight_mean", "weight_std", "weight_min", "teacher_entropy"]
    rows = listing.samples(run, needs=needs).collect().select(needs).rows()
    assert rows[0] == ("a", None, None, None, None)
    assert rows[1] == pytest.approx(("b", 1.0, 0.2, 0.8, 0.75)), "weights 1.2 and 0.8, H 0.5 and 1"


def test_what_feedback_tells_of_the_gold_answer_on_request(run: Run) -> None:
    """The gold answer is 4; the second verdict says `It is 4.`, the third `It is not 5.`"""
    frame = listing.samples(run, needs=["feedback_gold_share"])
    assert frame.collect()["feedback_gold_share"].to_list() == [None, 1.0, 0.0, None]
    found = listing.where(frame, "feedback_gold_share > 0").collect()
    assert found["rollout_id"].to_list() == [IDS[1]]
    assert "feedback_gold_share" not in listing.samples(run).collect_schema().names()


def test_tables_that_a_step_lacks_give_nulls(tmp_path: Path) -> None:
    found = tables()
    run = make_run(tmp_path / "run", {name: found[name] for name in ("rollouts", "verdicts")})
    rows = listing.samples(run, needs=["weight_std", "feedback_gold_share"]).collect()
    assert rows["correct"].to_list() == [True, False, False, False]
    assert rows["feedback_gold_share"].to_list() == [None, 1.0, 0.0, None]
    assert rows["route"].null_count() == rows["weight_std"].null_count() == 4


def test_a_step_that_is_not_there(run: Run) -> None:
    with pytest.raises(ConfigError, match="no rollouts of step 4; it has steps 3 to 3"):
        listing.samples(run, [4])


def test_tables_in_another_order_are_refused(tmp_path: Path) -> None:
    found = tables()
    spoiled = with_column(found["verdicts"], "rollout_id", IDS[::-1])
    run = make_run(tmp_path / "run", {**found, "verdicts": spoiled})
    with pytest.raises(StoreError, match="not in the rollouts' order"):
        listing.samples(run)


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("route == 'sdpo' and divergence > 0.2", [1]),
        ("divergence > 0.3", []),
        ("not correct and advantage = 0", [2, 3]),
        ("error is not null", [3]),
        ('"group" = 0', [0, 1]),
        ("prompt_id like 'q1%' or sample in (1)", [1, 2, 3]),
        ("prediction = 'Agg'", []),
        ("abs(loss_sum) > 1", [0]),
    ],
)
def test_conditions(run: Run, expression: str, rows: list[int]) -> None:
    found = listing.where(listing.samples(run), expression).collect()
    assert found["rollout_id"].to_list() == [IDS[row] for row in rows]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("nothing > 1", "no column nothing; columns: rollout_id"),
        ("reward >", "unable to parse"),
        ("reward", "gives Float32, expected true or false"),
        ("max(reward) = 1", "one row at a time"),
        ("count(*) > 1", "one row at a time"),
        ("quantile_cont(reward, 0.5) > 0", "one row at a time"),
        ("corr(reward, advantage) > 0", "one row at a time"),
        ("reward in (0, max(reward))", "one row at a time"),
        ("lag(reward) over (order by step) > 0", "one row at a time"),
        ("reward > (select 1)", "one row at a time"),
        ("sum(reward) over (partition by prompt_id) > 1", "one row at a time"),
        ("reward in (select reward from routes)", "relation 'routes' was not found"),
        ("exists (select 1)", "one row at a time"),
        ("cast(prediction as int) = 4", "conversion from"),
        ("regexp_like(prediction, '(')", "regex"),
        ("group = 0", '"group" in double quotes'),
        ("read_csv('/etc/passwd')", "unsupported function"),
        ("__import__('os').getcwd() = 1", "--where"),
        ("", "unable to parse"),
    ],
)
def test_conditions_that_are_none_are_one_clear_line(
    run: Run, expression: str, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        listing.where(listing.samples(run), expression)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "weight_std" in str(caught.value), "it lists the columns"


def test_what_an_error_quotes_is_harmless(tmp_path: Path) -> None:
    found = tables()
    spoiled = with_column(found["verdicts"], "prediction", ["\x1b[31m", "1", "2", "3"])
    run = make_run(tmp_path / "run", {**found, "verdicts": spoiled})
    with pytest.raises(ConfigError) as caught:
        listing.where(listing.samples(run), "cast(prediction as int) > 1")
    assert "\x1b" not in str(caught.value)


def test_sorting_puts_nulls_last_and_keeps_the_order(run: Run) -> None:
    frame = listing.samples(run)
    by = listing.ordered(frame, "-divergence").collect()["rollout_id"].to_list()
    assert by == [IDS[1], IDS[0], IDS[2], IDS[3]]
    by = listing.ordered(frame, "response_tokens").collect()["response_tokens"].to_list()
    assert by == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match="no column nothing"):
        listing.ordered(frame, "-nothing")


def test_groups_have_counts_and_means(run: Run) -> None:
    rows = listing.grouped(listing.samples(run), ["route"]).collect().to_dicts()
    assert [(row["route"], row["rollouts"]) for row in rows] == [("grpo", 3), ("sdpo", 1)]
    assert rows[0]["mean_response_tokens"] == pytest.approx(8 / 3)
    assert rows[0]["mean_correct"] == pytest.approx(1 / 2)  # the third could not be judged
    assert rows[1]["mean_divergence"] == pytest.approx(0.25)


def test_every_column_is_described(run: Run) -> None:
    needs = [column.name for column in listing.ON_REQUEST]
    names = listing.samples(run, needs=needs).collect_schema().names()
    assert set(listing.describe()) == set(names)
    assert all(listing.describe().values())


def test_no_token_table_is_read_to_list(tmp_path: Path) -> None:
    """The bytes of teacher and weights are garbage of the same size: nobody notices."""
    run = large_run(tmp_path / "run")
    for name in ("teacher", "weights"):
        path = run.table_path(name, STEP)
        path.write_bytes(b"\xff" * path.stat().st_size)
    found = listing.where(listing.samples(run), "route = 'sdpo'").collect()
    assert len(found) == LARGE_ROLLOUTS
    groups = listing.grouped(listing.samples(run), ["route", "reason"]).collect()
    assert groups["rollouts"].to_list() == [LARGE_ROLLOUTS]
    with pytest.raises(StoreError, match=r"weights\.arrow: bytes differ from its manifest"):
        listing.samples(run, needs=["weight_std"])


def test_an_empty_run_lists_nothing(tmp_path: Path) -> None:
    frame = listing.samples(make_run(tmp_path / "run", {}))
    assert frame.collect().is_empty()
    assert listing.grouped(frame, ["route"]).select(pl.len()).collect().item() == 0
