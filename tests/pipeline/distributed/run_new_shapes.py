"""Passes of ever new shapes in bfloat16: `python -m tests.pipeline.distributed.run_new_shapes N`.

Prints the resident megabytes after every 20 passes, forward and backward, of SmolLM2's widths.
"""

import sys

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.distributed.process_setup import configure_process
from pipeline.forward.packing import TokenSequence
from pipeline.forward.scoring import Forward, response_hidden_ND

LAYERS = 2
"""Every layer has the same shapes, so more layers take time alone."""


def main(passes: int) -> None:
    """Run passes over rows of 64 tokens and more, no two alike, in no order."""
    configure_process(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49_152}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": LAYERS}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True))
    forward = Forward(torch.device("cpu"), bfloat16=True, shares=False, megabytes=256)
    for done in range(1, passes + 1):
        prompt = 32 + done * 37 % 120
        sequence = TokenSequence([5] * prompt, [7] * (32 + done * 53 % 61))
        hidden_ND = response_hidden_ND(model, [sequence], forward)
        with forward.autocast():
            logits_NV = model.lm_head(hidden_ND)
        logits_NV.float().logsumexp(-1).mean().backward()
        model.zero_grad()
        if done % 20 == 0:
            print(psutil.Process().memory_info().rss // 10**6, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
