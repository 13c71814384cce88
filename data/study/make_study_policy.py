"""Make the study's small policy from nothing: a Qwen3 that practised chains for a while.

    python -m data.study.make_study_policy --out DIR

Idea: ordinary supervised learning on right solutions (`data.chains`), stopped early. What it gets
wrong then is its own: nobody taught it a mistake. Some demonstrations show a solution in the
prompt, in the words of the teacher prompt (docs/method.md, section 2), since a policy of this size
doesn't learn to read one by itself; a few show a hint on an attempt, nearly always a wrong one
(section 12).

It goes in two parts. In the first, half of the solutions shown are repeated word for word. In the
second, these have random digits, so that nothing but the prompt says how the response goes on; and
the learning rate falls to 0. Without random digits the policy hardly looks at what it is shown.

The result is a Hugging Face folder. On one machine two runs give the same bytes.
"""

import argparse
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from data.chains import SYSTEM, Problem, candidate, worked
from data.hints.word_problem_hints import hint
from data.small_policy import (
    TEMPLATES,
    Example,
    build_model,
    build_tokenizer,
    padded,
    taught,
    token_loss_sum,
)

SEED = 20260
PRACTISED = ("level-1", "level-2")
FIRST_STEPS, SECOND_STEPS = 800, 300
PLAIN, TAUGHT, HINTED = 28, 24, 4
"""Demonstrations of each kind in a step."""
REPEATED = 0.5
"""Share of the solutions shown that the response repeats; others are worded anew."""
LEARNING_RATE = 2e-3
WARM_UP_STEPS = 50
HIDDEN, LAYERS = 128, 3
# A piece is a tag, a word or sign with the space before it, a digit with it, or any character.
PIECE = r"</?[a-z]+>| ?[A-Za-z]+| [0-9+=*-]|[\s\S]"


def hinted(text: str, feedback: str) -> str:
    """Return the user message of the teacher prompt with feedback alone (section 12)."""
    return TEMPLATES.feedback.format(question=text, feedback=feedback)


class Practice:
    """An endless, seeded stream of demonstrations for questions that are not the tests'.

    Args:
        nonsense: solutions that are shown and repeated have random digits.
    """

    def __init__(self, seed: int, nonsense: bool) -> None:
        self.random = random.Random(seed)
        self.nonsense = nonsense

    def problem(self) -> Problem:
        """Return the first steps of a chain, few or all; the levels are equally frequent.

        Short ones are cheap to practise, and the tests ask for all steps.
        """
        while True:
            # Far beyond the numbers of the training questions.
            number = self.random.randrange(10**6, 10**9)
            name, steps = candidate(self.random.choice(PRACTISED), number)
            problem = Problem(name, steps[: self.random.randint(1, len(steps))])
            if problem.split == "train":
                return problem

    def solution(self, problem: Problem) -> str:
        """Return a worked solution in one of many wordings."""
        return worked(problem, self.random.randrange(10**9))

    def plain(self) -> Example:
        """Return a question and its solution."""
        problem = self.problem()
        return Example(problem.text, self.solution(problem))

    def taught(self) -> Example:
        """Return the same with a solution in the prompt, repeated or in another wording."""
        problem = self.problem()
        shown = self.solution(problem)
        if self.random.random() >= REPEATED:
            return Example(taught(problem.text, shown), self.solution(problem))
        if self.nonsense:
            shown = "".join(self._digit() if c.isdigit() else c for c in shown)
        return Example(taught(problem.text, shown), shown)

    def hinted(self) -> Example:
        """Return the same with a hint on an attempt of which one digit was drawn anew."""
        problem = self.problem()
        feedback = hint(self._with_slip(self.solution(problem)), str(problem.answer))
        return Example(hinted(problem.text, str(feedback)), self.solution(problem))

    def _with_slip(self, solution: str) -> str:
        """Return a solution with one digit drawn anew, in one of ten cases the same."""
        places = [i for i, character in enumerate(solution) if character.isdigit()]
        place = self.random.choice(places)
        return solution[:place] + self._digit() + solution[place + 1 :]

    def _digit(self) -> str:
        return str(self.random.randrange(10))

    def batch(self) -> list[list[Example]]:
        """Return a step's demonstrations, those with short prompts apart."""
        plain = [self.plain() for _ in range(PLAIN)]
        taught = [self.taught() for _ in range(TAUGHT)]
        return [plain, taught + [self.hinted() for _ in range(HINTED)]]


def all_texts() -> list[str]:
    """Return texts with every piece that the task and its demonstrations have."""
    hints = ["In `1` the two sides differ.", *_other_hints()]
    texts = [SYSTEM, "system", "user", "assistant", taught("", ""), *(hinted("", h) for h in hints)]
    practice = Practice(SEED, nonsense=False)
    examples = islice(iter(practice.plain, None), 500)
    return texts + [text for example in examples for text in example]


def _other_hints() -> list[str]:
    """Return what else may be said about a wrong response (`data.hints.word_problem_hints`)."""
    responses = ("", "<answer>x</answer>", "<answer>1</answer>", "1 + 1 = 2 <answer>{}</answer>")
    return [str(hint(r.format(n), "3")) for r in responses for n in (1, 2)]


def learn(
    model: Qwen3ForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    practice: Practice,
    rates: Sequence[float],
) -> None:
    """Make one AdamW step on a batch for each learning rate, in place."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = mean_loss(model, tokenizer, practice.batch())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            print(f"step {step + 1}/{len(rates)}: nats per token {loss.item():.4f}", flush=True)


def mean_loss(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, batches: list[list[Example]]
) -> Tensor:
    """Return the cross-entropy of all responses' tokens, in nats per token."""
    parts = [token_loss_sum(model, *padded(tokenizer, batch, SYSTEM)) for batch in batches]
    return torch.stack([total for total, _ in parts]).sum() / sum(tokens for _, tokens in parts)


def make(out: Path, first: int, second: int) -> None:
    """Write the policy as a Hugging Face folder, after so many steps of each part."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(SEED)
    tokenizer = build_tokenizer(all_texts(), PIECE)
    model = build_model(tokenizer, HIDDEN, LAYERS)
    rising = [LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS) for step in range(first)]
    falling = [LEARNING_RATE * (second - step) / second for step in range(second)]
    learn(model, tokenizer, Practice(SEED, nonsense=False), rising)
    learn(model, tokenizer, Practice(SEED, nonsense=True), falling)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Read the command line and make the policy."""
    parser = argparse.ArgumentParser(description="Make the study's small policy.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    make(parser.parse_args().out, FIRST_STEPS, SECOND_STEPS)


if __name__ == "__main__":
    main()
