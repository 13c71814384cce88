"""`srpo evaluate --taught` and `srpo train --preflight`, as typed."""

import hashlib
import json
from pathlib import Path

import pytest

from flows.session.session import Session
from tests.conftest import Srpo
from tests.golden.golden_run import golden_config

SMALL = [
    "run.steps=1",
    "run.threads=1",
    "generate.questions=4",
    "evaluate.questions=2",
    "evaluate.rollouts=1",
    "verify.workers=1",
]
SETTINGS = [word for setting in SMALL for word in ("--set", setting)]


def tables(run: Path) -> dict[str, str]:
    """Return the SHA-256 of every table that isn't a measurement."""
    return {
        str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.rglob("*.arrow"))
        if not path.name.startswith("taught-")
    }


def measurements(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "evaluations").glob("taught-*")}


@pytest.mark.slow
def test_a_preflight_warns_and_records_and_changes_nothing(srpo: Srpo, tmp_path: Path) -> None:
    run, plain = tmp_path / "run", tmp_path / "plain"
    code, out, err = srpo("train", "demo", "--run", run, "--preflight", *SETTINGS)
    assert (code, err) == (0, "")
    assert "A teacher prompt (sibling) lifts accuracy from" in out
    assert "the teacher has a lead" in out
    made = measurements(run)
    assert len(made) == 2
    # Before the first step, and of that state.
    assert out.index("has a lead") < out.index("step 1/1")
    assert all(name.startswith("taught-000000-") for name in made)
    assert srpo("train", "demo", "--run", plain, *SETTINGS)[0] == 0
    assert tables(run) == tables(plain)
    assert srpo("check", run)[0] == 0
    assert srpo("diff", run, plain)[0] == 0
    assert srpo("prune", run, "--dry-run")[0] == 0

    code, out, _ = srpo(*("train", "--resume", "--run", run, "--preflight", "--set", "run.steps=2"))
    assert code == 0
    assert "1 steps are done, so no preflight" in out
    assert measurements(run) == made

    code, out, _ = srpo("evaluate", f"{run}@0", "--taught")
    assert code == 0
    assert "the teacher has a lead" in out
    assert measurements(run) == made  # read, not made again
    code, out, _ = srpo("evaluate", f"{run}@0", "--taught", "--format", "json")
    assert code == 0
    assert json.loads(out)["figures"]["sources"]["sibling"]["difference"]["low"] > 0
    code, out, _ = srpo("evaluate", run, "--taught", "--questions", 4)
    assert code == 0
    assert "after 2 steps: 4 training questions, 8 answers each" in out
    assert len(measurements(run)) == 4


def test_a_method_without_a_teacher_is_refused_before_anything_is_written(
    srpo: Srpo, tmp_path: Path
) -> None:
    code, _, err = srpo("train", "demo-grpo", "--run", tmp_path / "run", "--preflight")
    assert code == 2
    assert "route.method is grpo: there is no teacher whose lead could be measured" in err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = golden_config(tmp_path_factory.mktemp("input"), {})
    with Session.create(tmp_path_factory.mktemp("runs") / "run", config) as session:
        return session.run.root


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--questions", 4], "--questions is how many --taught asks"),
        (["--taught", "--task", "arithmetic"], "leave --task out"),
        (["--taught", "--set", "data.path=x"], "can change generate, route only"),
    ],
)
def test_what_evaluate_refuses(
    srpo: Srpo, begun: Path, arguments: list[object], message: str
) -> None:
    code, _, err = srpo("evaluate", begun, *arguments)
    assert code == 2
    assert message in err


def test_a_model_without_a_run_is_measured_by_a_training(srpo: Srpo, tmp_path: Path) -> None:
    code, _, err = srpo("evaluate", tmp_path / "model", "--taught")
    assert code == 2
    assert "no run folder" in err
    assert "srpo train CONFIG --preflight" in err
