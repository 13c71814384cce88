"""Whole runs whose chat templates ask for the time, think, or end turns in their own way."""

import contextlib
import hashlib
import io
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
from rich.console import Console

from flows.session.fork_run import fork_run
from flows.session.new_run import teacher_settings
from flows.session.open_run import resumed_config
from flows.session.session import Session
from flows.terminal.rollout_text import print_rollout
from pipeline.audit.rollout import rollout_record
from pipeline.check.deep import StartingState, deep_check
from pipeline.config.sections import Config
from pipeline.errors import ConfigError
from pipeline.policy import prompts
from pipeline.run.run import Run
from tests.builders.chat_templates import FAMILIES, vocabulary_of
from tests.builders.policies import write_tiny_policy
from tests.golden.golden_run import golden_config

DATED = "{{ strftime_now('%d %b %Y %H:%M') }}\n" + FAMILIES["chatml"].template
THINKS = FAMILIES["chatml"].template.replace("assistant\n{%", "assistant\n<think>\n{%")


def set_clock(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.fromisoformat(text)

    monkeypatch.setattr(prompts, "datetime", Clock)


def config_of(folder: Path, template: str, **sections: dict[str, object]) -> Config:
    sizes: dict[str, object] = {"questions": 2, "rollouts": 4, "max_response_length": 8}
    folder.mkdir(parents=True, exist_ok=True)
    small = {"questions": 1, "rollouts": 2, "max_response_length": 8}
    config = golden_config(
        folder, {"run": {"steps": 2}, "generate": sizes, "evaluate": small, **sections}
    )
    own = vocabulary_of(FAMILIES["chatml"]._replace(template=template))
    write_tiny_policy(folder / "policy", 5, own)
    return config


def train(session: Session, step: int) -> None:
    for name in ("generate", "verify", "route", "weigh", "update"):
        session.run_stage(name, step)
    session.finish_step(step)
    session.snapshot(step + 1)


def dates(run: Run, step: int) -> set[str]:
    """Return the first lines of the teacher's prompts of a step."""
    texts = run.read("routes", step)["teacher_prompt_text"].to_pylist()
    return {text.partition("\n")[0] for text in texts if text}


def digest(run: Run, step: int) -> str:
    return hashlib.sha256(run.table_path("rollouts", step).read_bytes()).hexdigest()


def test_one_time_for_a_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(tmp_path, DATED, model={"path": str(tmp_path / "policy"), "device": "cpu"})
    set_clock(monkeypatch, "2026-01-31T23:59:58")
    with contextlib.closing(Session.create(tmp_path / "run", config)) as session:
        train(session, 0)
        first = session.run
        prompt = first.read("rollouts", 0)["prompt_ids"][0].as_py()[:18]
        assert session.resident.require().decode(prompt[:17]) == "31 Jan 2026 23:59"
        assert first.record["config"]["model"]["prompt_time"] == "2026-01-31T23:59:58"
    set_clock(monkeypatch, "2026-02-01T00:10:00")
    assert resumed_config(Run.open(tmp_path / "run"), None, []) == first.config
    with contextlib.closing(Session.resume(tmp_path / "run")) as session:
        train(session, 1)
        session.run_stage("evaluate", 2)
        run = session.run
        assert dates(run, 0) | dates(run, 1) == {"31 Jan 2026 23:59"}
        for table, step in (("rollouts", 1), ("evaluations", 2)):
            found = run.read(table, step)["prompt_ids"].to_pylist()
            assert all(ids[:18] == prompt for ids in found)
    fork = fork_run(run, tmp_path / "fork", "route", 0, 1, ["route.demonstration=longest"])
    with contextlib.closing(Session.resume(fork.root)) as session:
        session.run_stage("route", 0)
        assert dates(session.run, 0) == {"31 Jan 2026 23:59"}
    with pytest.raises(ConfigError, match=r"model\.prompt_time is 2026-01-31T23:59:58, not"):
        resumed_config(run, None, ["model.prompt_time=2026-01-01"])
    # Another run, some other day, that is given the time has equal tables.
    again = config.model_copy(update={"model": run.config.model})
    with contextlib.closing(Session.create(tmp_path / "again", again)) as session:
        session.run_stage("generate", 0)
        assert digest(session.run, 0) == digest(run, 0)
    check_by_the_twin(run)


def check_by_the_twin(run: Run) -> None:
    with contextlib.closing(Session.resume(run.root)) as session:
        policy = session.resident.open_snapshot(0)
        teacher = dict(policy.model.named_parameters())
        start = StartingState(run.snapshot_path(0), policy.version, [(teacher, 1.0)])
        report = deep_check(run, 0, start, {})
    assert report.lines == []


def test_templates_without_time_leave_no_trace(tmp_path: Path) -> None:
    config = config_of(tmp_path, FAMILIES["chatml"].template)
    with contextlib.closing(Session.create(tmp_path / "run", config)) as session:
        assert "prompt_time" not in session.run.record["config"]["model"]
        assert session.run.record["stop_tokens"] == [
            {"id": 1, "token": "<|endoftext|>", "from": ["generation config", "tokenizer"]},
            {"id": 3, "token": "<|im_end|>", "from": ["chat template"]},
        ]
        session.run_stage("generate", 0)
        rollouts = session.run.read("rollouts", 0)
        assert "unclosed_thinking" not in rollouts.column_names
        for ids, reason in zip(
            rollouts["response_ids"].to_pylist(), rollouts["finish_reason"].to_pylist(), strict=True
        ):
            assert (ids[-1] in (1, 3)) == (reason == "stop") and not {1, 3} & set(ids[:-1])


@pytest.mark.parametrize("rule", ["wrong", "judge"])
def test_unfinished_thinking(tmp_path: Path, rule: str) -> None:
    """A random policy never closes the block that its prompt opens."""
    config = config_of(tmp_path, THINKS, verify={"workers": 1, "unfinished_thinking": rule})
    with contextlib.closing(Session.create(tmp_path / "run", config)) as session:
        for name in ("evaluate", "generate", "verify"):
            session.run_stage(name, 0)
        rollouts, verdicts = (session.run.read(name, 0) for name in ("rollouts", "verdicts"))
        evaluations = session.run.read("evaluations", 0)
        assert pc.all(rollouts["unclosed_thinking"]).as_py()
        assert pc.all(evaluations["unclosed_thinking"]).as_py()
        assert verdicts["error"].null_count == len(verdicts)
        found = verdicts.select(["reward", "correct", "format_ok", "prediction"]).to_pylist()
        nothing = {"reward": 0.0, "correct": False, "format_ok": False, "prediction": ""}
        assert all(row == nothing for row in found) == (rule == "wrong")
        session.run_stage("route", 0)
        assert not pc.any(session.run.read("routes", 0)["teacher_available"]).as_py()
        recorded = session.run.manifest("verdicts", 0).origin.settings["verify"]
        assert ("unfinished_thinking" in recorded) == (rule == "judge")
        for rollout_id in ("000000-0000-00", "e000000-0000-00"):
            page = io.StringIO()
            print_rollout(Console(file=page, width=200), rollout_record(session.run, rollout_id), 1)
            assert "the response ends inside its think block" in page.getvalue()


def test_other_settings_of_the_template_stay(tmp_path: Path) -> None:
    model = {"path": str(tmp_path / "policy"), "device": "cpu", "system_role": "fold"}
    config = config_of(tmp_path, FAMILIES["gemma"].template, model=model, route={"top_k": 16})
    own = vocabulary_of(FAMILIES["gemma"])
    write_tiny_policy(tmp_path / "policy", 5, own)
    with contextlib.closing(Session.create(tmp_path / "run", config)) as session:
        train(session, 0)
        run = session.run
        texts = [t for t in run.read("routes", 0)["teacher_prompt_text"].to_pylist() if t]
        assert texts and all("user\nwrite\n\nabc" in text for text in texts)
        assert teacher_settings(run.config) == session.resident.require().teacher
    assert (
        json.loads((run.root / "run.json").read_text())["config"]["model"]["system_role"] == "fold"
    )
    check_by_the_twin(run)
