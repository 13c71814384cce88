"""Prompts: conversations through a tokenizer's chat template, the same at every rendering.

A template is somebody else's program. What it could take from outside the record is fixed here: the
time (`model.prompt_time`, which a run's start settles) and chance.
"""

import random
import re
from calendar import timegm
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from jinja2 import TemplateError

from pipeline.config.sections import ModelSection
from pipeline.errors import PolicyError
from pipeline.task import Message
from pipeline.text import printable
from pipeline.thinking import CLOSE, OPEN, OTHER_TAGS, opens_thinking, template_thinks

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
ASKED, ANSWERED = "zqaskedzq", "zqansweredzq"
"""Texts of turns that are rendered to see what a template does."""
_CLOSED = re.compile(rf"{OPEN}\s*{CLOSE}\s*$")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]{4,}>")
_EPOCH = re.compile(r"(?<!%)((?:%%)*)%s")
_FOLD = 'set model.system_role = "fold", which puts the system text before the user\'s'


class Prompts:
    """A tokenizer's chat template under the settings of a run.

    Attributes:
        tokenizer: whose template it is.
        time: what templates take for now: local, without a zone.
    """

    def __init__(self, tokenizer: Any, settings: ModelSection) -> None:
        self.tokenizer, self._settings = tokenizer, settings
        self.time = prompt_time(settings)
        self._lost: dict[tuple[str, ...], list[str]] = {}
        self._headers: dict[str, str] = {}

    @property
    def template(self) -> str:
        """Return the template's text."""
        return str(self.tokenizer.chat_template)

    @property
    def thinks(self) -> bool:
        """Tell whether the template knows of think blocks."""
        return template_thinks(self.template)

    @property
    def takes_time(self) -> bool:
        """Tell whether the template may ask for the time."""
        return "strftime_now" in self.template

    @property
    def header(self) -> str:
        """Return what opens an answer; empty if the template has nothing, or fails on a word."""
        if self.template not in self._headers:
            asked = [Message(USER, ASKED)]
            try:
                without, opened = (self.text(asked, header=header) for header in (False, True))
            except Exception:  # of somebody else's program
                without = opened = ""
            found = opened.removeprefix(without) if opened.startswith(without) else ""
            self._headers[self.template] = found
        return self._headers[self.template]

    def opens_thinking(self, prompt: str) -> bool:
        """Tell whether a rendered prompt ends inside a think block; words may stand in it already.

        Tags in the turns open none, only those of the header for the answer.
        """
        return opens_thinking(prompt, self.header if prompt.endswith(self.header) else "")

    def notes(self) -> list[str]:
        """Say what of the settings and of its own turns a template makes nothing of."""
        known = set(re.findall(r"\w+", self.template))
        unused = [name for name in self._settings.chat_template_kwargs if name not in known]
        found = []
        if unused:
            names = printable(", ".join(unused), 100)
            found.append(f"the chat template knows no {names} (model.chat_template_kwargs)")
        if missing := self._missing_header():
            found.append(
                f"the chat template opens an answer without {printable(repr(missing), 60)}, which "
                "stands before other answers: responses have to write it"
            )
        found += [
            f"the chat template has {tag}: only what is between {OPEN} and {CLOSE} is thinking here"
            for tag in OTHER_TAGS
            if tag in self.template and not self.thinks
        ]
        return found

    def _missing_header(self) -> str:
        """Return what stands before an assistant's text in a conversation, not in a prompt."""
        asked = [Message(USER, ASKED)]
        try:
            prompt = self.text(asked, header=True)
            whole = self.text([*asked, Message(ASSISTANT, ANSWERED)], header=False)
        except Exception:  # of somebody else's program: rendering a prompt says it
            return ""
        before = _CLOSED.sub("", whole.rpartition(ANSWERED)[0]).rstrip()
        opened = prompt.rstrip()
        return before.removeprefix(opened).strip() if before.startswith(opened) else ""

    def render(self, messages: Sequence[Message]) -> tuple[str, list[int]]:
        """Return the prompt text and ids: the chat template with its header for the answer.

        Raises:
            PolicyError: the template refuses the conversation, fails, or leaves a turn out.
        """
        turns = self._folded(messages)
        text = self._checked(turns, messages)
        return text, encode_prompt(self.tokenizer, text)

    def text(self, messages: Sequence[Message], header: bool) -> str:
        """Return what the template makes of a conversation, just so.

        Args:
            header: with the header for the answer.

        Raises:
            Exception: whatever the template raises.
        """
        turns = [message._asdict() for message in messages]
        settings = {**self._settings.chat_template_kwargs, "strftime_now": strftime_at(self.time)}
        with _fixed_chance():
            made = self.tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=header, **settings
            )
        return str(made)

    def lost_turns(self, roles: Sequence[str]) -> list[str]:
        """Return the roles whose texts a conversation of such roles loses in the template.

        Tried with a word for each turn, so that it doesn't depend on what a template does to texts.
        """
        key = (self.template, *roles)
        if key not in self._lost:
            words = [f"zq{role}{index}zq" for index, role in enumerate(roles)]
            turns = [Message(role, word) for role, word in zip(roles, words, strict=True)]
            try:
                text = self.text(turns, header=True).casefold()
            except Exception:  # of a template, for words that are not those of a conversation
                text = " ".join(words).casefold()
            lost = {r: w for r, w in zip(roles, words, strict=True) if w.casefold() not in text}
            self._lost[key] = list(lost)
        return self._lost[key]

    def _folded(self, messages: Sequence[Message]) -> list[Message]:
        return folded(messages) if self._settings.system_role == "fold" else list(messages)

    def _checked(self, turns: Sequence[Message], messages: Sequence[Message]) -> str:
        roles = [turn.role for turn in turns]
        named = ", ".join(roles)
        try:
            text = self.text(turns, header=True)
        except Exception as error:  # of somebody else's program
            verb = "refuses" if type(error) is TemplateError else "fails on"
            kind = "" if type(error) is TemplateError else f"{type(error).__name__}: "
            reason = kind + printable(" ".join(str(error).split()), 300)
            raise PolicyError(
                f"the chat template {verb} turns of {named}: {reason}{self._advice(turns)}"
            ) from None
        if lost := self.lost_turns(roles):
            advice = f"; {_FOLD}" if lost == [SYSTEM] else "; it needs another template"
            raise PolicyError(
                f"the chat template leaves out the {' and the '.join(lost)} turn of a conversation "
                f"of {named}{advice}"
            )
        if _ADDRESS.search(text) and not any(_ADDRESS.search(m.content) for m in messages):
            raise PolicyError(
                "the chat template prints an object with its address in memory, another one in "
                "every process; it needs another template"
            )
        return text

    def _advice(self, turns: Sequence[Message]) -> str:
        """Name the setting that helps, if it does."""
        if not any(turn.role == SYSTEM for turn in turns):
            return ""
        try:
            self.text(folded(turns), header=True)
        except Exception:  # of somebody else's program: then it was not the system turn
            return ""
        return f"; {_FOLD}"


