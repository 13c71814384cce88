"""Methods side by side: which rollouts are shown, shares, names, cosines."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.compare.side_by_side import (
    CORRECT,
    FAILED,
    NOT_JUDGED,
    cosine,
    labels,
    parts_of,
    side_by_side_record,
)
from tests.builders.side_by_side import method, sample, side_by_side


def test_a_failed_and_a_correct_rollout_of_one_question_are_shown() -> None:
    assert side_by_side().chosen() == [1, 2]  # not 0, whose question nobody solved


def test_the_pair_from_which_most_methods_learn_is_shown() -> None:
    found = side_by_side()
    samples = [*found.samples, sample(3, 1, FAILED, ["f", "g"])]
    learning = [replace(own, effects=[*own.effects, own.effects[1]]) for own in found.methods]
    idle = replace(found.methods[0].effects[1], size_T=np.zeros(2))
    learning[0].effects[1] = idle
    assert replace(found, samples=samples, methods=learning).chosen() == [4, 2]


def test_without_a_common_question_one_of_each_kind_is_shown() -> None:
    found = side_by_side()
    apart = [replace(s, group=i) for i, s in enumerate(found.samples)]
    assert replace(found, samples=apart).chosen() == [1, 2]
    wrong = [replace(s, outcome=FAILED) for s in found.samples]
    assert replace(found, samples=wrong).chosen() == [1]
    unknown = [replace(s, outcome=NOT_JUDGED) for s in found.samples]
    assert replace(found, samples=unknown).chosen() == []


def test_shares_by_hand() -> None:
    found = side_by_side()
    grpo, srpo = (parts_of(found, own) for own in found.methods)
    assert [part.outcome for part in grpo] == [FAILED, CORRECT, NOT_JUDGED]
    assert [part.rollouts for part in grpo] == [2, 1, 1]
    # |loss| 0.2 and 0.4; sizes 3 (all lowered) and 5 (all raised)
    assert [part.loss_share for part in grpo] == pytest.approx([1 / 3, 2 / 3, 0])
    assert [part.size_share for part in grpo] == pytest.approx([3 / 8, 5 / 8, 0])
    assert [part.lowering for part in grpo] == pytest.approx([3 / 8, 0, 0])
    assert [part.raising for part in grpo] == pytest.approx([0, 5 / 8, 0])
    assert [part.size_share for part in srpo] == pytest.approx([1 / 2, 1 / 2, 0])
    assert found.methods[0].loss == pytest.approx(-0.2)
    assert found.methods[1].loss == pytest.approx(0.0)


def test_a_method_without_any_gradient_has_no_shares() -> None:
    found = side_by_side()
    idle = method("idle", 0.0, [found.methods[0].effects[0]] * 4)
    assert idle.shares(lambda e: e.size_T) == [0.0] * 4
    assert all(part.size_share == part.raising == 0 for part in parts_of(found, idle))


def test_cosines() -> None:
    assert cosine(6.0, 2.0, 3.0) == 1.0 and cosine(0.0, 2.0, 3.0) == 0.0
    assert cosine(6.0000001, 2.0, 3.0) == 1.0  # rounding
    assert cosine(0.0, 0.0, 3.0) is None


def test_equal_methods_are_told_apart_by_their_runs() -> None:
    assert labels(["grpo", "srpo", "srpo"], ["a", "b", "c"]) == ["grpo", "srpo (b)", "srpo (c)"]


def test_the_record_has_every_token() -> None:
    record = json.loads(json.dumps(side_by_side_record(side_by_side()), allow_nan=False))
    rollout = record["methods"][0]["rollouts"][1]
    assert rollout["token_push"] == [-1.0, -4.0] and rollout["push"] == -5.0
    assert rollout["loss"] == pytest.approx(0.2) and rollout["size_share"] == pytest.approx(3 / 8)
    assert record["cosines"] == [[1.0, 0.25], [0.25, None]]
    assert record["samples"][1]["texts"] == [" a", "b"]
