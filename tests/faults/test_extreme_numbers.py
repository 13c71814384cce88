"""Whole steps in extreme situations: every number finite, and equal to the float64 twin's."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from flows.session.session import Session
from pipeline.errors import NumericalError, SrpoError
from pipeline.files.durable import file_digest
from pipeline.twin.step import recompute
from tests.builders.policies import LOWERCASE
from tests.golden.golden_run import (
    STEP,
    disagreements,
    golden_config,
    run_step,
    teacher_states,
    twin_of,
    twin_settings,
)

EOS = 1
TASK = '''
"""A task whose verdicts are made for a test."""
from pipeline.task import Message, Question, Verdict

VERIFIER = "made/1"


def load(path, split):
    return [Question(f"{split}{n}", (Message("user", "ab" * n),), '""') for n in range(1, 25)]


def verify(response, reference):
    code = sum(map(ord, response))
    return Verdict(reward=float(REWARD), format_ok=True, prediction=response[:50])
'''

Overrides = Mapping[str, Mapping[str, object]]
Change = Callable[[torch.nn.Module], None]


def only_eos(model: torch.nn.Module) -> None:
    """Make EOS all but certain, whatever came before: every final state has a large first entry."""
    with torch.no_grad():
        weights = dict(model.named_parameters())
        weights["model.embed_tokens.weight"][:, 0] = 1.0
        weights["model.embed_tokens.weight"][EOS, 0] = 40.0


def uniform(model: torch.nn.Module) -> None:
    with torch.no_grad():
        dict(model.named_parameters())["model.embed_tokens.weight"].zero_()


def peaked(model: torch.nn.Module) -> None:
    """Make logits so large that most probabilities are below what float32 adds to one."""
    with torch.no_grad():
        dict(model.named_parameters())["model.norm.weight"].mul_(9.0)


@dataclass(frozen=True)
class Case:
    """A situation.

    Attributes:
        reward: an expression of `code`, the sum of the response's character codes.
    """

    overrides: Overrides
    reward: str = "code % 2"
    change: Change | None = None


CASES = {
    "groups of 2": Case({"generate": {"rollouts": 2}}),
    "a group of 64": Case({"generate": {"rollouts": 64, "questions": 1}}),
    "one token each": Case({"generate": {"max_response_length": 1}}),
    "all cut short": Case({"generate": {"max_response_length": 3}}),
    "one token beside two hundred": Case({"generate": {"max_response_length": 200}}),
    "only EOS": Case({}, reward="1 - code % 2", change=only_eos),
    "uniform": Case({}, change=uniform),
    "peaked": Case({"generate": {"questions": 6, "rollouts": 16}}, change=peaked),
    "K = V - 1": Case({"route": {"top_k": len(LOWERCASE) - 1}}),
    "K = 1": Case({"route": {"top_k": 1}}),
    "all right": Case({}, reward="1"),
    "all wrong": Case({}, reward="0"),
    "verifier fails on a third": Case({}, reward="(code % 3 - 1) / (code % 3) * (code % 3)"),
    "rewards in between": Case({}, reward="code % 7 / 6"),
    "nearly equal rewards": Case({}, reward="0.5 + code % 2 * 1e-7"),
}


def open_case(folder: Path, case: Case) -> Session:
    """Train two steps, and sample and judge a third."""
    folder.mkdir(exist_ok=True)
    sizes = {"questions": 3, "rollouts": 5, "max_response_length": 24}
    generate = {**sizes, **case.overrides.get("generate", {}), "temperature": 1.0}
    config = golden_config(folder, {**case.overrides, "generate": generate})
    (folder / "parity.py").write_text(TASK.replace("REWARD", case.reward))
    if case.change is not None:
        model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
        case.change(model)
        model.save_pretrained(folder / "policy")
    session = Session.create(folder / "run", config)
    for step in range(STEP):
        for name in ("generate", "verify", "route", "weigh", "update"):
            session.run_stage(name, step)
        session.finish_step(step)
        session.snapshot(step + 1)
    session.run_stage("generate", STEP)
    session.run_stage("verify", STEP)
    return session


def not_finite(tables: Mapping[str, pa.Table]) -> list[str]:
    """Name the columns of floats that hold NaN, or an infinity where none has a meaning."""
    found = []
    for name, table in tables.items():
        for column in table.column_names:
            values = table[column].combine_chunks()
            while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
                values = values.flatten()
            if pa.types.is_floating(values.type) and column not in ("teacher_tail", "student_tail"):
                numbers = values.drop_null().to_numpy(zero_copy_only=False)
                if not np.isfinite(numbers).all():
                    found.append(f"{name}.{column}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_step_in_an_extreme_situation_equals_its_twin(name: str, tmp_path: Path) -> None:
    session = open_case(tmp_path, CASES[name])
    capture = run_step(session)
    assert not_finite(capture.tables) == []
    twin = twin_of(session, capture)
    assert disagreements(twin, capture) == []
    weights = capture.tables["weights"]["weight"].to_numpy()
    assert weights.size == 0 or weights.mean() == pytest.approx(1.0, abs=1e-5)
    _situation(name, capture.tables)
    session.close()


def _situation(name: str, tables: Mapping[str, pa.Table]) -> None:
    """Make sure that the case is what it is called."""
    lengths = [len(ids) for ids in tables["rollouts"]["response_ids"].to_pylist()]
    routes = set(tables["routes"]["route"].to_pylist())
    entropy = tables["teacher"]["entropy"].to_numpy()
    if name == "only EOS":
        assert set(lengths) == {1}
    if name in ("one token each", "all cut short"):
        assert set(tables["rollouts"]["finish_reason"].to_pylist()) >= {"length"}
    if name == "one token beside two hundred":
        assert min(lengths) < 10 and max(lengths) > 100
    if name == "uniform":
        assert entropy == pytest.approx(np.log(len(LOWERCASE)), abs=1e-4)
    if name == "peaked":
        assert (
            np.median(entropy) < 0.1 and tables["teacher"]["teacher_logprob"].to_numpy().min() < -20
        )
    if name in ("all right", "all wrong"):
        assert routes == {"grpo"}
        assert set(tables["routes"]["advantage"].to_pylist()) == {0.0}
    if name == "verifier fails on a third":
        unjudged = [error is not None for error in tables["verdicts"]["error"].to_pylist()]
        assert any(unjudged) and not all(unjudged)
        assert [r == "none" for r in tables["routes"]["route"].to_pylist()] == unjudged


@pytest.mark.slow
@pytest.mark.parametrize("name", ["only EOS", "uniform", "peaked", "one token each"])
def test_budgets_of_passes_change_nothing(name: str, tmp_path: Path) -> None:
    """Packed all in one row, or a rollout at a time and a few logits at a time."""
    found = []
    for place, tokens, megabytes in (("small", 1, 0.001), ("large", 10**6, 100.0)):
        case = CASES[name]
        budget = {"micro_batch_tokens": tokens, "projection_mb": megabytes}
        session = open_case(tmp_path / place, Case(case.overrides, case.reward, case.change))
        sections = {
            key: getattr(session.config, key).model_copy(update=budget)
            for key in ("route", "update")
        }
        session.run.config = session.config.model_copy(update=sections)
        found.append(run_step(session))
        session.close()
    small, large = found
    for key in small.gradients[0]:
        ours, theirs = small.gradients[0][key], large.gradients[0][key]
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-7), key
    for column in ("entropy", "jsd", "teacher_logprob"):
        ours, theirs = (c.tables["teacher"][column].to_numpy() for c in (small, large))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_weights_stop_a_step_before_anything_is_kept(broken: float, tmp_path: Path) -> None:
    session = open_case(tmp_path, Case({}))
    session.run_stage("route", STEP)
    session.run_stage("weigh", STEP)
    policy = session.prepare(STEP)
    with torch.no_grad():
        policy.trainable()["model.norm.weight"][0] = broken
    with pytest.raises(NumericalError, match=r"not finite|is nan"):
        session.run_stage("update", STEP)
    assert not session.run.has("updates", STEP)
    assert session.resident.policy is None  # what it had become is gone
    session.run_stage("update", STEP)
    whole = file_digest(session.run.table_path("updates", STEP))
    session.close()
    again = Session.resume(tmp_path / "run")
    (tmp_path / "run/steps/000002/updates.arrow").unlink()
    again.run_stage("update", STEP)
    assert file_digest(again.run.table_path("updates", STEP)) == whole
    again.close()


@pytest.mark.parametrize("stage", ["generate", "route"])
def test_broken_weights_are_found_by_the_stages_that_only_read_them(
    stage: str, tmp_path: Path
) -> None:
    session = open_case(tmp_path, Case({}))
    policy = session.prepare(STEP)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.fill_(float("nan"))
    if stage == "generate":
        (tmp_path / "run/steps/000002/rollouts.json").unlink()
        (tmp_path / "run/steps/000002/verdicts.json").unlink()
    with pytest.raises(SrpoError, match=r"not finite|log-probabilities in \(-inf, 0\]"):
        session.run_stage(stage, STEP)
    assert not session.run.has("rollouts" if stage == "generate" else "teacher", STEP)
    session.close()


def test_a_step_without_any_gradient_says_so_and_moves_weights_by_decay_alone(
    tmp_path: Path,
) -> None:
    case = Case({}, reward="0")
    session = open_case(tmp_path, case)
    before = {n: p.detach().clone() for n, p in session.prepare(STEP).trainable().items()}
    for name in ("route", "weigh", "update"):
        session.run_stage(name, STEP)
    record = session.finish_step(STEP)
    assert record["grad_norm"] == 0
    assert record["loss"] == 0
    rate = session.run.manifest("updates", STEP).facts["learning_rate"]
    decay = 1 - rate * session.config.update.weight_decay
    for name, parameter in session.prepare(STEP + 1).trainable().items():
        assert torch.allclose(parameter, before[name] * decay, rtol=1e-6, atol=1e-9), name
    session.close()


def test_the_twin_itself_is_finite_where_probabilities_underflow(tmp_path: Path) -> None:
    session = open_case(tmp_path, CASES["peaked"])
    capture = run_step(session)
    twin = recompute(
        capture.tables,
        session.run.snapshot_path(STEP),
        teacher_states(session),
        twin_settings(session.config),
    )
    taught = [row.teacher for row in twin.rollouts.values() if row.teacher is not None]
    assert taught and all(torch.isfinite(teacher.jsd).all() for teacher in taught)
    session.close()
