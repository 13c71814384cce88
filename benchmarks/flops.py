"""Floating-point operations of a step: TRL's and ours.

    python -m benchmarks.flops

One multiply-add is two operations. Counted are matrix products: the body's weights once per token,
scores and values of attention once per pair of a token and one that it sees, the output projection
once per scored position. A backward pass costs two forward passes; of weights that adapters freeze
(LoRA), one. Softmaxes, norms, losses and the optimizer are not counted; they move memory rather
than multiply.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

TRAINING, TRAINING_FROZEN = 3, 2
TEMPLATE_TOKENS = 7
"""Words that the teacher's prompt adds to question and solution."""


class Network(NamedTuple):
    """Multiply-adds of a network: per token of its body, per pair in attention, per logits row.

    Attributes:
        adapters: those of LoRA adapters, per token; 0: none, all weights are trained.
    """

    body: int
    attention: int
    projection: int
    adapters: int = 0


class Flops(NamedTuple):
    """Operations of some passes."""

    body: float = 0
    attention: float = 0
    projection: float = 0

    @property
    def total(self) -> float:
        """Return the sum of the three."""
        return sum(self)

    def plus(self, other: "Flops") -> "Flops":
        """Return the sum of two."""
        return Flops(*(a + b for a, b in zip(self, other, strict=True)))


class Work(NamedTuple):
    """What a step does: lengths in tokens, and how many are correct in each group of `group`."""

    prompt: int
    response: int
    correct: Sequence[int]
    group: int = 8

    @property
    def taught_prompt(self) -> int:
        """Return the length of the teacher's prompt: question and solution."""
        return self.prompt + self.response + TEMPLATE_TOKENS


def network(sizes: Mapping[str, int], rank: int = 0) -> Network:
    """Count a Qwen3's multiply-adds; sizes as `Qwen3Config` names them, rank of its adapters."""
    hidden, wide = sizes["hidden_size"], sizes["intermediate_size"]
    queries = sizes["num_attention_heads"] * sizes["head_dim"]
    keys = sizes["num_key_value_heads"] * sizes["head_dim"]
    # q and o, k and v, gate and up and down: pairs of in and out
    linear = [*[(hidden, queries)] * 2, *[(hidden, keys)] * 2, *[(hidden, wide)] * 3]
    layers = sizes["num_hidden_layers"]
    return Network(
        body=layers * sum(a * b for a, b in linear),
        attention=2 * layers * queries,
        projection=hidden * sizes["vocab_size"],
        adapters=layers * rank * sum(a + b for a, b in linear),
    )


SIZES = {
    size: dict(
        zip(
            (
                "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                "num_attention_heads", "num_key_value_heads", "head_dim",
            ),
            numbers,
            strict=True,
        )
    )
    for size, numbers in {
        "S": (512, 128, 512, 6, 4, 2, 32),
        "M": (32_768, 512, 1536, 4, 8, 4, 64),
        "L": (4_096, 256, 768, 24, 8, 4, 32),
        "R": (49_152, 576, 1536, 30, 9, 3, 64),
    }.items()
}  # fmt: skip
"""The peer's fixtures."""


def shared(net: Network, prompt: float, response: float, rows: float, passes: int) -> Flops:
    """Return what responses that share one copy of their prompt cost; the last token is not fed."""
    fed = response - 1
    seen = prompt * (prompt + 1) / 2 + rows * (fed * prompt + fed * (fed + 1) / 2)
    tokens = prompt + rows * fed
    return _flops(net, tokens, seen, rows * response, passes) if rows else Flops()


def apart(net: Network, length: float, logits: float, rows: float, passes: int) -> Flops:
    """Return what rows that share nothing cost."""
    return _flops(net, rows * length, rows * length * (length + 1) / 2, rows * logits, passes)


def ours(net: Network, work: Work, method: str = "srpo") -> Flops:
    """Return what route and update need: nothing for rollouts whose loss has no gradient."""
    total = Flops()
    for correct in work.correct:
        wrong, mixed = work.group - correct, 0 < correct < work.group
        taught = wrong if correct and method == "srpo" else 0
        computed = work.group if mixed else 0
        total = total.plus(shared(net, work.prompt, work.response, computed, TRAINING))
        total = total.plus(shared(net, work.prompt, work.response, taught, 1))
        total = total.plus(shared(net, work.taught_prompt, work.response, taught, 1))
    return total


def theirs(net: Network, work: Work, method: str = "srpo") -> Flops:
    """Return what TRL computes: every row apart, the teacher for all rows of a micro-batch."""
    total, length = Flops(), work.prompt + work.response
    for correct in work.correct:
        scored = length if method == "grpo" else work.response
        total = total.plus(apart(net, length, scored, work.group, TRAINING))
        if method == "srpo":
            longest = (work.taught_prompt if correct else work.prompt) + work.response
            total = total.plus(apart(net, longest, work.response, work.group, 1))
    return total


def sampling(net: Network, work: Work, prompts_apart: bool) -> Flops:
    """Return what sampling every group's responses costs, with a cache of keys and values."""
    total = Flops()
    for _ in work.correct:
        total = total.plus(shared(net, work.prompt, work.response, work.group, 1))
        if prompts_apart:
            total = total.plus(apart(net, work.prompt, 0, work.group - 1, 1))
    return total


def attention_share(found: Flops) -> float:
    """Return which share of the operations attention takes."""
    return found.attention / found.total


def _flops(net: Network, tokens: float, pairs: float, logits: float, passes: int) -> Flops:
    frozen = net.adapters > 0 and passes == TRAINING
    of_weights = TRAINING_FROZEN if frozen else passes
    return Flops(
        2.0 * tokens * (of_weights * net.body + passes * net.adapters),
        2.0 * passes * pairs * net.attention,
        2.0 * of_weights * logits * net.projection,
    )


def main() -> None:
    """Print both sides' operations of an update as Markdown."""
    print("| update | TRL: body + attention + projection, TFLOP | ours | ratio |")
    print("|---|---|---|---|")
    for size, prompt, response, method, rank in (
        ("S", 32, 128, "srpo", 0),
        ("M", 32, 128, "srpo", 0),
        ("M", 256, 128, "srpo", 0),
        ("L", 256, 128, "srpo", 0),
        ("R", 256, 64, "srpo", 0),
        ("R", 256, 64, "srpo", 16),
        ("M", 256, 128, "grpo", 0),
    ):
        work = Work(prompt, response, (0, 1, 2, 3, 4, 5, 7, 8))
        sides = [side(network(SIZES[size], rank), work, method) for side in (theirs, ours)]
        cells = [
            " + ".join(f"{part / 1e12:.2f}" for part in found) + f" = {found.total / 1e12:.2f}"
            for found in sides
        ]
        ratio = sides[0].total / sides[1].total
        name = f"{method.upper()}, {size}, prompt {prompt}" + (", LoRA" if rank else "")
        print(f"| {name} | {cells[0]} | {cells[1]} | {ratio:.2f} |")


if __name__ == "__main__":
    main()
