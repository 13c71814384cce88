"""Decoding token by token gives the logits of a plain pass over all tokens so far."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.forward.attention import install
from pipeline.sampling.decoding import Decoder, PaddedDecoder, SharedPromptDecoder
from tests.pipeline.forward.test_packing import CPU, MODELS, PACKED, PLAIN, built, tokens


def decoder(kind: str, model: Any, prompts: list[list[int]], sizes: list[int]) -> Decoder:
    """Return a decoder over a bare model; of a policy they need no more than this."""
    shares = kind == "branches"
    policy: Any = SimpleNamespace(device=CPU, forward=lambda megabytes: PACKED if shares else PLAIN)
    return (
        SharedPromptDecoder(policy, model, prompts, sizes, 200)
        if shares
        else PaddedDecoder(policy, model, prompts, sizes)
    )


def plain_logits(model: Any, ids: list[int]) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
    return logits


@torch.no_grad()
@pytest.mark.parametrize("kind", ["branches", "spread"])
@pytest.mark.parametrize(("lengths", "sizes"), [((8, 8), (3, 3)), ((9, 4, 9, 1), (2, 4, 1, 2))])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_a_plain_pass_whatever_is_dropped(
    name: str, lengths: tuple[int, ...], sizes: tuple[int, ...], kind: str
) -> None:
    model = built(name)
    install(model)
    prompts = [tokens(length, i) for i, length in enumerate(lengths)]
    texts = [list(p) for p, size in zip(prompts, sizes, strict=True) for _ in range(size)]
    stepping = decoder(kind, model, prompts, list(sizes))
    logits_BV = stepping.start()
    drops = {3: [0, 1, 3, 5], 7: [1, 3], 12: [1]}
    for position in range(16):
        for text, found in zip(texts, logits_BV, strict=True):
            torch.testing.assert_close(found, plain_logits(model, text), rtol=1e-4, atol=1e-4)
        if position in drops:
            texts = [texts[i] for i in drops[position]]
            stepping.keep(torch.tensor(drops[position]))
        chosen = tokens(len(texts), 1000 + position)
        for text, token in zip(texts, chosen, strict=True):
            text.append(token)
        logits_BV = stepping.step(torch.tensor(chosen))


@torch.no_grad()
@pytest.mark.parametrize("name", ["qwen3", "mistral, window of 6"])
def test_buffers_grow_as_responses_do(name: str) -> None:
    model = built(name)
    install(model)
    prompts = [tokens(5, 1), tokens(3, 2)]
    texts = [list(prompts[0]), list(prompts[0]), list(prompts[1])]
    stepping = decoder("branches", model, prompts, [2, 1])
    stepping.start()
    for position in range(140):
        chosen = tokens(3, position)
        for text, token in zip(texts, chosen, strict=True):
            text.append(token)
        logits_BV = stepping.step(torch.tensor(chosen))
    for text, found in zip(texts, logits_BV, strict=True):
        torch.testing.assert_close(found, plain_logits(model, text), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["branches", "spread"])
def test_responses_may_end_with_their_first_token(kind: str) -> None:
    """Then whole prompts are dropped before there is any step."""
    model = built("qwen3")
    install(model)
    prompts = [tokens(5, 1), tokens(3, 2), tokens(7, 3)]
    texts = [list(prompts[0]), list(prompts[2])]
    stepping = decoder(kind, model, prompts, [2, 2, 1])
    stepping.start()
    stepping.keep(torch.tensor([1, 4]))
    for position in range(3):
        chosen = tokens(2, position)
        for text, token in zip(texts, chosen, strict=True):
            text.append(token)
        logits_BV = stepping.step(torch.tensor(chosen))
        for text, found in zip(texts, logits_BV, strict=True):
            torch.testing.assert_close(found, plain_logits(model, text), rtol=1e-4, atol=1e-4)
