"""The rollout page: tokens and what was thought of them, the sibling, and links to others."""

import math
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from pipeline.run.run import Run
from pipeline.viewer import rollout_tokens
from pipeline.viewer.export import export
from pipeline.viewer.page import Missing, runs_by_name
from pipeline.viewer.rollout_page import ROLLOUT, context, kept_at
from pipeline.viewer.rollout_tokens import in_flow, visible
from tests.pipeline.viewer.conftest import Serve
from tests.pipeline.viewer.hostile_run import hostile_run
from tests.pipeline.viewer.test_run_page import Open


def first(run: Run, route: str, step: int = 0) -> str:
    """Return the first rollout of a step that went this way and has a gradient."""
    routes, updates = run.read("routes", step), run.read("updates", step)
    rows = zip(routes["rollout_id"], routes["route"], updates["computed"], strict=True)
    return next(key.as_py() for key, name, on in rows if name.as_py() == route and on.as_py())


def test_texts_of_tokens_show_their_spaces() -> None:
    assert visible(" the\n") == "␣the↵" and visible("") == "∅" and visible("\t") == "⇥"
    assert visible("\x1b\u202e") == "\\x1b\\u202e"
    assert in_flow("a\n") == "a↵\n" and in_flow(" b") == " b"


def test_a_taught_rollout_shows_both_distributions(trained: Run) -> None:
    rollout = first(trained, "sdpo")
    found = context(runs_by_name([trained]), "demo", rollout)
    data = found["data"]
    rows = trained.read_rollout("teacher", 0, rollout)
    kept = trained.config.route.top_k
    assert data["held"] == "all" and data["kept"] == kept
    assert len(data["tops"]) == rows.num_rows == len(data["ids"])
    for position, top in enumerate(data["tops"]):
        assert [entry[0] for entry in top] == rows["topk_ids"][position].as_py()
        student = sum(math.exp(entry[1]) for entry in top)
        tail = data["tails"]["student"][position]
        assert student + math.exp(tail) == pytest.approx(1, abs=2e-3)
    assert data["values"]["weight"] == pytest.approx(
        trained.read_rollout("weights", 0, rollout)["weight"].to_pylist(), rel=1e-3
    )
    assert {layer["key"] for layer in data["layers"] if not layer["missing"]} >= {
        "teacher_entropy", "weight", "jsd", "advantage", "student_logprob", "share",
    }  # fmt: skip
    assert sum(data["values"]["share"]) == pytest.approx(1, abs=2e-3)
    assert found["tokens"]["shown"] == "teacher_entropy"


def test_what_a_grpo_rollout_lacks_is_said_with_the_setting(trained: Run) -> None:
    found = context(runs_by_name([trained]), "demo", first(trained, "grpo"))
    missing = {layer["key"]: layer["missing"] for layer in found["data"]["layers"]}
    assert "route.method" in missing["teacher_entropy"] and missing["advantage"] == ""
    assert "route.rescore" in missing["student_entropy"]
    assert found["data"]["held"] == "none" and found["tokens"]["shown"] == "student_logprob"


