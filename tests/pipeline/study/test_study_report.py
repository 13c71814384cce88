"""The results part of a study's page: its numbers, what it says of unfinished groups, and bytes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StoreError
from pipeline.run.metrics import Interval
from pipeline.study.curve_measures import summary_of
from pipeline.study.study_plan import Plan
from pipeline.study.study_report import (
    BEGIN,
    END,
    escaped,
    interval_text,
    results_text,
    table,
    write_report,
)
from pipeline.study.study_results import world_results
from pipeline.study.study_row import Row
from tests.builders.study_rows import study_row

TITLES = {"grpo": "GRPO", "srpo": "SRPO", "srpo-bank": "with a | bank"}
PLAN: dict[str, Any] = {
    "preregistered": "0123abc",
    "worlds": {"level-1": {"title": "Chains", "config": Path("level-1.toml")}},
    "variants": {name: {"title": title} for name, title in TITLES.items()},
    "rates": {"level-1": dict.fromkeys(TITLES, 1e-3)},
    "groups": [
        {"name": "pilot", "worlds": ["level-1"], "variants": ["grpo"], "seeds": [100],
         "steps": 12, "rates": [1e-3, 3e-3]},
        {"name": "main", "worlds": ["level-1"], "variants": ["grpo", "srpo"],
         "seeds": [0, 1, 2], "steps": 12},
        {"name": "ablation", "worlds": ["level-1"], "variants": ["srpo-bank"], "seeds": [0, 1],
         "steps": 12},
    ],
}  # fmt: skip


def the_plan(**changes: Any) -> Plan:
    return Plan.model_validate({**PLAN, **changes})


def made(plan: Plan, parts: Iterable[str] = ("",)) -> dict[str, Row]:
    """Return rows of the runs whose names have one of the parts; each seed is a little better."""
    alarm: dict[str, str | int | bool]
    alarm = {"rule": "off_path", "step": 3, "healthy": 2, "severe": True, "raised": 4}
    found = {}
    for run in plan.runs():
        if any(part in run.name for part in parts):
            curve = {done: 0.2 + 0.04 * done + 0.01 * (run.seed % 3) for done in range(0, 13, 2)}
            alarms = [alarm] if run.variant == "srpo" and run.seed == 1 else []
            found[run.name] = study_row(run.name, curve, format_rate=0.9, alarms=alarms)
    return found


def text_of(plan: Plan, rows: dict[str, Row]) -> str:
    worlds = world_results(plan, rows, {})
    return results_text(plan, rows, worlds, {world.name: [] for world in worlds})


def lines_of(text: str, title: str) -> list[list[str]]:
    """Return the cells of a variant's lines in the tables."""
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return [cells for cells in found if cells[0] == title]


def test_tables_have_the_numbers_of_the_measures() -> None:
    plan = the_plan()
    rows = made(plan)
    accuracy, last, _ = lines_of(text_of(plan, rows), "SRPO")
    summary = summary_of([row for name, row in rows.items() if "main/level-1/srpo/" in name])
    within = list(summary.best_within.values())
    curve = summary.accuracy
    assert accuracy[1:] == [
        *map(interval_text, [curve["at_sixth"], *within, curve["last_third"]]),
        interval_text(curve["worst_drop"]),
        "3 of 3",
    ]
    assert last[1:] == [
        *(interval_text(summary.pass_at[k]) for k in (1, 2, 4, 8)),
        "60",
        "90.0 (90.0 to 90.0)",
        "`off_path` 1 of 3",
    ]


def test_budgets_of_tokens_are_shares_of_what_all_runs_have_spent() -> None:
    plan = the_plan()
    rows = made(plan)
    longer = {"tokens": [2000.0, 2000.0]}  # else 12 steps of 1000 tokens
    for name in rows:
        if name.startswith("main/level-1/srpo/"):
            rows[name] = rows[name].model_copy(update={"means": {**rows[name].means, **longer}})
    text = text_of(plan, rows)
    assert "| variant | 1/6 (2,000) | 1/2 (6,000) | 1 (12,000) |" in text
    # 2000 tokens are two steps of GRPO, at which it was evaluated, and one of SRPO.
    assert lines_of(text, "GRPO")[3][1].startswith("28.8 ")  # 22, 23 and 24 of 80 answers
    assert lines_of(text, "SRPO")[2][1].startswith("21.2 ")  # before training: 16, 17 and 18


def test_a_mean_is_in_percent_with_its_interval() -> None:
    assert interval_text(Interval(0.6125, 0.58, 0.6449)) == "61.3 (58.0 to 64.5)"
    assert interval_text(Interval(0.02, -0.01, 0.05), signed=True) == "+2.0 (-1.0 to +5.0)"
    assert interval_text(Interval(-0.0, -0.0, 0.0)) == "0.0 (0.0 to 0.0)"


