"""What a warm start learns: a prompt, and the task's worked solution as the response to it.

A share of the examples stands behind the teacher's prompt, which shows the question's
demonstration: the same solution in other words. A model that has seen these takes the numbers from
a demonstration and words the rest as it would have without it, which is what a teacher is for.
Where a task has no demonstrations, the solution itself is shown, and the model learns to copy it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from flows.session.questions import Questions
from flows.session.verifiers import TaskVerifiers
from pipeline.config.sections import Config
from pipeline.errors import DataError
from pipeline.forward.packing import TokenSequence
from pipeline.policy.policy import Policy
from pipeline.task import Question, Verifier
from pipeline.text import printable
from stages.route.teacher_prompt import teacher_prompt

OFFER_SOLUTIONS = frozenset({"chains", "code", "code_share", "word_problems"})
"""The shipped tasks whose questions have worked solutions."""


class Example(NamedTuple):
    """One worked solution as tokens.

    Attributes:
        taught: whether it stands behind the teacher's prompt.
        sequence: the prompt, and the question's solution with the token that ends it.
    """

    task: str
    question: Question
    taught: bool
    sequence: TokenSequence


def with_solutions(questions: Questions) -> Questions:
    """Leave out training questions that have no worked solution.

    Raises:
        DataError: no question of a task has one.
    """
    kept = {}
    for name, own in questions.of_tasks.items():
        train = [question for question in own.train if question.solution is not None]
        if not train:
            offering = ", ".join(sorted(OFFER_SOLUTIONS))
            raise DataError(
                f"task {name}: none of its {len(own.train):,} training questions has a worked "
                "solution, which a warm start learns; a task's load gives them as "
                f"Question.solution (of the shipped tasks: {offering})"
            )
        kept[name] = replace(own, train=train)
    return Questions(kept)


def without_solutions(questions: Questions) -> list[str]:
    """Say how many training questions a warm start goes without, since they have no solution."""
    found = []
    for name, own in questions.of_tasks.items():
        lacking = sum(question.solution is None for question in own.train)
        if lacking:
            found.append(
                f"{lacking} of {len(own.train)} training questions of task {name} have no worked "
                "solution and are left out"
            )
    return found


def is_taught(index: int, share: float) -> bool:
    """Tell whether example `index` of the whole start stands behind the teacher's prompt.

    Of the first n examples floor(n share) do. Nothing is drawn: which question has which index is
    drawn already.
    """
    return int((index + 1) * share) > int(index * share)


def examples_of(questions: Questions, config: Config, policy: Policy) -> list[Example]:
    """Return the examples of all steps, in order; every one fits, and is read back as it was.

    Raises:
        DataError: a prompt or a solution is too long, or the tokenizer changes a solution.
    """
    total = config.warmstart.steps * config.warmstart.examples
    chosen = questions.stretch(config, "warmstart", 0, total)
    share = config.warmstart.teacher_share
    return [
        _example(task, question, is_taught(index, share), config, policy)
        for index, (task, question) in enumerate(zip(*chosen, strict=True))
    ]


def _example(
    task: str, question: Question, taught: bool, config: Config, policy: Policy
) -> Example:
    where, solution = f"task {task}, question {question.prompt_id}", str(question.solution)
    if taught:
        limit, templates = config.route.max_teacher_prompt_length, config.route.templates
        shown = question.demonstration or solution
        prompt = teacher_prompt(question.messages, shown, None, templates, limit, policy.render)
        if prompt is None or prompt.shortened:
            raise DataError(
                f"{where}: the teacher's prompt with its demonstration is longer than "
                f"route.max_teacher_prompt_length = {limit} tokens: raise that"
            )
        text, prompt_ids = prompt.text, prompt.token_ids
    else:
        text, prompt_ids = policy.render(question.messages)
    response_ids = [*policy.encode(solution), policy.stops.closing]
    limit = config.generate.max_response_length
    if len(response_ids) > limit:
        raise DataError(
            f"{where}: its solution has {len(response_ids)} tokens, over "
            f"generate.max_response_length = {limit}: raise that, so that it can be sampled too"
        )
    if policy.decode(response_ids) != solution or policy.eos_ids & set(response_ids[:-1]):
        raise DataError(
            f"{where}: the tokenizer doesn't give its solution back as it was: "
            f"{printable(repr(policy.decode(response_ids)), 100)}"
        )
    if policy.leaves_thinking_open(text, response_ids):
        raise DataError(
            f"{where}: its solution would be inside the think block that the chat template opens: "
            "turn thinking off in model.chat_template_kwargs"
        )
    return Example(task, question, taught, TokenSequence(prompt_ids, response_ids))


def expect_right(examples: Sequence[Example], config: Config) -> None:
    """Have the tasks' verifiers judge every solution that is learned, and every demonstration.

    Raises:
        DataError: one isn't correct, keeps no format, or can't be judged.
    """
    judges = TaskVerifiers(config)
    try:
        verifiers = judges.verifiers(Path())
        for task in verifiers:
            asked = {e.question.prompt_id: e.question for e in examples if e.task == task}
            _expect_right(task, asked, verifiers[task], config.verify.success_threshold)
    finally:
        judges.close()


def _expect_right(
    task: str, asked: Mapping[str, Question], verifier: Verifier, threshold: float
) -> None:
    pairs = {
        f"{'demonstration' if shown else 'worked solution'} of question {name}": (text, e.reference)
        for name, e in asked.items()
        for shown, text in enumerate((e.solution, e.demonstration))
        if text is not None
    }
    verdicts = verifier.pool.verify(list(pairs.values()))
    for what, verdict in zip(pairs, verdicts, strict=True):
        if verdict.error is not None or verdict.reward < threshold or not verdict.format_ok:
            said = verdict.error or verdict.feedback or f"reward {verdict.reward}"
            form = "" if verdict.format_ok else ", out of format"
            raise DataError(
                f"task {task}: its verifier does not judge the {what} correct and in format "
                f"({printable(said, 200)}{form})"
            )
