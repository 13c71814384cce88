"""The shell: addresses, escaping, headers, and what templates must not hold."""

import json
import re
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from jinja2 import UndefinedError

from pipeline.errors import StoreError
from pipeline.run.fork import Fork
from pipeline.run.run import Run
from pipeline.viewer import app as application
from pipeline.viewer.app import create_app
from pipeline.viewer.page import (
    FOLDER,
    MANY,
    Kind,
    Missing,
    Page,
    data_block,
    linked_pairs,
    runs_by_name,
    shown_name,
)
from pipeline.viewer.page_registry import KINDS
from tests.builders.tables import config

TEMPLATES = sorted((FOLDER / "templates").glob("*.html"))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "a run #1 50%", config(), {})


@pytest.fixture
def client(run: Run) -> TestClient:
    return TestClient(create_app([run]), base_url="http://127.0.0.1")


@pytest.mark.parametrize(
    ("path", "exported", "link"),
    [
        ("/", False, "/runs/a%20b/steps/3/"),
        ("/runs/x/", False, "/runs/a%20b/steps/3/"),
        ("/", True, "./runs/a%20b/steps/3/index.html"),
        ("/runs/x/", True, "../../runs/a%20b/steps/3/index.html"),
        ("/compare/x/y/", True, "../../../runs/a%20b/steps/3/index.html"),
    ],
)
def test_links_are_absolute_live_and_relative_in_exports(
    path: str, exported: bool, link: str
) -> None:
    assert Page(path, exported).url("runs", "a b", "steps", 3) == link


def test_the_index_and_static_files_have_links_too() -> None:
    assert Page("/runs/x/").url() == "/"
    assert Page("/runs/x/", exported=True).url() == "../../index.html"
    assert Page("/runs/x/", exported=True).static("base.css") == "../../static/base.css"
    assert Page("/").static("base.css") == "/static/base.css"


@pytest.mark.parametrize("name", ["a/b", "..", "#", "?", "%2e", "ä", '"><script>'])
def test_no_name_leaves_its_place_in_an_address(name: str) -> None:
    path = Kind("/runs/{}/", "run.html", dict, iter).page(name).path
    assert re.fullmatch(r"/runs/[A-Za-z0-9_.~%-]+/", path)


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    places = ("level-1/srpo/3", "level-1/grpo/3", "level-2/srpo/3")
    runs = [Run.create(tmp_path / place, config(), {}) for place in places]
    assert list(runs_by_name(runs[:1])) == ["3"]
    assert list(runs_by_name(runs[:2])) == ["srpo.3", "grpo.3"]
    assert list(runs_by_name(runs)) == [place.replace("/", ".") for place in places]
    assert list(runs_by_name([runs[0], runs[0]])) == ["3", "3-2"]
    assert shown_name(runs_by_name(runs[:2]), runs[1]) == "grpo.3"
    assert shown_name(runs_by_name(runs[:2]), runs[2]) == "3"


def test_of_many_runs_only_forks_and_their_parents_are_linked(tmp_path: Path) -> None:
    runs = [Run.create(tmp_path / f"r{n}", config(), {}) for n in range(MANY)]
    assert len(linked_pairs(runs_by_name(runs))) == MANY * (MANY - 1) // 2
    record = Fork("../r3", runs[3].identity, "weigh", 0, 1, {}, updates=False)
    fork = Run.create(tmp_path / "fork", config(), {"fork": record.to_record()})
    assert linked_pairs(runs_by_name([fork, *runs])) == [("fork", "r3")]


def test_a_run_that_was_extended_is_shown_so(run: Run, client: TestClient) -> None:
    name = run.root.name
    assert client.get("/state.json").json()[name]["steps"] == 100
    Run.open(run.root).extend(config(run={"steps": 120}))
    assert client.get("/state.json").json()[name]["steps"] == 120


def test_no_text_leaves_the_data_block() -> None:
    value = {"</script><script>alert(1)</script>": ["<!--", "&lt;", float("nan"), "\ud800"]}
    block = str(data_block(value))
    inside = block.removeprefix('<script type="application/json" id="data">')
    inside = inside.removesuffix("</script>")
    assert not re.search(r"[<>&]", inside)
    assert json.loads(inside) == {
        "</script><script>alert(1)</script>": ["<!--", "&lt;", None, "\\ud800"]
    }


def test_templates_escape_and_survive_what_is_not_unicode() -> None:
    html = Page("/").render("problem.html", title="<b>", text="\ud800 & <script>")
    assert "<h1>&lt;b&gt;</h1>" in html and "\\ud800 &amp; &lt;script&gt;" in html
    html.encode("utf-8")


def test_a_variable_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError):
        Page("/").render("problem.html", title="x")


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_hold_no_script_style_or_handler_of_their_own(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)", text), "inline script"
    assert not re.search(r"<style|\sstyle\s*=", text), "inline style"
    assert not re.search(r"\son[a-z]+\s*=", text), "event handler"
    assert not re.search(r"\|\s*safe\b|autoescape|javascript:", text), "unescaped"
    assert not re.search(r"https?://", text), "something from outside"


@pytest.mark.parametrize("path", ["/", "/state.json", "/static/base.css", "/nothing", "/runs/x/"])
def test_every_answer_has_the_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "frame-ancestors 'none'"} <= set(policy)
    assert not [part for part in policy if "unsafe" in part or "*" in part or "http" in part]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1"])
def test_other_host_names_are_refused(client: TestClient, host: str) -> None:
    answer = client.get("/state.json", headers={"host": host})
    assert answer.status_code == 400
    assert "steps" not in answer.text and "content-security-policy" in answer.headers


def test_the_server_only_reads(client: TestClient) -> None:
    for method in ("post", "put", "delete", "patch"):
        assert getattr(client, method)("/").status_code == 405
    assert client.get("/docs").status_code == 404
    assert client.get("/openapi.json").status_code == 404


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd"]
)
def test_static_files_are_those_of_the_viewer(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_a_run_with_an_odd_name_is_found(client: TestClient, run: Run) -> None:
    link = re.search(r'href="(/runs/[^"]+)"', client.get("/").text)
    assert link is not None
    answer = client.get(link[1])
    assert answer.status_code == 200 and "a run #1 50%" in answer.text


def test_what_is_not_there_is_named(client: TestClient) -> None:
    answer = client.get("/runs/<b>/")
    assert answer.status_code == 404
    assert "no run &lt;b&gt; here" in answer.text


def test_errors_of_ours_are_one_line_in_a_page(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> dict[str, str]:
        raise StoreError("steps/000001/routes.arrow: damaged")

    kind = Kind("/broken/", "problem.html", broken, lambda _: iter([()]))
    monkeypatch.setattr(application, "KINDS", (*KINDS, kind))
    answer = TestClient(create_app([run]), base_url="http://127.0.0.1").get("/broken/")
    assert answer.status_code == 500
    assert "routes.arrow: damaged" in answer.text and "Traceback" not in answer.text


def test_missing_is_an_error_of_ours() -> None:
    assert issubclass(Missing, ValueError)