def piloted(shares: dict[str, dict[str, float]], **rates: float) -> str:
    """Return the text of pilots with such accuracies in the last third, by variant and rate.

    Args:
        rates: the plan's, by variant; an underscore stands for a hyphen.
    """
    every = list(dict.fromkeys(float(rate) for of in shares.values() for rate in of))
    group = {"name": "pilot", "worlds": ["level-1"], "seeds": [100], "steps": 12}
    plan = the_plan(
        variants={name: {"title": name.upper()} for name in shares},
        rates={"level-1": {name.replace("_", "-"): rate for name, rate in rates.items()}},
        groups=[{**group, "variants": list(shares), "rates": every}],
    )
    rows = {
        (name := f"pilot/level-1/{variant}@{rate}/100"): study_row(
            name, {0: 0.2, 6: 0.9, 12: share}, questions=100
        )
        for variant, by_rate in shares.items()
        for rate, share in by_rate.items()
    }
    return text_of(plan, rows)


def test_of_rates_within_a_point_of_the_best_the_lowest_is_bold() -> None:
    text = piloted(
        {
            "grpo": {"1e-5": 0.49, "1e-4": 0.6, "1e-3": 0.61},  # exactly a point
            "sdpo": {"1e-5": 0.5, "1e-4": 0.58, "1e-3": 0.6},
            "srpo": {"1e-5": 0.5, "1e-3": 0.6},  # one isn't finished
        }
    )
    assert "| Chains | 1e-5 | 1e-4 | 1e-3 |" in text
    assert lines_of(text, "GRPO") == [["GRPO", "49.0", "**60.0**", "61.0"]]
    assert lines_of(text, "SDPO") == [["SDPO", "50.0", "58.0", "**60.0**"]]
    assert lines_of(text, "SRPO") == [["SRPO", "50.0", "–", "60.0"]]


def test_a_plan_whose_rate_is_not_the_rules_is_told_so() -> None:
    shares = {"grpo": {"1e-4": 0.6, "1e-3": 0.7}, "sdpo": {"1e-4": 0.6, "1e-3": 0.7}}
    text = piloted(shares, grpo=1e-3, sdpo=1e-4)
    assert "The plan has other rates than the rule: SDPO 1e-4." in text
    assert "other rates" not in piloted(shares, grpo=1e-3)


def test_the_setting_of_survival_with_the_highest_mean_is_bold() -> None:
    shares = {
        "srpo": {"1e-4": 0.9},
        "srpo-survival-weight": {"1e-4": 0.5, "1e-3": 0.3},
        "srpo-survival-hand-over": {"1e-4": 0.4, "1e-3": 0.6},
    }
    text = piloted(shares)
    assert ["SRPO-SURVIVAL-WEIGHT", "50.0"] in lines_of(text, "SRPO-SURVIVAL-WEIGHT")
    assert ["SRPO-SURVIVAL-HAND-OVER", "**60.0**"] in lines_of(text, "SRPO-SURVIVAL-HAND-OVER")
    del shares["srpo-survival-weight"]["1e-3"]
    text = piloted(shares)
    assert ["SRPO-SURVIVAL-HAND-OVER", "60.0"] in lines_of(text, "SRPO-SURVIVAL-HAND-OVER")
    assert "Settings of survival" not in piloted({"srpo": shares["srpo"]})


def test_pilots_alone_are_tables_without_verdicts_and_figures(tmp_path: Path) -> None:
    page = tmp_path / "STUDY.md"
    plan = the_plan()
    write_report(plan, made(plan, ["pilot"]), {}, page)
    text = page.read_text()
    assert "Of these only pilots: there is nothing to judge and to draw yet." in text
    assert "## Pilots" in text and "## Hypotheses" not in text and "![" not in text
    assert not list(tmp_path.rglob("*.svg"))


@pytest.mark.parametrize(
    ("parts", "state"),
    [
        ([], ["0 of 10 runs are finished.", "12 steps, 0 of 6 runs."]),
        (["main/level-1/srpo/1"], ["1 of 10 runs are finished.", "| main | 1 of 6 |"]),
        (["grpo"], ["5 of 10 runs are finished.", "| ablation | 0 of 2 |"]),
    ],
)
def test_an_unfinished_group_says_how_many_of_its_runs_are(
    parts: list[str], state: list[str]
) -> None:
    plan = the_plan()
    text = text_of(plan, made(plan, parts))
    for words in state:
        assert words in text


