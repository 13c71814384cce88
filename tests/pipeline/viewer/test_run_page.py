"""The run page: its numbers, and what it does in a browser."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from pipeline.config.load import validate_config
from pipeline.files.durable import digest_of, write_json
from pipeline.run.run import Run
from pipeline.viewer.chart_series import CHARTS, last_text, run_series, smoothed
from pipeline.viewer.history import History, history
from pipeline.viewer.page import runs_by_name
from pipeline.viewer.run_page import RUN, alarms_of, context
from pipeline.viewer.run_settings import changed_settings
from tests.flows.session import mixtures
from tests.pipeline.viewer.conftest import STEPS, Serve, Watched

Open = Callable[..., Watched]


def chart(key: str) -> Any:
    return next(c for c in CHARTS if c.key == key)


def test_the_rolling_mean_looks_back_five_steps_and_skips_what_is_missing() -> None:
    found = smoothed([1.0, 3.0, None, 5.0, 7.0, 9.0, 0.0])
    assert found["raw"] == [1.0, 3.0, None, 5.0, 7.0, 9.0, 0.0]
    assert found["mean"] == [1.0, 2.0, 2.0, 3.0, 4.0, 6.0, 5.25]
    assert found["deviation"][:2] == [0.0, 1.0]
    assert found["deviation"][5] == pytest.approx(5**0.5, rel=1e-5)  # of 3, 5, 7, 9
    assert smoothed([None, None])["mean"] == [None, None]
    assert smoothed([])["mean"] == []


def test_places_on_the_three_axes() -> None:
    records = [
        {"step": s, "tokens": 100, "seconds": 2.0, "reward_mean": 0.1 * s, "share_mix": None}
        for s in range(3)
    ]
    answers = {n: {"accuracy": 0.5, "low": 0.4, "high": 0.6, "rollouts": 4} for n in (0, 3)}
    series = run_series("x", History(records, answers))
    assert series["x"] == {"steps": [0, 1, 2], "tokens": [100, 200, 300], "seconds": [2, 4, 6]}
    assert series["evaluations"]["x"] == {"steps": [0, 3], "tokens": [0, 300], "seconds": [0, 6]}
    assert "share_mix" not in series["values"]
    assert last_text(chart("reward_mean"), series) == "0.2"
    assert last_text(chart("accuracy"), series) == "50.0% (40.0% to 60.0%)"
    assert last_text(chart("loss"), series) == ""


def test_each_rule_raises_one_alarm_however_often_it_fires() -> None:
    alarm = {"rule": "format", "message": "falls", "evidence": ["x"], "command": "srpo audit"}
    records = [
        {"step": s, "alarms": [{**alarm, "step": s}] if s in (4, 5, 7) else []} for s in range(9)
    ]
    (found,) = alarms_of(records)
    assert (found["step"], found["last"], found["times"]) == (4, 7, 3)
    assert alarms_of([{"step": 0}, {"step": 1, "alarms": None}]) == []


def test_the_records_are_those_of_the_run(trained: Run) -> None:
    found = history(trained)
    assert [record["step"] for record in found.steps] == list(range(STEPS))
    assert all(record["complete"] for record in found.steps)
    assert found.steps[3]["loss"] == trained.metrics(3)["loss"]
    assert list(found.evaluations) == [0, 3, 6, 7]


def test_a_fork_without_updates_shows_its_own_weights_and_its_parents_rollouts(
    trained: Run, fork: Run
) -> None:
    found = history(fork)
    assert [record["complete"] for record in found.steps] == [False] * STEPS
    for own, parents in zip(found.steps, history(trained).steps, strict=True):
        assert own["reward_mean"] == parents["reward_mean"]
        assert own["share_sdpo"] == parents["share_sdpo"]
        assert own["weight_std"] > parents["weight_std"]
        assert "loss" not in own


def test_settings_that_differ_are_named_with_their_defaults(trained: Run) -> None:
    found = {setting.key: setting for setting in changed_settings(trained.config)}
    assert (found["run.steps"].value, found["run.steps"].default) == ("7", "100")
    assert (found["data.task"].value, found["model.path"].default) == ("arithmetic", None)
    assert "weigh.beta" in found or "update.clip_low" not in found


def test_the_settings_of_adapters_are_named_one_by_one() -> None:
    values = {
        "data": {"task": "arithmetic"},
        "model": {"path": "demo", "lora": {"rank": 8}},
    }
    found = {s.key: s for s in changed_settings(validate_config(values, "test"))}
    lora = {key: (s.value, s.default) for key, s in found.items() if "lora" in key}
    assert lora["model.lora.rank"] == ("8", "16")
    assert lora["model.lora.adapter"] == ("unset", "unset")
    assert "model.lora" not in lora and found["run.snapshot_every"].value == "1"


def test_of_the_teachers_texts_those_are_named_that_differ() -> None:
    words = "{question}, as in {solution}"
    values = {
        "data": {"task": "arithmetic"},
        "model": {"path": "demo"},
        "route": {"templates": {"solution": words}},
    }
    found = {s.key: s.value for s in changed_settings(validate_config(values, "test"))}
    assert {k: v for k, v in found.items() if "templates" in k} == {
        "route.templates.solution": words
    }


def test_the_page_says_plainly_what_a_fork_is(trained: Run, fork: Run) -> None:
    html = RUN.html(runs_by_name([trained, fork]), "sharper")
    assert "Fork of" in html and fork.fork is not None
    assert fork.fork.note.replace("'", "&#39;") in html
    assert "weigh.beta</code> 1.0 → 3.0" in html


def test_every_chart_has_a_text_alternative(trained: Run) -> None:
    html = RUN.html(runs_by_name([trained]), "demo")
    for entry in context(runs_by_name([trained]), "demo")["charts"]:
        assert f'aria-label="{entry["title"]}: {entry["last"] or "nothing recorded yet"}"' in html


def copied(run: Run, target: Path, steps: int) -> Run:
    """Copy a run as it was after so many steps."""
    shutil.copytree(run.root, target)
    for step in range(steps, STEPS):
        shutil.rmtree(target / "steps" / f"{step:06d}")
    for path in (target / "evaluations").iterdir():
        if int(path.stem) > steps:
            path.unlink()
    return Run.open(target)


def drawn(page: Watched, address: str) -> None:
    page.page.goto(address)
    page.page.wait_for_selector("html[data-drawn]")


def axis_title(page: Watched) -> str | None:
    return page.page.text_content("[data-chart=reward_mean] .xtitle")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_charts_are_drawn_without_errors_or_outside_requests(
    trained: Run, fork: Run, serve: Serve, watched: Open, scheme: str, width: int
) -> None:
    address = serve([trained, fork])
    page = watched(viewport={"width": width, "height": 800}, color_scheme=scheme)
    for path in ("/", "/runs/demo/", "/runs/sharper/", "/compare/demo/sharper/"):
        page.page.goto(address + path)
        page.page.wait_for_load_state("networkidle")
        wide = page.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, path
        for element in page.page.query_selector_all(".chart:not([data-empty]) .plot"):
            assert element.query_selector("svg .trace"), path
    assert page.errors == []
    assert page.outside(address) == []


@pytest.mark.slow
def test_switches_change_the_axis_and_the_lines(
    trained: Run, fork: Run, serve: Serve, watched: Open
) -> None:
    page = watched()
    drawn(page, serve([trained, fork]) + "/runs/demo/")
    assert axis_title(page) == "step"
    page.page.get_by_label("Tokens", exact=True).check(force=True)
    assert axis_title(page) == "sampled tokens"
    page.page.keyboard.press("w")
    assert axis_title(page) == "training time (seconds)"
    reward = "[data-chart=reward_mean] .scatterlayer .trace"
    both = page.page.locator(reward).count()
    page.page.get_by_label("sharper").uncheck()
    assert page.page.locator(reward).count() == both / 2
    page.page.get_by_label("Raw").check(force=True)
    assert page.page.locator(reward).count() == 1
    page.page.reload()
    page.page.wait_for_selector("html[data-drawn]")
    assert axis_title(page) == "training time (seconds)"


@pytest.mark.slow
def test_keys_move_through_the_steps_and_show_help(
    trained: Run, serve: Serve, watched: Open
) -> None:
    page = watched().page
    page.goto(serve([trained]) + "/runs/demo/")
    for key, text in (("j", "6"), ("j", "5"), ("ArrowDown", "4"), ("k", "5"), ("ArrowUp", "6")):
        page.keyboard.press(key)
        assert page.evaluate("document.activeElement.textContent") == text
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.get_by_role("button", name="Close").click()
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("?")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()


@pytest.mark.slow
def test_the_page_of_a_running_training_follows_it(
    trained: Run, serve: Serve, watched: Open, tmp_path: Path
) -> None:
    run = copied(trained, tmp_path / "demo", 4)
    page = watched()
    drawn(page, serve([run]) + "/runs/demo/")
    page.page.keyboard.press("t")
    page.page.keyboard.press("j")
    page.page.evaluate("window.stays = true")
    assert page.page.evaluate("document.activeElement.textContent") == "3"
    with page.page.expect_response(lambda answer: answer.url.endswith("/state.json")):
        pass
    shutil.copytree(trained.root / "steps" / "000004", run.root / "steps" / "000004")
    first = page.page.locator("#steps-table tbody tr").first.locator("a")
    expect(first).to_have_text("4", timeout=15_000)
    assert page.page.evaluate("window.stays") is True
    assert axis_title(page) == "sampled tokens"
    assert page.page.evaluate("document.activeElement.textContent") == "3"
    points = "document.querySelector('[data-chart=reward_mean] .plot').data.at(-1).x.length"
    assert page.page.evaluate(points) == 5
    assert page.errors == []


@pytest.mark.slow
def test_alarms_stand_at_the_top_with_their_evidence(
    trained: Run, serve: Serve, watched: Open, tmp_path: Path
) -> None:
    run = copied(trained, tmp_path / "demo", STEPS)
    alarm = {
        "rule": "format_falling",
        "step": 2,
        "message": "format <b>fell</b> to 12%",
        "evidence": ["000002-0000-00"],
        "command": "srpo audit demo --step 2",
    }
    record = {**run.metrics(2), "alarms": [alarm]}
    write_json(run.metrics_path(2), {**record, "digest": digest_of(record)})
    page = watched().page
    page.goto(serve([run]) + "/runs/demo/")
    shown = page.get_by_label("Alarm")
    expect(shown).to_contain_text("format falling from step 2: format <b>fell</b> to 12%")
    link = shown.get_by_role("link", name="000002-0000-00")
    assert link.get_attribute("href") == "/runs/demo/rollouts/000002-0000-00/"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return mixtures.trained(tmp_path_factory.mktemp("mixture"), "mixed")


def test_each_task_of_a_mixture_has_its_line_and_its_column(
    trained: Run, mixture: Run, serve: Serve, watched: Open
) -> None:
    found, tasks = history(mixture).evaluations, ("arithmetic", "doubles")
    of_tasks = [[found[n][f"accuracy/{task}"] for n in (0, 3, 6)] for task in tasks]
    page = watched()
    drawn(page, serve([mixture, trained]) + "/runs/mixed/")
    legend = page.page.locator("#legend-tasks li")
    assert legend.all_inner_texts() == [
        "● all",
        f"■ arithmetic {of_tasks[0][-1]:.1%}",
        f"◆ doubles {of_tasks[1][-1]:.1%}",
    ]
    lines = page.page.evaluate(
        "document.querySelector('[data-chart=accuracy] .plot').data.map((line) => line.y)"
    )
    overall = [found[n]["accuracy"] for n in (0, 3, 6)]
    assert sorted(map(len, lines)) == [3, 3, 3, 4]  # both runs, and the two tasks of this one
    for wanted in (overall, *of_tasks):
        assert any(line == pytest.approx(wanted, rel=1e-5) for line in lines)
    heads = page.page.locator("#evaluations-table th[scope=col]").all_inner_texts()
    assert heads[-2:] == ["avg@2 arithmetic", "avg@2 doubles"]
    row = page.page.locator("#evaluations-table tbody tr").first.locator("td").all_inner_texts()
    shown, pass_at_2 = dict(zip(heads[1:], row, strict=True)), found[6]["pass_at_2"]
    assert shown["pass@2"].splitlines()[0] == f"{pass_at_2:.1%}"
    assert shown["Distinct answers"] == f"{found[6]['distinct_answers']:.2f}"
    assert page.errors == []
    page.page.goto(page.page.url.replace("/mixed/", "/demo/"))
    assert page.page.locator("#legend-tasks").count() == 0
