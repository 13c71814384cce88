"""The hierarchical bootstrap: by hand, against plain loops, and how often it covers the truth."""

import numpy as np
import pytest

from pipeline.run.metrics import Interval
from pipeline.study.resampling import (
    Draws,
    Floats,
    draws_of,
    mean_over_drawn_seeds,
    percentile_interval,
    resampled_curves,
)

Picks = list[list[int]]


def times(picks: Picks, size: int) -> Floats:
    return np.array([[row.count(i) for i in range(size)] for row in picks], dtype=np.float64)


def test_by_hand() -> None:
    """Two seeds, one evaluation, three questions; the first replicate draws question 0 thrice."""
    values = np.array([[[1.0, 0.5, 0.0]], [[0.0, 1.0, 1.0]]])
    draws = Draws(times([[0, 0], [0, 1]], 2), times([[0, 0, 0], [1, 2, 2]], 3))
    curves = resampled_curves(values, draws)
    # seed 0: 1, then (0.5 + 0 + 0) / 3; seed 1: 0, then 1
    assert curves[..., 0] == pytest.approx(np.array([[1, 0], [1 / 6, 1]]))
    # the first replicate drew seed 0 twice; the second each once
    assert mean_over_drawn_seeds(curves[..., 0], draws) == pytest.approx([1, 7 / 12])


def test_the_interval_is_the_middle_95_percent() -> None:
    replicates = np.arange(1001.0)
    assert percentile_interval(3.0, replicates) == pytest.approx((3.0, 25.0, 975.0))


def test_a_plain_loop_finds_the_same() -> None:
    """Draw by draw, without weights: resample, take the largest value of each seed, average."""
    rng = np.random.default_rng(5)
    seeds, evaluations, questions, replicates = 3, 4, 7, 50
    values = rng.random((seeds, evaluations, questions))
    seed_picks = rng.integers(0, seeds, (replicates, seeds)).tolist()
    question_picks = rng.integers(0, questions, (replicates, questions)).tolist()

    expected = []
    for drawn_seeds, drawn_questions in zip(seed_picks, question_picks, strict=True):
        measured = []
        for s in drawn_seeds:
            curve = [
                sum(values[s][e][q] for q in drawn_questions) / questions
                for e in range(evaluations)
            ]
            measured.append(max(curve))
        expected.append(sum(measured) / seeds)

    draws = Draws(times(seed_picks, seeds), times(question_picks, questions))
    found = mean_over_drawn_seeds(resampled_curves(values, draws).max(axis=-1), draws)
    assert np.abs(found - expected).max() < 1e-12


def test_draws_are_of_their_size_and_the_same_whenever_asked() -> None:
    draws = draws_of(3, 40, 200)
    assert draws.seeds.shape == (200, 3) and draws.questions.shape == (200, 40)
    assert (draws.seeds.sum(axis=1) == 3).all() and (draws.questions.sum(axis=1) == 40).all()
    draws_of.cache_clear()
    again = draws_of(3, 40, 200)
    assert again is not draws
    assert (again.seeds == draws.seeds).all() and (again.questions == draws.questions).all()


def test_draws_are_even() -> None:
    """A question is drawn once per replicate on average; 10,000 of them: within 0.05."""
    draws = draws_of(5, 20)
    assert np.abs(draws.questions.mean(axis=0) - 1).max() < 0.05
    assert np.abs(draws.seeds.mean(axis=0) - 1).max() < 0.05
    # Seeds and questions are drawn independently: |r| < 4 / sqrt(10,000).
    assert abs(np.corrcoef(draws.seeds[:, 0], draws.questions[:, 0])[0, 1]) < 0.04


def interval_of_means(values: Floats) -> Interval:
    """Return the interval of a mean over seeds and questions, of values [S, Q]."""
    draws = draws_of(*values.shape)
    curves = resampled_curves(values[:, None, :], draws)
    return percentile_interval(float(values.mean()), mean_over_drawn_seeds(curves[..., 0], draws))


def test_the_width_of_a_known_case() -> None:
    """Of one seed with Q normal values the interval is that of their mean: ± 1.96 s / sqrt(Q)."""
    values = np.random.default_rng(0).normal(size=(1, 400))
    found = interval_of_means(values)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.1 * half)


@pytest.mark.parametrize(
    ("seed_spread", "least", "most"),
    # Where questions make the noise it covers the truth in 95% of all cases. Where seeds do,
    # it covers less, as five of them tell little about their spread.
    [(0.0, 0.89, 1.0), (0.4, 0.72, 0.95)],
)
def test_how_often_it_covers_the_truth(seed_spread: float, least: float, most: float) -> None:
    rng = np.random.default_rng(1)
    covered, trials = 0, 150
    for _ in range(trials):
        questions = rng.normal(0.0, 1.0, 50)
        seeds = rng.normal(0.0, seed_spread, (5, 1))
        found = interval_of_means(questions + seeds)
        covered += found.low <= 0.0 <= found.high
    assert least <= covered / trials <= most
