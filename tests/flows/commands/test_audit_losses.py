"""Token losses recomputed from the tables of real runs are those of the update."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.reruns.replay import Plan, replay
from flows.session.session import Session
from pipeline.audit.listing import samples
from pipeline.audit.rollout import RolloutRecord, rollout_record
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_STAGES
from tests.golden.golden_run import golden_config

Sections = dict[str, dict[str, Any]]
VARIANTS: dict[str, Sections] = {
    "srpo": {},
    "forward_kl": {"update": {"divergence": "forward_kl"}},
    "sdpo, reverse_kl": {"update": {"divergence": "reverse_kl"}, "route": {"method": "sdpo"}},
    "sampled_token": {"update": {"divergence": "sampled_token", "tis_clip": 1.01}},
    "mix": {
        "route": {"method": "advantage_mix", "rescore": "all"},
        "update": {"jsd_alpha": 0.3},
    },
    "grpo, group_std": {"route": {"method": "grpo", "advantage_scale": "group_std"}},
    "rlsd": {"route": {"method": "rlsd"}, "update": {"tis_clip": 1.01}},
    "rlsd, two updates": {"route": {"method": "rlsd", "mini_batch": 3, "teacher": "periodic"}},
    "K = V": {"route": {"top_k": 500}},
    "two updates": {"route": {"mini_batch": 3}},
}


def trained(folder: Path, sections: Sections) -> Run:
    session = Session.create(folder / "run", golden_config(folder, sections))
    for step in range(2):
        for name in STEP_STAGES:
            session.run_stage(name, step)
        session.finish_step(step)
    session.close()
    return session.run


@pytest.mark.parametrize(
    "sections",
    [
        pytest.param(sections, id=name, marks=[] if name == "srpo" else pytest.mark.slow)
        for name, sections in VARIANTS.items()
    ],
)
def test_token_losses_sum_to_those_of_the_update(tmp_path: Path, sections: Sections) -> None:
    """But for float32 rounding, wherever the policy had not moved since the step began."""
    run = trained(tmp_path, sections)
    several = "mini_batch" in sections.get("route", {})
    rows = samples(run, [1]).filter(pl.col("computed")).collect()
    assert len(rows) > 0
    moved = 0
    for row in rows.iter_rows(named=True):
        record = rollout_record(run, row["rollout_id"])
        total = sum(token.loss or 0 for token in record.tokens)
        assert record.loss_difference == pytest.approx(total - row["loss_sum"])
        assert sum(token.share or 0 for token in record.tokens) == pytest.approx(1)
        if row["mini_batch"] > 0:
            assert record.loss_note.startswith("optimizer update 2 of the step")
            moved += abs(record.loss_difference or 0) > 1e-3
        else:
            assert total == pytest.approx(row["loss_sum"], rel=2e-5, abs=2e-5)
            unknown = "correction of each token was not recorded" in record.loss_note
            assert (record.loss_note == "") != unknown
            rescored = several or sections.get("route", {}).get("rescore") == "all"
            asked = row["route"] == "sdpo" or record.tokens[0].credit is not None
            assert unknown == (not asked and not rescored)
    assert (moved > 0) == several, "the check sees what it should"


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("parent"), {"run": {"steps": 2}})


def computed(run: Run, step: int, route: str) -> list[RolloutRecord]:
    chosen = pl.col("computed") & (pl.col("route") == route)
    names = samples(run, [step]).filter(chosen).collect()["rollout_id"]
    return [rollout_record(run, name) for name in names]


@pytest.mark.parametrize("setting", ["weigh.beta=3", "update.divergence=reverse_kl"])
def test_a_forks_losses_are_those_of_its_own_settings(
    parent: Run, tmp_path: Path, setting: str
) -> None:
    """The first update of a fork is still on-policy; its losses are others than the parent's."""
    plan = Plan.of(parent, setting.split(".")[0], "update", "0:1")
    session = replay(parent, tmp_path / "fork", plan, [setting])
    session.close()
    taught = computed(session.run, 0, "sdpo")
    assert taught
    for record in taught:
        assert record.update is not None and record.loss_note == ""
        assert record.loss_difference == pytest.approx(0, abs=2e-5)
        before = rollout_record(parent, record.rollout_id)
        assert before.update is not None
        assert record.update["loss_sum"] != pytest.approx(before.update["loss_sum"], rel=1e-3)


def test_off_policy_forks_say_how_far_off_the_losses_are(parent: Run, tmp_path: Path) -> None:
    """A first update that learns ten times faster: the second no longer meets its own rollouts."""
    plan = Plan.of(parent, "update", "update", "0:2")
    settings = ["update.learning_rate=0.1"]
    session = replay(parent, tmp_path / "fork", plan, settings)
    session.close()
    for route, said in (("sdpo", "off-policy: scored by"), ("grpo", "off-policy: sampled by")):
        records = computed(session.run, 1, route)
        assert records
        differences = []
        for record in records:
            assert said in record.loss_note
            assert record.update is not None and record.loss_difference is not None
            total = sum(token.loss or 0 for token in record.tokens)
            assert record.loss_difference == pytest.approx(total - record.update["loss_sum"])
            differences.append(abs(record.loss_difference))
        assert max(differences) > 1e-2
