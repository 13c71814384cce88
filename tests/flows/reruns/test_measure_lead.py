"""The teacher's lead is measured on what training would sample, show and ask."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.reruns.measure_lead import Lead, measure_lead
from flows.session.engines import Engines
from flows.session.open_run import expect_teacher
from flows.session.session import Session
from pipeline.config.sections import Config
from pipeline.errors import ConfigError, StoreError
from pipeline.policy.policy import Policy
from pipeline.run.lead_record import lead_figures
from pipeline.run.step_layout import STEP_STAGES
from pipeline.sampling.engine import sampling_settings
from pipeline.sampling.transformers_engine import TransformersEngine
from pipeline.stage.contract import silent
from pipeline.tables.arrow_reading import read_arrow
from tests.golden.golden_run import golden_config

ROLLOUTS = 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Return settings under which a step moves the policy far from its frozen teacher."""
    overrides: dict[str, dict[str, Any]] = {
        "generate": {"questions": 3, "rollouts": ROLLOUTS},
        "route": {"teacher": "frozen"},
        "update": {"learning_rate": 0.5, "warmup_steps": 0},
    }
    return golden_config(tmp_path_factory.mktemp("input"), overrides)


@pytest.fixture(scope="module")
def session(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    """Return a session after one step."""
    with Session.create(tmp_path_factory.mktemp("runs") / "run", config) as session:
        for name in STEP_STAGES:
            session.run_stage(name, 0)
        session.finish_step(0)
        session.snapshot(1)
        yield session


@pytest.fixture(scope="module")
def lead(session: Session) -> Lead:
    """Return a measurement before the first step, of twice as many questions as it asks."""
    return measure_lead(session, 0, questions=6)


def answers(lead: Lead, part: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = read_arrow(lead.path.with_suffix(".arrow")).to_pylist()
    return [row for row in rows if row["part"] == part]


def test_the_policy_answers_what_training_samples(session: Session, lead: Lead) -> None:
    rollouts = session.run.read("rollouts", 0).to_pylist()
    sampled = answers(lead, "sampled")
    assert len(sampled) == 6 * ROLLOUTS
    for row, rollout in zip(sampled, rollouts, strict=False):
        for name in ("rollout_id", "prompt_ids", "response_ids", "seed", "policy_version"):
            assert row[name] == rollout[name]


def test_the_teacher_gets_the_prompts_that_training_makes(session: Session, lead: Lead) -> None:
    """Of each question, that of its first wrong answer, whose demonstration is a right one."""
    expected: dict[int, dict[str, Any]] = {}
    for row in session.run.read("routes", 0).to_pylist():
        if row["route"] == "sdpo":
            expected.setdefault(row["group"], row)
    assert expected
    taught = [row for row in answers(lead, "taught") if row["group"] < 3]
    assert {row["group"] for row in taught} == expected.keys()
    for row in taught:
        wanted = expected[row["group"]]
        assert row["source"] == "sibling"
        assert row["prompt_ids"] == wanted["teacher_prompt_ids"]
        assert row["teacher_prompt_text"] == wanted["teacher_prompt_text"]
        assert row["teacher_rollout_id"] == wanted["teacher_rollout_id"]


def test_as_many_answers_with_a_teacher_prompt_as_without(lead: Lead) -> None:
    sampled, alone, taught = (answers(lead, part) for part in ("sampled", "alone", "taught"))
    questions = {row["group"]: row["prompt_ids"] for row in sampled}
    assert [(r["group"], r["sample"]) for r in alone] == [(r["group"], r["sample"]) for r in taught]
    assert {len([r for r in taught if r["group"] == g]) for g in questions} <= {0, ROLLOUTS}
    assert all(row["prompt_ids"] == questions[row["group"]] for row in alone)
    seeds = [row["seed"] for row in [*sampled, *alone, *taught]]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("part", ["alone", "taught"])
def test_the_teacher_answers_and_not_the_policy(session: Session, part: str) -> None:
    """After a step the frozen teacher is no longer the policy."""
    policy = session.prepare(1)
    rows = answers(measure_lead(session, 1, questions=4), part)
    prompts, seeds = [r["prompt_ids"] for r in rows], [[r["seed"]] for r in rows]
    settings = sampling_settings(session.config.generate)

    def again(teacher: bool) -> list[list[int]]:
        engine = TransformersEngine(policy, teacher=teacher)
        return [s.response_ids for (s,) in engine.sample(prompts, seeds, settings, silent)]

    assert again(teacher=True) == [row["response_ids"] for row in rows]
    assert again(teacher=False) != [row["response_ids"] for row in rows]
    assert {row["policy_version"] for row in rows} == {policy.teacher_version}


def test_the_record_says_what_the_table_says(lead: Lead) -> None:
    table = read_arrow(lead.path.with_suffix(".arrow"))
    assert lead.record["figures"] == lead_figures(table)
    assert lead.record["rows"] == table.num_rows
    assert lead.record["figures"]["questions"] == 6
    assert lead.record["settings"].keys() == {"generate", "verify", "route"}


def test_the_same_measurement_has_the_same_bytes(
    config: Config, lead: Lead, tmp_path: Path
) -> None:
    with Session.create(tmp_path / "again", config) as session:
        again = measure_lead(session, 0, questions=6)
    for suffix in (".json", ".arrow"):
        one, other = (lead.path.with_suffix(suffix), again.path.with_suffix(suffix))
        assert (one.name, one.read_bytes()) == (other.name, other.read_bytes())


def test_what_was_measured_is_read(
    session: Session, lead: Lead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("flows.reruns.measure_lead.sample_columns")
    assert measure_lead(session, 0, questions=6) == lead._replace(found=True)


def test_other_settings_are_another_measurement(session: Session, lead: Lead) -> None:
    overrides = ["generate.rollouts=2", "route.demonstration=longest"]
    other = measure_lead(session, 0, 6, overrides)
    assert other.path != lead.path
    assert len(answers(other, "sampled")) == 12
    assert other.record["settings"]["route"]["demonstration"] == "longest"


def test_a_run_goes_on_as_if_nothing_had_been_measured(
    session: Session, config: Config, tmp_path: Path
) -> None:
    with Session.create(tmp_path / "measured", config) as other:
        measure_lead(other, 0, questions=2)
        for name in STEP_STAGES:
            other.run_stage(name, 0)
        for table in ("rollouts", "teacher", "updates"):
            assert other.run.manifest(table, 0).sha256 == session.run.manifest(table, 0).sha256


def test_vllm_samples_for_the_policy_alone(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the policy's weights, and its context has no room for teacher prompts."""

    class Vllm(TransformersEngine):
        name = "vllm"

    def engine(engines: Engines, stage: str, policy: Policy) -> Vllm:
        assert stage == "generate"
        return Vllm(policy)

    monkeypatch.setattr(Engines, "of", engine)
    found = measure_lead(session, 0, questions=5)
    names = {part: {r["engine"] for r in answers(found, part)} for part in ("sampled", "taught")}
    assert names == {"sampled": {"vllm"}, "taught": {"transformers"}}


def test_where_nothing_is_shown_the_teacher_is_asked_nothing(session: Session) -> None:
    found = measure_lead(session, 0, 2, ["route.max_teacher_prompt_length=1"])
    assert answers(found, "alone") == answers(found, "taught") == []
    assert found.record["figures"]["sources"] == {}


def test_a_task_may_offer_what_no_sibling_has(tmp_path: Path) -> None:
    """Each further source has a row of its own; a rollout gets what training would give it."""
    config = golden_config(tmp_path, {"generate": {"questions": 6, "rollouts": 2}})
    task = tmp_path / "parity.py"
    known = task.read_text().replace("'\"\"')", "'\"\"', solution='worked ' + w)")
    task.write_text(f"{known}\n\ndef gold(reference):\n    return 'even it is'\n")
    with Session.create(tmp_path / "run", config) as session:
        worked = measure_lead(session, 0, 6, ['route.sources=["solution"]'])
        mixed = measure_lead(session, 0, 6, ['route.sources=["sibling", "gold"]'])
    rows = answers(worked, "taught")
    assert {row["source"] for row in rows} == {"solution"}
    assert all("worked " + row["prompt_id"] in row["teacher_prompt_text"] for row in rows)
    assert worked.record["figures"]["without_source"] == 0
    assert worked.record["figures"]["sources"]["solution"]["copied"] is None
    by_source = {
        source: {row["group"] for row in answers(mixed, "taught") if row["source"] == source}
        for source in ("sibling", "gold")
    }
    right = {row["group"] for row in answers(mixed, "sampled") if row["correct"]}
    assert by_source["sibling"] <= right
    assert by_source["gold"]
    assert by_source["gold"].isdisjoint(right)


def test_an_earlier_step_may_have_what_no_sibling_has(session: Session) -> None:
    """In the second epoch of 24 questions those that step 0 has asked come again."""
    lead = measure_lead(session, 1, 45, ['route.sources=["bank"]'])
    rollouts = session.run.read("rollouts", 0).to_pylist()
    verdicts = session.run.read("verdicts", 0)["correct"].to_pylist()
    right = {
        row["rollout_id"]: row["prompt_id"]
        for row, correct in zip(rollouts, verdicts, strict=True)
        if correct
    }
    rows = answers(lead, "taught")
    assert rows
    assert {row["source"] for row in rows} == {"bank"}
    assert all(right[row["teacher_rollout_id"]] == row["prompt_id"] for row in rows)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("route.teacher=ema", "the teacher is the run's"),
        ("generate.engine=vllm", "generate.engine is the run's, transformers"),
        ('route.sources=["gold"]', "offers none"),
        ("update.learning_rate=1", "can change generate, route only"),
    ],
)
def test_what_can_not_be_measured(session: Session, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure_lead(session, 0, 2, [override])


def test_grpo_has_no_teacher(config: Config) -> None:
    route = config.route.model_copy(update={"method": "grpo"})
    with pytest.raises(ConfigError, match=r"route\.method is grpo: there is no teacher"):
        expect_teacher(config.model_copy(update={"route": route}))


def test_a_state_that_is_not_reached(session: Session) -> None:
    with pytest.raises(StoreError, match="no state after 9"):
        measure_lead(session, 9, 2)
