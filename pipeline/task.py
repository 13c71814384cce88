"""What a task is: questions with gold answers, and a verifier. Tasks themselves live in `data/`.

A task is any module (a shipped one, or one Python file of the user's) with

    VERIFIER: str                                            name and version, e.g. "math/1"
    def load(path: str | None, split: Split) -> list[Question]
    def verify(response: str, reference: str) -> Verdict

and, if it can word feedback that never tells the gold answer (`verify.feedback = "hint"`),

    def hint(response: str, reference: str) -> str | None    on responses below the full reward

`load` rejects what can't be scored (`BadRows`, see `usable_questions`). `verify` and
`hint` are pure functions of two texts, both untrusted; they run in a child process with bounded
time and memory.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from pipeline.errors import DataError, RowError

T = TypeVar("T")
Split = Literal["train", "test"]
Feedback = Literal["full", "hint"]
"""What the feedback of a verdict is: the verifier's own, or the task's hint."""


class Message(NamedTuple):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Question:
    """One prompt of a task.

    Attributes:
        prompt_id: unique and stable within the task.
        messages: system (optional) and user turns; the last one is the user's question.
        reference: the gold answer as JSON text, what `verify` gets.
        solution: the task's own worked solution, if it has one: a response that `verify` judges
            correct.
        demonstration: the same solution in other words, if there is one: what a teacher is shown
            when it learns to use a demonstration.
    """

    prompt_id: str
    messages: tuple[Message, ...]
    reference: str
    solution: str | None = None
    demonstration: str | None = None

    def asked(self) -> dict[str, Any]:
        """Return what tables hold of it: all but the solution."""
        return {
            "prompt_id": self.prompt_id,
            "messages": [list(message) for message in self.messages],
            "reference": self.reference,
        }

    def recorded(self) -> dict[str, Any]:
        """Return what digests are taken of; a question without a solution has none there."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one response.

    Attributes:
        reward: any number in [0, 1]; correct means reward >= `verify.success_threshold`.
        format_ok: whether the response keeps the task's output format, apart from being right.
        prediction: the answer found in the response, if any.
        feedback: environment feedback for the teacher prompt (off by default), if any.
        error: why the response could not be judged, if so; nothing is learned from it then.
    """

    reward: float
    format_ok: bool
    prediction: str | None = None
    feedback: str | None = None
    error: str | None = None


class BadRows(DataError):
    """A split has rows that can't be used; raised by `load` when it has read all of them.

    Attributes:
        errors: of these rows, in order.
        questions: those of all other rows, in order.
    """

    def __init__(self, errors: Sequence[RowError], questions: Sequence[Question]) -> None:
        count = len(errors) + len(questions)
        more = f"; in all, {len(errors)} of {count} rows can't be used" if len(errors) > 1 else ""
        super().__init__(f"{errors[0]}{more}")
        self.errors, self.questions = tuple(errors), list(questions)


def usable_questions(rows: Iterable[T], question: Callable[[T], Question]) -> list[Question]:
    """Return the question of each row: what a task's `load` does with rows that may be bad.

    Args:
        question: returns a row's question, or raises `RowError` saying where the row is and what
            is wrong with it.

    Raises:
        BadRows: it did; whether the others are used, `data.on_bad_row` decides.
    """
    questions, errors = [], []
    for row in rows:
        try:
            questions.append(question(row))
        except RowError as error:
            errors.append(error)
    if errors:
        raise BadRows(errors, questions)
    return questions


class Task(Protocol):
    """The shape of a task module."""

    VERIFIER: str

    def load(self, path: str | None, split: Split) -> list[Question]:
        """Return all questions of a split in file order."""

    def verify(self, response: str, reference: str) -> Verdict:
        """Judge one response."""


class Judging(Protocol):
    """What judges pairs of response and reference: a pool of processes, or canned verdicts."""

    def verify(self, pairs: Sequence[tuple[str, str]]) -> list[Verdict]:
        """Return the verdicts, in order."""


class Verifier(NamedTuple):
    """A task's verifier: its name and version, and what runs it."""

    version: str
    pool: Judging
