"""The questions of a run: loaded, checked against the prompt limit, dealt out step by step."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from flows.session.question_mixture import deal
from flows.session.repeated_prompts import repeat_warnings
from pipeline.config.sections import Config
from pipeline.errors import ConfigError, DataError
from pipeline.files.durable import digest_of
from pipeline.policy.model_loading import open_tokenizer
from pipeline.policy.policy import Policy
from pipeline.policy.prompts import Prompts
from pipeline.run.run import Run
from pipeline.seeds import stream_positions
from pipeline.stage.contract import Render
from pipeline.task import Question, Split
from pipeline.text import printable

T = TypeVar("T")
NAMED_BAD_ROWS = 3
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
        bad_rows: what is wrong with the rows that are left out for it, by split.
        duplicates: test questions left out because their prompt is in train.
    """

    train: Sequence[Question]
    test: Sequence[Question]
    skipped: Mapping[Split, int] = field(default_factory=dict)
    bad_rows: Mapping[Split, Sequence[str]] = field(default_factory=dict)
    duplicates: int = 0


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
        return self._by_split({name: own.skipped for name, own in self.of_tasks.items()})

    @property
    def bad_rows(self) -> dict[str, Sequence[str]]:
        """Return what is wrong with rows that are left out, keyed as `skipped` is."""
        return self._by_split({name: own.bad_rows for name, own in self.of_tasks.items()})

    @property
    def duplicates(self) -> int:
        """Return how many test questions are left out because their prompt is in train."""
        return sum(own.duplicates for own in self.of_tasks.values())

    def _by_split(self, of_tasks: Mapping[str, Mapping[Split, T]]) -> dict[str, T]:
        alone = len(of_tasks) == 1
        return {
            split if alone else f"{name} {split}": value
            for name, splits in of_tasks.items()
            for split, value in splits.items()
        }

    def facts(self) -> dict[str, Any]:
        """Return what a run's record says of its questions; of what was left out only if any."""
        facts: dict[str, Any] = {
            "questions_digest": self.digest(),
            "skipped_questions": self.skipped,
        }
        if self.bad_rows:
            facts["bad_rows"] = {split: len(rows) for split, rows in self.bad_rows.items()}
        if self.duplicates:
            facts["test_duplicates"] = self.duplicates
        return facts

    def digest(self) -> str:
        """Return the SHA-256 of all questions, gold answers and solutions."""
        return digest_of([[q.recorded() for q in split] for split in (self.train, self.test)])

    def of_step(self, config: Config, step: int) -> SelectedQuestions:
        """Return the questions of a training step: the next ones of each task's seeded epochs."""
        count = config.generate.questions
        return self.stretch(config, "epoch", step * count, count)

    def stretch(self, config: Config, purpose: str, start: int, count: int) -> SelectedQuestions:
        """Return `count` training questions from `start` on, of a purpose's own seeded epochs.

        How many are a task's, its weight says.
        """
        weights = {name: entry.weight for name, entry in config.data.sources.items()}
        names, before = deal(weights, start, count)
        own = {}
        for name, questions in self.of_tasks.items():
            stream = f"{purpose}/{name}" if config.data.mixed else purpose
            size, number = len(questions.train), names.count(name)
            positions = stream_positions(config.run.seed, stream, size, before[name], number)
            own[name] = iter([questions.train[position] for position in positions])
        return SelectedQuestions(names, [next(own[name]) for name in names])

    def of_evaluation(self, config: Config) -> SelectedQuestions:
        """Return the test questions that are evaluated, one task after the other."""
        limit = config.evaluate.questions
        pairs = [(name, q) for name, own in self.of_tasks.items() for q in own.test[:limit]]
        return SelectedQuestions([name for name, _ in pairs], [question for _, question in pairs])


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
        skipped: dict[Split, int] = {
            "train": len(own.train) - len(train),
            "test": len(own.test) - len(test),
        }
        kept[name] = replace(own, train=train, test=test, skipped=skipped)
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
    return Prompts(open_tokenizer(run.tokenizer_path()), run.config.model).render


def warnings_of(config: Config, questions: Questions) -> list[str]:
    """Return what is allowed but should be known before a training starts."""
    found = []
    if config.generate.top_p < 1 or config.generate.top_k > 0:
        found.append(
            "generate.top_p or top_k cuts the sampling distribution: importance ratios are biased"
        )
    repeats = repeat_warnings(questions.train, questions.test)
    return [*found, *left_out(config, questions), *repeats]


def special_texts(questions: Questions, tokenizer: Any) -> list[str]:
    """Say how many questions hold the text of a special token, and so the token itself."""
    special = [
        str(t) for t in tokenizer.added_tokens_decoder.values() if t.special and str(t).strip()
    ]
    found = []
    for split, own in (("train", questions.train), ("test", questions.test)):
        whole = "\0".join(turn.content for question in own for turn in question.messages)
        inside = [token for token in special if token in whole]
        holding = [
            question
            for question in own
            if any(token in turn.content for turn in question.messages for token in inside)
        ]
        if holding:
            found.append(
                f"{len(holding)} of {len(own)} questions of the {split} split hold "
                f"{printable(', '.join(inside), 100)} (first {holding[0].prompt_id}), which the "
                "tokenizer reads as its special token, not as text"
            )
    return found


def left_out(config: Config, questions: Questions) -> list[str]:
    """Return which questions a run or an evaluation goes without, and why."""
    found = []
    for split, count in questions.skipped.items():
        if count:
            found.append(
                f"{count} questions of the {split} split are longer than data.max_prompt_length = "
                f"{config.data.max_prompt_length} and left out"
            )
    for split, rows in questions.bad_rows.items():
        more = " …" if len(rows) > NAMED_BAD_ROWS else ""
        found.append(
            f"{len(rows)} rows of the {split} split can't be used and are left out "
            f"(data.on_bad_row=skip): {'; '.join(rows[:NAMED_BAD_ROWS])}{more}"
        )
    if questions.duplicates:
        found.append(
            f"{questions.duplicates} questions of the test split are left out, since their prompt "
            "is in train (data.drop_test_duplicates)"
        )
    return found


def stop_line(run: Run) -> str:
    """Name the tokens that end a response, as run.json records them; old runs don't."""
    found = run.record.get("stop_tokens")
    if found is None:
        return "responses end as its srpo had them end: its run.json names no stop tokens"
    named = (f"{printable(t['token'], 60)} ({t['id']}: {', '.join(t['from'])})" for t in found)
    return f"responses end with {', '.join(named)}"


def expect_training_context(config: Config, positions: int | None) -> None:
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


def expect_evaluation_context(config: Config, positions: int | None) -> None:
    """Refuse evaluation limits that a context of so many positions can't hold."""
    _check_context(
        "data.max_prompt_length + evaluate.max_response_length",
        config.data.max_prompt_length + config.evaluate.max_response_length,
        config,
        positions,
    )


def positions_of(policy: Policy) -> int | None:
    """Return how many positions a policy's model has; None: it doesn't say."""
    positions: int | None = getattr(policy.model.config, "max_position_embeddings", None)
    return positions


def model_positions(folder: Path) -> int | None:
    """Return how many positions the model in a folder has, by its config.json; None: unknown."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # opening the model says what is wrong
        return None
    positions = found.get("max_position_embeddings") if isinstance(found, dict) else None
    return positions if isinstance(positions, int) else None


def _check_context(names: str, needed: int, config: Config, positions: int | None) -> None:
    if positions is not None and needed > positions:
        raise ConfigError(
            f"{names} is {needed} tokens, but the model at {config.model.path} has {positions} "
            "positions: lower the limits"
        )
