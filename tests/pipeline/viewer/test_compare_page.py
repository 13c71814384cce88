"""The compare page: where runs part, what was decided otherwise, and links to both."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from pipeline.run.run import Run
from pipeline.viewer.compare_page import COMPARE, context
from pipeline.viewer.history import history
from pipeline.viewer.page import Missing, runs_by_name
from tests.builders.tables import COST, IDS, STEP, config, origin, tables, with_value
from tests.pipeline.viewer.conftest import STEPS, Serve
from tests.pipeline.viewer.test_run_page import Open, drawn

HOSTILE = '</td><script>alert("x")</script>\u202e\x1b[31m' + "y" * 1000


@pytest.fixture
def pair(tmp_path: Path) -> list[Run]:
    """Two made-up runs of one step; the second has another verdict and another route."""
    runs = []
    for name in ("a", "b"):
        made = tables()
        if name == "b":
            made["verdicts"] = with_value(made["verdicts"], "prediction", 1, HOSTILE)
            made["verdicts"] = with_value(made["verdicts"], "correct", 1, True)
            made["routes"] = with_value(made["routes"], "route", 1, "grpo")
        run = Run.create(tmp_path / name, config(), {})
        for table, data in made.items():
            run.commit(origin(table, stage="made_up"), data, {}, COST)
        runs.append(run)
    return runs


def test_changed_decisions_are_counted_and_listed(pair: list[Run]) -> None:
    found = context(runs_by_name(pair), "a", "b")
    assert found["found"].first.table == "verdicts" and found["found"].first.step == STEP
    assert found["verdicts"]["total"] == 1
    assert found["verdicts"]["ways"] == [("false → true", 1)]
    (route,) = found["routes"]["shown"]
    assert route["rollout_id"] == IDS[1] and route["changes"] == [("route", "sdpo", "grpo")]
    assert found["weights"] == ()


def test_hostile_predictions_are_spelled_out_and_cut(pair: list[Run]) -> None:
    html = COMPARE.html(runs_by_name(pair), "a", "b")
    assert "<script>alert" not in html and "&lt;script&gt;" in html
    assert "\u202e" not in html and "\\u202e" in html and "\\x1b" in html
    assert "y" * 200 not in html


def test_both_rollouts_are_linked(pair: list[Run]) -> None:
    html = COMPARE.html(runs_by_name(pair), "a", "b")
    for name in ("a", "b"):
        assert f'href="/runs/{name}/rollouts/{IDS[1]}/"' in html


def test_weights_of_a_fork_that_weighs_otherwise(trained: Run, fork: Run) -> None:
    found = context(runs_by_name([trained, fork]), "demo", "sharper")
    assert found["found"].first.table == "weights" and found["found"].first.step == 0
    assert found["settings"] == [("weigh.beta", "1", "3")]
    assert len(found["weights"]) == STEPS
    rows = sum(trained.manifest("weights", step).rows for step in range(STEPS))
    assert sum(change.tokens for change in found["weights"]) <= rows
    measures = {row["title"]: row for row in found["measures"]["rows"]}
    assert found["measures"]["step"] == STEPS - 1
    assert measures["Mean reward"]["change"] == "0"
    assert measures["Token weights, deviation"]["change"].startswith("+")
    assert measures["pass@2"]["a"] == f"{history(trained).evaluations[0]['pass_at_2']:.1%}"
    assert measures["pass@2"]["change"] == "0.0%" and measures["Distinct answers"]["change"] == "0"


def test_equal_runs_are_said_to_be_equal(trained: Run) -> None:
    html = COMPARE.html(runs_by_name([trained, trained]), "demo", "demo-2")
    assert "no difference" in html


def test_a_run_that_is_not_shown_is_missing(trained: Run) -> None:
    with pytest.raises(Missing, match="no run other here; there are demo"):
        context(runs_by_name([trained]), "demo", "other")


@pytest.mark.slow
def test_both_runs_are_overlaid(trained: Run, fork: Run, serve: Serve, watched: Open) -> None:
    page = watched()
    drawn(page, serve([trained, fork]) + "/compare/demo/sharper/")
    expect(page.page.get_by_text("first difference: step 0, table weights")).to_be_visible()
    names = "document.querySelector('[data-chart=weight_std] .plot').data.map((t) => t.line?.dash)"
    assert {"solid", "dash"} <= set(page.page.evaluate(names))
    assert page.errors == []
