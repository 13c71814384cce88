"""What srpo makes of a task: its questions as a run gets them, and what its verifier says of gold.

Idea: a verifier that doesn't know its own gold answers trains a policy on noise, and one that likes
an empty response trains it to say nothing. So every gold answer is written as a response, in the
first of a few usual forms that the verifier accepts, and judged as a run would judge it; so are an
empty response and the gold answer of another question.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data.registry import judge, open_task
from flows.session.question_loading import load_questions
from flows.session.questions import Questions, TaskQuestions, fitting, special_texts, warnings_of
from pipeline.config.load import apply_override, load_config, validate_config
from pipeline.config.sections import Config
from pipeline.policy.model_loading import open_tokenizer
from pipeline.policy.prompts import Prompts
from pipeline.task import Question, Verdict
from pipeline.text import count, printable
from pipeline.verification.pool import VerifierPool

FINE, NOTE, BAD = "ok", "note", "!!"
Line = tuple[str, str, str]
"""What was looked at, what was found, and whether that is fine."""

SHOWN = 10
"""Questions that are shown."""
_START, _END = 250, 150
"""Characters of a text that are shown, of its start and of its end."""
JUDGED = 2000
"""Questions of a task whose gold answers are judged at most: as many, evenly spread."""
_TRIED = 8
"""Questions on which the forms are tried."""
_NAMED = 3


class Form(NamedTuple):
    """A way to write the gold answer of a question as a response."""

    name: str
    write: Callable[[Question], str | None]


def gold_text(reference: str) -> str:
    """Return a gold answer as people write it: a JSON text's content, else the JSON text."""
    try:
        value = json.loads(reference)
    except ValueError:
        return reference
    return value if isinstance(value, str) else reference


def _calls(question: Question) -> str | None:
    """Return gold calls of tools as lines of Action and Action Input, or None if it has none."""
    try:
        calls = json.loads(question.reference)
        return "\n".join(
            f"Action: {call['Action']}\nAction Input: {json.dumps(call['Action_Input'])}"
            for call in calls
        )
    except (ValueError, TypeError, KeyError):
        return None


FORMS = (
    Form(
        "<reasoning>, then <answer>",
        lambda q: f"<reasoning>So it is.</reasoning>\n<answer>{gold_text(q.reference)}</answer>",
    ),
    Form("\\boxed{}", lambda q: f"\\boxed{{{gold_text(q.reference)}}}"),
    Form("lines of Action and Action Input", _calls),
    Form("the answer alone", lambda q: gold_text(q.reference)),
    Form("the task's own solution", lambda q: q.solution),
)
"""Tried in this order; of equals the first is taken."""


def config_of(target: str, overrides: Sequence[str]) -> Config:
    """Return the settings by which a task is looked at: its name or file, or a configuration's."""
    if target.lower().endswith(".toml"):
        return load_config(target, overrides)
    values: dict[str, Any] = {"data": {"task": target}, "model": {"path": "demo"}}
    for override in overrides:
        apply_override(values, override)
    return validate_config(values, "--set")


def print_task_report(console: Console, target: str, overrides: Sequence[str]) -> bool:
    """Print the report; return whether a run may use the task as it is.

    Args:
        target: a task's name, its Python file, or a configuration with one task or several.
        overrides: settings of the sections `data` and `verify`; with `model.path`, prompts are also
            counted in its tokens, and too long ones left out.

    Raises:
        SrpoError: there are no such data, or a setting can't be used.
    """
    config = config_of(target, overrides)
    questions, prompts = load_questions(config), _prompts(config, target, overrides)
    if prompts is not None:
        questions = fitting(questions, config, prompts.render)
    lines = [
        *(line for name, own in questions.of_tasks.items() for line in _lines(config, name, own)),
        *(_tokens(config, questions, prompts) if prompts is not None else ()),
        *(("data", warning, NOTE) for warning in warnings_of(config, questions)),
    ]
    table = Table(show_header=False, box=None)
    for name, found, mark in lines:
        table.add_row(Text("!!", style="red") if mark == BAD else mark, Text(name), Text(found))
    console.print(table, highlight=False)
    _print_questions(console, config, questions)
    return all(mark != BAD for _, _, mark in lines)


