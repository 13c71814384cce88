"""What tasks offer teachers beside rollouts: worked solutions, gold answers (`route.sources`)."""

from collections.abc import Callable, Iterable

from data.registry import gold_wording
from flows.session.questions import Questions, SelectedQuestions
from pipeline.config.sections import Config
from pipeline.errors import ConfigError
from pipeline.methods import METHODS


def wants(config: Config, *sources: str) -> bool:
    """Tell whether teachers are shown something from one of these sources."""
    return METHODS[config.route.method].has_teacher and bool({*sources} & {*config.route.sources})


def golds(config: Config) -> dict[str, Callable[[str], str]]:
    """Return what words a gold answer, for each task of a run that offers it."""
    if not wants(config, "gold"):
        return {}
    found = {name: gold_wording(entry.task) for name, entry in config.data.sources.items()}
    return {name: wording for name, wording in found.items() if wording is not None}


def solutions(asked: SelectedQuestions) -> dict[tuple[str, str], str]:
    """Return the worked solutions of a step's questions, by task and question."""
    return {
        (task, question.prompt_id): question.solution
        for task, question in zip(asked.tasks, asked.questions, strict=True)
        if question.solution is not None
    }


def offered(config: Config, asked: SelectedQuestions) -> dict[tuple[str, str, str], str]:
    """Return what teachers may be shown of questions, by source, task and question."""
    worked = solutions(asked) if wants(config, "solution") else {}
    found = {("solution", *question): text for question, text in worked.items()}
    words = golds(config)
    for task, question in zip(asked.tasks, asked.questions, strict=True):
        if task in words:
            found["gold", task, question.prompt_id] = words[task](question.reference)
    return found


def expect_gold(config: Config) -> None:
    """Refuse gold answers as a source where no task of the run offers them.

    Raises:
        ConfigError: naming the tasks.
    """
    if wants(config, "gold") and not golds(config):
        raise ConfigError(
            f"route.sources has gold, but {_named(config.data.sources)} offers none: leave it "
            "out, or give the task a function gold(reference) that words it"
        )


def expect_offered(config: Config, questions: Questions) -> None:
    """Refuse sources that no task of the run has anything in, or that can't be worded.

    Raises:
        ConfigError: naming the source and the tasks.
        DataError: naming the answer that a user's function does not word.
    """
    expect_gold(config)
    for name, words in golds(config).items():
        for question in questions.of_tasks[name].train:
            words(question.reference)
    known = any(question.solution is not None for question in questions.train)
    if wants(config, "solution") and not known:
        raise ConfigError(
            f"route.sources has solution, but no training question of "
            f"{_named(config.data.sources)} has a worked solution: leave it out"
        )


def _named(tasks: Iterable[str]) -> str:
    return f"task {' + '.join(tasks)}"
