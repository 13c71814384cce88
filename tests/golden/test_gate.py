"""The gate on the mismatch in a run: what a stopped update leaves on the disk."""

import hashlib
from pathlib import Path

import pytest

from flows.session.session import Session
from pipeline.errors import NumericalError
from tests.golden.golden_run import golden_config

BEFORE = ("generate", "verify", "route", "weigh")


def contents(root: Path) -> dict[str, str]:
    """Return the SHA-256 of every table and snapshot file of a run."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.suffix in (".arrow", ".safetensors")
    }


def test_a_stopped_update_leaves_tables_and_policy_as_they_were(tmp_path: Path) -> None:
    # No float32 pass repeats another's log-probabilities to 1e-9 nats in every token.
    config = golden_config(tmp_path, {"generate": {"max_logprob_gap": 1e-9}})
    session = Session.create(tmp_path / "run", config)
    try:
        for name in BEFORE:
            session.run_stage(name, 0)
    finally:
        session.close()
    before = contents(session.run.root)
    assert "steps/000000/rollouts.arrow" in before
    session = Session.resume(session.run.root)
    try:
        for _ in range(2):  # the second meets a policy opened anew
            with pytest.raises(NumericalError, match=r"generate\.max_logprob_gap = 1e-09 nats"):
                session.run_stage("update", 0)
    finally:
        session.close()
    assert not session.run.has("updates", 0)
    assert contents(session.run.root) == before
