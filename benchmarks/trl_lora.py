"""Run a script of the peer with LoRA: its SDPO trainer gets an adapter through peft.

    python benchmarks/trl_lora.py bench_trl.py ARGUMENT …

Runs in the peer's environment, which has TRL and peft. The adapter is that of our `[model.lora]`:
same rank, alpha and linear layers.
"""

import runpy
import sys
from functools import partialmethod
from typing import Any

RANK, ALPHA = 16, 32
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """Give the trainer its adapter, then run the script as if it were started alone."""
    from peft import LoraConfig
    from trl.experimental.sdpo import SDPOTrainer

    lora: Any = LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, lora_dropout=0.0, task_type="CAUSAL_LM"
    )
    SDPOTrainer.__init__ = partialmethod(SDPOTrainer.__init__, peft_config=lora)
    script = sys.argv[1]
    sys.argv = sys.argv[1:]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
