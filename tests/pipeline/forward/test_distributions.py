"""Log-probabilities, entropy, tails and divergences (docs/method.md, sections 4 and 5)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.forward.distributions import (
    buckets_NC,
    cool_,
    entropy_N,
    jsd_N,
    kl_N,
    log_tail_N,
)

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)
INF = math.inf
SIZES = st.integers(2, 12)
SEEDS = st.integers(0, 2**31)
SPREADS = st.sampled_from([0.1, 1.0, 5.0, 30.0])


def logs(*rows: tuple[float, ...]) -> Tensor:
    """Return the logarithms of probabilities written by hand, in float64."""
    return torch.tensor(rows, dtype=torch.float64).log()


def random_logprobs(seed: int, rows: int, size: int, spread: float) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(rows, size, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1)


def naive_kl(p: list[float], q: list[float]) -> float:
    return math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def naive_jsd(s: list[float], q: list[float], alpha: float) -> float:
    m = [(1 - alpha) * a + alpha * b for a, b in zip(s, q, strict=True)]
    return (1 - alpha) * naive_kl(s, m) + alpha * naive_kl(q, m)


def log_softmax_NV(logits_NV: Tensor, temperature_N: Tensor) -> Tensor:
    """Return log-probabilities the way scoring does: cooled logits less their log-sum-exp."""
    cooled = logits_NV.clone()
    cool_(cooled, temperature_N)
    return cooled - cooled.exp().sum(-1, keepdim=True).log()


def log_softmax_at(logits: list[float], temperature: float, dtype: torch.dtype) -> Tensor:
    row = torch.tensor([logits], dtype=dtype)
    return log_softmax_NV(row, torch.tensor([temperature], dtype=torch.float64))[0]


def entropy_of(logprobs_NV: Tensor) -> Tensor:
    return entropy_N(logprobs_NV, logprobs_NV.exp())


# --- log-softmax -----------------------------------------------------------------------------


def test_temperature_divides_logits_before_the_softmax() -> None:
    # Logits 0 and ln 9 at temperature 2 are 0 and ln 3: probabilities 1/4 and 3/4.
    found = log_softmax_at([0.0, math.log(9)], 2.0, torch.float64)
    assert found.tolist() == pytest.approx([-LN4, LN3 - LN4], abs=1e-15)
    # Dividing log-probabilities instead would leave a sum of sqrt(0.1) + sqrt(0.9), not 1.
    assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-15)


def test_each_position_has_its_own_temperature() -> None:
    logits = torch.tensor([[0.0, math.log(9)]] * 2, dtype=torch.float64)
    found = log_softmax_NV(logits, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert found.exp().tolist() == [pytest.approx([0.1, 0.9]), pytest.approx([0.25, 0.75])]


def test_cooled_logits_have_their_largest_at_0_and_say_what_it_was() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [-1e4, -2e4, 1e4]])
    largest = cool_(logits, torch.tensor([2.0, 1.0]))
    assert logits.tolist() == [[-1.0, 0.0, -0.5], [-2e4, -3e4, 0.0]]
    assert largest.tolist() == [[1.5], [1e4]]


def test_float64_stays_float64() -> None:
    assert log_softmax_at([0.0, 1.0], 1.0, torch.float64).dtype == torch.float64


# --- entropy ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probabilities", "entropy"),
    [
        ((0.5, 0.25, 0.25), 1.5 * LN2),  # 1/2 ln 2 + 2 * 1/4 ln 4
        ((0.25, 0.25, 0.25, 0.25), LN4),
        ((1.0, 0.0, 0.0), 0.0),  # 0 log 0 = 0, and no NaN
        ((2 / 3, 1 / 3), LN3 - 2 / 3 * LN2),
    ],
)
def test_entropy_by_hand(probabilities: tuple[float, ...], entropy: float) -> None:
    assert float(entropy_of(logs(probabilities))) == pytest.approx(entropy, abs=1e-15)


def test_entropy_does_not_ask_for_normalised_logits() -> None:
    full = logs((0.4, 0.3, 0.2, 0.1))
    assert float(entropy_of(full - 2.0)) == pytest.approx(float(entropy_of(full)), abs=1e-14)


@pytest.mark.parametrize("rest", [1e-3, 1e-6, 1e-9, 1e-30])
def test_entropy_of_a_nearly_sure_distribution_keeps_its_digits(rest: float) -> None:
    """In float32, against float64; a difference of two sums near 10 would lose six digits."""
    exact = logs((1 - rest, rest / 2, rest / 2))
    expected = float(entropy_of(exact.clone()))
    found = float(entropy_of((exact - exact.max()).float()))
    assert found == pytest.approx(expected, abs=2e-7)


@given(SEEDS, SIZES, SPREADS)
def test_entropy_is_between_0_and_log_v(seed: int, size: int, spread: float) -> None:
    entropy = float(entropy_of(random_logprobs(seed, 1, size, spread)))
    assert -1e-12 <= entropy <= math.log(size) + 1e-12


# --- the tail --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "tail"), [((0.5, 0.25), 0.25), ((0.1,), 0.9), ((1e-9, 1e-9), 1 - 2e-9)]
)
def test_tail_by_hand(kept: tuple[float, ...], tail: float) -> None:
    assert float(log_tail_N(logs(kept))) == pytest.approx(math.log(tail), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_kept_mass_of_one_leaves_the_smallest_tail(dtype: torch.dtype) -> None:
    # The cap of section 5: 1 - exp(-1e-7) = 1e-7 of mass is left, never 0 and never less.
    kept = torch.tensor([[0.0, -INF], [1e-6, -40.0], [-1e-8, -50.0]], dtype=dtype)
    found = log_tail_N(kept)
    assert found.tolist() == pytest.approx([math.log(1e-7)] * 3, abs=1e-5)


def test_tail_gradient_is_finite_where_the_kept_mass_is_nearly_one() -> None:
    kept = torch.tensor([[-1e-9, -25.0]], dtype=torch.float32, requires_grad=True)
    log_tail_N(kept).sum().backward()
    assert kept.grad is not None
    assert kept.grad.isfinite().all()


@given(SEEDS, st.integers(3, 12), SPREADS, st.data())
def test_kept_and_tail_add_up_to_one(
    seed: int, size: int, spread: float, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, size - 1))
    top = random_logprobs(seed, 4, size, spread).topk(kept).values
    buckets = buckets_NC(top, log_tail_N(top))
    assert buckets.shape == (4, kept + 1)
    torch.testing.assert_close(
        buckets.exp().sum(-1), torch.ones(4, dtype=torch.float64), rtol=0, atol=1.1e-7
    )
    assert (buckets <= 0).all()


def test_float32_tails_are_near_float64() -> None:
    exact = random_logprobs(0, 64, 200, 3.0)
    wide, narrow = exact.topk(100).values, exact.float().topk(100).values
    torch.testing.assert_close(
        log_tail_N(narrow).exp().double(), log_tail_N(wide).exp(), rtol=0, atol=5e-7
    )


def test_without_a_tail_the_buckets_are_the_vocabulary() -> None:
    full = logs((0.5, 0.3, 0.2))
    assert buckets_NC(full, None) is full


# --- divergences -----------------------------------------------------------------------------


def test_kl_by_hand() -> None:
    # KL((1/2, 1/2) || (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln(2/3) = ln 2 - 1/2 ln 3
    found = kl_N(logs((0.5, 0.5)), logs((0.25, 0.75)))
    assert float(found) == pytest.approx(LN2 - LN3 / 2, abs=1e-15)


def test_kl_of_each_row() -> None:
    p, q = logs((0.5, 0.5), (1.0, 0.0)), logs((0.5, 0.5), (0.25, 0.75))
    assert kl_N(p, q).tolist() == pytest.approx([0.0, LN4], abs=1e-15)


def test_buckets_without_mass_add_nothing() -> None:
    assert float(kl_N(logs((1.0, 0.0)), logs((1.0, 0.0)))) == 0.0
    assert float(kl_N(logs((0.0, 1.0)), logs((0.5, 0.5)))) == pytest.approx(LN2)


def test_kl_is_infinite_where_q_excludes_what_p_has() -> None:
    assert float(kl_N(logs((0.5, 0.5)), logs((1.0, 0.0)))) == INF


def test_jsd_by_hand() -> None:
    # s = (1, 0), q = (1/2, 1/2): m = (3/4, 1/4);
    # 1/2 ln(4/3) + 1/2 (1/2 ln(2/3) + 1/2 ln 2) = 1/2 (2 ln 2 - ln 3) + 1/4 (2 ln 2 - ln 3)
    found = jsd_N(logs((1.0, 0.0)), logs((0.5, 0.5)), 0.5)
    assert float(found) == pytest.approx(0.75 * (2 * LN2 - LN3), abs=1e-15)


def test_jsd_of_disjoint_distributions_is_ln_2() -> None:
    assert float(jsd_N(logs((1.0, 0.0)), logs((0.0, 1.0)), 0.5)) == pytest.approx(LN2, abs=1e-15)


def test_alpha_is_the_teachers_share_of_the_mixture() -> None:
    # s = (1, 0), q = (0, 1), alpha = 1/4: m = (3/4, 1/4); 3/4 ln(4/3) + 1/4 ln 4
    found = jsd_N(logs((1.0, 0.0)), logs((0.0, 1.0)), 0.25)
    assert float(found) == pytest.approx(0.75 * (LN4 - LN3) + 0.25 * LN4, abs=1e-15)


@given(SEEDS, SIZES, SPREADS, st.sampled_from([0.1, 0.5, 0.9]))
def test_parity_with_plain_formulas(seed: int, size: int, spread: float, alpha: float) -> None:
    both = random_logprobs(seed, 2, size, spread)
    s, q = both.exp().tolist()
    assert float(kl_N(both[:1], both[1:])) == pytest.approx(naive_kl(s, q), rel=1e-9, abs=1e-9)
    found = float(jsd_N(both[:1], both[1:], alpha))
    assert found == pytest.approx(naive_jsd(s, q, alpha), rel=1e-9, abs=1e-9)


@given(SEEDS, SIZES, SPREADS)
def test_divergences_are_not_negative(seed: int, size: int, spread: float) -> None:
    both = random_logprobs(seed, 2, size, spread)
    s, q = both[:1], both[1:]
    assert float(kl_N(s, q)) >= -1e-12
    assert -1e-12 <= float(jsd_N(s, q, 0.5)) <= LN2 + 1e-12
    assert float(kl_N(s, s)) == 0.0
    assert float(jsd_N(s, s, 0.5)) == pytest.approx(0.0, abs=1e-12)


@given(SEEDS, SIZES, SPREADS, st.floats(0.05, 0.95))
def test_jsd_is_symmetric_when_the_shares_swap(
    seed: int, size: int, spread: float, alpha: float
) -> None:
    both = random_logprobs(seed, 2, size, spread)
    s, q = both[:1], both[1:]
    there, back = jsd_N(s, q, alpha), jsd_N(q, s, 1 - alpha)
    assert float(there) == pytest.approx(float(back), rel=1e-9, abs=1e-12)
    assert float(jsd_N(s, q, 0.5)) == pytest.approx(float(jsd_N(q, s, 0.5)), rel=1e-9, abs=1e-12)


@given(SEEDS, st.integers(4, 12), SPREADS, st.data())
def test_merging_into_a_tail_never_adds_divergence(
    seed: int, size: int, spread: float, data: st.DataObject
) -> None:
    """With the tail's bucket the divergence stays within [0, the full one] (data processing)."""
    kept = data.draw(st.integers(1, size - 1))
    both = random_logprobs(seed, 2, size, spread)
    ids = both[:1].topk(kept).indices
    s, q = both[:1].gather(-1, ids), both[1:].gather(-1, ids)
    s, q = buckets_NC(s, log_tail_N(s)), buckets_NC(q, log_tail_N(q))
    assert -2e-7 <= float(kl_N(s, q)) <= float(kl_N(both[:1], both[1:])) + 1e-5
    assert -2e-7 <= float(jsd_N(s, q, 0.5)) <= float(jsd_N(both[:1], both[1:], 0.5)) + 1e-6


