"""Exports: the same pages as files, complete, closed in themselves, and readable from a disk."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest

from pipeline.errors import StoreError
from pipeline.files.durable import digest_of, write_json
from pipeline.run.run import Run
from pipeline.viewer import export_selection as exported_module
from pipeline.viewer.export import export
from pipeline.viewer.export_selection import exported_steps, in_export
from pipeline.viewer.page import STATIC, runs_by_name
from pipeline.viewer.page_registry import KINDS
from tests.pipeline.viewer.test_run_page import Open, axis_title, copied, drawn


@pytest.fixture(scope="module")
def exported(trained: Run, fork: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export of a run and its fork."""
    folder = tmp_path_factory.mktemp("export") / "pages"
    export([trained, fork], folder, lambda done, total: None)
    return folder


def test_every_page_is_written(trained: Run, fork: Run, exported: Path) -> None:
    runs = runs_by_name([trained, fork])
    pages = [kind.page(*keys).path for kind in KINDS for keys in kind.pages(runs)]
    written = {f"/{p.parent.relative_to(exported)}/" for p in exported.rglob("index.html")}
    assert written == {unquote(path) if path != "/" else "/./" for path in pages}


def test_every_link_leads_to_a_file_of_the_export(exported: Path) -> None:
    broken = set()
    for page in exported.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        for link in re.findall(r'\s(?:href|src)="([^"#]+)', html):
            assert not re.match(r"[a-z]+:|/", link), f"{page}: {link}"
            if not (page.parent / unquote(link)).is_file():
                broken.add(link)
    assert broken == set()


def test_pages_carry_the_policy_and_fetch_nothing(exported: Path) -> None:
    for page in exported.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert 'http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;' in html
        assert "live.js" not in html


def test_static_files_are_there_once(exported: Path) -> None:
    names = {path.name for path in (exported / "static").iterdir()}
    assert names == {path.name for path in STATIC.iterdir()} | {"plotly.min.js"}
    assert [path.parent.name for path in exported.rglob("plotly.min.js")] == ["static"]


def test_a_folder_with_something_in_it_is_refused(trained: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="there is something already"):
        export([trained], tmp_path, lambda done, total: None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.slow
def test_it_opens_from_a_disk(exported: Path, watched: Open) -> None:
    page = watched()
    drawn(page, (exported / "index.html").as_uri().replace("index", "runs/demo/index"))
    page.page.keyboard.press("t")
    assert axis_title(page) == "sampled tokens"
    page.page.get_by_role("link", name="Compare with sharper").click()
    page.page.wait_for_selector("html[data-drawn]")
    assert page.page.url.endswith("/compare/demo/sharper/index.html")
    page.page.get_by_role("link", name="srpo", exact=True).click()
    assert page.page.inner_text("h1") == "Runs"
    assert page.errors == []
    assert page.outside(exported.as_uri()) == []


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", "view", *arguments]


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(trained: Run) -> None:
    first = subprocess.Popen(
        command(str(trained.root), "--port", "0"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert first.stdout is not None
        address = re.match(r"http://127\.0\.0\.1:(\d+)/runs/demo/ ", first.stdout.readline())
        assert address is not None
        second = subprocess.run(
            command(str(trained.root), "--port", address[1]), capture_output=True, text=True
        )
        assert second.returncode == 2 and len(second.stderr.splitlines()) == 1
        assert f"port {address[1]} is taken" in second.stderr
        first.send_signal(signal.SIGINT)
        _, errors = first.communicate(timeout=20)
    finally:
        first.kill()
    assert first.returncode == 0 and "Traceback" not in errors


@pytest.mark.slow
def test_the_command_exports(trained: Run, tmp_path: Path) -> None:
    done = subprocess.run(
        command(str(trained.root), "--export", str(tmp_path / "pages")),
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert re.match(r"\d+ pages, [\d.]+ MB, ", done.stdout)
    assert (tmp_path / "pages" / "index.html").is_file()


def test_steps_with_evidence_are_exported_and_evaluations_are_not(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alarm's evidence may be answers of an evaluation, whose ids begin with e."""
    run = copied(trained, tmp_path / "demo", 7)
    alarm = {"rule": "format", "evidence": ["e000003-0000-00", "000004-0001-02"]}
    record = {**run.metrics(5), "alarms": [alarm]}
    write_json(run.metrics_path(5), {**record, "digest": digest_of(record)})
    monkeypatch.setattr(exported_module, "MOST_PAGES", 3 * 16)
    assert exported_steps(run) == [0, 3, 4, 6]
    assert not in_export(run)("e000003-0000-00")
