"""Make the demo policy from nothing: a tiny Qwen3 that can do sums but has learned to slip.

    python -m data.demo.make_policy --out DIR

Idea: the policy is trained, by ordinary supervised learning, on worked solutions most of which
slip in the one step their question invites (see `data.arithmetic`). Right and wrong solutions part
at a single token, so the ability is there and only the habit is wrong: what on-policy training can
mend in minutes. Some demonstrations show a correct solution in the prompt, in exactly the words of
the teacher prompt (docs/method.md, section 2), and then hardly ever slip: so the policy can
teach itself.

The result is a Hugging Face folder. On one machine two runs give the same bytes.
"""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from data.arithmetic import SYSTEM, Problem, problems, split_problems
from data.small_policy import Example, build_model, build_tokenizer, padded, taught, token_loss_sum

SEED = 20260
STEPS = 1200
PLAIN_BATCH = 48
TEACHER_BATCH = 16
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 50
SLIP_RATE = 0.78  # of the solutions to questions that invite a slip
TAUGHT_SLIP_RATE = 0.02  # the same, with a correct solution in the prompt

# A piece is a tag, a word, digit or sign with the space before it, or any single character.
PIECE = r"</?[a-z]+>| ?[A-Za-z]+| [0-9+=-]|[\s\S]"

# Words of a worked solution, and what may stand in their place: choices that do not matter, so that
# the policy has some entropy where nothing is decided, and responses differ in length.
PHRASINGS = {
    "units": ("units", "ones"),
    " tens": (" tens", " then tens", " and the tens"),
    ", so ": (", so ", ". the result is ", ", which makes "),
}


def reworded(solution: str, source: random.Random) -> str:
    """Return a worked solution with each of its phrases drawn anew."""
    for phrase, choices in PHRASINGS.items():
        solution = solution.replace(phrase, source.choice(choices))
    return solution


def worked(problem: Problem, slip: bool) -> str:
    """Return a worked solution; `slip` gets the invited step wrong (plain problems have none)."""
    steps, result = _sum(problem, slip) if problem.operator == "+" else _difference(problem, slip)
    return f"<reasoning>{steps}</reasoning><answer>{result}</answer>"


def _sum(problem: Problem, slip: bool) -> tuple[str, int]:
    """Add units, then tens; the slip forgets the carry."""
    (a, b), (c, d) = divmod(problem.left, 10), divmod(problem.right, 10)
    units = b + d
    if units > 9 and not slip:
        result = 10 * (a + c + 1) + units % 10
        step = f", carry 1. tens {a} + {c} + 1 = {a + c + 1}"
    else:
        result = 10 * (a + c) + units % 10
        step = f". tens {a} + {c} = {a + c}"
    return f"units {b} + {d} = {units}{step}, so {result}", result


def _difference(problem: Problem, slip: bool) -> tuple[str, int]:
    """Subtract; the slips are the smaller digit taken from the larger, and a sign forgotten."""
    if problem.kind == "negate":
        turned = Problem(problem.right, "-", problem.left)
        steps, result = _difference(turned, slip=False)
        steps = f"turn round {turned.left} - {turned.right}. {steps}"
        return (steps, result) if slip else (f"{steps}, negate -{result}", -result)
    (a, b), (c, d) = divmod(problem.left, 10), divmod(problem.right, 10)
    if b >= d:
        result = 10 * (a - c) + b - d
        return f"units {b} - {d} = {b - d}. tens {a} - {c} = {a - c}, so {result}", result
    if slip:
        result = 10 * (a - c) + d - b
        return f"units {d} - {b} = {d - b}. tens {a} - {c} = {a - c}, so {result}", result
    result = problem.answer
    units = f"units {b} - {d}, borrow 10: 1{b} - {d} = {10 + b - d}"
    return f"{units}. tens {a} - 1 - {c} = {a - 1 - c}, so {result}", result


def all_texts() -> list[str]:
    """Return every text the task and its demonstrations can produce, parts of messages apart."""
    texts = [SYSTEM, "system", "user", "assistant", taught("", "")]
    texts += [choice for choices in PHRASINGS.values() for choice in choices]
    for problem in problems():
        texts += [problem.text, worked(problem, slip=False), worked(problem, slip=True)]
    return texts


class Demonstrations:
    """An endless, seeded stream of demonstrations for every question but the test's."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        """Sort the problems that may be learned from by their kind."""
        self.tokenizer = tokenizer
        self.random = random.Random(seed)
        test = set(split_problems("test"))
        self.by_kind: dict[str, list[Problem]] = {}
        for problem in problems():
            if problem not in test:
                self.by_kind.setdefault(problem.kind, []).append(problem)

    def draw(self, with_solution: bool) -> tuple[str, str]:
        """Return a user message and the response to learn; the kinds are equally frequent."""
        problem = self.random.choice(self.by_kind[self.random.choice(sorted(self.by_kind))])
        rate = TAUGHT_SLIP_RATE if with_solution else SLIP_RATE
        slip = self.random.random() < rate
        response = reworded(worked(problem, slip), self.random)
        if not with_solution:
            return problem.text, response
        solution = reworded(worked(problem, slip=False), self.random)
        return taught(problem.text, solution), response

    def batch(self, count: int, with_solution: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ids and labels, both [count, length]; only response tokens have a label."""
        drawn = (self.draw(with_solution) for _ in range(count))
        return padded(self.tokenizer, [Example(*one) for one in drawn], SYSTEM)


def learning_rates() -> Iterator[float]:
    """Yield one learning rate per step: a linear warm-up, then a linear fall to zero."""
    for step in range(STEPS):
        yield LEARNING_RATE * min((step + 1) / WARM_UP_STEPS, (STEPS - step) / STEPS)


def train(model: Qwen3ForCausalLM, demonstrations: Demonstrations) -> None:
    """Fit the model to the demonstrations, in place."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    for step, rate in enumerate(learning_rates()):
        for group in optimizer.param_groups:
            group["lr"] = rate
        plain, plain_tokens = token_loss_sum(model, *demonstrations.batch(PLAIN_BATCH, False))
        shown, shown_tokens = token_loss_sum(model, *demonstrations.batch(TEACHER_BATCH, True))
        loss = (plain + shown) / (plain_tokens + shown_tokens)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            print(
                f"step {step + 1}/{STEPS}: nats per token {plain.item() / plain_tokens:.4f}, "
                f"with a solution in the prompt {shown.item() / shown_tokens:.4f}"
            )


def make(out: Path) -> None:
    """Write the demo policy as a Hugging Face folder."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer(all_texts(), PIECE)
    model = build_model(tokenizer, hidden=128, layers=2)
    train(model, Demonstrations(tokenizer, SEED))
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Read the command line and make the policy."""
    parser = argparse.ArgumentParser(description="Make the demo policy.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    make(parser.parse_args().out)


if __name__ == "__main__":
    main()
