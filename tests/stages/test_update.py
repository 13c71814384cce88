"""The update: where pi_old is from, what advances without a gradient, what stops it."""

import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch

import stages.update.stage
from pipeline.errors import NumericalError, PolicyError
from pipeline.policy.policy import Policy
from stages.update import STAGE as UPDATE
from tests.stages.steps import Group, config_of, open_tiny, routed, run_one, updated

MIXED: list[Group] = [
    [("abc", 1.0), ("de", 0.0), ("fghij", 0.0)],
    [("k", 1.0), ("lm", 1.0), ("nopq|", 0.0)],
]
ALL_WRONG: list[Group] = [[("abc", 0.0), ("de", 0.0)]]


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    return open_tiny(tmp_path)


def weights_of(policy: Policy) -> torch.Tensor:
    return torch.cat([p.detach().ravel().clone() for p in policy.trainable().values()])


def test_statistics_of_an_on_policy_step(policy: Policy) -> None:
    rows = updated(policy, config_of(), MIXED)["updates"].to_pylist()
    assert [r["tokens"] for r in rows] == [4, 3, 6, 2, 3, 4]
    assert [r["share"] for r in rows] == pytest.approx([n / 22 for n in (4, 3, 6, 2, 3, 4)])
    assert {r["old_source"] for r in rows} == {"live"}
    assert {r["mean_ratio"] for r in rows} == {1.0}
    assert {r["clipped_fraction"] for r in rows} == {0.0}
    # On-policy GRPO: rho = 1, so each token's loss is -A times TIS.
    assert rows[0]["loss_sum"] == pytest.approx(-4 * 2 / 3 * rows[0]["mean_tis"], rel=1e-5)
    assert rows[0]["mean_divergence"] is None
    assert rows[1]["mean_divergence"] > 0


def test_without_a_gradient_everything_still_advances(policy: Policy) -> None:
    before, teacher = weights_of(policy), policy.teacher_components()[0].model
    teacher_before = torch.cat([p.ravel().clone() for p in teacher.parameters()])
    config = config_of(update={"learning_rate": 0.1, "weight_decay": 0.5, "warmup_steps": 0})
    rows = updated(policy, config, ALL_WRONG)["updates"].to_pylist()
    assert [r["computed"] for r in rows] == [False, False]
    assert [r["share"] for r in rows] == pytest.approx([4 / 7, 3 / 7])
    assert {r["mean_ratio"] for r in rows} == {None}
    # AdamW with a zero gradient decays: theta (1 - lr wd) = 0.95 theta.
    assert torch.allclose(weights_of(policy), before * 0.95)
    teacher_after = torch.cat([p.ravel() for p in teacher.parameters()])
    assert torch.allclose(teacher_after, 0.95 * teacher_before + 0.05 * 0.95 * before)
    steps = {float(state["step"]) for state in policy.optimizer.state.values()}
    assert steps == {1.0}


def test_sdpo_without_any_teacher_has_no_tokens(policy: Policy) -> None:
    config = config_of(route={"method": "sdpo"})
    tables = routed(policy, config, ALL_WRONG)
    facts = run_one(UPDATE, tables, policy, config)
    assert facts["tokens"] == [0]
    assert facts["loss"] == [0.0]
    assert facts["grad_norm"] == [0.0]
    assert {r["share"] for r in tables["updates"].to_pylist()} == {0.0}


def test_dropped_rollouts_leave_n(policy: Policy) -> None:
    config = config_of(route={"method": "sdpo_incorrect_only"})
    tables = routed(policy, config, MIXED)
    facts = run_one(UPDATE, tables, policy, config)
    assert facts["tokens"] == [3 + 6 + 4]
    routes = [r["route"] for r in tables["updates"].to_pylist()]
    assert routes == ["none", "sdpo", "sdpo", "none", "none", "sdpo"]


def test_the_row_of_a_padding_token_learns(tmp_path: Path) -> None:
    # Untied: the row gets its gradient from look-ups alone. <user> stands in every prompt.
    policy = open_tiny(tmp_path, tied=False, padding="<user>")
    table = policy.model.get_input_embeddings()
    assert policy.model.config.pad_token_id == policy.encode("<user>")[0] == 2
    before = table.weight.detach().clone()
    updated(policy, config_of(update={"weight_decay": 0.0}), MIXED)
    moved = (table.weight - before).abs().amax(-1) > 0
    asked = {i for text in ("question 0", "question 1") for i in policy.encode(text)}
    assert moved[2] and moved[sorted(asked)].all()
    assert not moved[0]  # <pad>, which no prompt holds


