"""The work of `srpo warmstart`: its steps, states that survive a kill, and the folder at the end.

While it goes on, OUT.unfinished holds

    begun.json     what it was begun with: settings, examples, versions, hardware
    000010.json    losses of the first 10 steps
    000010/        the state after them: a snapshot, with optimizer

The same command goes on from the newest state, and ends with the same bytes. OUT appears whole at
the end: a Hugging Face folder, or with model.lora an adapter in peft's format. Its warmstart.json
holds what begun.json does, every step's loss, and the SHA-256 of each file.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flows.session.new_run import initial_policy, surroundings, with_prompt_time
from flows.session.question_loading import load_questions
from flows.session.questions import (
    Questions,
    expect_training_context,
    fitting,
    left_out,
    positions_of,
)
from flows.session.verifiers import code_digest
from flows.warmstart.examples import (
    Example,
    examples_of,
    expect_right,
    with_solutions,
    without_solutions,
)
from flows.warmstart.learning import StepResult, learn_step
from pipeline.config.sections import Config
from pipeline.distributed.process_setup import configure_process
from pipeline.errors import ConfigError, StoreError
from pipeline.files.durable import (
    digest_of,
    file_digest,
    remove_file,
    remove_folder,
    remove_leftovers,
)
from pipeline.files.sealed_json import read_sealed, write_sealed
from pipeline.machine.disk import expect_makeable
from pipeline.policy.policy import Policy, TeacherSettings
from pipeline.policy.snapshots import (
    folder_with_tokenizer,
    load_snapshot,
    save_snapshot,
    write_weights,
)
from pipeline.run.lock import RunLock
from pipeline.tables.manifest import flat
from pipeline.text import print_warnings

SAVE_EVERY = 10
"""Steps between states: a kill costs no more than these."""
RECORD, BEGUN = "warmstart.json", "begun.json"
_NO_TEACHER = TeacherSettings(kind="live", rate=0.0, mix=0.0)
"""A warm start has no teacher, so no second copy of the weights."""

OnStep = Callable[[int, StepResult], None]


class Outcome(NamedTuple):
    """A finished warm start.

    Attributes:
        steps: of all of it, those before a resume included.
        taught: examples behind the teacher's prompt.
    """

    steps: list[StepResult]
    examples: int
    taught: int
    policy_version: str


def warm_start(config: Config, out: Path, on_step: OnStep) -> Outcome:
    """Make a warm start, or go on with one that was cut short; write the policy to `out`.

    Args:
        on_step: told of each step that is made, and how many are done with it.

    Raises:
        SrpoError: it can't begin or go on; `out` is taken; a solution can't be learned.
    """
    configure_process(config.run.threads)
    if not out.name:  # a root, or where the command was given
        raise _taken(out)
    work = out.with_name(f"{out.name}.unfinished")
    expect_makeable(work)
    with RunLock(work):
        if out.exists():
            return _finished(config, out, work)
        remove_leftovers(work)
        begun = read_sealed(work / BEGUN) if (work / BEGUN).exists() else None
        config = _same_settings(config, begun, work)
        loaded = load_questions(config)
        questions = with_solutions(loaded)
        done, results, policy = _opened(config, questions, work)
        config = with_prompt_time(config, policy)
        expect_training_context(config, positions_of(policy))
        questions = fitting(questions, config, policy.render)
        print_warnings([*without_solutions(loaded), *left_out(config, questions)])
        examples = examples_of(questions, config, policy)
        facts = _facts(config, policy, examples)
        if begun is None:
            expect_right(examples, config)
            write_sealed(work / BEGUN, facts)
        else:
            _expect_same(facts, begun, work)
        size = config.warmstart.examples
        for step in range(done, config.warmstart.steps):
            sequences = [e.sequence for e in examples[step * size : (step + 1) * size]]
            version = digest_of([policy.version, facts["examples_digest"], config.recorded()])
            results.append(learn_step(policy, sequences, config, f"{step + 1:06d}-{version[:12]}"))
            on_step(step + 1, results[-1])
            if (step + 1) % SAVE_EVERY == 0 and step + 1 < config.warmstart.steps:
                _save(policy, work, step + 1, results)
        record = _write(policy, out, facts, results)
        remove_folder(work)
    return _outcome(record)


def _finished(config: Config, out: Path, work: Path) -> Outcome:
    """Return the outcome of this same warm start, if `out` is it: killed while it cleaned up."""
    leftover = (work / BEGUN).exists()
    try:
        record = read_sealed(out / RECORD)
    except (FileNotFoundError, NotADirectoryError):
        record = None
    if record is None or not leftover:
        raise _taken(out)
    _same_settings(config, record, out)
    remove_folder(work)
    return _outcome(record)


def _taken(out: Path) -> StoreError:
    return StoreError(f"{out}: there is something already; choose another --out")


def _outcome(record: dict[str, Any]) -> Outcome:
    return Outcome(
        [StepResult(**step) for step in record["steps"]],
        record["examples"],
        record["teacher_examples"],
        record["policy_version"],
    )


def _same_settings(config: Config, begun: dict[str, Any] | None, work: Path) -> Config:
    """Return the settings to go on with; what prompts show as the time was settled at the start.

    Raises:
        ConfigError: it was begun with others.
    """
    if begun is None:
        return config
    if config.model.prompt_time is None and (time := begun["config"]["model"].get("prompt_time")):
        model = config.model.model_copy(update={"prompt_time": time})
        config = config.model_copy(update={"model": model})
    before, now = flat(begun["config"]), flat(config.recorded())
    differing = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
    if differing:
        changes = "; ".join(f"{k} is {before.get(k)}, not {now.get(k)}" for k in differing)
        raise ConfigError(
            f"{work} was begun with other settings: {changes}; remove it, or choose another --out"
        )
    return config


def _opened(
    config: Config, questions: Questions, work: Path
) -> tuple[int, list[StepResult], Policy]:
    """Return the newest state: steps done, their results, and the policy after them."""
    states = sorted(folder for folder in work.glob("[0-9]" * 6) if folder.is_dir())
    if not states:
        route = config.route.model_copy(update=_route_without_teacher())
        return 0, [], initial_policy(config.model_copy(update={"route": route}), questions)
    steps = read_sealed(states[-1].with_suffix(".json"))["steps"]
    policy = load_snapshot(states[-1], config.model, _NO_TEACHER)
    return len(steps), [StepResult(**step) for step in steps], policy


def _route_without_teacher() -> dict[str, Any]:
    return {
        "teacher": _NO_TEACHER.kind,
        "teacher_rate": _NO_TEACHER.rate,
        "trust_region_mix": _NO_TEACHER.mix,
    }


def _save(policy: Policy, work: Path, steps_done: int, results: Sequence[StepResult]) -> None:
    """Keep the state after so many steps, then drop the one before it."""
    state = work / f"{steps_done:06d}"
    former = [path for path in work.glob("[0-9]" * 6) if path != state]
    # First the losses: a state that is there has them.
    write_sealed(state.with_suffix(".json"), {"steps": [r._asdict() for r in results]})
    save_snapshot(policy, state, steps_done)
    for folder in former:
        remove_folder(folder)
        remove_file(folder.with_suffix(".json"))


def _facts(config: Config, policy: Policy, examples: Sequence[Example]) -> dict[str, Any]:
    """Return what a warm start's bytes follow from, as its record has it."""
    learned = [[e.task, e.question.prompt_id, e.taught, *e.sequence] for e in examples]
    taught = [e for e in examples if e.taught]
    return {
        **surroundings(policy),
        "config": config.recorded(),
        "task_digest": code_digest(config),
        "examples": len(examples),
        "examples_digest": digest_of(learned),
        "teacher_examples": len(taught),
        "teacher_examples_with_other_words": sum(
            e.question.demonstration not in (None, e.question.solution) for e in taught
        ),
        "stop_token": policy.stops.closing,
        "initial_policy_version": policy.initial_version,
        **({"base_sha256": policy.base.sha256} if policy.base is not None else {}),
    }


def _expect_same(facts: dict[str, Any], begun: dict[str, Any], work: Path) -> None:
    """Refuse to go on where the same bytes can't come out."""
    differing = [name for name, value in facts.items() if begun.get(name) != value]
    if differing:
        raise StoreError(
            f"{work} was begun with other {', '.join(differing)} (see {BEGUN} there); remove it to "
            "begin anew, or choose another --out"
        )


def _write(
    policy: Policy, out: Path, facts: dict[str, Any], results: Sequence[StepResult]
) -> dict[str, Any]:
    """Write the policy with its record as a folder that appears whole; return the record."""
    with folder_with_tokenizer(policy, out) as folder:
        write_weights(policy, folder)
        record = {
            **facts,
            "policy_version": policy.version,
            "steps": [result._asdict() for result in results],
            "sha256": {path.name: file_digest(path) for path in sorted(folder.iterdir())},
        }
        return write_sealed(folder / RECORD, record)