def prompt_time(settings: ModelSection) -> datetime:
    """Return what templates take for now: the time that is set, else this second."""
    given = settings.prompt_time
    return datetime.fromisoformat(given) if given else datetime.now().replace(microsecond=0)


def strftime_at(time: datetime) -> Callable[[str], str]:
    """Return a `strftime_now` that always finds the same time, on any machine.

    The seconds since 1970 (`%s`) would depend on the machine's zone; here the time is UTC's.
    """
    epoch = str(timegm(time.timetuple()))
    return lambda form: time.strftime(_EPOCH.sub(rf"\g<1>{epoch}", form))


def folded(messages: Sequence[Message]) -> list[Message]:
    """Put the text of each system turn before the next user's, an empty line between them.

    A blank one is left out.

    Raises:
        PolicyError: no turn of a user follows.
    """
    turns, waiting = [], []
    for message in messages:
        if message.role == SYSTEM:
            waiting += [message.content] if message.content.strip() else []
        elif message.role == USER:
            turns.append(Message(USER, "\n\n".join([*waiting, message.content])))
            waiting = []
        else:
            turns.append(message)
    if waiting:
        raise PolicyError(
            'model.system_role is "fold", but no user turn follows the system turn it would go into'
        )
    return turns


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a rendered prompt; nothing is added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def special_tags(tokenizer: Any) -> dict[int, str]:
    """Return the tags of think blocks that are special tokens, by id: decoding would drop them."""
    added = tokenizer.added_tokens_decoder.items()
    return {i: str(t) for i, t in added if t.special and str(t) in (OPEN, CLOSE)}


@contextmanager
def _fixed_chance() -> Iterator[None]:
    """Have a template draw the same at every rendering (`random`, `lipsum`), and nobody notice."""
    state = random.getstate()
    random.seed(0)
    try:
        yield
    finally:
        random.setstate(state)
