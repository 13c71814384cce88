"""Numbers that are not finite stop a stage before anything is kept, and leave nothing behind."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from flows.session.session import Session
from pipeline.errors import NumericalError, PolicyError
from pipeline.policy.policy import Policy
from pipeline.sampling.engine import Sample, SamplingSettings
from pipeline.sampling.transformers_engine import TransformersEngine
from pipeline.stage.contract import Handles
from stages.generate import STAGE as GENERATE
from stages.update import STAGE as UPDATE
from tests.golden.golden_run import golden_config
from tests.stages.steps import config_of, open_tiny, routed

NAN, INF = float("nan"), float("inf")
BEFORE_UPDATE = ("generate", "verify", "route", "weigh")
MIXED = [[("ab", 1.0), ("b", 0.0), ("abc", 0.0)], [("c", 0.0), ("dd", 1.0), ("e", 1.0)]]


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    session = Session.create(tmp_path / "run", golden_config(tmp_path, {}))
    yield session
    session.close()


def spoil(policy: Policy, value: float) -> None:
    with torch.no_grad():
        policy.trainable()["model.norm.weight"].fill_(value)


class LyingEngine:
    """The resident policy's samples, with one log-probability replaced."""

    name = "lying"

    def __init__(self, policy: Policy, rollout: int, position: int, value: float) -> None:
        self._engine, self.facts = TransformersEngine(policy), dict[str, Any]()
        self._where, self._value = (rollout, position), value

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: SamplingSettings,
        progress: Callable[[int, int], None],
    ) -> list[list[Sample]]:
        groups = self._engine.sample(prompts, seeds, settings, progress)
        rollout, position = self._where
        logprobs = list(groups[1][rollout].logprobs)
        logprobs[position] = self._value
        groups[1][rollout] = groups[1][rollout]._replace(logprobs=logprobs)
        return groups


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_broken_policy_is_not_evaluated(session: Session, value: float) -> None:
    # Once it was: every answer was token 0, and a task that likes that gave it 100%.
    spoil(session.prepare(0), value)
    for stage, table in (("evaluate", "evaluations"), ("generate", "rollouts")):
        with pytest.raises(NumericalError, match=r"not finite in \d+ of \d+ rollouts: e?000000-"):
            session.run_stage(stage, 0)
        assert not session.run.has(table, 0)


def test_a_broken_policy_folder_is_named_when_it_is_opened(tmp_path: Path) -> None:
    config = golden_config(tmp_path, {})
    model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    with torch.no_grad():
        model.get_output_embeddings().weight[7, 3] = NAN
    model.save_pretrained(config.model.path)
    with pytest.raises(PolicyError, match=r"embed_tokens.* holds values that are not finite"):
        Session.create(tmp_path / "run", config)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_an_engine_that_reports_no_number_is_told_apart_by_rollout_and_position(
    session: Session, value: float
) -> None:
    policy = session.prepare(0)
    asked = session.questions.of_step(session.config, 0)
    handles = Handles(
        seed=0,
        step=0,
        questions=asked.questions,
        tasks=asked.tasks,
        policy=policy,
        engine=LyingEngine(policy, rollout=2, position=0, value=value),
    )
    wanted = r"engine lying .* in 1 of 30 rollouts: 000000-0001-02 \(from position 0\); none"
    with pytest.raises(NumericalError, match=wanted):
        GENERATE.run({}, session.config, handles)
    engine = LyingEngine(policy, rollout=2, position=0, value=-1.5)
    assert GENERATE.run({}, session.config, replace(handles, engine=engine)).tables


def moments(policy: Policy) -> list[torch.Tensor]:
    states = policy.optimizer.state.values()
    return [value for state in states for value in state.values() if torch.is_tensor(value)]


@pytest.mark.slow
def test_a_stopped_update_is_made_up_for_with_the_same_numbers(
    session: Session, tmp_path: Path
) -> None:
    for stage in (*BEFORE_UPDATE, "update"):
        session.run_stage(stage, 0)
    session.finish_step(0)
    for stage in BEFORE_UPDATE:
        session.run_stage(stage, 1)
    policy = session.prepare(1)
    spoil(policy, NAN)
    with pytest.raises(NumericalError, match="000001-0"):
        session.run_stage("update", 1)
    assert moments(policy) and all(bool(m.isfinite().all()) for m in moments(policy))
    assert not session.run.has("updates", 1)
    session.run_stage("update", 1)  # by a policy opened from the last snapshot and replayed
    assert session.run.read("updates", 1).to_pylist() == undisturbed(tmp_path / "other")


def undisturbed(folder: Path) -> list[dict[str, Any]]:
    """Return the updates of step 1 of an equal run, in another folder, that nothing stopped."""
    folder.mkdir()
    session = Session.create(folder / "run", golden_config(folder, {}))
    for step in range(2):
        for stage in (*BEFORE_UPDATE, "update"):
            session.run_stage(stage, step)
        session.finish_step(step)
    session.close()
    found: list[dict[str, Any]] = session.run.read("updates", 1).to_pylist()
    return found


@pytest.mark.parametrize("weight", [1e30, 3e38])
def test_a_gradient_whose_square_overflows_never_reaches_the_moments(
    weight: float, tmp_path: Path
) -> None:
    """Adam squares it: finite weights and losses alone don't make the update sound."""
    policy = open_tiny(tmp_path)
    config = config_of(update={"max_grad_norm": 1e38})
    tables = routed(policy, config, MIXED)
    before = [p.detach().clone() for p in policy.trainable().values()]
    rows: list[Mapping[str, Any]] = tables["weights"].to_pylist()
    rows = [{**row, "weight": weight} for row in rows]
    tables["weights"] = tables["weights"].from_pylist(rows, schema=tables["weights"].schema)
    with pytest.raises(NumericalError, match="not finite"):
        UPDATE.run(tables, config, Handles(seed=0, step=0, policy=policy))
    after = [p.detach() for p in policy.trainable().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(bool(m.isfinite().all()) for m in moments(policy))
