"""What a run of rlsd shows: factors of the advantage in records, lists, pages and numbers."""

from collections.abc import Iterator
from io import StringIO

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from flows.session.session import Session
from flows.terminal.rollout_text import print_rollout
from pipeline.audit.listing import samples
from pipeline.audit.rollout import RolloutRecord, rollout_record
from pipeline.files.sealed_json import read_sealed
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES
from pipeline.viewer.rollout_tokens import token_page
from tests.golden.golden_run import golden_config

LAMBDAS = (0.5, 0.25, 0.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run of three steps, in whose last nobody is asked; never write to it."""
    folder = tmp_path_factory.mktemp("rlsd")
    route = {"method": "rlsd", "credit_steps": 2}
    overrides = {"route": route, "generate": {"questions": 4, "rollouts": 4}}
    session = Session.create(folder / "run", golden_config(folder, overrides))
    for step in range(3):
        for name in STEP_STAGES:
            session.run_stage(name, step)
        session.finish_step(step)
    session.close()
    yield session.run


def asked(run: Run, step: int) -> list[RolloutRecord]:
    names = run.read("teacher", step)["rollout_id"].unique().to_pylist()
    return [rollout_record(run, name) for name in names]


def test_a_record_has_factors_and_no_weights(run: Run) -> None:
    records = asked(run, 1)
    assert len(records) > 3
    for record in records:
        assert record.route is not None
        stored = run.read_rollout("weights", 1, record.rollout_id)
        assert [t.credit for t in record.tokens] == stored["weight"].to_pylist()
        assert [t.raw_weight for t in record.tokens] == stored["raw_weight"].to_pylist()
        assert all(t.weight is None for t in record.tokens)
        assert "see credit" in record.not_recorded["weight"]
        assert record.loss_note == ""
        assert record.loss_difference == pytest.approx(0, abs=2e-5)
        for token in record.tokens:
            assert token.credit is not None and token.tis is not None
            expected = -record.route["advantage"] * token.credit * token.tis
            assert token.loss == pytest.approx(expected, rel=1e-6)


def test_what_was_not_asked_says_why(run: Run) -> None:
    idle = samples(run, [0]).filter((pl.col("advantage") == 0) & pl.col("teacher_available"))
    for name in idle.collect()["rollout_id"]:
        record = rollout_record(run, name)
        assert record.not_recorded["credit"].startswith("the advantage is 0")
    decayed = samples(run, [2]).filter((pl.col("advantage") != 0) & pl.col("teacher_available"))
    (name, *_) = decayed.collect()["rollout_id"]
    said = rollout_record(run, name).not_recorded["credit"]
    assert said.startswith("its share has fallen to 0")


def test_the_listing_has_the_share_and_the_factors(run: Run) -> None:
    rows = samples(run, needs=["credit_lambda", "weight_mean", "weight_max"]).collect()
    assert [rows.filter(step=s)["credit_lambda"].unique().to_list() for s in range(3)] == [
        [value] for value in LAMBDAS
    ]
    known = rows.filter(pl.col("weight_mean").is_not_null())
    assert set(known["step"]) == {0, 1}
    assert ((known["weight_max"] <= 1.1 + 1e-6) & (known["weight_mean"] >= 0.9)).all()


def test_the_heat_map_is_that_of_the_factors(run: Run) -> None:
    record = asked(run, 1)[0]
    page = token_page(run, record)
    layers = {layer.quantity.key: layer for layer in page["layers"]}
    assert "credit" in layers and "weight" not in layers
    factors = [token.credit or 0.0 for token in record.tokens]
    assert page["data"]["values"]["credit"] == pytest.approx(factors, rel=1e-3)
    assert layers["credit"].pale == 1.0
    for factor, level in zip(factors, layers["credit"].levels, strict=True):
        assert level is not None and (level == 0 or (level > 0) == (factor > 1))
    assert len(set(layers["credit"].levels)) > 1


def test_the_terminal_prints_factors(run: Run) -> None:
    console = Console(width=160, record=True, file=StringIO())
    print_rollout(console, asked(run, 1)[0], None)
    printed = console.export_text()
    assert "A_t/A" in printed and "share that a teacher distributes 0.25" in printed


def test_numbers_of_the_step_by_hand(run: Run) -> None:
    for step, share in enumerate(LAMBDAS):
        found = read_sealed(run.metrics_path(step))
        assert found["credit_lambda"] == share
        assert found["distils"] is (share > 0)
        weights = run.read("weights", step)
        raw, factor = (weights[n].to_numpy().astype(float) for n in ("raw_weight", "weight"))
        if step == 2:
            assert found["credit_change_mean"] is found["credit_clipped_share"] is None
            continue
        assert found["credit_change_mean"] == pytest.approx(np.abs(factor - 1).mean())
        cut = ((raw < 0.8) | (raw > 1.2)).mean()
        assert 0 < cut < 1 and found["credit_clipped_share"] == pytest.approx(cut)
