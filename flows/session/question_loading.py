"""Loading of a run's questions from its tasks: checked, named, bad rows left out if they may be.

Idea: a task says which rows it can't use and why; whether a run may go without them is decided
here, for every task alike. So is what a question's id is: as the task has it, but if an id is in
both splits all of that task's ids begin with their split, and in a mixture with the task's name.
"""

from collections.abc import Sequence
from dataclasses import replace

from data.registry import WITHOUT_FILES, open_task
from data.rows import LONGEST_ID
from flows.session.questions import Questions, TaskQuestions, fitting
from flows.session.repeated_prompts import keyed, trained_on
from pipeline.config.data import DataSection, TaskEntry
from pipeline.config.sections import Config
from pipeline.errors import DataError, RowError, SrpoError, StoreError
from pipeline.run.run import Run
from pipeline.stage.contract import Render
from pipeline.task import BadRows, Message, Question, Split, usable_questions
from pipeline.text import encodable, one_line, printable

SPLITS: tuple[Split, Split] = ("train", "test")
MOST_BAD_ROWS = 0.25
"""Largest share of a split's rows that may be left out; beyond it task and data don't fit."""


def load_questions(config: Config) -> Questions:
    """Load both splits of every configured task, without what the settings leave out.

    Raises:
        DataError: there are no such data, rows of them can't be used, or nothing is left.
    """
    data = config.data
    loaded = Questions({name: _load_task(name, e, data) for name, e in data.sources.items()})
    return _without_duplicates(loaded) if data.drop_test_duplicates else loaded


def _without_duplicates(loaded: Questions) -> Questions:
    """Leave out test questions whose prompt is in any task's training split."""
    repeats = trained_on(keyed(loaded.test), keyed(loaded.train))
    gone = {id(repeat.again) for repeat in repeats}
    kept = {}
    for name, own in loaded.of_tasks.items():
        test = [question for question in own.test if id(question) not in gone]
        if not test:
            raise DataError(
                f"task {name}: every prompt of its test split is also in train, so "
                "data.drop_test_duplicates leaves no question"
            )
        kept[name] = replace(own, test=test, duplicates=len(own.test) - len(test))
    return Questions(kept)


def _load_task(name: str, entry: TaskEntry, data: DataSection) -> TaskQuestions:
    """Load a task, and make its questions' ids differ from those of the other split and tasks."""
    splits: dict[Split, list[Question]] = {}
    bad_rows: dict[Split, list[str]] = {}
    for split in SPLITS:
        splits[split], errors = _load(name, entry, split, data.on_bad_row)
        if errors:
            bad_rows[split] = [one_line(error) for error in errors]
    if not {q.prompt_id for q in splits["train"]}.isdisjoint(q.prompt_id for q in splits["test"]):
        splits = {split: _named(split, questions) for split, questions in splits.items()}
    if data.mixed:
        splits = {split: _named(name, questions) for split, questions in splits.items()}
    return TaskQuestions(splits["train"], splits["test"], bad_rows=bad_rows)


def _named(name: str, questions: Sequence[Question]) -> list[Question]:
    """Return questions whose ids begin with a name."""
    return [replace(question, prompt_id=f"{name}/{question.prompt_id}") for question in questions]


