"""Sampling: rows depend on their own seed only, and report the distribution they came from."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.config.sections import TeacherKind
from pipeline.forward.packing import TokenSequence
from pipeline.forward.scoring import score_student
from pipeline.policy.policy import Policy
from pipeline.sampling.engine import Sample, SamplingSettings
from pipeline.sampling.transformers_engine import TransformersEngine, draw_B, keep_likeliest
from pipeline.stage.answer_columns import sample_columns
from pipeline.stage.contract import Handles, silent
from pipeline.task import Message, Question
from tests.conftest import OpenPolicy

INF = math.inf
JUST_BELOW_1 = float(np.nextafter(1.0, 0.0))
PROMPTS = [[5, 6, 7, 8], [9], [10, 11, 12, 13, 14, 15, 16], [17, 18]]
SEEDS = [[11, 12, 13], [21], [31, 32], [41, 42, 43, 44]]


def settings(
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    length: int = 12,
    batch_size: int = 256,
) -> SamplingSettings:
    return SamplingSettings(temperature, top_p, top_k, length, batch_size)


def stopping(policy: Policy) -> Policy:
    """Let every sixth token end a response, so that lengths differ."""
    policy.eos_ids = frozenset(range(2, 100, 6))
    return policy


def sample(
    policy: Policy,
    how: SamplingSettings,
    prompts: Sequence[list[int]] = PROMPTS,
    seeds: Sequence[list[int]] = SEEDS,
) -> list[list[Sample]]:
    return TransformersEngine(policy).sample(prompts, seeds, how, silent)


def by_seed(groups: list[list[Sample]], seeds: Sequence[list[int]]) -> dict[int, Sample]:
    return {
        seed: found
        for group, own in zip(groups, seeds, strict=True)
        for found, seed in zip(group, own, strict=True)
    }


def expect_same(found: Sample, expected: Sample) -> None:
    assert found.response_ids == expected.response_ids
    assert found.finish_reason == expected.finish_reason
    assert found.logprobs == pytest.approx(expected.logprobs, abs=2e-6)


def scored(policy: Policy, prompt: list[int], response: list[int], temperature: float) -> Tensor:
    """Return the log-probabilities of all ids at each position, not truncated."""
    sequence = TokenSequence(prompt, response)
    temperatures = torch.full((len(response),), temperature)
    forward = policy.forward(8)
    found = score_student(policy.model, [sequence], temperatures, policy.vocabulary, forward)
    return torch.zeros(len(response), policy.vocabulary).scatter(
        -1, found.ids_NK, found.logprobs_NK
    )


# --- whole responses -------------------------------------------------------------------------


def test_groups_of_unequal_size_come_back_as_asked(tiny_policy: OpenPolicy) -> None:
    found = sample(stopping(tiny_policy()), settings())
    assert [len(group) for group in found] == [3, 1, 2, 4]
    lengths = {len(s.response_ids) for group in found for s in group}
    assert len(lengths) > 2


@pytest.mark.parametrize("batch_size", [1, 3, 4, 5])
def test_the_batch_size_does_not_matter(tiny_policy: OpenPolicy, batch_size: int) -> None:
    policy = stopping(tiny_policy())
    together = by_seed(sample(policy, settings()), SEEDS)
    apart = by_seed(sample(policy, settings(batch_size=batch_size)), SEEDS)
    assert together.keys() == apart.keys()
    for seed, expected in together.items():
        expect_same(apart[seed], expected)


def test_two_questions_of_one_prompt_are_two_groups(tiny_policy: OpenPolicy) -> None:
    policy = stopping(tiny_policy())
    together = by_seed(sample(policy, settings()), SEEDS)
    twice = [[5, 6, 7, 8], [9], [5, 6, 7, 8], [17, 18]]
    found = sample(policy, settings(), twice, [[11, 13], [21], [12], [41, 42, 43, 44]])
    assert [len(group) for group in found] == [2, 1, 1, 4]
    for group, seeds in zip(found, ([11, 13], [21], [12], [41, 42, 43, 44]), strict=True):
        for sample_, seed in zip(group, seeds, strict=True):
            expect_same(sample_, together[seed])


def test_neighbours_and_order_do_not_matter(tiny_policy: OpenPolicy) -> None:
    policy = stopping(tiny_policy())
    together = by_seed(sample(policy, settings()), SEEDS)
    order = [2, 0, 3, 1]
    turned = sample(policy, settings(), [PROMPTS[i] for i in order], [SEEDS[i] for i in order])
    for seed, found in by_seed(turned, [SEEDS[i] for i in order]).items():
        expect_same(found, together[seed])
    for prompt, seeds in zip(PROMPTS, SEEDS, strict=True):
        for seed in seeds:
            expect_same(sample(policy, settings(), [prompt], [[seed]])[0][0], together[seed])


def test_the_same_seed_twice_gives_the_same_and_another_does_not(tiny_policy: OpenPolicy) -> None:
    group = sample(tiny_policy(), settings(), [PROMPTS[0]], [[7, 7, 8]])[0]
    assert group[0].response_ids == group[1].response_ids
    assert group[0].response_ids != group[2].response_ids


def test_global_random_state_is_neither_read_nor_moved(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy()
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = sample(policy, settings())
    assert torch.random.get_rng_state().equal(before)
    torch.manual_seed(1)
    assert sample(policy, settings()) == first


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_log_probabilities_are_those_of_scoring(
    tiny_policy: OpenPolicy, temperature: float
) -> None:
    policy = stopping(tiny_policy())
    groups = sample(policy, settings(temperature))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for found in group:
            logprobs = scored(policy, prompt, found.response_ids, temperature)
            own = logprobs.gather(-1, torch.tensor(found.response_ids)[:, None])[:, 0]
            assert found.logprobs == pytest.approx(own.tolist(), abs=1e-5)


def naive_truncated(probabilities: list[float], top_k: int, top_p: float) -> list[float]:
    """Return the renormalised distribution after top-k and then top-p, by sorting."""
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    if top_k:
        order = order[:top_k]
    mass = sum(probabilities[i] for i in order)
    kept: list[int] = []
    for i in order:
        if sum(probabilities[j] for j in kept) / mass >= top_p:
            break
        kept.append(i)
    total = sum(probabilities[i] for i in kept)
    return [p / total if i in kept else 0.0 for i, p in enumerate(probabilities)]


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.8), (5, 1.0), (7, 0.6), (1, 1.0), (0, 1e-6)])
def test_truncated_log_probabilities_are_renormalised(
    tiny_policy: OpenPolicy, top_k: int, top_p: float
) -> None:
    policy = tiny_policy()
    groups = sample(policy, settings(0.7, top_p, top_k))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        for found in group:
            rows = scored(policy, prompt, found.response_ids, 0.7).double().exp().tolist()
            for row, token, logprob in zip(rows, found.response_ids, found.logprobs, strict=True):
                expected = naive_truncated(row, top_k, top_p)
                assert expected[token] > 0
                assert logprob == pytest.approx(math.log(expected[token]), abs=2e-5)


def test_a_nucleus_of_nothing_is_greedy(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy()
    found = sample(policy, settings(top_p=1e-9), [PROMPTS[0]], [[1, 2]])[0]
    greedy = scored(policy, PROMPTS[0], found[0].response_ids, 1.0).argmax(-1).tolist()
    assert found[0].response_ids == found[1].response_ids == greedy
    assert found[0].logprobs == [0.0] * len(greedy)


def test_eos_is_included_and_nothing_follows_it(tiny_policy: OpenPolicy) -> None:
    policy = stopping(tiny_policy())
    for group in sample(policy, settings(length=30)):
        for found in group:
            ends = [token in policy.eos_ids for token in found.response_ids]
            assert found.finish_reason == ("stop" if ends[-1] else "length")
            assert not any(ends[:-1])
            assert len(found.logprobs) == len(found.response_ids)


def test_responses_are_cut_at_the_limit(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy()
    policy.eos_ids = frozenset()
    long = by_seed(sample(policy, settings(length=9)), SEEDS)
    for seed, found in by_seed(sample(policy, settings(length=4)), SEEDS).items():
        assert found.finish_reason == "length"
        assert len(found.response_ids) == 4
        assert found.response_ids == long[seed].response_ids[:4]  # the limit shifts no draw


def test_eos_as_the_last_allowed_token_is_a_stop(tiny_policy: OpenPolicy) -> None:
    policy = tiny_policy()
    policy.eos_ids = frozenset(range(100))
    found = sample(policy, settings(length=1))
    assert {s.finish_reason for group in found for s in group} == {"stop"}
    assert {len(s.response_ids) for group in found for s in group} == {1}


def test_progress_counts_responses(tiny_policy: OpenPolicy) -> None:
    calls: list[tuple[int, int]] = []
    engine = TransformersEngine(tiny_policy())
    engine.sample(PROMPTS, SEEDS, settings(batch_size=4), lambda *call: calls.append(call))
    assert calls == [(4, 10), (6, 10), (10, 10)]


def moved(policy: Policy) -> Policy:
    """Move the model away from its teacher, as training does."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return policy


