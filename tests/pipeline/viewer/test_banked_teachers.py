"""Pages of rollouts that an earlier step's answer teaches: links both ways, and its age."""

import shutil
from pathlib import Path

import pytest

from pipeline.run.run import Run
from pipeline.viewer import export_selection
from pipeline.viewer.page import runs_by_name
from pipeline.viewer.rollout_page import ROLLOUT, context
from pipeline.viewer.step_page import context as step_context
from tests.builders.banked_teachers import EARLIER, TAUGHT, TEACHER, banked_run
from tests.builders.tables import IDS, STEP


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path) -> Run:
    made = banked_run(tmp_path / "run")
    (made.root / "tokenizer").mkdir()
    shutil.copy(tiny_folder / "tokenizer.json", made.root / "tokenizer")
    return made


def test_the_page_links_to_the_earlier_answer(run: Run) -> None:
    runs = runs_by_name([run])
    found = context(runs, "run", TAUGHT)
    assert (found["teacher"], found["teacher_age"]) == (TEACHER, "2 steps before")
    html = ROLLOUT.html(runs, "run", TAUGHT)
    assert f'/runs/run/rollouts/{TEACHER}/">{TEACHER}</a>, 2 steps before' in html
    assert "once right" in html
    sibling = context(runs, "run", IDS[1])
    assert (sibling["teacher"], sibling["teacher_age"]) == (IDS[0], "")


def test_the_earlier_answers_page_names_whom_it_taught_later(run: Run) -> None:
    found = context(runs_by_name([run]), "run", TEACHER)
    assert found["taught"] == [TAUGHT]


def test_the_step_shows_sources_and_ages(run: Run) -> None:
    found = step_context(runs_by_name([run]), "run", f"{STEP}")
    cards = [dict(zip(found["data"]["columns"], e["card"], strict=True)) for e in entries(found)]
    assert [card["Teacher"] for card in cards] == [
        "none", IDS[0], "none", f"{TEACHER}, 2 steps before",
    ]  # fmt: skip
    (options,) = [options for key, _, options in found["filters"] if key == "source"]
    assert options == [("bank", "bank", 1), ("none", "none", 2), ("sibling", "sibling", 1)]
    before = step_context(runs_by_name([run]), "run", f"{EARLIER}")
    assert "source" not in [key for key, _, _ in before["filters"]]


def entries(found: dict[str, object]) -> list[dict[str, list[str | None]]]:
    data = found["data"]
    assert isinstance(data, dict)
    return list(data["rollouts"])


def test_an_export_says_that_the_earlier_page_is_not_in_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = runs_by_name([run])
    assert f"rollouts/{TEACHER}/index.html" in ROLLOUT.html(runs, "run", TAUGHT, exported=True)
    monkeypatch.setattr(export_selection, "exported_steps", lambda _: [STEP])
    html = ROLLOUT.html(runs, "run", TAUGHT, exported=True)
    assert f'<span class="mono" title="not in this export">{TEACHER}</span>' in html
