"""The questions of a run: loaded, checked against the prompt limit, dealt out step by step."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import NamedTuple

from data.registry import open_task
from data.rows import LONGEST_ID
from flows.session.question_mixture import deal
from pipeline.config.data import TaskEntry
from pipeline.config.sections import Config
from pipeline.errors import ConfigError, DataError, SrpoError, StoreError
from pipeline.files.durable import digest_of
from pipeline.policy.model_loading import open_tokenizer
from pipeline.policy.policy import Policy
from pipeline.policy.prompts import render_prompt
from pipeline.run.run import Run
from pipeline.seeds import stream_positions
from pipeline.stage.contract import Render
from pipeline.task import Message, Question, Split
from pipeline.text import encodable, printable

LONGEST_TOKEN = 1024
"""Characters of a token at most: no longer prompt than that is given to a tokenizer."""


class SelectedQuestions(NamedTuple):
    """Questions, and the name of the task of each."""

    tasks: list[str]
    questions: list[Question]


@dataclass(frozen=True)
class TaskQuestions:
    """The questions of one task.

    Attributes:
        skipped: questions left out because their prompt is too long, by split.
    """

    train: Sequence[Question]
    test: Sequence[Question]
    skipped: Mapping[str, int]


@dataclass(frozen=True)
class Questions:
    """What a run trains and evaluates on, by name of the task."""

    of_tasks: Mapping[str, TaskQuestions]

    @property
    def train(self) -> list[Question]:
        """Return the training questions of all tasks."""
        return [question for own in self.of_tasks.values() for question in own.train]

    @property
    def test(self) -> list[Question]:
        """Return the test questions of all tasks."""
        return [question for own in self.of_tasks.values() for question in own.test]

    @property
    def skipped(self) -> dict[str, int]:
        """Return how many questions were left out, by split; in a mixture by task and split."""
        alone = len(self.of_tasks) == 1
        return {
            split if alone else f"{name} {split}": count
            for name, own in self.of_tasks.items()
            for split, count in own.skipped.items()
        }

    def digest(self) -> str:
        """Return the SHA-256 of all questions and gold answers."""
        return digest_of([[asdict(q) for q in split] for split in (self.train, self.test)])

    def of_step(self, config: Config, step: int) -> SelectedQuestions:
        """Return the questions of a training step: the next ones of each task's seeded epochs.

        How many are a task's, its weight says.
        """
        count, seed = config.generate.questions, config.run.seed
        weights = {name: entry.weight for name, entry in config.data.sources.items()}
        names, before = deal(weights, step * count, count)
        own = {}
        for name, questions in self.of_tasks.items():
            purpose = f"epoch/{name}" if config.data.mixed else "epoch"
            size, number = len(questions.train), names.count(name)
            positions = stream_positions(seed, purpose, size, before[name], number)
            own[name] = iter([questions.train[position] for position in positions])
        return SelectedQuestions(names, [next(own[name]) for name in names])

    def of_evaluation(self, config: Config) -> SelectedQuestions:
        """Return the test questions that are evaluated, one task after the other."""
        limit = config.evaluate.questions
        pairs = [(name, q) for name, own in self.of_tasks.items() for q in own.test[:limit]]
        return SelectedQuestions([name for name, _ in pairs], [question for _, question in pairs])


def load_questions(config: Config) -> Questions:
    """Load both splits of every configured task."""
    sources = config.data.sources.items()
    return Questions({name: _load_task(name, e, bool(config.data.mixed)) for name, e in sources})


def _load_task(name: str, entry: TaskEntry, mixed: bool) -> TaskQuestions:
    """Load a task; in a mixture its name goes before its questions' ids, which others may have."""
    splits = _load(name, entry, "train"), _load(name, entry, "test")
    if mixed:
        train, test = ([_named(name, question) for question in split] for split in splits)
        return TaskQuestions(train, test, {})
    return TaskQuestions(*splits, {})


def _named(name: str, question: Question) -> Question:
    return replace(question, prompt_id=f"{name}/{question.prompt_id}")


def _load(name: str, entry: TaskEntry, split: Split) -> list[Question]:
    try:
        questions: object = open_task(entry.task).load(entry.path, split)
    except SrpoError:
        raise
    except Exception as error:
        # A task may be any code of the user's, which may raise anything.
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"task {name}: load of its {split} split raised {reason}") from error
    if not isinstance(questions, list) or not all(isinstance(q, Question) for q in questions):
        raise DataError(f"task {name}: load must return a list of pipeline.task.Question")
    if not questions:
        raise DataError(f"task {name}: its {split} split has no questions")
    _check_questions(questions, f"task {name}: {split} split")
    return questions


