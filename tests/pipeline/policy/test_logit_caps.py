"""Caps and scales: of logits they are refused, of attention scores they are computed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM

from pipeline.errors import PolicyError
from pipeline.forward.packing import TokenSequence
from pipeline.forward.scoring import score_student
from pipeline.sampling.engine import SamplingSettings
from pipeline.sampling.transformers_engine import TransformersEngine
from tests.builders.policies import PRINTABLE, open_on_cpu, tokenizer_of, write_tiny_policy


def write_gemma(folder: Path, **settings: Any) -> None:
    """Write a Gemma-2 with few and small weights."""
    tokenizer_of(PRINTABLE).save_pretrained(folder)
    config = Gemma2Config(
        vocab_size=len(PRINTABLE),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        initializer_range=1.0,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
        **{"final_logit_softcapping": None, "attn_logit_softcapping": None, **settings},
    )
    torch.manual_seed(0)
    Gemma2ForCausalLM(config).save_pretrained(folder)


@pytest.mark.parametrize("cap", [30.0, 50.0, 1000.0])
def test_capped_logits_by_configuration(tmp_path: Path, cap: float) -> None:
    write_gemma(tmp_path, final_logit_softcapping=cap)
    with pytest.raises(PolicyError, match=rf"has final_logit_softcapping = {cap}: its logits are"):
        open_on_cpu(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("logit_scale", 0.25), ("logits_scaling", 8.0), ("logits_soft_cap", 30.0)),
        *(("output_logit_soft_cap", 30.0), ("lm_head_multiplier", 0.5), ("logit_softcap", 20.0)),
        *(("output_multiplier_scale", 0.6), ("final_logit_soft_cap", 15)),
    ],
)
def test_settings_that_say_so(tmp_path: Path, name: str, value: float) -> None:
    write_tiny_policy(tmp_path, 0, PRINTABLE)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, name: value}))
    with pytest.raises(PolicyError, match=rf"config.json has {name} = {value}"):
        open_on_cpu(tmp_path)
    for neutral in (None, 1.0, 1):
        path.write_text(json.dumps({**content, name: neutral}))
        assert open_on_cpu(tmp_path).vocabulary == len(PRINTABLE)


def test_capped_attention_is_computed_and_not_packed(tmp_path: Path) -> None:
    """torch's attention would leave the cap out: scores of 0.5 at most make other logits."""
    found = {}
    for cap in (0.5, None):
        folder = tmp_path / str(cap)
        write_gemma(folder, attn_logit_softcapping=cap)
        policy = open_on_cpu(folder)
        assert bool(policy.unshared) == (cap is not None)
        prompt, response = [5, 6, 7, 8], [9, 10, 11]
        one = torch.ones(len(response))
        scores = score_student(
            policy.model, [TokenSequence(prompt, response)], one, 4, policy.forward(1.0)
        )
        found[cap] = scores.logprob_N
        # By the model's own code, which applies the cap.
        reference = Gemma2ForCausalLM.from_pretrained(folder, attn_implementation="eager")
        with torch.no_grad():
            logits_TV = reference(torch.tensor([prompt + response])).logits[0, 3:-1].double()
        expected_N = logits_TV.log_softmax(-1)[range(3), response]
        torch.testing.assert_close(scores.logprob_N.double(), expected_N, rtol=1e-4, atol=1e-4)
        settings = SamplingSettings(1.0, 1.0, 0, 4, 8)
        ((sample,),) = TransformersEngine(policy).sample([prompt], [[3]], settings, lambda *_: None)
        with torch.no_grad():
            logits_TV = reference(torch.tensor([prompt + sample.response_ids])).logits[0].double()
        own_T = logits_TV.log_softmax(-1)[range(3, 3 + len(sample.logprobs)), sample.response_ids]
        assert sample.logprobs == pytest.approx(own_T.tolist(), abs=1e-4)
    assert float((found[0.5] - found[None]).abs().max()) > 1e-2
