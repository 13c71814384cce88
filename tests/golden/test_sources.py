"""Sources of teacher information against the float64 twin: bank, solution, gold, feedback."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.tables.schemas import BANK
from tests.golden.golden_run import STEP, disagreements, make_run, run_step, twin_of

VARIANTS: dict[str, tuple[Mapping[str, object], set[str]]] = {
    "bank": ({"sources": ["bank"]}, {"bank", "none"}),
    "sibling, then a bank of one step": (
        {"sources": ["sibling", "bank"], "bank_max_age": 1},
        {"sibling", "bank"},
    ),
    "solution, then sibling": ({"sources": ["solution", "sibling"]}, {"solution", "sibling"}),
    "gold with feedback": ({"sources": ["gold"], "feedback": True}, {"gold"}),
    "feedback alone": ({"sources": [], "feedback_alone": True}, {"feedback", "none"}),
    "all, in other words": (
        {
            "sources": ["solution", "bank", "sibling", "gold"],
            "feedback": True,
            "feedback_alone": True,
            "templates": {"both": "Q {question} S {solution} F {feedback}"},
        },
        {"solution", "bank"},
    ),
}


def bank_of(rollouts: pa.Table) -> pa.Table:
    """Return earlier answers to five of the step's six questions; the fifth's are of step 0."""
    rows, seen = [], dict(zip(rollouts["group"].to_pylist(), rollouts.to_pylist(), strict=True))
    for group, row in list(seen.items())[:5]:
        for step in (1, 0) if group < 4 else (0,):
            for sample in range(2):
                text = f"<think>{group}</think> b{step}{sample}"
                rows.append(
                    {
                        "rollout_id": f"{step:06d}-{group:04d}-{sample:02d}",
                        "task": row["task"],
                        "prompt_id": row["prompt_id"],
                        "step": step,
                        "response_text": text,
                        "response_tokens": len(text),
                    }
                )
    return pa.Table.from_pylist(rows, schema=BANK)


def told(verdicts: pa.Table) -> pa.Table:
    """Return verdicts with feedback on two of three rollouts; some of it is blank."""
    rows = verdicts.to_pylist()
    for place, row in enumerate(rows):
        row["feedback"] = {0: "say ab", 1: " "}.get(place % 3)
    return pa.Table.from_pylist(rows, schema=verdicts.schema)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_equals_its_twin(name: str, tmp_path: Path) -> None:
    settings, sources = VARIANTS[name]
    session = make_run(tmp_path, {})
    route = session.config.route.model_validate({**session.config.route.model_dump(), **settings})
    session.run.config = session.config.model_copy(update={"route": route})
    rollouts = session.run.read("rollouts", STEP)
    task, ids = rollouts["task"][0].as_py(), rollouts["prompt_id"].to_pylist()
    worked = {(task, ids[0]): "worked {solution}", (task, ids[-1]): "w"}
    capture = run_step(
        session,
        verdicts=told(session.run.read("verdicts", STEP)),
        bank=bank_of(rollouts) if "bank" in route.sources else None,
        solutions=worked,
        golds={task: lambda reference: f"gold {reference}"},
    )
    references = rollouts["reference"].to_pylist()
    offered = {("solution", *question): text for question, text in worked.items()}
    offered |= {
        ("gold", task, one): f"gold {reference}"
        for one, reference in zip(ids, references, strict=True)
    }
    twin = twin_of(session, capture, offered=offered)
    assert disagreements(twin, capture) == []
    assert set(capture.tables["routes"]["teacher_source"].to_pylist()) >= sources
    session.close()
