"""Where the time goes: the section of the run page, with and without profiles."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from pipeline.machine.phases import REST, PhaseTotal
from pipeline.run.run import Run
from pipeline.run.step_profiles import Machine, write_profile
from pipeline.viewer.export import export
from pipeline.viewer.page import runs_by_name
from pipeline.viewer.run_page import RUN, context
from tests.pipeline.viewer.conftest import Serve, Watched

Open = Callable[..., Watched]
MACHINE = Machine(device="cpu", dtype="float32", threads=2, matmul_flops=9e10)
TRACES = ".optional .scatterlayer .trace"


def profile(run: Run, step: int, phase: str = "forward") -> None:
    rows = [
        PhaseTotal("generate", REST, False, 0, 2.0),
        PhaseTotal("route", phase, False, 2, 1.0, 1500, 4.5e10),
        PhaseTotal("route", REST, False, 0, 0.5),
        PhaseTotal("route", "commit", True, 1, 0.25),
        PhaseTotal("update", REST, False, 0, 1.5 + step),
        PhaseTotal("between", REST, False, 0, 0.0),
    ]
    write_profile(run, step, MACHINE, rows)


@pytest.fixture
def profiled(trained: Run, tmp_path: Path) -> Run:
    """Return a copy of a run with profiles of steps 2 and 4."""
    shutil.copytree(trained.root, tmp_path / "demo")
    run = Run.open(tmp_path / "demo")
    for step in (2, 4):
        profile(run, step)
    return run


def test_a_run_without_profiles_says_how_to_get_one(trained: Run) -> None:
    html = RUN.html(runs_by_name([trained]), "demo")
    assert "No step was profiled. <code>srpo train … --profile</code> records it" in html


def test_the_table_and_the_chart_are_of_the_profiled_steps(profiled: Run) -> None:
    html = RUN.html(runs_by_name([profiled]), "demo")
    assert "2 profiled steps" in html and "90 GFLOP/s (cpu, float32, 2 threads)" in html
    assert "No step was profiled" not in html
    found = context(runs_by_name([profiled]), "demo")
    lines = {(line.stage, line.phase): line for line in found["profile"]["lines"]}
    assert lines["route", "forward"].of_rate == pytest.approx(0.5)
    assert lines["", ""].seconds == 8.0  # of 7 and 9
    values = found["data"]["runs"][0]["values"]
    assert values["profile_update"]["raw"] == [None, None, 3.5, None, 5.5, None, None]
    assert "profile" in [chart["key"] for chart in found["data"]["charts"]]
    assert "profile" not in [chart["key"] for chart in found["charts"]]
    last = "generate 2.0s, route 1.5s, update 5.5s"
    assert f'aria-label="Profiled time per stage: {last}"' in html


def test_names_of_phases_are_only_text(profiled: Run) -> None:
    profile(profiled, 2, "<script>alert(1)</script>\u202e")
    html = RUN.html(runs_by_name([profiled]), "demo")
    assert "<script>alert" not in html and "\u202e" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def test_saved_work_has_a_chart_where_it_was_counted(trained: Run) -> None:
    record = trained.metrics(0)
    keys = [chart["key"] for chart in context(runs_by_name([trained]), "demo")["charts"]]
    assert record["tokens_computed"] < record["tokens_naive"]
    assert record["work_share"] == record["tokens_computed"] / record["tokens_naive"]
    assert "work_share" in keys


@pytest.mark.slow
def test_the_chart_appears_when_the_first_step_was_profiled(
    trained: Run, tmp_path: Path, serve: Serve, watched: Open
) -> None:
    shutil.copytree(trained.root, tmp_path / "demo")
    last = tmp_path / "demo" / "steps" / "000006"
    shutil.move(last, tmp_path / "later")
    run = Run.open(tmp_path / "demo")
    page = watched()
    address = serve([run])
    with page.page.expect_response(lambda answer: answer.url.endswith("/state.json")):
        page.page.goto(address + "/runs/demo/")
    expect(page.page.get_by_text("No step was profiled")).to_be_visible()
    assert not page.page.locator(".optional .chart").is_visible()
    profile(run, 3)
    profile(run, 4)
    shutil.move(tmp_path / "later", last)
    expect(page.page.get_by_role("cell", name="1,500")).to_be_visible(timeout=15_000)
    expect(page.page.locator(".optional .chart")).to_be_visible()
    expect(page.page.locator(TRACES)).to_have_count(3)  # of the stages that took any time
    assert page.errors == []


@pytest.mark.slow
def test_an_export_has_the_section_too(profiled: Run, tmp_path: Path, watched: Open) -> None:
    export([profiled], tmp_path / "pages", lambda done, total: None)
    page = watched(viewport={"width": 400, "height": 800})
    page.page.goto((tmp_path / "pages" / "runs" / "demo" / "index.html").as_uri())
    page.page.wait_for_selector("html[data-drawn]")
    expect(page.page.locator(TRACES)).to_have_count(3)
    expect(page.page.get_by_role("rowheader", name="commit beside the stages")).to_be_visible()
    assert page.page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.errors == []