def _check_questions(questions: Sequence[Question], place: str) -> None:
    """Refuse questions that tables could not hold or tell apart."""
    seen: set[object] = set()
    for number, question in enumerate(questions, start=1):
        where, name = f"{place}, question {number}", question.prompt_id
        typable = isinstance(name, str) and printable(name) == name
        if not typable or not 0 < len(name) <= LONGEST_ID:
            raise DataError(
                f"{where}: prompt_id is {printable(repr(name), 60)}, expected 1 to {LONGEST_ID} "
                "characters that can be seen and typed"
            )
        if name in seen:
            raise DataError(f"{where}: prompt_id {name} comes twice")
        seen.add(name)
        turns = question.messages
        texts = [t for turn in turns if isinstance(turn, Message) for t in turn]
        shaped = isinstance(turns, tuple) and len(texts) == 2 * len(turns) > 0
        if not shaped or not all(isinstance(t, str) for t in texts):
            raise DataError(
                f"{where}: messages are {printable(repr(turns), 60)}, expected a tuple of Message"
            )
        if not isinstance(question.reference, str):
            raise DataError(
                f"{where}: reference is {printable(repr(question.reference), 60)}, expected JSON "
                "text"
            )
        if any(encodable(text) != text for text in (*texts, question.reference)):
            raise DataError(f"{where}: a text has half of a surrogate pair")


def fitting(questions: Questions, config: Config, render: Render) -> Questions:
    """Leave out questions whose prompt is over `data.max_prompt_length` tokens, and count them.

    Raises:
        DataError: no question of a split fits.
    """
    limit, kept = config.data.max_prompt_length, {}
    for name, own in questions.of_tasks.items():
        of = f"{name} " if config.data.mixed else ""
        train = _short_enough(own.train, f"{of}train", limit, render)
        test = _short_enough(own.test, f"{of}test", limit, render)
        skipped = {"train": len(own.train) - len(train), "test": len(own.test) - len(test)}
        kept[name] = TaskQuestions(train, test, skipped)
    return Questions(kept)


def _short_enough(
    questions: Sequence[Question], split: str, limit: int, render: Render
) -> list[Question]:
    lengths = [_tokens(question, render, limit) for question in questions]
    kept = [q for q, n in zip(questions, lengths, strict=True) if n <= limit]
    if not kept:
        raise DataError(
            f"every prompt of the {split} split is longer than data.max_prompt_length = "
            f"{limit} tokens (the shortest has {min(lengths)})"
        )
    return kept


def _tokens(question: Question, render: Render, limit: int) -> int:
    """Return the length of a prompt; of one that is absurdly long, only that it is over."""
    characters = sum(len(message.content) for message in question.messages)
    if characters > LONGEST_TOKEN * limit:
        return max(limit + 1, characters // LONGEST_TOKEN)
    return len(render(question.messages)[1])


def tokenizer_render(run: Run) -> Render:
    """Return the function that renders prompts, by the tokenizer that a run keeps."""
    tokenizer = open_tokenizer(run.tokenizer_path())
    return partial(render_prompt, tokenizer, run.config.model.chat_template_kwargs)


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


def warnings_of(config: Config, questions: Questions) -> list[str]:
    """Return what is allowed but should be known before a training starts."""
    found = []
    if config.generate.top_p < 1 or config.generate.top_k > 0:
        found.append(
            "generate.top_p or top_k cuts the sampling distribution: importance ratios are biased"
        )
    for split, count in questions.skipped.items():
        if count:
            found.append(
                f"{count} questions of the {split} split are longer than data.max_prompt_length = "
                f"{config.data.max_prompt_length} and left out"
            )
    return found


def check_training_context(config: Config, policy: Policy) -> None:
    """Refuse training limits that the model's context can't hold."""
    expect_context(config, _positions(policy))


def expect_context(config: Config, positions: int | None) -> None:
    """Refuse training limits that a context of so many positions can't hold."""
    response = config.generate.max_response_length
    _check_context(
        "data.max_prompt_length + generate.max_response_length",
        config.data.max_prompt_length + response,
        config,
        positions,
    )
    if config.route.method != "grpo":
        _check_context(
            "route.max_teacher_prompt_length + generate.max_response_length",
            config.route.max_teacher_prompt_length + response,
            config,
            positions,
        )


def check_evaluation_context(config: Config, policy: Policy) -> None:
    """Refuse evaluation limits that the model's context can't hold."""
    _check_context(
        "data.max_prompt_length + evaluate.max_response_length",
        config.data.max_prompt_length + config.evaluate.max_response_length,
        config,
        _positions(policy),
    )


def _positions(policy: Policy) -> int | None:
    positions: int | None = getattr(policy.model.config, "max_position_embeddings", None)
    return positions


def _check_context(names: str, needed: int, config: Config, positions: int | None) -> None:
    if positions is not None and needed > positions:
        raise ConfigError(
            f"{names} is {needed} tokens, but the model at {config.model.path} has {positions} "
            "positions: lower the limits"
        )