def test_unjudged_rollouts_leave_the_n_of_their_mini_batch(policy: Policy) -> None:
    config = config_of(route={"method": "grpo", "mini_batch": 1}, generate={"questions": 3})
    groups: list[Group] = [
        [("abc", 1.0), ("de", 0.0), ("fghij", None)],
        [("k", None), ("lm", None)],
        [("k", 1.0), ("lm", 0.0)],
    ]
    tables = routed(policy, config, groups)
    facts = run_one(UPDATE, tables, policy, config)
    batches = {r["group"]: r["mini_batch"] for r in tables["routes"].to_pylist()}
    tokens = [facts["tokens"][batches[group]] for group in range(3)]
    assert tokens == [4 + 3, 0, 2 + 3]  # each with its EOS
    assert facts["loss"][batches[1]] == 0.0  # N = 0
    rows = tables["updates"].to_pylist()
    assert [r["share"] for r in rows] == pytest.approx([4 / 7, 3 / 7, 0, 0, 0, 2 / 5, 3 / 5])
    assert [r["computed"] for r in rows] == [True, True, False, False, False, True, True]


def test_warm_up_is_linear_from_the_first_step(policy: Policy) -> None:
    config = config_of(update={"learning_rate": 1.0, "warmup_steps": 4})
    rates = []
    for step in range(6):
        stages.update.stage.set_hyperparameters(policy.optimizer, config.update, step)
        rates.append(policy.optimizer.param_groups[0]["lr"])
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("rescore", "source"), [("all", "stored"), ("needed", "sampled")], ids=["stored", "sampled"]
)
def test_another_policy_never_counts_as_the_old_one(
    policy: Policy, rescore: str, source: str
) -> None:
    config = config_of(route={"method": "grpo", "rescore": rescore})
    tables = routed(policy, config, MIXED)
    with torch.no_grad():  # the policy moves on after sampling, as in a replayed fork
        for parameter in policy.trainable().values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    policy.version = "000000-ffffffffffff"
    run_one(UPDATE, tables, policy, config)
    rows = tables["updates"].to_pylist()
    assert {r["old_source"] for r in rows} == {source}
    assert all(r["mean_ratio"] != 1.0 for r in rows)
    if source == "sampled":
        assert {r["mean_tis"] for r in rows} == {1.0}
        assert {r["max_logprob_gap"] for r in rows} == {None}


def test_several_updates_use_stored_values(policy: Policy) -> None:
    config = config_of(
        route={"method": "grpo", "mini_batch": 1},
        generate={"questions": 2},
        update={"learning_rate": 1e-2, "warmup_steps": 0},
    )
    rows = updated(policy, config, MIXED)["updates"].to_pylist()
    assert {r["old_source"] for r in rows} == {"stored"}
    first = [r for r in rows if r["mini_batch"] == 0]
    second = [r for r in rows if r["mini_batch"] == 1]
    assert all(r["mean_ratio"] == pytest.approx(1.0, abs=1e-5) for r in first)
    assert all(abs(r["mean_ratio"] - 1.0) > 1e-4 for r in second)
    for batch in (first, second):
        assert sum(r["share"] for r in batch) == pytest.approx(1.0)


def test_a_loss_that_is_not_finite_names_the_rollout(policy: Policy) -> None:
    tables = routed(policy, config_of(), MIXED)
    weights = tables["weights"].to_pylist()
    weights[0]["weight"] = float("nan")
    tables["weights"] = tables["weights"].from_pylist(weights, schema=tables["weights"].schema)
    with pytest.raises(NumericalError, match="rollout 000000-0000-01 is nan"):
        UPDATE.run(tables, config_of(), handles(policy))
    with pytest.raises(PolicyError, match="failed half-way"):
        UPDATE.run(tables, config_of(), handles(policy))


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = routed(policy, config_of(), MIXED)
    before = weights_of(policy)
    real = stages.update.stage.accumulate_gradient

    def broken(*arguments: object) -> object:
        result = real(*arguments)  # type: ignore[arg-type]
        next(iter(policy.model.parameters())).grad.fill_(float("inf"))
        return result

    monkeypatch.setattr(stages.update.stage, "accumulate_gradient", broken)
    with pytest.raises(NumericalError, match=r"gradient is not finite; .*000000-0000-0"):
        UPDATE.run(tables, config_of(), handles(policy))
    assert torch.equal(weights_of(policy), before)


