"""Feedback in runs: the level reaches the verifier, a task without hints is refused, the alarm."""

from pathlib import Path

import pytest

from flows.session.fork_run import fork_run
from flows.session.session import Session
from flows.session.verifiers import TaskVerifiers, code_digest
from pipeline.audit.listing import samples
from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.errors import DataError
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES
from tests.golden.golden_run import TASK, golden_config

STEPS = 3
GOLD = "parrot"
TELLING = TASK.replace("'\"\"'", f"'\"{GOLD}\"'").replace(
    "prediction=response)",
    'prediction=response, feedback=None if even else f"Expected: {reference}")',
)
HINT = '\n\ndef hint(response, reference):\n    return "The sum is odd."\n'
LEAKING = HINT.replace('"The sum is odd."', 'f"The sum is odd, unlike that of {reference}."')


def config_of(folder: Path, task: str, feedback: str = "full", taught: bool = True) -> Config:
    config = golden_config(
        folder,
        {
            "run": {"steps": STEPS, "snapshot_every": 9},
            "generate": {"questions": 3, "rollouts": 4},
            "route": {"top_k": 4, "feedback": taught},
            "verify": {"workers": 1, "feedback": feedback},
        },
    )
    Path(config.data.task).write_text(task, encoding="utf-8")
    return config


def trained(folder: Path, task: str, feedback: str = "full", taught: bool = True) -> Run:
    with Session.create(folder / "run", config_of(folder, task, feedback, taught)) as session:
        for step in range(STEPS):
            for name in STEP_STAGES:
                session.run_stage(name, step)
            session.finish_step(step)
        return session.run


def alarms(run: Run) -> dict[str, list[str]]:
    """Return the evidence of a run's alarms by rule."""
    found = [alarm for step in range(STEPS) for alarm in run.metrics(step)["alarms"]]
    return {alarm["rule"]: alarm["evidence"] for alarm in found}


@pytest.mark.parametrize(
    ("task", "feedback", "said", "share"),
    [
        (TELLING, "full", f'Expected: "{GOLD}"', 1.0),
        (TELLING + HINT, "hint", "The sum is odd.", 0.0),
        (TELLING + LEAKING, "hint", f'The sum is odd, unlike that of "{GOLD}".', 1.0),
    ],
)
def test_feedback_that_tells_the_gold_answer_raises_the_alarm(
    tmp_path: Path, task: str, feedback: str, said: str, share: float
) -> None:
    """Planted: a hint that leaks the gold answer."""
    run = trained(tmp_path, task, feedback)
    wrong = samples(run, needs=["feedback", "feedback_gold_share"]).collect()
    assert {(row["correct"], row["feedback"]) for row in wrong.to_dicts()} == {
        (True, None),
        (False, said),
    }
    assert set(wrong["feedback_gold_share"]) == {None, share}
    assert [run.metrics(step)["feedback_gold_share"] for step in range(STEPS)] == [share] * STEPS
    shown = run.read("routes", 0).filter(run.read("routes", 0)["teacher_available"]).to_pylist()
    assert any(said in row["teacher_prompt_text"] for row in shown)
    assert ("gold_told" in alarms(run)) == (share > 0)
    if share:
        told = {row["rollout_id"] for row in wrong.to_dicts() if row["feedback_gold_share"]}
        assert set(alarms(run)["gold_told"]) <= told


def test_feedback_that_nobody_is_shown_raises_none(tmp_path: Path) -> None:
    run = trained(tmp_path, TELLING, taught=False)
    assert "feedback_gold_share" not in run.metrics(0)
    assert "gold_told" not in alarms(run)


def test_a_task_without_hints_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"parity\.py has no hints: expected hint\(response"
    ) as caught:
        Session.create(tmp_path / "run", config_of(tmp_path, TELLING, "hint"))
    assert 'verify.feedback = "full"' in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_fork_may_ask_for_hints_if_the_task_has_them(tmp_path: Path) -> None:
    parent = trained(tmp_path, TELLING)
    setting = ["verify.feedback=hint"]
    with pytest.raises(DataError, match="has no hints"):
        fork_run(parent, tmp_path / "refused", "verify", 0, 1, setting)
    Path(parent.config.data.task).write_text(TELLING + HINT, encoding="utf-8")
    fork = fork_run(parent, tmp_path / "fork", "verify", 0, 1, setting)
    with Session.resume(fork.root) as session:
        session.run_stage("verify", 0)
    feedback = Run.open(fork.root).read("verdicts", 0)["feedback"].to_pylist()
    assert set(feedback) == {None, "The sum is odd."}
    rewards = [run.read("verdicts", 0)["reward"] for run in (parent, Run.open(fork.root))]
    assert rewards[0] == rewards[1]


def test_hints_of_shipped_tasks_are_code_that_the_digest_covers(tmp_path: Path) -> None:
    settings = ["run.steps=1", "route.feedback=true"]
    full = load_config("demo", settings)
    hint = load_config("demo", [*settings, "verify.feedback=hint"])
    assert code_digest(full) != code_digest(hint)
    verifiers = TaskVerifiers(hint)
    try:
        (verifier,) = verifiers.verifiers(tmp_path).values()
        (verdict,) = verifier.pool.verify([("30 - 19 = 5<answer>5</answer>", '"11"')])
        assert verdict.feedback == "In `30 - 19 = 5` the two sides differ."
        assert verifiers.digest == code_digest(hint)
    finally:
        verifiers.close()
