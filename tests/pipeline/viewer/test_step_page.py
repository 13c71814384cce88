"""The step page: the grid, its filters and keys, and what the loss consists of."""

import re

import pytest
from playwright.sync_api import expect

from pipeline.run.run import Run
from pipeline.viewer import export_selection as exported
from pipeline.viewer.page import Missing, runs_by_name
from pipeline.viewer.rollout_cell import cell, verdict_word, with_loss_shares
from pipeline.viewer.step_page import STEP, context
from tests.pipeline.viewer.conftest import STEPS, Serve
from tests.pipeline.viewer.test_run_page import Open


def row(**changes: object) -> dict[str, object]:
    known = {
        "rollout_id": "000003-0001-02",
        "route": "sdpo",
        "reward": 0.0,
        "correct": False,
        "format_ok": True,
        "finish_reason": "stop",
        "computed": True,
        "mini_batch": 0,
        "response_tokens": 10,
        "share": 0.25,
        "loss_sum": 1.0,
    }
    return {**known, **changes}


def test_marks_say_what_colours_say() -> None:
    assert cell(row())["mark"] == "✗"
    assert cell(row(reward=1.0, correct=True))["mark"] == "✓"
    assert cell(row(reward=0.25))["mark"] == "0.25"
    assert cell(row(finish_reason="length", format_ok=False))["mark"] == "✗…!"
    assert cell(row(reward=None, correct=None, route=None))["mark"] == "·"
    assert cell(row(computed=False))["look"] == "sdpo wrong idle"
    assert cell(row())["label"] == "000003-0001-02, route sdpo, wrong, reward 0"


def test_what_could_not_be_judged_is_neither_right_nor_wrong() -> None:
    unjudged = row(route="none", error="time limit of 1 s exceeded", format_ok=False)
    found = cell(unjudged)
    assert (found["mark"], found["look"], found["reward"]) == ("?", "none", None)
    assert found["label"] == "000003-0001-02, route none, not judged"
    assert verdict_word(unjudged) == "not judged"
    assert [verdict_word(row(correct=c)) for c in (True, False, None)] == ["right", "wrong", None]


def test_shares_of_the_loss_are_of_the_sum_of_sizes_of_each_update() -> None:
    rows = [
        row(loss_sum=3.0),
        row(loss_sum=-1.0),
        row(loss_sum=0.0, share=0.0),
        row(loss_sum=5.0, mini_batch=1),
    ]
    found = with_loss_shares(rows)
    assert [one["loss_share"] for one in found] == [0.75, 0.25, 0.0, 1.0]
    assert [one["loss"] for one in found] == [0.15, -0.05, 0.0, 0.5]
    assert with_loss_shares([row(loss_sum=None)])[0]["loss"] is None


def test_the_parts_are_those_of_the_tables(trained: Run) -> None:
    found = context(runs_by_name([trained]), "demo", "0")
    updates = trained.read("updates", 0)
    manifest = trained.manifest("updates", 0)
    assert sum(part["share"] for part in found["shares"]) == pytest.approx(1)
    assert sum(part["loss_share"] for part in found["shares"]) == pytest.approx(1)
    assert sum(part["tokens"] for part in found["shares"]) == sum(manifest.facts["tokens"])
    loss = sum(part["loss"] for part in found["shares"])
    assert loss == pytest.approx(manifest.facts["loss"][0], rel=1e-5)
    largest = max(abs(value) for value in updates["loss_sum"].to_pylist())
    assert abs(found["largest"][0]["loss_sum"]) == largest
    assert [len(group["cells"]) for group in found["groups"]] == [4] * 4


def test_a_forks_step_names_what_it_inherits(trained: Run, fork: Run) -> None:
    found = context(runs_by_name([trained, fork]), "sharper", "2")
    owners = {table["table"]: table["inherited"] for table in found["tables"]}
    assert owners["teacher"] and not owners["weights"] and "updates" not in owners
    assert found["shares"] == [] and not found["complete"]
    html = STEP.html(runs_by_name([trained, fork]), "sharper", "2")
    assert "demo, inherited" in html and "no table of updates" in html