def test_long_responses_hold_the_top_5_and_fetch_the_rest(
    trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = first(trained, "sdpo")
    whole = context(runs_by_name([trained]), "demo", rollout)["data"]["tops"]
    monkeypatch.setattr(rollout_tokens, "MOST_PAIRS", 10)
    data = context(runs_by_name([trained]), "demo", rollout)["data"]
    assert data["held"] == "top"
    for all_of_it, top in zip(whole, data["tops"], strict=True):
        assert 5 <= len(top) <= 10
        for place in (1, 2):
            best = sorted((entry[place] for entry in all_of_it), reverse=True)[:5]
            assert sorted((entry[place] for entry in top), reverse=True)[:5] == best
    found = kept_at(runs_by_name([trained]), "demo", rollout, "1")
    assert [tuple(entry) for entry in found["top"]] == whole[1]


def test_it_says_who_taught_whom(trained: Run) -> None:
    rollout = first(trained, "sdpo")
    found = context(runs_by_name([trained]), "demo", rollout)
    teacher = trained.read_rollout("routes", 0, rollout)["teacher_rollout_id"][0].as_py()
    assert found["teacher"] == teacher
    assert rollout in context(runs_by_name([trained]), "demo", teacher)["taught"]
    assert any(part.differs for part in found["sides"].left)


@pytest.mark.parametrize("rollout", ["000000-0009-00", "x", "000099-0000-00", "e000001-0000-00"])
def test_other_rollouts_are_missing(trained: Run, rollout: str) -> None:
    with pytest.raises(Missing, match="has no rollout"):
        context(runs_by_name([trained]), "demo", rollout)


@pytest.mark.parametrize("position", ["-1", "x", "99999", "٣", ""])
def test_other_positions_are_missing(trained: Run, position: str) -> None:
    with pytest.raises(Missing):
        kept_at(runs_by_name([trained]), "demo", first(trained, "sdpo"), position)


def test_an_evaluation_has_no_route(trained: Run) -> None:
    rollout = trained.read("evaluations", 3)["rollout_id"][0].as_py()
    html = ROLLOUT.html(runs_by_name([trained]), "demo", rollout)
    assert "An answer to a test question after 3 steps" in html
    assert "after 6 steps" in html  # the same question at the other evaluations


def test_a_fork_without_updates_shows_its_own_weights(trained: Run, fork: Run) -> None:
    rollout = first(trained, "sdpo")
    runs = runs_by_name([trained, fork])
    ours, theirs = (context(runs, name, rollout)["data"]["values"] for name in runs)
    assert ours["jsd"] == theirs["jsd"] and ours["weight"] != theirs["weight"]
    assert ours["loss"] is not None and theirs["loss"] is None


@pytest.mark.slow
def test_tokens_by_mouse_and_keys(trained: Run, serve: Serve, watched: Open) -> None:
    opened = watched(viewport={"width": 1280, "height": 900})
    page = opened.page
    rollout = first(trained, "sdpo")
    page.goto(f"{serve([trained])}/runs/demo/rollouts/{rollout}/")
    panel = page.locator("#token")
    page.locator(".t").nth(3).click()
    expect(panel.locator("h3")).to_contain_text("position 3 of")
    expect(panel.locator("section")).to_have_count(2)
    expect(panel.locator(".choice.sampled").first).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(panel.locator("h3")).to_contain_text("position 4 of")
    assert page.url.endswith("#token-4")
    assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    page.keyboard.press("Home")
    expect(panel.locator("h3")).to_contain_text("position 0 of")
    looks = {}
    for key, name in enumerate(("Teacher entropy", "Student entropy", "Weight", "Divergence"), 1):
        page.keyboard.press(str(key))
        expect(page.locator("#scale strong")).to_have_text(name)
        looks[name] = page.evaluate("[...document.querySelectorAll('.t')].map(t => t.className)")
    assert looks["Teacher entropy"] != looks["Divergence"]
    page.get_by_label("Loss share").check(force=True)
    page.keyboard.press("m")
    values = context(runs_by_name([trained]), "demo", rollout)["data"]["values"]["share"]
    expect(panel.locator("h3")).to_contain_text(f"position {values.index(max(values))} of")
    page.reload()
    expect(panel.locator("h3")).to_contain_text("position")
    panel.locator("summary").first.click()
    expect(panel.locator("details[open]")).to_have_count(2)
    assert opened.errors == []


@pytest.mark.slow
def test_links_to_the_group_the_teacher_and_the_same_question(
    trained: Run, serve: Serve, watched: Open, tmp_path: Path
) -> None:
    run = hostile_run(trained, tmp_path / "again")
    opened = watched()
    page = opened.page
    rollout = first(run, "sdpo")
    teacher = run.read_rollout("routes", 0, rollout)["teacher_rollout_id"][0].as_py()
    page.goto(f"{serve([run])}/runs/again/rollouts/{rollout}/")
    page.locator(".reason a").click()
    expect(page).to_have_url(re.compile(f"/rollouts/{teacher}/$"))
    page.get_by_role("link", name=rollout, exact=True).click()
    expect(page).to_have_url(re.compile(f"/rollouts/{rollout}/$"))
    page.locator(".same tr").nth(1).locator(".cell").first.click()
    expect(page).to_have_url(re.compile("/rollouts/000001-"))
    page.locator(".same th a").first.click()
    expect(page).to_have_url(re.compile(r"/steps/\d/#group-\d$"))
    expect(page.locator(".tile:target")).to_be_visible()
    page.go_back()
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile("/rollouts/000001-"))


@pytest.mark.slow
def test_all_kept_tokens_are_fetched_live_and_not_in_an_export(
    trained: Run, serve: Serve, watched: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rollout_tokens, "MOST_PAIRS", 10)
    rollout = first(trained, "sdpo")
    live = watched()
    live.page.goto(f"{serve([trained])}/runs/demo/rollouts/{rollout}/#token-2")
    expect(live.page.locator("#token .foot").first).to_have_text(
        f"The {trained.config.route.top_k} kept tokens are the student's likeliest."
    )
    assert any(url.endswith("/tokens/2/") for url in live.requests) and live.errors == []
    export([trained], tmp_path / "pages", lambda done, total: None)
    still = watched()
    path = tmp_path / "pages" / "runs" / "demo" / "rollouts" / rollout / "index.html"
    still.page.goto(path.as_uri() + "#token-2")
    expect(still.page.locator("#token .foot").first).to_contain_text("the top 5 of each")
    assert still.errors == [] and still.outside(tmp_path.as_uri()) == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_fits_and_is_readable(
    trained: Run, serve: Serve, watched: Open, scheme: str, width: int
) -> None:
    opened = watched(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = opened.page
    address = serve([trained]) + "/runs/demo/"
    for path in ("steps/0/", f"rollouts/{first(trained, 'sdpo')}/", "rollouts/000000-0000-00/"):
        page.goto(address + path)
        page.keyboard.press("t")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, path
    page.goto(address + f"rollouts/{first(trained, 'sdpo')}/")
    assert page.evaluate(CONTRAST) >= 4.5
    assert opened.errors == []


CONTRAST = """() => {
  const linear = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const luminance = (color) => {
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((c) => linear(c / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const span = document.querySelector(".t");
  const looks = [...Array(32).keys()].flatMap((i) =>
    [`h${i}`, `p${Math.min(16, i)}`, `n${Math.min(16, i + 1)}`]);
  return Math.min(...looks.map((look) => {
    span.className = `t ${look}`;
    const style = getComputedStyle(span);
    const [a, b] = [luminance(style.color), luminance(style.backgroundColor)];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  }));
}"""