@torch.no_grad()
@pytest.mark.parametrize(
    ("teacher", "shares"),
    [
        ("ema", {"teacher": 1.0}),
        ("live", {"policy": 1.0}),
        ("trust_region", {"teacher": 0.7, "policy": 0.3}),
    ],
)
@pytest.mark.parametrize("unshared", ["", "a probe found so"])
def test_a_teacher_samples_from_its_own_logits(
    tiny_policy: OpenPolicy, teacher: TeacherKind, shares: dict[str, float], unshared: str
) -> None:
    policy = stopping(moved(tiny_policy(teacher=teacher, mix=0.3)))
    policy.unshared = unshared
    engine = TransformersEngine(policy, teacher=True)
    models = {"teacher": policy.teacher_model, "policy": policy.model}
    for prompt, group in zip(
        PROMPTS, engine.sample(PROMPTS, SEEDS, settings(), silent), strict=True
    ):
        for found in group:
            ids = torch.tensor([[*prompt, *found.response_ids]])
            logits_TV = sum(
                share * models[name](input_ids=ids).logits[0, len(prompt) - 1 : -1].double()
                for name, share in shares.items()
            )
            expected = logits_TV.log_softmax(-1)[range(len(found.response_ids)), found.response_ids]
            torch.testing.assert_close(
                torch.tensor(found.logprobs).double(), expected, rtol=0, atol=1e-5
            )