def _load(
    name: str, entry: TaskEntry, split: Split, on_bad_row: str
) -> tuple[list[Question], list[RowError]]:
    """Return the questions of a split, and what is wrong with the rows that are left out."""
    if entry.path is not None and entry.task in WITHOUT_FILES:
        raise DataError(
            f"data.path is {entry.path}, but task {entry.task} reads no files: it makes its "
            "questions itself; unset data.path, or choose another task"
        )
    errors: list[RowError] = []
    try:
        loaded: object = open_task(entry.task).load(entry.path, split)
    except BadRows as bad:
        loaded, errors = bad.questions, [*bad.errors]
    except RowError as error:
        if on_bad_row == "stop":
            raise
        raise DataError(
            f"{error}; the load of task {name} ends at its first bad row, so it can't be left out: "
            "write it with pipeline.task.usable_questions (docs/tasks.md)"
        ) from error
    except SrpoError:
        raise
    except (Exception, SystemExit) as error:
        # A task may be any code of the user's, which may raise anything.
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"task {name}: load of its {split} split raised {reason}") from error
    if not isinstance(loaded, list) or not all(isinstance(q, Question) for q in loaded):
        raise DataError(f"task {name}: load must return a list of pipeline.task.Question")
    try:
        questions = usable_questions(loaded, _Check(f"task {name}: {split} split"))
    except BadRows as bad:
        questions, errors = bad.questions, [*errors, *bad.errors]
    if errors:
        _expect_skippable(BadRows(errors, questions), on_bad_row)
    if not questions:
        raise DataError(f"task {name}: its {split} split has no questions")
    return questions, errors


def _expect_skippable(bad: BadRows, on_bad_row: str) -> None:
    """Refuse bad rows that may not be left out: any, unless the setting says so, or too many."""
    few = len(bad.errors) <= MOST_BAD_ROWS * (len(bad.errors) + len(bad.questions))
    if on_bad_row == "stop":
        advice = "; data.on_bad_row=skip leaves out what can't be used" if few else ""
        raise DataError(f"{bad}{advice}") from bad
    if not few:
        raise DataError(
            f"{bad}: more than the {MOST_BAD_ROWS:.0%} of a split that data.on_bad_row=skip may "
            "leave out"
        ) from bad


class _Check:
    """Checks questions, one after the other, for what tables could not hold or tell apart."""

    def __init__(self, place: str) -> None:
        self._place, self._number, self._seen = place, 0, set[str]()

    def __call__(self, question: Question) -> Question:
        """Return the question.

        Raises:
            RowError: it can't be used.
        """
        self._number += 1
        where, name = f"{self._place}, question {self._number}", question.prompt_id
        typable = isinstance(name, str) and printable(name) == name
        if not typable or not 0 < len(name) <= LONGEST_ID:
            raise RowError(
                f"{where}: prompt_id is {printable(repr(name), 60)}, expected 1 to {LONGEST_ID} "
                "characters that can be seen and typed"
            )
        if name in self._seen:
            raise RowError(f"{where}: prompt_id {name} comes twice")
        turns = question.messages
        texts = [t for turn in turns if isinstance(turn, Message) for t in turn]
        shaped = isinstance(turns, tuple) and len(texts) == 2 * len(turns) > 0
        if not shaped or not all(isinstance(t, str) for t in texts):
            raise RowError(
                f"{where}: messages are {printable(repr(turns), 60)}, expected a tuple of Message"
            )
        if not isinstance(question.reference, str):
            raise RowError(
                f"{where}: reference is {printable(repr(question.reference), 60)}, expected JSON "
                "text"
            )
        solutions = [t for t in (question.solution, question.demonstration) if t is not None]
        if not all(isinstance(t, str) and t.strip() for t in solutions):
            raise RowError(f"{where}: solution and demonstration must be texts, or None")
        if question.demonstration is not None and question.solution is None:
            raise RowError(f"{where}: there is a demonstration, but no solution")
        if any(encodable(text) != text for text in (*texts, question.reference, *solutions)):
            raise RowError(f"{where}: a text has half of a surrogate pair")
        self._seen.add(name)
        return question


def recorded_questions(run: Run, render: Render) -> Questions:
    """Load the questions that a run was begun with.

    Raises:
        StoreError: they are others now.
    """
    questions, data = fitting(load_questions(run.config), run.config, render), run.config.data
    if questions.digest() != run.record["questions_digest"]:
        whose = data.title if data.mixed else data.path or "the task"
        raise StoreError(
            f"{run.root}: questions or answers of {whose} changed "
            "since the run began; restore them, or start another run"
        )
    return questions
