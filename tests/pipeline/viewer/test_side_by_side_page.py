"""The page of methods side by side: what it shows, and that no text leaves its place."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from pipeline.errors import StoreError
from pipeline.viewer import side_by_side_page
from pipeline.viewer.side_by_side_page import page_of, write_side_by_side
from tests.builders.side_by_side import side_by_side
from tests.pipeline.viewer.conftest import Watched
from tests.pipeline.viewer.test_rollout_page import CONTRAST

HOSTILE = "</script><script>alert(1)</script>\x1b[2J\u202e\ud800<b>&"


def data_of(html: str) -> Any:
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert block is not None
    return json.loads(block[1])


def test_it_shows_two_rollouts_under_all_methods() -> None:
    html = page_of(side_by_side())
    data = data_of(html)
    assert data["methods"] == ["grpo", "srpo"]
    failed, correct = data["samples"]
    assert (failed["rollout_id"], correct["rollout_id"]) == ("000003-0001-00", "000003-0001-01")
    grpo, srpo = failed["rows"]
    assert grpo["push"] == [-1.0, -4.0] and grpo["size"] == [1.0, 2.0] and grpo["total"] == 3.0
    # Sizes 1 and 2, both lowered: on the method's own scale up to 2, on the common one up to 4.
    assert grpo["own"] == ["n8", "n16"] and grpo["common"] == ["n4", "n8"]
    assert srpo["own"] == ["p0", "n16"] == srpo["common"]
    assert correct["rows"][0]["own"] == ["p16", "p11"]
    assert html.count('role="listbox"') == 4 and "0.250" in html
    assert "37.5% of the gradient" in html


def test_texts_of_others_stay_texts() -> None:
    found = side_by_side(question=HOSTILE, text=HOSTILE)
    found = replace(
        found,
        warnings=[HOSTILE],
        methods=[replace(own, label=HOSTILE + own.label, run=HOSTILE) for own in found.methods],
    )
    html = page_of(found)
    assert "alert(1)</script>" not in html and "<b>" not in html
    assert not set("\x1b\u202e\ud800") & set(html)
    html.encode()


def test_long_responses_are_cut_and_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(side_by_side_page, "MOST_TOKENS", 1)
    monkeypatch.setattr(side_by_side_page, "MOST_ROLLOUTS", 3)
    html = page_of(side_by_side())
    assert "1 more tokens are not on this page" in html and "1 more: <code>" in html
    assert [len(row["own"]) for row in data_of(html)["samples"][0]["rows"]] == [1, 1]


def test_a_step_without_verdicts_has_no_rollout_to_show() -> None:
    found = side_by_side()
    unjudged = [replace(s, outcome="not judged") for s in found.samples]
    assert "No rollout was judged" in page_of(replace(found, samples=unjudged))


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    written = write_side_by_side(side_by_side(), tmp_path / "out")
    assert written.read_text(encoding="utf-8").startswith("<!doctype html>")
    with pytest.raises(StoreError, match="there is something already"):
        write_side_by_side(side_by_side(), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_is_readable(
    width: int, scheme: str, tmp_path: Path, watched: Callable[..., Watched]
) -> None:
    path = write_side_by_side(side_by_side(text=HOSTILE), tmp_path / "out")
    shown = watched(viewport={"width": width, "height": 800}, color_scheme=scheme)
    shown.page.goto(path.as_uri())
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    shown.page.keyboard.press("t")
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.page.evaluate(CONTRAST) >= 4.5
    assert shown.errors == [] and shown.outside("file://") == []


@pytest.mark.slow
def test_one_token_under_all_methods(tmp_path: Path, watched: Callable[..., Watched]) -> None:
    path = write_side_by_side(side_by_side(), tmp_path / "out")
    shown = watched(viewport={"width": 1280, "height": 800})
    page = shown.page
    page.goto(path.as_uri())
    panel = page.locator("#token")
    page.locator(".t").nth(1).click()  # the failed rollout's second token under grpo
    expect(panel.locator("h3")).to_contain_text("position 1 of 0 to 1")
    rows = panel.locator("tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("▼less likely")
    expect(rows.nth(0)).to_contain_text("66.7%")
    expect(rows.nth(0)).to_have_class("here")
    expect(page.locator(".t.same")).to_have_count(1)
    page.keyboard.press("ArrowDown")
    expect(rows.nth(1)).to_have_class("here")
    page.keyboard.press("ArrowLeft")
    expect(panel.locator("h3")).to_contain_text("position 0 of")
    expect(rows.nth(1)).to_contain_text("-nothing")
    page.keyboard.press("m")
    expect(panel.locator("h3")).to_contain_text("position 1 of")
    first = page.locator(".t").first
    expect(first).to_have_class("t n8")
    page.keyboard.press("2")
    expect(first).to_have_class("t n4")
    expect(page.locator("[data-own]").first).to_have_text("4")
    assert shown.errors == []