def _prompts(config: Config, target: str, overrides: Sequence[str]) -> Prompts | None:
    """Return what renders prompts, if a model is named whose tokenizer is there; else None."""
    named = target.lower().endswith(".toml") or any(s.startswith("model.path=") for s in overrides)
    if not named or config.model.path == "random":
        return None
    demo = str(files("data") / "demo" / "policy")
    path = demo if config.model.path == "demo" else config.model.path
    return Prompts(open_tokenizer(path), config.model)


def _tokens(config: Config, questions: Questions, prompts: Prompts) -> Iterator[Line]:
    """Say how long prompts are in the model's tokens, and which hold special ones."""
    for split, own in (("train", questions.train), ("test", questions.test)):
        lengths = [
            len(prompts.render(question.messages)[1]) for question in own[:: -(-len(own) // JUDGED)]
        ]
        found = (
            f"prompts of {median(lengths):,.0f} tokens in the middle, {max(lengths):,} at most, by "
            f"the tokenizer of {config.model.path}"
        )
        yield split, found, FINE
    for found in special_texts(questions, prompts.tokenizer):
        yield "data", found, NOTE


def _lines(config: Config, name: str, own: TaskQuestions) -> Iterator[Line]:
    entry = config.data.sources[name]
    title = f"{name}: " if config.data.mixed else ""
    yield f"{title}task", f"{open_task(entry.task).VERIFIER}, from {entry.path or entry.task}", FINE
    yield f"{title}questions", f"{count(len(own.train))} train, {count(len(own.test))} test", FINE
    for split, questions in (("train", own.train), ("test", own.test)):
        yield f"{title}{split}", _lengths(questions), FINE
    every = [*own.train, *own.test]
    chosen = every[:: -(-len(every) // JUDGED)]
    verify = config.verify
    limits = (verify.workers, verify.timeout_seconds, verify.memory_mb)
    with VerifierPool(judge, entry.task, *limits, prepare=open_task) as pool:
        check = _GoldCheck(pool, chosen, verify.success_threshold)
        for what, found, mark in check.lines():
            yield f"{title}{what}", found, mark


def _lengths(questions: Sequence[Question]) -> str:
    prompts = [sum(len(turn.content) for turn in q.messages) for q in questions]
    golds = [len(gold_text(q.reference)) for q in questions]
    return (
        f"prompts of {median(prompts):,.0f} characters in the middle, {max(prompts):,} at most; "
        f"gold answers of {median(golds):,.0f}, {max(golds):,} at most"
    )


class _GoldCheck:
    """Judges gold answers, empty responses and answers of other questions."""

    def __init__(self, pool: VerifierPool, questions: Sequence[Question], threshold: float) -> None:
        self._pool, self._questions, self._threshold = pool, questions, threshold

    def lines(self) -> Iterator[Line]:
        """Say what the verifier makes of them."""
        form = self._form()
        if form is None:
            first = self._verdicts(FORMS[0], self._questions[:1], self._questions[:1])[0]
            yield (
                "gold answers",
                f"written as {', '.join(form.name for form in FORMS)}, none is judged right, so "
                f"they can't be checked ({_said(first)})",
                NOTE if first.error is None else BAD,
            )
        else:
            yield self._gold(form)
            yield from self._others(form)
        yield self._empty()

    def _form(self) -> Form | None:
        """Return the form in which most of some gold answers are judged right; None: none is."""
        some = self._questions[:: -(-len(self._questions) // _TRIED)]
        right = [sum(self._right(form, some)) for form in FORMS]
        return FORMS[right.index(max(right))] if max(right) else None

    def _right(self, form: Form, questions: Sequence[Question]) -> list[bool]:
        return [self._is_right(v) for v in self._verdicts(form, questions, questions)]

    def _verdicts(
        self, form: Form, answers: Sequence[Question], asked: Sequence[Question]
    ) -> list[Verdict]:
        """Judge gold answers of questions as answers to other ones."""
        texts = [form.write(question) or "" for question in answers]
        golds = [question.reference for question in asked]
        return self._pool.verify(list(zip(texts, golds, strict=True)))

    def _is_right(self, verdict: Verdict) -> bool:
        return verdict.error is None and verdict.reward >= self._threshold

    def _gold(self, form: Form) -> Line:
        verdicts = self._verdicts(form, self._questions, self._questions)
        pairs = zip(self._questions, verdicts, strict=True)
        wrong = [(q, verdict) for q, verdict in pairs if not self._is_right(verdict)]
        number = f"{count(len(verdicts) - len(wrong))} of {count(len(verdicts))}"
        found = f"{number} are judged right, written as {form.name}"
        for question, verdict in wrong[:_NAMED]:
            gold = printable(gold_text(question.reference), 60)
            found += f"; {question.prompt_id}: {gold} ({_said(verdict)})"
        return "gold answers", found, BAD if wrong else FINE

    def _others(self, form: Form) -> Iterator[Line]:
        """Judge the gold answer of the next question that has another one."""
        pairs = []
        for number, question in enumerate(self._questions):
            around = (*self._questions[number:], *self._questions[:number])
            other = next((q for q in around if q.reference != question.reference), None)
            if other is not None:
                pairs.append((other, question))
        if not pairs:
            return
        verdicts = self._verdicts(form, [o for o, _ in pairs], [q for _, q in pairs])
        right = [
            pair for pair, verdict in zip(pairs, verdicts, strict=True) if self._is_right(verdict)
        ]
        found = f"{count(len(right))} of {count(len(pairs))} are judged right with another's answer"
        for other, question in right[:_NAMED]:
            golds = [printable(gold_text(q.reference), 40) for q in (other, question)]
            found += f"; {question.prompt_id}: {golds[0]} for {golds[1]}"
        yield "other answers", found, NOTE if right else FINE

    def _empty(self) -> Line:
        verdicts = self._pool.verify([("", question.reference) for question in self._questions])
        right = sum(self._is_right(verdict) for verdict in verdicts)
        found = f"{count(right)} of {count(len(verdicts))} are judged right"
        return "empty responses", found, BAD if right else FINE


def _said(verdict: Verdict) -> str:
    """Return what a verifier said of a response, in one line."""
    words = verdict.error or verdict.feedback or f"reward {verdict.reward:g}"
    return printable(" ".join(words.split()), 100)


def _print_questions(console: Console, config: Config, questions: Questions) -> None:
    """Print the first questions of training, in the order in which a run takes them."""
    generate = config.generate.model_copy(update={"questions": SHOWN})
    first = questions.of_step(config.model_copy(update={"generate": generate}), 0)
    console.print(f"\nThe first {SHOWN} questions of a run with seed {config.run.seed}:")
    for name, question in zip(first.tasks, first.questions, strict=True):
        of = f" ({name})" if config.data.mixed else ""
        console.print(Text(f"\n{question.prompt_id}{of}", style="bold"))
        for turn in question.messages:
            console.print(Text(f"{turn.role}: {_ends(turn.content)}"), soft_wrap=True)
        console.print(Text(f"gold: {_ends(question.reference)}"), soft_wrap=True)


def _ends(text: str) -> str:
    """Return a text for the terminal, a long one without its middle."""
    left_out = len(text) - _START - _END
    if left_out > 0:
        text = f"{text[:_START]} … ({left_out:,} characters) … {text[-_END:]}"
    return printable(text, newlines=True)
