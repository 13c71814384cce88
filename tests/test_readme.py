"""What the README shows works as it stands there: the task, its configuration, the snippet."""

import contextlib
import re
from pathlib import Path

import pytest

from flows.session.session import Session
from pipeline.config.load import load_config

README = Path(__file__).resolve().parents[1] / "README.md"


def block(language: str, first_words: str) -> str:
    """Return the fenced block of a language that begins so."""
    found = re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (text,) = [text for text in found if text.startswith(first_words)]
    return str(text)


def test_the_task_and_the_snippet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("capitals.py").write_text(block("python", '"""Capitals'))
    Path("capitals.toml").write_text(block("toml", "[run]"))
    run = Path("runs/demo-1")
    with contextlib.closing(Session.create(run, load_config("capitals.toml"))) as session:
        for name in ("generate", "verify", "route", "weigh", "update"):
            session.run_stage(name, 0)
        assert session.finish_step(0)["verifier_errors"] == 0
        session.run_stage("evaluate", 1)
    exec(block("python", "import polars"), {})
    assert "learns from" in capsys.readouterr().out