@pytest.mark.parametrize("step", ["7", "-1", "x", "", "٣", "1e1", "9" * 30])
def test_other_steps_are_missing(trained: Run, step: str) -> None:
    with pytest.raises(Missing, match="has no step"):
        context(runs_by_name([trained]), "demo", step)


def test_a_large_run_exports_whole_steps(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exported.exported_steps(trained) == list(range(STEPS))
    monkeypatch.setattr(exported, "MOST_PAGES", 16 * 3)
    assert exported.exported_steps(trained) == [0, 3, STEPS - 1]
    html = STEP.html(runs_by_name([trained]), "demo", "1", exported=True)
    assert 'href="../../rollouts/' not in html and "some steps' rollouts only" in html
    assert "rollouts/000001-" not in html
    assert "rollouts/000003-" in STEP.html(runs_by_name([trained]), "demo", "3", exported=True)


@pytest.mark.slow
def test_filters_leave_what_fits_and_stay_in_the_address(
    trained: Run, serve: Serve, watched: Open
) -> None:
    opened = watched()
    page = opened.page
    address = serve([trained]) + "/runs/demo/steps/0/"
    page.goto(address)
    left = page.locator("#left")
    expect(left).to_have_text("16 of 16 rollouts, 4 of 4 questions")
    routes = trained.read("routes", 0)["route"].to_pylist()
    page.select_option("[name=route]", "sdpo")
    expect(left).to_contain_text(f"{routes.count('sdpo')} of 16")
    assert page.locator(".cell.sdpo.out").count() == 0
    assert page.locator(".cell.grpo:not(.out)").count() == 0
    page.select_option("[name=verdict]", "right")
    expect(left).to_have_text("0 of 16 rollouts, 0 of 4 questions")
    page.keyboard.press("Escape")
    page.select_option("[name=verdict]", "wrong")
    assert page.url.endswith("#route=sdpo&verdict=wrong")
    page.reload()
    expect(left).to_contain_text(f"{routes.count('sdpo')} of 16")
    page.locator("h1").click()
    page.keyboard.press("x")
    expect(left).to_contain_text("16 of 16")
    assert page.url == address
    page.keyboard.press("/")
    page.keyboard.type("000000-0002")
    expect(left).to_have_text("4 of 16 rollouts, 1 of 4 questions")
    assert opened.errors == []


@pytest.mark.slow
def test_keys_and_the_card(trained: Run, serve: Serve, watched: Open) -> None:
    opened = watched(viewport={"width": 1280, "height": 900})
    page = opened.page
    page.goto(serve([trained]) + "/runs/demo/steps/1/")
    page.keyboard.press("j")
    expect(page.locator("#card h3")).to_have_text("000001-0000-00")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#card h3")).to_have_text("000001-0000-01")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#card h3")).to_have_text("000001-0000-00")
    page.locator(".cell").nth(5).hover()
    expect(page.locator("#card h3")).to_have_text("000001-0001-01")
    expect(page.locator("#card")).to_contain_text("Verdict")
    page.locator("h1").click()
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile("/steps/2/$"))
    page.wait_for_load_state("load")  # keys work once scripts have run
    page.keyboard.press("ArrowLeft")
    expect(page).to_have_url(re.compile("/steps/1/$"))
    page.wait_for_load_state("load")  # keys work once scripts have run
    page.locator(".cell").nth(5).click()
    expect(page).to_have_url(re.compile("/rollouts/000001-0001-01/$"))
    page.wait_for_load_state("load")  # keys work once scripts have run
    page.keyboard.press("u")
    expect(page).to_have_url(re.compile("/steps/1/#group-1$"))
    assert opened.errors == []
