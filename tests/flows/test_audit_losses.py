"""Token losses recomputed from the tables of real runs are those of the update."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from flows.session import Session
from pipeline.audit.listing import samples
from pipeline.audit.rollout import rollout_record
from pipeline.lineage import STEP_STAGES
from pipeline.store import Run
from tests.golden.run import golden_config

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
            assert unknown == (row["route"] != "sdpo" and not rescored)
    assert (moved > 0) == several, "the check sees what it should"