def test_without_the_tails_bucket_kl_would_be_negative() -> None:
    s, q = logs((0.1, 0.1, 0.8)), logs((0.3, 0.3, 0.4))
    assert float(kl_N(s[:, :2], q[:, :2])) < 0
    kept_s, kept_q = s[:, :2], q[:, :2]
    whole = kl_N(buckets_NC(kept_s, log_tail_N(kept_s)), buckets_NC(kept_q, log_tail_N(kept_q)))
    # 0.2 ln(0.2 / 0.6) + 0.8 ln 2, the two kept buckets having equal ratios
    assert float(whole) == pytest.approx(0.2 * -LN3 + 0.8 * LN2, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.5, 0.1])
def test_excluded_tokens_give_no_nan(dtype: torch.dtype, alpha: float) -> None:
    """-inf in either distribution or in both: finite JSD, and finite gradients of the student."""
    logits = torch.tensor(
        [[1.0, 0.5, -INF, -INF], [0.0, -INF, 2.0, -INF], [3.0, -INF, -INF, -INF]],
        dtype=dtype,
        requires_grad=True,
    )
    teacher = torch.tensor(
        [[0.0, -INF, 1.0, -INF], [0.0, 1.0, -INF, -INF], [-INF, 0.0, -INF, -INF]], dtype=dtype
    )
    found = jsd_N(logits.log_softmax(-1), teacher.log_softmax(-1), alpha)
    assert found.isfinite().all()
    assert (found >= 0).all()
    found.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_excluded_tokens_of_the_student_give_no_nan_in_kl() -> None:
    logits = torch.tensor([[1.0, -INF, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[0.5, -INF, 0.5]], dtype=torch.float64).log_softmax(-1)
    found = kl_N(logits.log_softmax(-1), teacher)
    found.sum().backward()
    assert found.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@given(SEEDS, st.integers(2, 6))
def test_gradient_of_jsd_is_the_naive_one(seed: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, size, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(1, size, generator=generator, dtype=torch.float64).log_softmax(-1)
    (ours,) = torch.autograd.grad(jsd_N(logits.log_softmax(-1), teacher, 0.5).sum(), logits)
    s, q = logits.softmax(-1), teacher.exp()
    m = (s + q) / 2
    plain = 0.5 * (s * (s / m).log()).sum() + 0.5 * (q * (q / m).log()).sum()
    (naive,) = torch.autograd.grad(plain, logits)
    torch.testing.assert_close(ours, naive, rtol=1e-9, atol=1e-12)
