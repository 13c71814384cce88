"""Packed rows: the same numbers and gradients as sequences apart, for the models that have them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from pipeline.forward.attention import UnsupportedAttention, install
from pipeline.forward.packing import TokenSequence, pack_shared, packed_row, packed_tokens
from pipeline.forward.scoring import Forward, enough_tokens, response_hidden_ND
from pipeline.policy.policy import _why_not_shared

CPU = torch.device("cpu")
PLAIN = Forward(CPU, bfloat16=False, shares=False, megabytes=1)
PACKED = Forward(CPU, bfloat16=False, shares=True, megabytes=1)
SIZE: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.3,
}
MODELS: dict[str, Callable[[], Any]] = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZE)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZE)),
    "mistral, window of 6": lambda: MistralForCausalLM(MistralConfig(**SIZE, sliding_window=6)),
    "qwen3, window of 5 in some layers": lambda: Qwen3ForCausalLM(
        Qwen3Config(**SIZE, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    ),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "gemma2 caps its scores": lambda: Gemma2ForCausalLM(Gemma2Config(**SIZE)),
    "gpt-oss has sinks": lambda: GptOssForCausalLM(GptOssConfig(**SIZE, num_local_experts=4)),
}


def built(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {**MODELS, **OTHERS}[name]().eval()


def tokens(count: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 100, (count,), generator=generator).tolist()


def groups(*layout: tuple[int, list[int]]) -> list[TokenSequence]:
    """Return sequences of (prompt length, response lengths), prompts all different."""
    return [
        TokenSequence(tokens(prompt, 100 * g), tokens(length, 100 * g + i + 1))
        for g, (prompt, lengths) in enumerate(layout)
        for i, length in enumerate(lengths)
    ]


LAYOUTS = {
    "equal": groups((13, [9, 9, 9])),
    "unequal": groups((13, [9, 2, 20, 8]), (7, [3]), (1, [5, 1])),
    "short": groups((4, [1, 1, 0, 2]), (3, [0])),
    "one each": groups((9, [12]), (5, [3])),
}


def gradient(model: Any, hidden_ND: Tensor) -> Tensor:
    weights = torch.randn(hidden_ND.shape, generator=torch.Generator().manual_seed(9))
    parameters = list(model.get_decoder().parameters())
    total = (hidden_ND * weights.to(hidden_ND.dtype)).sum()
    found = torch.autograd.grad(total, parameters)
    return torch.cat([g.double().flatten() for g in found])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_hidden_states_and_gradients_are_those_of_sequences_apart(name: str, layout: str) -> None:
    model, batch = built(name).double(), LAYOUTS[layout]
    expected = response_hidden_ND(model, batch, PLAIN)
    wanted = gradient(model, expected)
    assert install(model)
    found = response_hidden_ND(model, batch, PACKED)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    # Positions are turned in float32 inside the models, whose sums take another order here.
    assert float((gradient(model, found) - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("name", MODELS)
def test_in_float32_they_agree_to_its_precision(name: str) -> None:
    model, batch = built(name), LAYOUTS["unequal"]
    expected = response_hidden_ND(model, batch, PLAIN)
    wanted = gradient(model, expected)
    install(model)
    found = response_hidden_ND(model, batch, PACKED)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert float((gradient(model, found) - wanted).norm() / wanted.norm()) < 5e-6


@given(
    st.lists(
        st.tuples(st.integers(1, 12), st.lists(st.integers(0, 12), min_size=1, max_size=5)),
        min_size=1,
        max_size=4,
    ),
    st.randoms(use_true_random=False),
)
def test_any_layout_in_any_order(layout: list[tuple[int, list[int]]], random: Any) -> None:
    model, batch = built("mistral, window of 6").double(), groups(*layout)
    random.shuffle(batch)
    with torch.no_grad():
        expected = response_hidden_ND(model, batch, PLAIN)
        install(model)
        found = response_hidden_ND(model, batch, PACKED)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert packed_tokens(batch) == len(packed_row(batch, CPU).ids)


def test_recomputed_activations_give_the_same_gradient() -> None:
    model, batch = built("qwen3").double(), LAYOUTS["unequal"]
    install(model)
    wanted = gradient(model, response_hidden_ND(model, batch, PACKED))
    model.gradient_checkpointing_enable()
    model.train()
    found = gradient(model, response_hidden_ND(model, batch, PACKED))
    assert float((found - wanted).norm() / wanted.norm()) < 1e-12


def test_a_model_keeps_its_plain_numbers_once_installed() -> None:
    model, ids = built("qwen3"), torch.tensor([tokens(12, 1), tokens(12, 2)])
    before = model(input_ids=ids).logits
    install(model)
    assert model(input_ids=ids).logits.equal(before)


# --- models that can't ------------------------------------------------------------------------


@pytest.mark.parametrize("name", OTHERS)
def test_models_with_other_attention_are_found_out_and_say_why(name: str) -> None:
    model = built(name)
    before = response_hidden_ND(model, LAYOUTS["unequal"], PLAIN)
    assert _why_not_shared(model, CPU)
    assert response_hidden_ND(model, LAYOUTS["unequal"], PLAIN).equal(before)


@pytest.mark.parametrize("name", MODELS)
def test_models_that_can_give_no_reason(name: str) -> None:
    assert _why_not_shared(built(name), CPU) == ""


def test_an_argument_that_nobody_knows_is_refused() -> None:
    model = built("qwen3")
    install(model)
    row = packed_row(LAYOUTS["equal"], CPU)
    with pytest.raises(UnsupportedAttention, match="softcap"):
        model.get_decoder()(
            input_ids=torch.tensor([row.ids]), srpo_layout=row, softcap=30.0, use_cache=False
        )


def test_layers_of_a_kind_that_nobody_knows_are_not_touched() -> None:
    model = built("qwen3")
    model.config.layer_types = ["full_attention", "chunked_attention", "full_attention"]
    assert not install(model)
    assert model.config._attn_implementation == "sdpa"


# --- rows -------------------------------------------------------------------------------------


def test_rows_by_hand() -> None:
    same = [TokenSequence([1, 2, 3], [4] * n) for n in (5, 3)]
    other = TokenSequence([7, 8], [9] * 4)
    # 3 + 4 + 2 tokens of the first prompt, 2 + 3 of the second: the last token is never fed.
    assert packed_tokens([*same, other]) == 14
    assert pack_shared([*same, other], 14, 10**9) == [[0, 1, 2]]
    assert pack_shared([*same, other], 13, 10**9) == [[0, 1], [2]]
    # 7 | 3 + 2, and 5 more are too many | 5
    assert pack_shared([*same, other], 8, 10**9) == [[0], [1], [2]]
    assert pack_shared([*same, other], 1, 10**9) == [[0], [1], [2]]
    assert pack_shared([], 5, 10**9) == []
    row = packed_row([same[1], other, same[0]], CPU)
    assert row.ids == [1, 2, 3, 4, 4, 4, 4, 4, 4, 7, 8, 9, 9, 9]
    assert row.positions == [0, 1, 2, 3, 4, 5, 6, 3, 4, 0, 1, 2, 3, 4]
    assert row.predicting == [2, 7, 8, 10, 11, 12, 13, 2, 3, 4, 5, 6]


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(0, 9), min_size=1, max_size=6)),
        max_size=5,
    ),
    st.integers(1, 80),
)
def test_every_sequence_is_in_one_row_within_the_budget(
    layout: list[tuple[int, list[int]]], budget: int
) -> None:
    batch = groups(*layout)
    rows = pack_shared(batch, budget, 10**9)
    assert sorted(i for row in rows for i in row) == list(range(len(batch)))
    for row in rows:
        assert packed_tokens([batch[i] for i in row]) <= budget or len(row) == 1
    assert rows == pack_shared(batch, budget, 10**9)


def test_a_prompt_is_encoded_once_if_its_rollouts_fit_a_row() -> None:
    batch = groups((6, [4, 4, 4]), (6, [4, 4, 4]), (6, [4, 4, 4]))
    # 6 + 3 x 3 tokens each: the second would fit in part, but starts a row of its own.
    assert pack_shared(batch, 20, 10**9) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert pack_shared(batch, 30, 10**9) == [[0, 1, 2, 3, 4, 5], [6, 7, 8]]
    # Enough is enough between prompts, never within one.
    assert pack_shared(batch, 30, 20) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    assert pack_shared(batch, 30, 5) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize(("wide", "tokens"), [(32, 2048), (3000, 687), (30_000, 512)])
def test_a_larger_model_has_enough_in_fewer_tokens(wide: int, tokens: int) -> None:
    config = Qwen3Config(**{**SIZE, "hidden_size": 4000, "intermediate_size": wide})
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    # 3 layers of q and o 4000 x 32, k and v 4000 x 16, and three of 4000 x wide; 2 operations
    # each: at 3,000, 218.3 million a token, so that 687 tokens take 150 billion.
    assert enough_tokens(model, CPU) == tokens
    assert enough_tokens(model, torch.device("cuda")) is None
