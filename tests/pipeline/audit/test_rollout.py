"""One rollout whole: its rows, its tokens, its losses, and why something is missing."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.audit.rollout import rollout_record, topk
from pipeline.errors import ConfigError
from pipeline.run.run import Run
from pipeline.tables.schemas import schema_with
from tests.builders.step_runs import LARGE_IDS, TOKENS, large_run, make_run
from tests.builders.tables import IDS, STEP, tables, with_column, with_value


@pytest.fixture
def tokenizer(tiny_folder: Path) -> Path:
    return tiny_folder


def made_up(folder: Path, tokenizer: Path, **changes: Any) -> Run:
    """Write the made-up step, with `changes` of tables, and the tiny tokenizer."""
    run = make_run(folder / "run", {**tables(), **changes})
    (run.root / "tokenizer").mkdir()
    shutil.copy(tokenizer / "tokenizer.json", run.root / "tokenizer")
    return run


def test_a_taught_rollout_whole(tmp_path: Path, tokenizer: Path) -> None:
    record = rollout_record(made_up(tmp_path, tokenizer), IDS[1])
    assert record.rollout["messages"] == [{"role": "user", "content": "2 + 2?"}]
    assert record.rollout["response_text"] == "b"
    assert record.sibling_text == "a"
    assert record.verdict is not None and record.verdict["prediction"] == "5"
    assert record.route is not None and record.route["teacher_prompt_text"] == "taught: It is 4."
    assert record.feedback_gold_share == 1.0
    assert record.update is not None and record.update["loss_sum"] == 0.5
    assert record.batch_tokens == sum((3, 2, 1, 4))
    first, second = record.tokens
    assert (first.position, first.id, first.sampled_logprob) == (0, 10, -0.5)
    assert (first.old_logprob, first.student_entropy, first.teacher_entropy) == (-0.5, 1.0, 0.5)
    assert (first.weight, second.weight) == pytest.approx((1.2, 0.8))
    assert (first.survival, second.survival) == (1.0, 1.0)
    assert second.reward_weight is None
    assert (second.jsd, second.student_logprob, second.teacher_logprob) == (0.375, -2.75, -2.5)
    assert record.not_recorded == {}


def test_survival_whatever_the_setting(tmp_path: Path, tokenizer: Path) -> None:
    """log q - log s = -1 at the first of two tokens."""
    found = tables()
    teacher = with_column(found["teacher"], "teacher_logprob", [-2.25, -2.5])
    plain = rollout_record(made_up(tmp_path / "off", tokenizer, teacher=teacher), IDS[1])
    assert [t.survival for t in plain.tokens] == pytest.approx([1.0, np.exp(-1)])
    columns = found["weights"].to_pydict() | {
        "weight": [1.2, 0.8 * np.exp(-1)],
        "survival": [1.0, np.exp(-1)],
        "reward_weight": [0.0, 1 - np.exp(-1)],
    }
    weights = pa.table(columns, schema=schema_with("weights", columns))
    run = made_up(tmp_path / "handed", tokenizer, teacher=teacher, weights=weights)
    handed = rollout_record(run, IDS[1])
    assert [t.survival for t in handed.tokens] == pytest.approx([1.0, np.exp(-1)])
    assert [t.reward_weight for t in handed.tokens] == pytest.approx([0.0, 1 - np.exp(-1)])
    before, after = ([token.loss or 0.0 for token in r.tokens] for r in (plain, handed))
    # A = -0.5, and 1/e of the divergence is left.
    expected = [before[0], before[1] * np.exp(-1) + 0.5 * (1 - np.exp(-1))]
    assert after == pytest.approx(expected, rel=1e-5)


def test_the_likeliest_tokens_of_student_and_teacher(tmp_path: Path, tokenizer: Path) -> None:
    found = tables()
    teacher = with_column(found["teacher"], "teacher_logprobs", [[-3, -1, -2], [-1, -2, -3]])
    record = rollout_record(made_up(tmp_path, tokenizer, teacher=teacher), IDS[1])
    tops = record.tokens[0].student_top, record.tokens[0].teacher_top
    assert [[choice.id for choice in top or ()] for top in tops] == [[1, 2, 3], [2, 3, 1]]
    choice = (record.tokens[0].teacher_top or ())[0]
    assert (choice.text, choice.logprob) == ("<|im_end|>", -1.0)


def test_all_that_is_kept_at_a_position(tmp_path: Path, tokenizer: Path) -> None:
    found = tables()
    teacher = with_value(found["teacher"], "teacher_tail", 1, -np.inf)
    run = made_up(tmp_path, tokenizer, teacher=teacher)
    row = topk(run, IDS[1], 1)
    assert row["topk_ids"] == [4, 5, 6] and len(row["texts"]) == 3
    assert row["student_logprobs"] == [-1.75, -2.75, -3.75]
    assert (row["student_tail"], row["teacher_tail"]) == (-0.125, None)
    for rollout_id, position in ((IDS[1], 2), (IDS[1], -1), (IDS[0], 0)):
        with pytest.raises(ConfigError, match="nothing recorded at position"):
            topk(run, rollout_id, position)


def test_what_is_missing_and_which_setting_records_it(tmp_path: Path, tokenizer: Path) -> None:
    found = tables()
    scores = with_column(found["scores"], "old_logprobs", [[], [], [], []])
    scores = with_column(scores, "student_entropy", [[], [], [], []])
    missing = rollout_record(made_up(tmp_path, tokenizer, scores=scores), IDS[0]).not_recorded
    assert set(missing) == {
        "old_logprob", "student_entropy", "tis", "teacher_entropy", "raw_weight", "weight",
        "survival", "jsd", "student_logprob", "teacher_logprob", "student_top", "teacher_top",
    }  # fmt: skip
    assert 'route.rescore = "all"' in missing["old_logprob"]
    assert missing["weight"] == "no teacher was available, so nothing was taught"


def test_a_step_in_progress(tmp_path: Path, tokenizer: Path) -> None:
    run = made_up(tmp_path, tokenizer)
    for name in ("updates", "weights"):
        run.table_path(name, STEP).with_suffix(".json").unlink()
    record = rollout_record(run, IDS[1])
    assert record.update is None and record.loss_difference is None
    assert record.tokens[0].teacher_entropy == 0.5 and record.tokens[0].weight is None
    assert record.not_recorded["weight"] == "stage weigh has not run for this step"
    assert record.not_recorded["loss"] == "stage update has not run for this step"


def test_losses_by_advantage(tmp_path: Path, tokenizer: Path) -> None:
    """-A per token, times min(exp(-0.5 - -0.75), 2) = exp(0.25)."""
    found = tables()
    rollouts = with_value(found["rollouts"], "sampled_logprobs", 0, [-0.75] * 3)
    record = rollout_record(made_up(tmp_path, tokenizer, rollouts=rollouts), IDS[0])
    loss = -0.5 * np.exp(0.25)
    assert [t.loss for t in record.tokens] == pytest.approx([loss] * 3)
    assert [t.tis for t in record.tokens] == pytest.approx([np.exp(0.25)] * 3)
    assert [t.share for t in record.tokens] == pytest.approx([1 / 3] * 3)
    assert record.loss_difference == pytest.approx(3 * loss - -1.5)
    assert record.loss_note == ""


def test_where_the_correction_was_not_recorded_its_mean_is_used(
    tmp_path: Path, tokenizer: Path
) -> None:
    found = tables()
    scores = with_value(found["scores"], "old_logprobs", 0, [])
    updates = with_value(found["updates"], "mean_tis", 0, 1.25)
    record = rollout_record(made_up(tmp_path, tokenizer, scores=scores, updates=updates), IDS[0])
    assert [t.loss for t in record.tokens] == pytest.approx([-0.5 * 1.25] * 3)
    assert "correction of each token was not recorded" in record.loss_note


def test_rollouts_without_a_gradient_add_nothing(tmp_path: Path, tokenizer: Path) -> None:
    record = rollout_record(made_up(tmp_path, tokenizer), IDS[3])
    assert [(t.loss, t.share) for t in record.tokens] == [(0.0, 0.0)] * 4
    assert record.loss_difference == 0 and record.loss_note == ""


def test_later_updates_of_a_step_are_estimates(tmp_path: Path, tokenizer: Path) -> None:
    updates = with_column(tables()["updates"], "mini_batch", [1, 1, 0, 0])
    record = rollout_record(made_up(tmp_path, tokenizer, updates=updates), IDS[1])
    assert record.loss_note.startswith("optimizer update 2 of the step")
    assert record.batch_tokens == 5


def test_replayed_rollouts_are_estimates(tmp_path: Path, tokenizer: Path) -> None:
    found = tables()
    versions = ["000002-older"] * 4
    rollouts = with_column(found["rollouts"], "policy_version", versions)
    updates = with_column(found["updates"], "old_source", ["sampled"] * 4)
    run = made_up(tmp_path, tokenizer, rollouts=rollouts, updates=updates)
    record = rollout_record(run, IDS[0])
    assert record.loss_note.startswith("off-policy: sampled by policy 000002-older")
    assert [t.tis for t in record.tokens] == [1.0] * 3


def test_answers_of_evaluations(tmp_path: Path, tokenizer: Path) -> None:
    record = rollout_record(made_up(tmp_path, tokenizer), f"e{IDS[0]}")
    assert record.verdict is not None and record.verdict["correct"] is True
    assert record.route is None and record.update is None
    assert [token.id for token in record.tokens] == [10, 11, 12]
    assert set(record.not_recorded.values()) == {"evaluations keep no log-probabilities"}
    assert "prediction" not in record.rollout


def test_the_record_is_json(tmp_path: Path, tokenizer: Path) -> None:
    run = made_up(tmp_path, tokenizer)
    for rollout_id in (*IDS, f"e{IDS[0]}"):
        record = rollout_record(run, rollout_id)
        again = json.loads(json.dumps(record.to_dict(), allow_nan=False))
        assert again["rollout_id"] == rollout_id
        assert len(again["tokens"]) == len(record.tokens)
    taught = rollout_record(run, IDS[1]).to_dict()["tokens"][0]
    assert taught["student_top"][0] == {"id": 1, "text": "<|im_start|>", "logprob": -1.25}


@pytest.mark.parametrize(
    ("rollout_id", "message"),
    [
        ("nonsense", "is no rollout id"),
        ("\x1b[31m-1-2", "is no rollout id"),
        ("000003-0009-00", "no rollout 000003-0009-00"),
        ("000009-0000-00", "step 9 has no rollouts"),
        ("e000009-0000-00", "step 9 has no evaluations"),
    ],
)
def test_rollouts_that_are_not_there(
    tmp_path: Path, tokenizer: Path, rollout_id: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        rollout_record(made_up(tmp_path, tokenizer), rollout_id)
    assert "\x1b" not in str(caught.value)


FOLIO = 2 * 2**20
"""What the kernel maps at most where one byte of a file is read."""


class Watched(Run):
    """A run that keeps what it reads, so that the pages in memory can be counted."""

    kept: list[Any]

    def read(self, table: str, step: int) -> Any:
        data = super().read(table, step)
        if table == "teacher":
            self.kept.append(data)
        return data


def resident(path: Path) -> int:
    """Return how many bytes of a mapped file this process has touched (and their neighbours)."""
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    starts = [i for i, text in enumerate(lines) if text.endswith(str(path))]
    sizes = [next(text for text in lines[i:] if text.startswith("Rss:")) for i in starts]
    return sum(int(text.split()[1]) * 1024 for text in sizes)


def test_only_the_rows_of_the_rollout_are_read(tmp_path: Path, tokenizer: Path) -> None:
    root = large_run(tmp_path / "run").root
    (root / "tokenizer").mkdir()
    shutil.copy(tokenizer / "tokenizer.json", root / "tokenizer")
    run = Watched.open(root)
    assert isinstance(run, Watched)
    run.kept = []
    path = run.table_path("teacher", STEP)
    record = rollout_record(run, LARGE_IDS[7])
    assert len(record.tokens) == TOKENS
    assert record.tokens[0].student_top is not None
    assert path.stat().st_size > 7 * FOLIO
    assert 0 < resident(path) < 4 * FOLIO, "of three columns of K a folio each at most, and little"
    for table in run.kept:
        for name in ("teacher_logprobs", "student_logprobs"):
            table[name].combine_chunks().flatten().to_numpy().sum()
    assert resident(path) > 6 * FOLIO, "the measure sees what is read"
