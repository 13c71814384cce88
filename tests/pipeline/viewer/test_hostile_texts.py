"""Untrusted texts on every page: nothing runs, nothing is fetched, nothing hides, all is usable."""

import re
from pathlib import Path

import pytest

from pipeline.run.run import Run
from pipeline.viewer.export import export
from pipeline.viewer.page import runs_by_name
from pipeline.viewer.page_registry import KINDS
from pipeline.viewer.rollout_page import kept_at
from tests.pipeline.viewer.conftest import Serve, Watched
from tests.pipeline.viewer.hostile_run import LONG, hostile_run
from tests.pipeline.viewer.test_run_page import Open

UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)
FOREIGN = """() => [...document.querySelectorAll("*")].filter((element) =>
    !element.closest(".plot, [id^=plotly], [id^=js-plotly]")).filter((element) =>
    element.matches("img, iframe, object, embed, base, style")
    || element.matches("link:not([rel=stylesheet], [rel=icon])")
    || element.matches("script:not([src]):not([type='application/json'])")
    || [...element.attributes].some((a) => a.name.startsWith("on") || a.name === "style")
).map((element) => element.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def hostile(trained: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of two steps with hostile texts; never write to it."""
    return hostile_run(trained, tmp_path_factory.mktemp("hostile") / "bad")


def pages(run: Run) -> list[str]:
    """Return the address of a page of each kind, and of one rollout of each route."""
    routes = run.read("routes", 0)
    of_route = dict(zip(routes["route"].to_pylist(), routes["rollout_id"].to_pylist(), strict=True))
    evaluated = run.read("evaluations", 0)["rollout_id"][0].as_py()
    rollouts = [f"/runs/bad/rollouts/{key}/" for key in (*of_route.values(), evaluated)]
    assert set(of_route) == {"grpo", "sdpo"}
    return ["/", "/runs/bad/", "/runs/bad/steps/0/", "/runs/bad/steps/1/", *rollouts]


def test_no_text_leaves_its_place_or_acts_on_the_eye(hostile: Run) -> None:
    runs = runs_by_name([hostile])
    for kind in KINDS:
        for keys in list(kind.pages(runs))[:6]:
            html = kind.html(runs, *keys)
            assert not UNSEEN.search(html), keys
            assert "<script>alert" not in html and "<img" not in html and "<svg onload" not in html
            assert len(html) < 2_000_000


def test_the_long_text_is_folded_and_counted(hostile: Run) -> None:
    rollout = hostile.read("rollouts", 0)["rollout_id"][0].as_py()
    (kind,) = [kind for kind in KINDS if "rollouts" in kind.address]
    html = kind.html(runs_by_name([hostile]), "bad", rollout)
    assert html.count("<summary>The rest: 100,") >= 4
    assert "x" * (LONG - 3000) in html


def test_kept_tokens_are_spelled_out(hostile: Run) -> None:
    rollout = hostile.manifest("teacher", 0).index or {}
    found = kept_at(runs_by_name([hostile]), "bad", next(iter(rollout)), "0")
    assert len(found["top"]) == hostile.config.route.top_k
    assert not UNSEEN.search("".join(found["pieces"].values()))


def seen(page: Watched) -> None:
    """Check what the browser made of the page that is open."""
    text = page.page.evaluate("document.body.innerText + document.body.textContent")
    assert not UNSEEN.search(text), page.page.url
    assert page.page.evaluate(FOREIGN) == [], page.page.url
    wide = page.page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0, page.page.url


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_the_browser_obeys_nothing(hostile: Run, serve: Serve, watched: Open, width: int) -> None:
    address = serve([hostile])
    page = watched(viewport={"width": width, "height": 800})
    dialogs: list[str] = []
    page.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for path in pages(hostile):
        page.page.goto(address + path)
        page.page.wait_for_load_state("networkidle")
        seen(page)
        if "rollouts" in path:
            for key in "12345678t":
                page.page.keyboard.press(key)
            for _ in range(6):
                page.page.keyboard.press("ArrowRight")
            assert page.page.locator("#token h3").inner_text()
            page.page.evaluate(
                "document.querySelectorAll('details').forEach(d => { d.open = true })"
            )
        if "steps" in path:
            page.page.locator(".cell").first.focus()
            page.page.fill("[name=text]", "<script>alert(1)</script>")
            assert "16 of 16" in page.page.inner_text("#left")
            page.page.locator(".cell").first.focus()
        seen(page)
    assert dialogs == [] and page.errors == [] and page.outside(address) == []


@pytest.mark.slow
def test_the_export_is_as_harmless(hostile: Run, watched: Open, tmp_path: Path) -> None:
    export([hostile], tmp_path / "pages", lambda done, total: None)
    page = watched()
    dialogs: list[str] = []
    page.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    for path in pages(hostile)[:-1]:
        page.page.goto((tmp_path / "pages" / path.strip("/") / "index.html").as_uri())
        page.page.wait_for_load_state("networkidle")
        seen(page)
    assert dialogs == [] and page.errors == [] and page.outside(tmp_path.as_uri()) == []