def test_an_ablation_stands_beside_the_first_steps_of_the_reference() -> None:
    main, ablation = PLAN["groups"][1:]
    plan = the_plan(groups=[{**main, "steps": 20}, {**ablation, "steps": 10}])
    rows = {}
    for run in plan.runs():
        curve = {n: 0.2 + 0.04 * n / 2 + 0.1 * run.seed for n in range(0, run.steps + 1, 5)}
        rows[run.name] = study_row(run.name, curve)
    (line, _) = lines_of(text_of(plan, rows), "SRPO, first 10 steps of main")
    # Seeds 0 and 1 after 10 of 10 steps: 40% and 50%; seed 2 is none of the ablation's.
    assert line[4].startswith("45.0 (")
    assert line[-1] == "2 of 2"


def test_an_ablation_as_long_as_the_reference_stands_beside_all_of_it() -> None:
    plan = the_plan()
    (line, _) = lines_of(text_of(plan, made(plan)), "SRPO, main")
    assert line[-1] == "2 of 2"


def test_a_variant_without_runs_has_a_line_without_numbers() -> None:
    plan = the_plan()
    accuracy, last = lines_of(text_of(plan, made(plan, ["grpo"])), "SRPO")
    assert set(accuracy[1:-1]) == set(last[1:]) == {"–"}
    assert accuracy[-1] == "0 of 3"


def test_the_commit_of_the_preregistration_is_named() -> None:
    plan = the_plan()
    assert "as `0123abc`." in text_of(plan, {})
    assert "before the first main run" not in text_of(the_plan(preregistered=None), {})


def test_verdicts_stand_beside_the_differences_they_rest_on() -> None:
    plan = the_plan()
    text = text_of(plan, made(plan))
    assert "| H1 |" in text
    assert "srpo - grpo: accuracy at a sixth of the steps" in text


def test_names_say_what_they_say() -> None:
    assert escaped("a | b_c <i> `d`") == "a \\| b\\_c &lt;i&gt; \\`d\\`"
    assert escaped('a="`|"', code=True) == 'a="\'\\|"'
    assert table([["a", "b"], ["1", "2"]]) == "| a | b |\n|---|---|\n| 1 | 2 |"
    plan = the_plan()
    assert "| with a \\| bank |" in text_of(plan, made(plan))


def test_a_report_keeps_what_is_written_by_hand_and_is_the_same_twice(tmp_path: Path) -> None:
    plan = the_plan()
    page = tmp_path / "STUDY.md"
    page.write_text(f"# By hand\n\n{BEGIN}\nfrom before\n{END}\n\nThe end.\n")
    found = []
    for rows in (made(plan, ["main"]), made(plan, ["main"])):
        write_report(plan, rows, {}, page)
        files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        found.append({path.relative_to(tmp_path): path.read_bytes() for path in files})
    first, second = found
    assert first == second
    assert {path.name for path in first} == {
        *("STUDY.md", "readme.svg"),
        *(f"level-1-{name}.svg" for name in ("accuracy", "budgets", "behaviour")),
    }
    text = page.read_text()
    assert text.startswith(f"# By hand\n\n{BEGIN}\n\n# Results\n")
    assert text.endswith(f"\n{END}\n\nThe end.\n")
    assert "from before" not in text
    for figure in first:
        if figure.suffix == ".svg" and figure.stem != "readme":
            assert f"]({figure.as_posix()})" in text


def test_losses_are_listed_with_the_alarms_around_them() -> None:
    plan = the_plan()
    rows = made(plan)
    curve = {0: 0.2, 4: 0.8, 8: 0.3, 12: 0.3}
    early, late = (
        {"rule": rule, "step": done - 1, "healthy": 0, "severe": True, "raised": done}
        for rule, done in (("off_path", 6), ("length_grows", 10))
    )
    name = "main/level-1/srpo/2"
    rows[name] = study_row(name, curve, questions=100, alarms=[early, late])
    rows = {key: row for key, row in rows.items() if key == name or "srpo/" not in key}
    (line,) = lines_of(text_of(plan, rows), f"`{name}`")
    assert line[1:] == [
        "4 and 8",
        "80.0",
        "30.0",
        "`off_path` 6 (precedes), `length_grows` 10 (late)",
    ]


@pytest.mark.parametrize(("text", "before"), [(None, ""), ("# By hand\n", "# By hand\n\n")])
def test_on_a_page_without_results_they_come_last(
    tmp_path: Path, text: str | None, before: str
) -> None:
    page = tmp_path / "STUDY.md"
    if text is not None:
        page.write_text(text)
    for _ in range(2):
        write_report(the_plan(), {}, {}, page)
        assert page.read_text().startswith(f"{before}{BEGIN}\n\n# Results\n")
        assert page.read_text().endswith(f"{END}\n")


def test_a_page_with_half_a_pair_of_markers_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "STUDY.md"
    for text in (f"{END}\n{BEGIN}\n", f"{BEGIN}\n{BEGIN}\n{END}\n", f"# By hand\n{BEGIN}\n"):
        page.write_text(text)
        with pytest.raises(StoreError, match="where do results go"):
            write_report(the_plan(), {}, {}, page)
        assert page.read_text() == text
