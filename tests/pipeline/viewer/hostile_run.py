"""A run whose every text tries to do something: to a page, to a terminal, to the eye."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.files.sealed_json import write_sealed
from pipeline.run.run import Run
from pipeline.run.step_layout import STEP_TABLES
from tests.builders.tables import with_column

LONG = 100_000
ATTACKS = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "</script><svg onload=alert(3)>",
    "'-alert(4)-'</pre></td></dl></section>",
    "\x1b[31mred\x1b]0;title\x07\x00\x08\x9b",
    "\u202eright to left\u202c \u2066isolate\u2069 \u200bzero\u200d\ufeff",
    "{{7*7}}{% raw %}${7*7}<!--",
    "x" * LONG,
)
EVERYTHING = "\n".join(ATTACKS)
OF_TABLE = {
    "rollouts": ("task", "prompt_id", "reference", "response_text", "policy_version", "engine"),
    "verdicts": ("prediction", "feedback", "verifier", "error"),
    "routes": ("teacher_prompt_text", "reason"),
    "updates": ("old_source",),
    "evaluations": ("prompt_id", "response_text", "prediction", "feedback", "reference"),
}

_FIRST = 150
"""Id of the first token with a hostile text."""


def hostile_run(run: Run, root: Path, steps: int = 2) -> Run:
    """Copy the first steps of a run, their texts hostile; questions come back at every step."""
    made = Run.create(root, run.config, {})
    _tokenizer(run.tokenizer_path(), root / "tokenizer")
    for step in range(steps):
        for table in STEP_TABLES:
            _copy(run, made, table, step)
        _metrics(run, made, step)
    _copy(run, made, "evaluations", 0)
    return made


def _copy(run: Run, made: Run, table: str, step: int) -> None:
    manifest = run.manifest(table, step)
    data = _hostile(table, run.read(table, step))
    made.commit(manifest.origin, data, manifest.facts, manifest.cost)


def _hostile(table: str, data: pa.Table) -> pa.Table:
    for name in OF_TABLE.get(table, ()):
        values = data.column(name).to_pylist()
        texts = [
            EVERYTHING if name != "prompt_id" else _question(row) for row in range(len(values))
        ]
        data = with_column(data, name, texts)
    if table in ("rollouts", "evaluations"):
        messages = [{"role": text[:60], "content": text} for text in ATTACKS]
        data = with_column(data, "messages", [messages] * data.num_rows)
        ids = data.column("response_ids").to_pylist()
        data = with_column(data, "response_ids", [_ids(of) for of in ids])
    return data


def _question(row: int) -> str:
    return f"{row // 4}{''.join(ATTACKS[:-1])}"


def _ids(ids: list[int]) -> list[int]:
    """Put the tokens with hostile texts at the beginning."""
    return [_FIRST + i if i < len(ATTACKS) - 1 else token for i, token in enumerate(ids)]


def _tokenizer(source: Path, target: Path) -> None:
    """Copy a tokenizer, with hostile texts as tokens of their own."""
    shutil.copytree(source, target)
    path = target / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    template: dict[str, Any] = content["added_tokens"][0]
    size = max(token["id"] for token in content["added_tokens"])
    assert size < _FIRST
    for number, text in enumerate(ATTACKS[:-1]):
        content["added_tokens"].append(
            {**template, "id": _FIRST + number, "content": text, "special": False}
        )
    path.write_text(json.dumps(content), encoding="utf-8")


def _metrics(run: Run, made: Run, step: int) -> None:
    alarm = {
        "rule": ATTACKS[0],
        "step": step,
        "message": EVERYTHING[:2000],
        "evidence": [f"{step:06d}-0000-00", ATTACKS[1]],
        "command": ATTACKS[2],
    }
    record = {**run.metrics(step), "alarms": [alarm]}
    write_sealed(made.metrics_path(step), record)