def off_by(tables: dict[str, pa.Table], rollout: int, token: int, nats: float) -> None:
    """Have the engine claim another log-probability for one token."""
    rows = tables["rollouts"].to_pylist()
    rows[rollout]["sampled_logprobs"][token] -= nats
    tables["rollouts"] = pa.Table.from_pylist(rows, schema=tables["rollouts"].schema)


def exact(policy: Policy) -> dict[str, pa.Table]:
    """Return a step whose engine agrees with the trainer."""
    tables = routed(policy, config_of(route={"rescore": "all"}), MIXED)
    rows = tables["rollouts"].to_pylist()
    for row, score in zip(rows, tables["scores"].to_pylist(), strict=True):
        row["sampled_logprobs"] = score["old_logprobs"]
    tables["rollouts"] = pa.Table.from_pylist(rows, schema=tables["rollouts"].schema)
    return tables


def test_the_mismatch_between_engine_and_trainer(policy: Policy) -> None:
    tables = exact(policy)
    off_by(tables, 0, 2, 1.0)
    table = UPDATE.run(tables, config_of(), handles(policy)).tables["updates"]
    first, second = table.to_pylist()[:2]
    assert first["max_logprob_gap"] == pytest.approx(1.0, rel=1e-4)
    assert first["mean_logprob_gap"] == pytest.approx(0.25, rel=1e-4)  # of 4 tokens
    assert first["engine_kl"] == pytest.approx((math.e - 2) / 4, rel=1e-4)
    assert first["tis_cut_fraction"] == 0.25  # e > 2
    assert first["mean_tis"] == pytest.approx(1.25, rel=1e-4)
    assert second["engine_kl"] == pytest.approx(0, abs=1e-9)
    assert second["tis_cut_fraction"] == 0


def test_the_gate_names_the_worst_tokens_and_stops_before_the_optimizer(policy: Policy) -> None:
    tables, before = exact(policy), weights_of(policy)
    off_by(tables, 0, 2, 0.5)
    off_by(tables, 4, 1, -0.45)
    engine = tables["rollouts"]["sampled_logprobs"].to_pylist()[0][2]
    with pytest.raises(NumericalError) as found:
        UPDATE.run(tables, config_of(), handles(policy, 0.4))
    said = str(found.value)
    assert "generate.max_logprob_gap = 0.4 nats in 2 of the step's tokens" in said
    assert "\n" not in said and "srpo audit" in said
    worst, other = said.index("000000-0000-00 position 2"), said.index("000000-0001-01 position 1")
    assert worst < other
    assert f"'c', engine {engine:.4f}, trainer {engine + 0.5:.4f}" in said
    assert torch.equal(weights_of(policy), before)
    with pytest.raises(PolicyError, match="failed half-way"):
        UPDATE.run(tables, config_of(), handles(policy))


def test_the_gate_names_exactly_the_token_that_is_off(policy: Policy) -> None:
    tables = exact(policy)
    off_by(tables, 0, 3, 0.5)  # its EOS, whose text is not left out
    with pytest.raises(NumericalError, match=r"in 1 of the step's") as found:
        UPDATE.run(tables, config_of(), handles(policy, 0.4))
    eos = min(policy.eos_ids)
    text = policy.tokenizer.decode([eos])
    assert text and f"000000-0000-00 position 3, token {eos} {text!r}, " in str(found.value)
    assert str(found.value).count("position") == 1


def test_without_values_of_its_own_the_trainer_has_no_gate(policy: Policy) -> None:
    config = config_of(route={"method": "grpo", "rescore": "needed"})
    tables = routed(policy, config, MIXED)
    policy.version = "000000-ffffffffffff"
    rows = UPDATE.run(tables, config, handles(policy, 1e-9)).tables["updates"].to_pylist()
    assert {r["old_source"] for r in rows if r["computed"]} == {"sampled"}
    assert {r["engine_kl"] for r in rows} == {r["tis_cut_fraction"] for r in rows} == {None}


def test_the_gate_lets_smaller_gaps_pass(policy: Policy) -> None:
    tables = exact(policy)
    off_by(tables, 0, 2, 0.5)
    table = UPDATE.run(tables, config_of(), handles(policy, 0.6)).tables["updates"]
    assert table["max_logprob_gap"][0].as_py() == pytest.approx(0.5, rel=1e-4)


def handles(policy: Policy, gate: float | None = None) -> stages.update.stage.Handles:
    return stages.update.stage.Handles(seed=0, step=0, policy=policy, max_logprob_gap=gate)
