"""What the pages show works as it stands there: a task, its configuration, the README's snippet."""

import contextlib
import re
from pathlib import Path

import pytest

from flows.session.session import Session
from pipeline.config.load import load_config
from tests.paths import PROJECT

README = PROJECT / "README.md"
TASKS = PROJECT / "docs" / "tasks.md"
LONGEST_README = 120


def block(page: Path, language: str, first_words: str) -> str:
    """Return the fenced block of a language on a page that begins so."""
    found = re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (text,) = [text for text in found if text.startswith(first_words)]
    return str(text)


def test_the_task_and_the_snippet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("capitals.py").write_text(block(TASKS, "python", '"""Capitals'))
    Path("capitals.toml").write_text(block(TASKS, "toml", "[run]"))
    run = Path("runs/demo-1")
    with contextlib.closing(Session.create(run, load_config("capitals.toml"))) as session:
        for name in ("generate", "verify", "route", "weigh", "update"):
            session.run_stage(name, 0)
        assert session.finish_step(0)["verifier_errors"] == 0
        session.run_stage("evaluate", 1)
    exec(block(README, "python", "import polars"), {})
    assert "learns from" in capsys.readouterr().out


def test_a_mixture_with_that_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("capitals.py").write_text(block(TASKS, "python", '"""Capitals'))
    settings = block(TASKS, "toml", "[run]").replace('task = "capitals.py"\n', "")
    Path("mixture.toml").write_text(settings + block(TASKS, "toml", "[data.mixture"))
    assert list(load_config("mixture.toml").data.sources) == ["arithmetic", "capitals"]


def test_the_readme_stays_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= LONGEST_README