def test_a_teacher_that_is_the_policy_says_the_same(tiny_policy: OpenPolicy) -> None:
    policy = stopping(tiny_policy())
    taught = TransformersEngine(policy, teacher=True).sample(PROMPTS, SEEDS, settings(), silent)
    assert taught == sample(policy, settings())


def drawn_B(logprobs_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Return what is drawn, once its log-probability was found to be the right one."""
    cooled = logprobs_BV - logprobs_BV.amax(-1, keepdim=True)
    ids_B, logprob_B = draw_B(cooled.clone(), uniform_B)
    expected = logprobs_BV.log_softmax(-1).gather(-1, ids_B[:, None])[:, 0]
    torch.testing.assert_close(logprob_B, expected, rtol=0, atol=2e-6)
    return ids_B


# --- one draw --------------------------------------------------------------------------------


def test_draws_invert_the_cumulative_distribution() -> None:
    logprobs = torch.tensor([[0.25, 0.5, 0.0, 0.25]]).log().expand(6, -1)
    uniform = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 0.9999], dtype=torch.float64)
    assert drawn_B(logprobs, uniform).tolist() == [0, 0, 1, 1, 3, 3]


@pytest.mark.parametrize(
    ("probabilities", "first", "last"),
    [
        ((0.0, 0.0, 1.0, 0.0), 2, 2),
        ((0.0, 0.5, 0.5, 0.0), 1, 2),
        ((0.3, 0.3, 0.4, 0.0), 0, 2),
        ((1.0,), 0, 0),
    ],
)
def test_the_ends_of_the_unit_interval(
    probabilities: tuple[float, ...], first: int, last: int
) -> None:
    logprobs = torch.tensor([probabilities] * 2).log()
    uniform = torch.tensor([0.0, JUST_BELOW_1], dtype=torch.float64)
    assert drawn_B(logprobs, uniform).tolist() == [first, last]


@given(
    st.integers(0, 2**31),
    st.integers(2, 700),
    st.sampled_from([0.0, JUST_BELOW_1, 0.5, 1e-300]),
    st.floats(0, JUST_BELOW_1),
)
def test_excluded_tokens_are_never_drawn(seed: int, size: int, edge: float, u: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 10 * torch.randn(2, size, generator=generator)
    logits[:, 1:] = logits[:, 1:].masked_fill(
        torch.rand(2, size - 1, generator=generator) < 0.7, -INF
    )
    logprobs = logits.log_softmax(-1)
    drawn = drawn_B(logprobs, torch.tensor([edge, u], dtype=torch.float64))
    assert (drawn < size).all()
    assert logprobs.gather(-1, drawn[:, None]).isfinite().all()


def test_a_large_vocabulary_adds_up() -> None:
    """150,000 equal tokens: in float32 the cumulative mass would drift by many tokens."""
    size = 150_000
    logprobs = torch.full((3, size), -math.log(size))
    uniform = torch.tensor([0.0, 0.5, JUST_BELOW_1], dtype=torch.float64)
    first, middle, last = drawn_B(logprobs, uniform).tolist()
    assert (first, last) == (0, size - 1)
    assert abs(middle - size // 2) <= 1


def test_frequencies_are_the_probabilities(tiny_policy: OpenPolicy) -> None:
    """Chi-square of 4,000 first tokens against the model's own distribution, a fixed seed each."""
    policy, count = tiny_policy(), 4000
    group = sample(
        policy, settings(0.9, length=1, batch_size=count), [PROMPTS[0]], [list(range(count))]
    )[0]
    observed = np.bincount([s.response_ids[0] for s in group], minlength=100)
    expected = count * scored(policy, PROMPTS[0], [5], 0.9)[0].double().exp().numpy()
    common = expected >= 5
    observed = np.append(observed[common], observed[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(observed) - 1
    # Mean `freedom`, variance 2 `freedom`: within four deviations.
    assert freedom > 10
    assert abs(statistic - freedom) < 4 * math.sqrt(2 * freedom)


# --- truncation ------------------------------------------------------------------------------


def kept(logits: list[float], top_k: int, top_p: float) -> list[int]:
    found = keep_likeliest(torch.tensor([logits]), top_k, top_p)[0]
    return found.isfinite().nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("top_k", "top_p", "expected"),
    [
        (0, 1.0, [0, 1, 2, 3]),
        (2, 1.0, [1, 3]),
        (9, 1.0, [0, 1, 2, 3]),
        (0, 0.5, [1]),  # 0.5 alone reaches 0.5
        (0, 0.51, [1, 3]),
        (0, 0.8, [0, 1, 3]),  # 0.5 + 0.25 < 0.8
        (0, 1e-9, [1]),  # at least one
        (2, 0.7, [1, 3]),  # of the two kept, 0.5 / 0.75 < 0.7
        (2, 0.6, [1]),
    ],
)
def test_truncation_by_hand(top_k: int, top_p: float, expected: list[int]) -> None:
    logits = [math.log(p) for p in (0.15, 0.5, 0.1, 0.25)]
    assert kept(logits, top_k, top_p) == expected


@given(
    st.lists(st.floats(-20, 20), min_size=1, max_size=30),
    st.integers(0, 40),
    st.floats(1e-9, 1),
)
def test_the_likeliest_always_stays(logits: list[float], top_k: int, top_p: float) -> None:
    found = kept(logits, top_k, top_p)
    assert found
    narrow = [float(np.float32(logit)) for logit in logits]
    assert max(narrow[i] for i in found) == max(narrow)


def nucleus_by_sorting(logits_BV: torch.Tensor, top_p: float) -> torch.Tensor:
    """Return which tokens are kept, row by row, with all tokens sorted in Python."""
    kept_BV = torch.zeros_like(logits_BV, dtype=torch.bool)
    for row, probs in enumerate(logits_BV.double().softmax(-1).tolist()):
        before = 0.0
        for token in sorted(range(len(probs)), key=lambda i: (-probs[i], i)):
            if before >= top_p:
                break
            kept_BV[row, token] = True
            before += probs[token]
    return kept_BV


@pytest.mark.parametrize("spread", [0.01, 1.0, 4.0])
def test_large_vocabularies_have_the_nucleus_of_a_full_sort(spread: float) -> None:
    """Flat rows, whose nucleus is far wider than the candidates, and peaked ones, side by side."""
    generator = torch.Generator().manual_seed(1)
    logits_BV = torch.randn(6, 5000, generator=generator) * spread
    logits_BV[0, 4321] = 40.0
    found_BV = keep_likeliest(logits_BV, 0, 0.9).isfinite()
    expected_BV = nucleus_by_sorting(logits_BV, 0.9)
    # Where the mass reaches top_p, float32 may stop a token earlier or later.
    assert ((found_BV != expected_BV).sum(-1) <= 1).all()
    assert found_BV[0].nonzero()[:, 0].tolist() == [4321]


def test_of_equal_tokens_the_nucleus_has_the_first_ids() -> None:
    logits_BV = torch.zeros(2, 1024)  # more equal ones than candidates, and four of them, first
    logits_BV[1, [3, 700, 701, 900]] = 20.0
    found_BV = keep_likeliest(logits_BV, 0, 0.4375).isfinite()  # 448 of 1024
    assert found_BV[0].nonzero()[:, 0].tolist() == list(range(448))
    assert found_BV[1].nonzero()[:, 0].tolist() == [3, 700]


# --- columns ---------------------------------------------------------------------------------


class FixedEngine:
    """Gives every response its seed's last digit as text and notes what it was asked."""

    name = "fixed"
    facts: ClassVar[dict[str, object]] = {}

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        settings: SamplingSettings,
        progress: object,
    ) -> list[list[Sample]]:
        self.asked = SimpleNamespace(prompts=prompts, seeds=seeds, settings=settings)
        return [[Sample([20 + j, 2], [-0.5, -0.25], "stop") for j in range(len(s))] for s in seeds]


def test_columns_of_sampled_answers(tiny_policy: OpenPolicy) -> None:
    policy, engine = tiny_policy(), FixedEngine()
    questions = [Question(f"q{i}", (Message("user", f"{i}?"),), f'"{i}"') for i in range(2)]
    handles = Handles(5, 12, tasks=["t", "u"], questions=questions, policy=policy, engine=engine)
    found = sample_columns("e", 3, settings(0.6, 0.95, 4), handles)
    assert found["rollout_id"][:4] == [
        "e000012-0000-00",
        "e000012-0000-01",
        "e000012-0000-02",
        "e000012-0001-00",
    ]
    assert found["group"] == [0, 0, 0, 1, 1, 1]
    assert found["sample"] == [0, 1, 2, 0, 1, 2]
    assert found["prompt_id"] == ["q0"] * 3 + ["q1"] * 3
    assert found["task"] == ["t"] * 3 + ["u"] * 3
    assert found["messages"][3] == [{"role": "user", "content": "1?"}]
    assert found["prompt_ids"][5] == policy.render(questions[1].messages)[1]
    assert found["response_text"] == [policy.decode([20 + j]) for j in (0, 1, 2)] * 2
    assert found["seed"] == [s for group in engine.asked.seeds for s in group]
    assert len(set(found["seed"])) == 6
    first = engine.asked.seeds[0][0]
    assert engine.asked.seeds[0] == [first, first + 1, first + 2]
    assert (found["temperature"][0], found["top_p"][0], found["top_k"][0]) == (0.6, 0.95, 4)
    assert set(found["policy_version"]) == {policy.version}


def test_seeds_depend_on_run_step_and_purpose(tiny_policy: OpenPolicy) -> None:
    question = Question("q", (Message("user", "?"),), "1")
    found = set()
    for prefix, seed, step in (("", 0, 0), ("e", 0, 0), ("", 1, 0), ("", 0, 1)):
        engine = FixedEngine()
        handles = Handles(
            seed, step, questions=[question], tasks=["t"], policy=tiny_policy(), engine=engine
        )
        found.add(sample_columns(prefix, 2, settings(), handles)["seed"][0])
    assert len(found) == 4
