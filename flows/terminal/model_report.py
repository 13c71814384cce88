"""What srpo makes of a model: its prompt, what ends a response, its tokenizer, what is packed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.session.new_run import initial_policy
from flows.session.question_loading import load_questions
from flows.session.questions import Questions
from pipeline.config.load import apply_override, validate_config
from pipeline.config.sections import Config
from pipeline.errors import ConfigError, PolicyError
from pipeline.policy.gguf_model import gguf_source
from pipeline.policy.model_folder import gguf_file
from pipeline.policy.policy import Policy
from pipeline.policy.tokenizer_loading import PROBE
from pipeline.remote.mirror_sync import is_run
from pipeline.task import Message
from pipeline.text import printable

ASKED = (Message("system", "Answer briefly."), Message("user", "What is two plus two?"))
"""The conversation whose prompt is shown."""

FINE, NOTE, BAD = "ok", "note", "!!"
Row = tuple[str, str, str]
"""What was looked at, what was found, and whether that is fine."""


def print_model_report(console: Console, path: str, overrides: Sequence[str]) -> bool:
    """Print the report; return whether the model can be used as it is.

    Args:
        overrides: settings, of which those of section `model` matter.

    Raises:
        SrpoError: the model can't be opened, or a setting can't be used.
    """
    if is_run(Path(path)):
        raise ConfigError(f"{path} is a run, not a model: give a snapshot, {path}/policy/000000")
    config = _config(path, overrides)
    policy = initial_policy(config, _texts_of_random(config))
    rows = [*_rows(policy, config)]
    table = Table(show_header=False, box=None)
    for name, found, mark in rows:
        table.add_row(Text("!!", style="red") if mark == BAD else mark, Text(name), Text(found))
    console.print(table, highlight=False)
    try:
        asked = _accepted(policy)
        text = policy.render(asked)[0]
    except PolicyError:
        return False
    roles = ", ".join(message.role for message in asked)
    console.print(f"\nThe prompt of turns of {roles}, to its end (|):", highlight=False)
    console.print(printable(text, newlines=True) + "|", markup=False, highlight=False)
    return all(mark != BAD for _, _, mark in rows)


def _config(path: str, overrides: Sequence[str]) -> Config:
    values: dict[str, Any] = {
        "data": {"task": "arithmetic"},  # whose texts a random model is made for
        "run": {"steps": 1},
        "model": {"path": path},
        "route": {"teacher": "live"},  # no copy of the weights
    }
    for override in overrides:
        apply_override(values, override)
    return validate_config(values, "--set")


def _texts_of_random(config: Config) -> Questions:
    return load_questions(config) if config.model.path == "random" else Questions({})


def _rows(policy: Policy, config: Config) -> Iterator[Row]:
    model = policy.model
    parameters = sum(p.numel() for p in model.parameters())
    positions = getattr(model.config, "max_position_embeddings", None)
    yield (
        "model",
        f"{type(model).__name__}, {parameters:,} parameters, {policy.vocabulary:,} logits, "
        f"{positions or 'unknown'} positions, on {policy.device}",
        FINE,
    )
    yield "opened from", _origin(config.model.path, Path(model.name_or_path)), FINE
    if policy.lora is not None:
        yield "trained", f"{policy.trained_part}; the rest in {config.model.base_dtype}", FINE
    prompt = [*_prompt_rows(policy, config)]
    yield from prompt
    yield "stop tokens", policy.stops.line, FINE
    if policy.stops.note and prompt[-1][2] != BAD:  # else it has the same cause
        yield "stop tokens", f"{policy.stops.note}: no stop token from there", NOTE
    yield from _file_rows(policy)
    why = policy.unshared
    yield (
        "packed",
        f"no, same results, only slower: {why}" if why else _PACKED,
        NOTE if why else FINE,
    )


_PACKED = "a group's prompt is encoded once, and responses share rows without padding"


def _origin(path: str, folder: Path) -> str:
    """Say which folder was opened, and of which GGUF file it was made, if of any."""
    file = gguf_file(path)
    if file is None:
        return f"{folder}"
    source = gguf_source(folder)
    types = ", ".join(f"{count} {name}" for name, count in source["types"].items())
    return (
        f"the GGUF file {file} (SHA-256 {source['sha256'][:16]}…; tensors: {types}), in float32 "
        f"in {folder}"
    )


def _prompt_rows(policy: Policy, config: Config) -> Iterator[Row]:
    prompts = policy.prompts
    name = config.model.chat_template
    yield (
        "chat template",
        f"{len(prompts.template):,} characters{f', {name}' if name else ''}",
        FINE,
    )
    try:
        asked = _accepted(policy)
        text, ids = policy.render(asked)
    except PolicyError as error:
        yield "prompt", str(error), BAD
        return
    if len(asked) < len(ASKED):
        yield "system turn", _refusal(policy), NOTE
    elif config.model.system_role == "fold":
        yield "system turn", "its text goes before the user's (model.system_role = fold)", FINE
    if prompts.takes_time:
        yield "time", f"the template asks for it: {prompts.time} for the whole run", FINE
    if prompts.thinks:
        opened = "the prompt opens" if prompts.opens_thinking(text) else "a response may open"
        yield "thinking", f"{opened} a think block; unclosed, it is no answer", FINE
    yield "prompt", f"{len(ids)} tokens, shown below", FINE


def _accepted(policy: Policy) -> Sequence[Message]:
    """Return the conversation to show: without its system turn, where the template has none."""
    try:
        policy.render(ASKED)
    except PolicyError:
        policy.render(ASKED[1:])
        return ASKED[1:]
    return ASKED


def _refusal(policy: Policy) -> str:
    try:
        policy.render(ASKED)
    except PolicyError as error:
        return str(error)
    return ""


def _file_rows(policy: Policy) -> Iterator[Row]:
    size, notes = f"{len(policy.tokenizer):,} tokens", policy.notes
    exact = not any("tokenizer" in note for note in notes)
    back = f"{len(PROBE)} characters of all kinds come back exactly"
    yield "tokenizer", f"{size}; {back}" if exact else size, FINE
    for note in notes:
        yield "model", note, NOTE
